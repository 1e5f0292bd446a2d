"""The rules of modified backpropagation: what a layer passes back instead of its derivative.

A rule is called with a step of `models.tracing`, its inputs, its output and the signal at its output, and returns the
signal at each input. Those of affine steps are linear in the signal, negative signals included.

x are the inputs, w the weights of one output, w+ and w- their positive and negative parts, b the bias, and
z = sum_i w_i x_i + b. An output whose denominator is 0 has nothing to distribute to, and passes nothing on.

`bias` says what becomes of b in the denominator: `kept` (its share is not passed on, so that relevance is lost to it)
or `dropped` (relevance is conserved).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import torch

from ...errors import one_of
from ...models.tracing.steps import Activation, Affine, Rule, Scale, Step, Tensors, derivative

Bias = Literal["kept", "dropped"]


class AffineRule(ABC):
    """A rule for affine steps. version: bumped when its numbers change; part of the key of the method that uses it."""

    version: int = 1

    @property
    def bias_kept(self) -> Bias:
        """What the rule does with biases, as a word of LRP-epsilon's."""
        return "dropped" if getattr(self, "bias", "dropped") == "dropped" else "kept"

    @abstractmethod
    def __call__(self, step: Affine, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        """Signals at the inputs."""


class Epsilon(AffineRule):
    """LRP-epsilon (Bach et al. 2015, eq. 58): R_i = w_i x_i / (z + epsilon sign(z)) R. With epsilon 0, LRP-z.

    epsilon: at least 0; takes relevance from small denominators. bias: `kept` or `dropped`, see the
        module. Raises ValueError otherwise.
    """

    def __init__(self, epsilon: float = 1e-6, bias: Bias = "kept") -> None:
        if epsilon < 0:
            raise ValueError(f"epsilon={epsilon}: expected 0 or more")
        self.epsilon, self.bias = epsilon, one_of("bias", bias, get_args(Bias))

    def __call__(self, step: Affine, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        z = output if self.bias == "kept" or step.bias is None else output - step.bias
        return _times(inputs, step.transposed(divided(signal, z, self.epsilon), step.weight, inputs))


class Gamma(AffineRule):
    """LRP-gamma: contributions that point where the output does count 1 + gamma times. gamma: at least 0.

    form: `generalised`, for inputs of both signs (Andeol et al. 2021; zennit's): an output above 0 hands its relevance
        to w x + gamma (w x)+, one below 0 to w x + gamma (w x)-. The denominator is their sum: no smaller than the
        output, so that no share explodes. `original` (Montavon et al. 2019): w + gamma w+ in place of w, whatever the
        signs, which is the same for inputs of 0 and more and outputs above 0. Elsewhere it is not made for: negative
        inputs under favoured positive weights cancel the denominator, and maps of a billion come out.
    bias: as above, or `scaled` (b + gamma b+ in the denominator, b- for an output below 0: zennit's definition;
        Captum's is `original` and `kept`).

    For gamma to infinity this is the z+ rule, for outputs above 0.
    """

    version = 2

    def __init__(
        self,
        gamma: float = 0.25,
        bias: Literal["kept", "dropped", "scaled"] = "kept",
        form: Literal["generalised", "original"] = "generalised",
    ) -> None:
        if gamma < 0:
            raise ValueError(f"gamma={gamma}: expected 0 or more")
        self.gamma, self.bias = gamma, one_of("bias", bias, ("kept", "dropped", "scaled"))
        self.form = one_of("form", form, ("generalised", "original"))

    def __call__(self, step: Affine, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        if self.form == "generalised" and any(bool(x.amin() < 0) for x in inputs):
            return self._signed(step, inputs, output, signal)
        up, down = (step.weight + self.gamma * step.weight.clamp(**side) for side in ({"min": 0}, {"max": 0}))
        if self.form == "original":
            z, bias = step.linear(inputs, up), self._bias(step, min=0)
            return _times(inputs, step.transposed(divided(signal, z if bias is None else z + bias), up, inputs))
        shares = [torch.zeros_like(x) for x in inputs]
        for here, same, other, side in ((output > 0, up, down, {"min": 0}), (output < 0, down, up, {"max": 0})):
            arriving = torch.where(here, signal, 0)
            if arriving.any():
                parts = _contributions(step, inputs, arriving, same, other, self._bias(step, **side))
                shares = [share + part for share, part in zip(shares, parts)]
        return tuple(shares)

    def _signed(self, step: Affine, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        """The generalised form for inputs of both signs, in three products with weights where its parts take eight:
        2 (w x)+ = w x + |w| |x| and 2 (w x)- = w x - |w| |x|."""
        half, way, sizes = self.gamma / 2, output.sign(), tuple(x.abs() for x in inputs)
        weight_sizes = step.weight.abs()  # of a large layer and few inputs as dear as a product with it
        # In place where it can be: elementwise work on small layers costs more than the three products.
        z = (output if step.bias is None else output - step.bias) * (1 + half)
        z.addcmul_(way, step.linear(sizes, weight_sizes), value=half)
        over, under = self._bias(step, min=0), self._bias(step, max=0)
        if over is not None and under is not None:
            z += over if over is under else torch.where(output > 0, over, under)
        turned = way * divided(signal, z)
        favoured = step.transposed(turned, weight_sizes, inputs)
        along = step.transposed(way * turned, step.weight, inputs)
        return tuple(
            (x * one).mul_(1 + half).addcmul_(size, other, value=half)
            for x, size, one, other in zip(inputs, sizes, along, favoured)
        )

    def _bias(self, step: Affine, **side: float) -> torch.Tensor | None:
        """The part of the bias in the denominator."""
        if step.bias is None or self.bias == "dropped":
            return None
        return step.bias + self.gamma * step.bias.clamp(**side) if self.bias == "scaled" else step.bias


class AlphaBeta(AffineRule):
    """LRP-alpha-beta (Bach et al. 2015, eq. 60): R_i = (alpha (w_i x_i)+ / z+ - beta (w_i x_i)- / z-) R.

    z+ = sum_i (w_i x_i)+ [+ b+] and z- = sum_i (w_i x_i)- [+ b-]: the sign of a contribution counts, not of a weight
    alone, so that negative inputs are right too. alpha - beta = 1. (1, 0) is the z+ rule, that of excitation
    backpropagation and of deep Taylor decomposition. A `Scale` has one contribution to each output, which gets all of
    its relevance, whatever the sign. Raises ValueError for another pair, alpha below 0 or epsilon below 0.

    alpha: of the positive contributions. beta: of the negative ones; None is alpha - 1, so that a sweep moves both.
    bias: `kept` or `dropped`, see the module. epsilon: moves both denominators away from 0, z+ + epsilon and
        z- - epsilon, and takes their relevance (Sixt 2022, table 3.1: alpha 0, beta -1, epsilon 5).
    """

    added: Mapping[str, Any] = {"epsilon": 0.0}

    def __init__(
        self, alpha: float = 1.0, beta: float | None = 0.0, bias: Bias = "dropped", epsilon: float = 0.0
    ) -> None:
        beta = alpha - 1 if beta is None else beta
        if abs(alpha - beta - 1) > 1e-9 or alpha < 0:
            raise ValueError(
                f"alpha={alpha} beta={beta}: expected alpha - beta = 1 and alpha of 0 or more, such as 2 and 1 "
                "(beta=null is alpha - 1)"
            )
        if epsilon < 0:
            raise ValueError(f"epsilon={epsilon}: expected 0 or more")
        self.alpha, self.beta, self.epsilon = alpha, beta, epsilon
        self.bias = one_of("bias", bias, get_args(Bias))

    def __call__(self, step: Affine, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        if isinstance(step, Scale):
            return (signal,)
        positive, negative = step.weight.clamp(min=0), step.weight.clamp(max=0)
        shares = [torch.zeros_like(x) for x in inputs]
        for factor, same, other, side, away in (
            (self.alpha, positive, negative, {"min": 0}, self.epsilon),
            (-self.beta, negative, positive, {"max": 0}, -self.epsilon),
        ):
            if factor == 0:
                continue
            bias = None if self.bias == "dropped" or step.bias is None else step.bias.clamp(**side)
            parts = _contributions(step, inputs, signal * factor, same, other, bias, away)
            shares = [share + part for share, part in zip(shares, parts)]
        return tuple(shares)


class Square(AffineRule):
    """The w-squared rule (Montavon et al. 2017, eq. 12): R_i = w_i^2 / sum_i w_i^2 R. The inputs do not matter."""

    def __call__(self, step: Affine, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        return _by_weights(step, inputs, signal, step.weight.square())


class Flat(AffineRule):
    """The flat rule (Lapuschkin et al. 2019): every input that an output reads gets the same share of its relevance."""

    def __call__(self, step: Affine, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        return _by_weights(step, inputs, signal, torch.ones_like(step.weight))


@dataclass(frozen=True)
class Box(AffineRule):
    """The z-box rule (Montavon et al. 2017, eq. 16), for inputs between bounds low and high (broadcastable to them):
    R_i = (w_i x_i - w+_i low_i - w-_i high_i) / sum of these R."""

    low: torch.Tensor
    high: torch.Tensor

    def __call__(self, step: Affine, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        positive, negative = step.weight.clamp(min=0), step.weight.clamp(max=0)
        terms = [
            (inputs, step.weight, 1),
            (tuple(self.low.expand_as(x) for x in inputs), positive, -1),
            (tuple(self.high.expand_as(x) for x in inputs), negative, -1),
        ]
        z = cast(torch.Tensor, sum(sign * step.linear(values, weight) for values, weight, sign in terms))
        share = divided(signal, z)
        parts = [_times(values, step.transposed(share * sign, weight, inputs)) for values, weight, sign in terms]
        return tuple(sum(of_input) for of_input in zip(*parts))


def passed_on(step: Step, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
    """The rule of LRP and its relatives for activations: the relevance of the output is that of the input."""
    return (signal,)


@dataclass(frozen=True)
class Composite:
    """Which rule each step gets; the default is a gradient throughout.

    affine: for every affine step. activation: for activations. Routes pass the signal along their paths.
    first: for the affine steps that read the input itself, special: for steps of a kind, each if other than these.
    """

    affine: Rule = derivative
    activation: Rule = derivative
    first: Rule | None = None
    special: Mapping[type[Step], Rule] = field(default_factory=dict)

    def __call__(self, step: Step) -> Rule:
        if self.first is not None and isinstance(step, Affine) and 0 in step.sources:
            return self.first
        if type(step) in self.special:
            return self.special[type(step)]
        if isinstance(step, Affine):
            return self.affine
        return self.activation if isinstance(step, Activation) else derivative


def _contributions(
    step: Affine,
    inputs: Tensors,
    signal: torch.Tensor,
    same: torch.Tensor,
    other: torch.Tensor,
    bias: torch.Tensor | None,
    epsilon: float = 0.0,
) -> Tensors:
    """The signal, shared among the contributions of one sign, see `sides`; their sum and the bias are moved by
    epsilon."""
    parts = sides(inputs, same, other)
    z = total(step, parts)
    share = divided(signal, (z if bias is None else z + bias) + epsilon)
    shares = [_times(values, step.transposed(share, weight, inputs)) for values, weight in parts]
    return tuple(sum(of_input) for of_input in zip(*shares))


def sides(inputs: Tensors, same: torch.Tensor, other: torch.Tensor) -> list[tuple[Tensors, torch.Tensor]]:
    """Contributions of one sign, as values and their weights: those of inputs above 0 by the weights `same`, and those
    of inputs below 0 by the weights `other`."""
    found = [(tuple(x.clamp(min=0) for x in inputs), same)]
    # Behind a ReLU nothing is below 0: half of the work is none.
    if any(bool((x < 0).any()) for x in inputs):
        found.append((tuple(x.clamp(max=0) for x in inputs), other))
    return found


def total(step: Affine, contributions: list[tuple[Tensors, torch.Tensor]]) -> torch.Tensor:
    """What `sides` make of each output of the step."""
    return cast(torch.Tensor, sum(step.linear(values, weight) for values, weight in contributions))


def _by_weights(step: Affine, inputs: Tensors, signal: torch.Tensor, weight: torch.Tensor) -> Tensors:
    total = step.linear(tuple(torch.ones_like(x) for x in inputs), weight)
    return step.transposed(divided(signal, total), weight, inputs)


def divided(signal: torch.Tensor, by: torch.Tensor, epsilon: float = 0.0) -> torch.Tensor:
    """signal / (by + epsilon sign(by)); 0 where the denominator is 0, or so small that the quotient could not be
    represented."""
    least = torch.finfo(by.dtype).tiny ** 0.5
    by = by + torch.copysign(by.new_tensor(epsilon), by) if epsilon else by
    if epsilon > least:
        return signal / by
    # A choice by value, without a comparison of its own: those are slow.
    return cast(torch.Tensor, torch.ops.aten.threshold_backward(signal / by, by.abs(), least))


def _times(inputs: Tensors, signals: Tensors) -> Tensors:
    return tuple(x * signal for x, signal in zip(inputs, signals))
