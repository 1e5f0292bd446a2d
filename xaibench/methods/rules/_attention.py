"""Rules of layer-wise relevance propagation for products, softmax and normalisation: attention and gates."""

from dataclasses import dataclass
from typing import Literal

import torch

from ...models.tracing.steps import Normalisation, Product, Rule, Signals, Softmax, Tensors
from .rules import Epsilon, divided

AttentionName = Literal["attnlrp", "conservative"]


@dataclass(frozen=True)
class Factors:
    """The rule of a product o of x and y.

    attention: `attnlrp`, both get half of the relevance, in proportion to their contributions: of
        o_jp = sum_i x_ji y_ip R(x_ji) = sum_p x_ji y_ip / (2 o_jp + epsilon sign(o_jp)) R_jp, and R(y_ip) likewise; of
        a product element by element R / 2 (Achtibat et al. 2024, propositions 3.2 and 3.3). `conservative`, a gate
        (attention behind its softmax, a sigmoid) is a weight and gets nothing, what it lets through gets all (Ali et
        al. 2022, eq. 8); where neither is a gate both get half. What divides gets nothing by either.
    epsilon: at least 0, in the denominators of matrix products.
    """

    attention: AttentionName
    epsilon: float

    def __call__(self, step: Product, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Signals:
        gate = step.gate if step.divides or self.attention == "conservative" else None
        served = [which for which in (0, 1) if which != gate]
        if step.elementwise:
            shares = signal / len(served)
            return [shares.sum_to_size(x.shape) if which in served else None for which, x in enumerate(inputs)]
        share = divided(signal, output * len(served), self.epsilon)
        return [
            x * step.transposed(share, inputs, which) if which in served else None for which, x in enumerate(inputs)
        ]


def of_softmax(step: Softmax, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
    """The Taylor expansion of a softmax s at its input: R_i = x_i (R'_i - s_i sum_j R'_j) (Achtibat et al. 2024,
    proposition 3.1). Not conserving: what the expansion has at 0 stays behind."""
    x = torch.where(inputs[0] == -torch.inf, 0, inputs[0])  # places that a mask has closed
    return (x * (signal - output * signal.sum(step.dim, keepdim=True)),)


def held(rule: Epsilon) -> Rule:
    """The rule of a normalisation: that of the affine layer which it is with its deviation held, as Ali et al. 2022,
    eq. 9, and Achtibat et al. 2024, proposition 3.4, both have it."""

    def of_normalisation(step: Normalisation, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        return rule(step.held(inputs[0]), inputs, output, signal)

    return of_normalisation
