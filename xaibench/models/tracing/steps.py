"""The steps of a network, by kind, and the rules of a backward pass through them.

Rule-based attribution (LRP, excitation backpropagation, guided backpropagation, DeepLIFT, ...) replaces the derivative
of each layer by a rule of its own. There are few kinds of steps, and a rule needs to know no more:

    Affine      convolution, linear layer, batch normalisation, average pooling, sum: weights, perhaps a bias
    Elementwise a function of each value by itself; an `Activation` has f(0) = 0, a `Rectifier` is a ReLU
    Route       every value of the output is one of the inputs, or a constant: maximum pooling, concatenation, reshaping
    Constant    no function of the input
    Other       anything else: a derivative, but no rule
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
        return found if self.around is None else _pulled_back(self._padded, inputs[0], found[0])

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
        return (signal * weight,)


@dataclass(frozen=True, eq=False)
class Average(Affine):
    """Average pooling: every place of the output is the mean over a window, times the weight, which is the number 1."""

    pool: Callable[[torch.Tensor], torch.Tensor]

    def linear(self, inputs: Tensors, weight: torch.Tensor) -> torch.Tensor:
        return self.pool(inputs[0]) * weight

    def transposed(self, signal: torch.Tensor, weight: torch.Tensor, inputs: Tensors) -> Tensors:
        return _pulled_back(self.pool, inputs[0], signal * weight)


@dataclass(frozen=True, eq=False)
class Sum(Affine):
    """The sum of its inputs, of equal shape (a residual connection), each times the weight, which is the number 1."""

    def linear(self, inputs: Tensors, weight: torch.Tensor) -> torch.Tensor:
        return sum(inputs[1:], start=inputs[0]) * weight

    def transposed(self, signal: torch.Tensor, weight: torch.Tensor, inputs: Tensors) -> Tensors:
        return (signal * weight,) * len(inputs)


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


class Constant(Call):
    """What no signal goes back through: what does not depend on the input, such as parameters and sizes."""


class Choice(Constant):
    """The maxima of `Pooling` and their places: the signal goes by the pooling itself."""


@dataclass(frozen=True, eq=False)
class Other(Call):
    """What is none of these, and so has a derivative but no rule: products, normalisation by the input, attention.

    what: what it is, for messages."""

    what: str = ""


def _pulled_back(linear: Callable[[torch.Tensor], torch.Tensor], like: torch.Tensor, signal: torch.Tensor) -> Tensors:
    """What a linear function's transpose makes of a signal at its output."""
    with torch.enable_grad():
        blank = torch.zeros_like(like, requires_grad=True)
        return torch.autograd.grad(linear(blank), blank, signal)


def _differentiable(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def derivative(step: Step, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Signals:
    """The rule of an ordinary gradient."""
    return step.derivative(inputs, output, signal)
