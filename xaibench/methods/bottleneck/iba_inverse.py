"""Inverse information bottleneck attribution: everything that would be missed."""

from dataclasses import dataclass

from ._bottleneck import InverseBottleneck
from .iba import IBA


@dataclass(kw_only=True, eq=False)
class IBAInverse(IBA):
    """The deletion game of IBA (Khakzar 2022, chapter 8, eq. 4): min beta L_I - CE(lambda E + (1 - lambda) R).

    IBA keeps one of two redundant regions, since one is enough; this marks both, since removing either leaves the
    other. L_I is still the information of the ordinary Z. The loss has no lower bound: with a small beta lambda goes
    to 1 wherever it helps, and only the number of steps ends it.

    Parameters as for `IBA`; beta 30 is the released code's (its notebooks sweep 0.5 to 12; the thesis states none).
    With `maximisation` the output is driven down: +y^2 is minimised.
    """

    beta: float = 30.0

    kind = InverseBottleneck
    sign = -1.0
