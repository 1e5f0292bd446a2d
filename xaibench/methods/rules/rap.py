"""Relative attributing propagation: relevance by the size of contributions, below zero for what is unimportant."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch

from ...errors import one_of
from ...models.classifier import Classifier
from ...models.tracing.steps import Affine, Convolution, Rule, Scale, Step, Tensors
from ..context import Context
from ._modified_backprop import ModifiedBackprop, Start, last_layer, refuse_probability, target_alone
from .lrp import image_box
from .rules import AffineRule, AlphaBeta, Composite, Epsilon, Square, passed_on, sides, total

First = Literal["image_box", "square", "same"]
Negative = Literal["alike", "by_negative"]


class RAP(ModifiedBackprop):
    """Relative attributing propagation (Nam et al. 2020): [B,C,H,W], signed; a map sums to the explained logit.

    Of the last layer with weights, inputs get the absolute value of their contribution to the logit, scaled such that
    the total stays: what speaks against is as relevant as what speaks for. All other affine steps have the rule
    `Relative`, average pooling and sums included. Activations pass relevance on, maximum pooling to the largest value;
    batch normalisation is folded where it can be, and otherwise passes on what it gets. Biases get nothing.

    The paper leaves choices to its released code, which this follows where it says so:
    first: of the layer that reads the input. `image_box`, z-box between the least and the largest value of the image
        (released code); `square` (w-squared); or `same`, the rule of all others.
    start: the `logit` (released code: contributions to the logit of the class), or `one`, its share.
    negative: how convolutions hand down relevance below 0. `alike`, as that above 0 (the paper, eq. 6, and the released
        code's linear layers); `by_negative`, by their negative contributions alone (the released code's convolutions:
        github.com/wjNam/Relative_Attributing_Propagation, modules/layers.py, `Conv2d.RAP_relprop`).
    Raises ValueError for another word.
    """

    start: Start

    def __init__(self, first: First = "image_box", start: Start = "logit", negative: Negative = "alike") -> None:
        self.first, self.start = one_of("first", first, get_args(First)), one_of("start", start, get_args(Start))
        self.negative = one_of("negative", negative, get_args(Negative))

    def check(self, classifier: Classifier) -> None:
        refuse_probability(classifier, "relative attributing propagation")
        super().check(classifier)
        last_layer(classifier)

    def rules(self, classifier: Classifier, inputs: torch.Tensor, context: Context) -> Callable[[Step], Rule]:
        last = last_layer(classifier)
        first: AffineRule | None = None
        if self.first == "square":
            first = Square()
        if self.first == "image_box":
            first = image_box(inputs)
        special: dict[type[Step], Rule] = {}
        if self.negative == "by_negative":
            special[Convolution] = Relative(by_negative=True)
        below = Composite(Relative(), passed_on, first=first, special=special)
        return lambda step: by_magnitude if step is last else below(step)

    def initial(self, classifier: Classifier, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return target_alone(logits, targets, self.start)


def by_magnitude(step: Affine, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
    """|R_i| sum(R) / sum(|R|), per sample, of LRP's relevance R_i = w_i x_i / sum_i (w_i x_i) R."""
    (shares,) = Epsilon(0.0, bias="dropped")(step, inputs, output, signal)
    sizes = _summed(shares.abs())
    share = _summed(shares) / torch.where(sizes == 0, 1, sizes)
    return (shares.abs() * share.view(-1, *[1] * (shares.dim() - 1)),)


@dataclass(frozen=True)
class Relative(AffineRule):
    """What a neuron passes on goes to its inputs in proportion to their positive contributions z+, and once more, in
    the share |z-| / (z+ + |z-|), in proportion to the sizes of the negative ones. What that adds to the total is then
    taken off all inputs that got something, the same from each: the least important end below zero, and the total is
    conserved, sample by sample.

    by_negative: whether relevance below 0 goes in proportion to the sizes of the negative contributions instead.
    """

    by_negative: bool = False

    def __call__(self, step: Affine, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        if isinstance(step, Scale):
            return (signal,)
        up = total(step, sides(inputs, step.weight.clamp(min=0), step.weight.clamp(max=0)))
        down = (up - (output if step.bias is None else output - step.bias)).clamp(min=0)
        against = signal * down / torch.where(up + down > 0, up + down, 1)
        along = signal
        if self.by_negative:
            along, against = signal.clamp(min=0), against + signal.clamp(max=0)
        rising, falling = AlphaBeta(1, 0)(step, inputs, output, along), AlphaBeta(0, -1)(step, inputs, output, against)
        got = [one + other for one, other in zip(rising, falling)]
        added = cast(torch.Tensor, sum(_summed(one) for one in got)) - _summed(signal)
        reached = cast(torch.Tensor, sum(_summed(one != 0) for one in got))
        share = added / torch.where(reached == 0, 1, reached)
        return tuple(one - (one != 0) * share.view(-1, *[1] * (one.dim() - 1)) for one in got)


def _summed(values: torch.Tensor) -> torch.Tensor:
    """[B], the sum of each sample's values [B,...]."""
    return values.flatten(1).sum(1)
