"""Inverse information bottleneck attribution: everything that would be missed."""

from typing import Literal

from ._bottleneck import LAYER, InverseBottleneck, Loss
from .iba import IBA


class IBAInverse(IBA):
    """The deletion game of IBA (Khakzar 2022, chapter 8, eq. 4): min beta L_I - CE(lambda E + (1 - lambda) R).

    IBA keeps one of two redundant regions, since one is enough; this marks both, since removing either leaves the
    other. L_I is still the information of the ordinary Z. The loss has no lower bound: with a small beta lambda goes
    to 1 wherever it helps, and only the number of steps ends it.

    Parameters as for `IBA`; beta 30 is the released code's (its notebooks sweep 0.5 to 12; the thesis states none).
    With `maximisation` the output is driven down: +y^2 is minimised.
    """

    kind = InverseBottleneck
    sign = -1.0

    def __init__(
        self,
        layer: str = LAYER,
        beta: float = 30.0,
        steps: int = 10,
        learning_rate: float = 1.0,
        copies: int = 10,
        smoothing: float = 1.0,
        initial: float = 5.0,
        min_std: float = 0.01,
        min_active: float = 0.01,
        channels: Literal["sum", "max"] = "sum",
        loss: Loss = "cross_entropy",
        value: float | None = None,
    ) -> None:
        super().__init__(
            layer,
            beta,
            steps,
            learning_rate,
            copies,
            smoothing,
            initial,
            min_std,
            min_active,
            channels,
            loss,
            value,
        )
