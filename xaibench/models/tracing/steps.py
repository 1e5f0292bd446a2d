"""The steps of a network, by kind, and the rules of a backward pass through them.

Rule-based attribution (LRP, excitation backpropagation, guided backpropagation, DeepLIFT, ...) replaces the derivative
of each layer by a rule of its own. There are few kinds of steps, and a rule needs to know no more:

    Affine         convolution, linear layer, batch normalisation, average pooling, sum: weights, perhaps a bias
    Elementwise    a function of each value by itself; an `Activation` has f(0) = 0, a `Rectifier` is a ReLU
    Product        of two values that depend on the input, element by element or as matrices: attention, gates
    Softmax        along one dimension
    Normalisation  by the values themselves: of layers, groups, by root mean square
    Route          every value of the output is one of the inputs, or a constant: maximum pooling, concatenation,
                   reshaping
    Constant       no function of the input
    Other          anything else: a derivative, but no rule
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional

Tensors = tuple[torch.Tensor, ...]
# Signals at a step's inputs, one for each: None for an input that no signal goes back to, such as a size.
Signals = Sequence[Any]
# A rule: (step, its inputs, its output, signal at its output) -> signals at its inputs. The step is of a kind that the
# rule serves: whoever chooses the rule sees to that.
Rule = Callable[[Any, Tensors, torch.Tensor, torch.Tensor], Signals]


@dataclass(frozen=True, eq=False)
class Step(ABC):
    """One operation. name: for messages. sources: the places of its inputs among the values of a pass."""

    name: str
    sources: tuple[int, ...]

    @abstractmethod
    def __call__(self, *inputs: Any) -> Any:
        """The output for these inputs; never in place."""

    @abstractmethod
    def derivative(self, inputs: Sequence[Any], output: torch.Tensor, signal: torch.Tensor) -> Signals:
        """The ordinary backward pass, the rule of a gradient: signal [B,...] at the output -> signals at the inputs."""


@dataclass(frozen=True, eq=False)
class Affine(Step):
    """y = W x + b for one or more inputs x. weight: W in the layer's own shape; bias: b, to be added to y, or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        output = self.linear(inputs, self.weight)
        return output if self.bias is None else output + self.bias

    def derivative(self, inputs: Sequence[Any], output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        return self.transposed(signal, self.weight, tuple(inputs))

    @abstractmethod
    def linear(self, inputs: Tensors, weight: torch.Tensor) -> torch.Tensor:
        """W x with other weights of the same shape, without bias."""

    @abstractmethod
    def transposed(self, signal: torch.Tensor, weight: torch.Tensor, inputs: Tensors) -> Tensors:
        """W^T signal with other weights of the same shape; of `inputs` only the shapes are used."""

    def scaled(self, factor: torch.Tensor, shift: torch.Tensor) -> "Affine | None":
        """This step followed by factor * y + shift [k] per channel, in one; None where its kind has no such step."""
        return None


@dataclass(frozen=True, eq=False)
class Convolution(Affine):
    """weight [K,C/groups,h,w], bias [K,1,1]. options: stride, padding, dilation, groups. around: what `pad` of
    torch.nn.functional puts around the input first, where zeros on both sides alike do not do; None where they do."""

    options: Mapping[str, Any]
    around: Mapping[str, Any] | None = None

    def linear(self, inputs: Tensors, weight: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(self._padded(inputs[0]), weight, None, **self.options)

    def transposed(self, signal: torch.Tensor, weight: torch.Tensor, inputs: Tensors) -> Tensors:
        # What autograd calls; `nn.grad.conv2d_input` hands it an input without a memory layout, which is slower.
        stride, padding, dilation, groups = (self.options[name] for name in ("stride", "padding", "dilation", "groups"))
        found = torch.ops.aten.convolution_backward(
            signal,
            self._padded(inputs[0]),
            weight,
            None,
            stride,
            padding,
            dilation,
            False,
            (0, 0),
            groups,
            (True, False, False),
        )[:1]
        return found if self.around is None else pulled_back(self._padded, inputs[0], found[0])

    def _padded(self, values: torch.Tensor) -> torch.Tensor:
        return values if self.around is None else functional.pad(values, **self.around)

    def scaled(self, factor: torch.Tensor, shift: torch.Tensor) -> "Convolution":
        shift = shift.view(-1, 1, 1)
        bias = shift if self.bias is None else self.bias * factor.view(-1, 1, 1) + shift
        return replace(self, weight=self.weight * factor.view(-1, 1, 1, 1), bias=bias)


@dataclass(frozen=True, eq=False)
class Dense(Affine):
    """A linear layer: weight [K,C], bias [K]."""

    def linear(self, inputs: Tensors, weight: torch.Tensor) -> torch.Tensor:
        return functional.linear(inputs[0], weight)

    def transposed(self, signal: torch.Tensor, weight: torch.Tensor, inputs: Tensors) -> Tensors:
        return (signal @ weight,)

    def scaled(self, factor: torch.Tensor, shift: torch.Tensor) -> "Dense":
        bias = shift if self.bias is None else self.bias * factor + shift
        return replace(self, weight=self.weight * factor.view(-1, 1), bias=bias)


@dataclass(frozen=True, eq=False)
class Scale(Affine):
    """A factor for each channel, or one for all: batch normalisation that is not folded, arithmetic with constants."""

    def linear(self, inputs: Tensors, weight: torch.Tensor) -> torch.Tensor:
        return inputs[0] * weight

    def transposed(self, signal: torch.Tensor, weight: torch.Tensor, inputs: Tensors) -> Tensors:
        return ((signal * weight).sum_to_size(inputs[0].shape),)


@dataclass(frozen=True, eq=False)
class Contraction(Affine):
    """Any other function of the input and weights that is linear in either: products with a constant matrix,
    convolutions of one or three dimensions, transposed ones. product: of an input and such weights."""

    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def linear(self, inputs: Tensors, weight: torch.Tensor) -> torch.Tensor:
        return self.product(inputs[0], weight)

    def transposed(self, signal: torch.Tensor, weight: torch.Tensor, inputs: Tensors) -> Tensors:
        return pulled_back(lambda x: self.product(x, weight), inputs[0], signal)


@dataclass(frozen=True, eq=False)
class Average(Affine):
    """Means and sums over windows or dimensions, and interpolation: linear, times the weight, which is the number 1."""

    pool: Callable[[torch.Tensor], torch.Tensor]

    def linear(self, inputs: Tensors, weight: torch.Tensor) -> torch.Tensor:
        return self.pool(inputs[0]) * weight

    def transposed(self, signal: torch.Tensor, weight: torch.Tensor, inputs: Tensors) -> Tensors:
        return pulled_back(self.pool, inputs[0], signal * weight)


@dataclass(frozen=True, eq=False)
class Sum(Affine):
    """The sum of its inputs (a residual connection), each times the weight, which is the number 1. Where a shape is
    smaller, its values are added in several places."""

    def linear(self, inputs: Tensors, weight: torch.Tensor) -> torch.Tensor:
        return sum(inputs[1:], start=inputs[0]) * weight

    def transposed(self, signal: torch.Tensor, weight: torch.Tensor, inputs: Tensors) -> Tensors:
        return tuple((signal * weight).sum_to_size(x.shape) for x in inputs)


@dataclass(frozen=True, eq=False)
class Call(Step):
    """A function of the sources, those that are no tensors (sizes) included; its derivative is autograd's."""

    function: Callable[..., Any]

    def __call__(self, *inputs: Any) -> Any:
        return self.function(*inputs)

    def derivative(self, inputs: Sequence[Any], output: torch.Tensor, signal: torch.Tensor) -> Signals:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_(True) if _differentiable(x) else x for x in inputs]
            wanted = [x for x in leaves if _differentiable(x)]
            output = self.function(*leaves)
            if not output.requires_grad:  # what it makes of its sources does not follow them: detached, a comparison
                return [None] * len(leaves)
            found = iter(torch.autograd.grad(output, wanted, signal, materialize_grads=True))
        return [next(found) if _differentiable(x) else None for x in leaves]


class Elementwise(Call):
    """A function of each value by itself."""


class Activation(Elementwise):
    """One with f(0) = 0, which can pass on what reaches it without adding to it."""


@dataclass(frozen=True, eq=False)
class Rectifier(Activation):
    """min(max(x, 0), ceiling): ReLU, or ReLU6 with its ceiling."""

    ceiling: float = math.inf

    def derivative(self, inputs: Sequence[Any], output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        # What autograd calls: one operation instead of a comparison and a product.
        if self.ceiling == math.inf:
            return (torch.ops.aten.threshold_backward(signal, output, 0),)
        return (torch.ops.aten.hardtanh_backward(signal, inputs[0], 0, self.ceiling),)


class Route(Call):
    """Values moved, repeated, dropped or chosen."""


class Maximum(Route):
    """Maximum pooling: a kind of its own, because some rules treat it unlike other routes."""


@dataclass(frozen=True, eq=False)
class Pooling(Maximum):
    """Maximum pooling by nn.MaxPool2d. Behind `Choice` it need not look for the maxima again, forwards or backwards."""

    windows: tuple[Any, ...]

    def __call__(self, inputs: torch.Tensor, chosen: Tensors | None = None) -> torch.Tensor:
        return self.function(inputs) if chosen is None else chosen[0]

    def derivative(self, inputs: Sequence[Any], output: torch.Tensor, signal: torch.Tensor) -> Signals:
        if len(inputs) == 1:
            return super().derivative(inputs, output, signal)
        values, (_, places) = inputs
        return (torch.ops.aten.max_pool2d_with_indices_backward(signal, values, *self.windows, places), None)


@dataclass(frozen=True, eq=False)
class Product(Call):
    """A function of two sources that is linear in either: x * y, matrices, einsum.

    gate: which of the two (0 or 1) says how much of the other one passes: attention, a sigmoid, what divides. None
        where that cannot be told. divides: whether the gate is a constant or one over something, as in a normalisation.
    """

    gate: int | None = None
    divides: bool = False

    @property
    def elementwise(self) -> bool:
        """Whether values are multiplied one by one, the smaller shape in several places."""
        return self.function is torch.mul

    def transposed(self, signal: torch.Tensor, inputs: Tensors, which: int) -> torch.Tensor:
        """The signal at one of the two, the other one being a weight: the derivative."""
        x, other = inputs[which], inputs[1 - which]
        if self.elementwise:
            return (signal * other).sum_to_size(x.shape)
        if self.function is torch.matmul and x.dim() == other.dim() > 1:
            found = signal @ other.mT if which == 0 else other.mT @ signal
            return found.sum_to_size(x.shape)
        order = (lambda one: self.function(one, other)) if which == 0 else (lambda one: self.function(other, one))
        return pulled_back(order, x, signal)[0]

    def derivative(self, inputs: Sequence[Any], output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        return tuple(self.transposed(signal, tuple(inputs), which) for which in (0, 1))


@dataclass(frozen=True, eq=False)
class Softmax(Call):
    """exp(x) / sum(exp(x)) along a dimension."""

    dim: int

    def derivative(self, inputs: Sequence[Any], output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        # What autograd calls.
        return (torch.ops.aten._softmax_backward_data(signal, output, self.dim, inputs[0].dtype),)


@dataclass(frozen=True, eq=False)
class Normalisation(Call):
    """scale(average(c^2)) c + bias of centred values c = x - mean(x): the size of the values is divided by itself.

    mean: of each value's group, of the shape of x or broadcast to it; None where it is not taken off. average: linear,
    of squares of c their mean or sum. scale: one over its root, weights included. Groups lie within one sample.
    """

    mean: Callable[[torch.Tensor], torch.Tensor] | None
    average: Callable[[torch.Tensor], torch.Tensor]
    scale: Callable[[torch.Tensor], torch.Tensor]
    bias: torch.Tensor | None

    def centred(self, values: torch.Tensor) -> torch.Tensor:
        """Values without their mean; its own transpose."""
        return values if self.mean is None else values - self.mean(values)

    def held(self, values: torch.Tensor) -> "Held":
        """The affine step that it is for these values, their spread held."""
        factor = self.scale(self.average(self.centred(values).square()))
        return Held(self.name, self.sources, factor, self.bias, self.centred)


@dataclass(frozen=True, eq=False)
class Held(Affine):
    """y = weight * centred(x) + bias: a normalisation whose factor, the weight, is that of one batch of inputs."""

    centred: Callable[[torch.Tensor], torch.Tensor]

    def linear(self, inputs: Tensors, weight: torch.Tensor) -> torch.Tensor:
        return self.centred(inputs[0]) * weight

    def transposed(self, signal: torch.Tensor, weight: torch.Tensor, inputs: Tensors) -> Tensors:
        return (self.centred(signal * weight),)


class Constant(Call):
    """What no signal goes back through: what does not depend on the input, such as parameters and sizes."""


class Choice(Constant):
    """The maxima of `Pooling` and their places: the signal goes by the pooling itself."""


@dataclass(frozen=True, eq=False)
class Other(Call):
    """What is none of these, and so has a derivative but no rule.

    what: what it is, for messages."""

    what: str = ""


def pulled_back(linear: Callable[[torch.Tensor], torch.Tensor], like: torch.Tensor, signal: torch.Tensor) -> Tensors:
    """What a linear function's transpose makes of a signal at its output."""
    with torch.enable_grad():
        blank = torch.zeros_like(like, requires_grad=True)
        return torch.autograd.grad(linear(blank), blank, signal)


def _differentiable(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def derivative(step: Step, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Signals:
    """The rule of an ordinary gradient."""
    return step.derivative(inputs, output, signal)
