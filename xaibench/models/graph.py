"""A network as the list of its steps, run forwards with every value kept and backwards by rules of the caller's choice.

Rule-based attribution (LRP, excitation backpropagation, guided backpropagation, DeepLIFT, ...) replaces the derivative
of each layer by a rule of its own. There are four kinds of steps, and a rule needs to know no more:

    Affine      convolution, linear layer, batch normalisation, average pooling, sum: weights, perhaps a bias
    Activation  an elementwise function with f(0) = 0; `Rectifier` is a ReLU
    Route       every value of the output is one of the inputs, or a constant: maximum pooling, concatenation, reshaping
    Constant    no function of the input

The network is traced by torch.fx, so it does not matter whether a layer is a module, a function or an operator, whether
a module is used twice, or whether it works in place.
"""

import math
import operator
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from ..errors import Refusal, first_line, nearest
from .classifier import Classifier
from .cut import INPUT, LOGITS

Tensors = tuple[torch.Tensor, ...]
# A rule: (step, its inputs, its output, signal at its output) -> signals at its inputs.
Rule = Callable[["Step", Tensors, torch.Tensor, torch.Tensor], Tensors]


@dataclass(frozen=True, eq=False)
class Step(ABC):
    """One operation. name: for messages. sources: the places of its inputs among the values of a pass."""

    name: str
    sources: tuple[int, ...]

    @abstractmethod
    def __call__(self, *inputs: Any) -> Any:
        """The output for these inputs; never in place."""

    def derivative(self, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        """The ordinary backward pass, the rule of a gradient: signal [B,...] at the output -> signals at the inputs."""
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_(True) for x in inputs]
            gradients = torch.autograd.grad(self(*leaves), leaves, signal, allow_unused=True)
        return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients))


@dataclass(frozen=True, eq=False)
class Affine(Step):
    """y = W x + b for one or more inputs x. weight: W in the layer's own shape; bias: b, to be added to y, or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        output = self.linear(inputs, self.weight)
        return output if self.bias is None else output + self.bias

    def derivative(self, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        return self.transposed(signal, self.weight, inputs)

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
    """weight [K,C/groups,h,w], bias [K,1,1]. options: stride, padding, dilation, groups."""

    options: Mapping[str, Any]

    def linear(self, inputs: Tensors, weight: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(inputs[0], weight, None, **self.options)

    def transposed(self, signal: torch.Tensor, weight: torch.Tensor, inputs: Tensors) -> Tensors:
        return (nn.grad.conv2d_input(inputs[0].shape, weight, signal, **self.options),)

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
        with torch.enable_grad():
            blank = torch.zeros_like(inputs[0], requires_grad=True)
            return torch.autograd.grad(self.pool(blank), blank, signal * weight)


@dataclass(frozen=True, eq=False)
class Sum(Affine):
    """The sum of its inputs, of equal shape (a residual connection), each times the weight, which is the number 1."""

    def linear(self, inputs: Tensors, weight: torch.Tensor) -> torch.Tensor:
        return sum(inputs[1:], start=inputs[0]) * weight

    def transposed(self, signal: torch.Tensor, weight: torch.Tensor, inputs: Tensors) -> Tensors:
        return (signal * weight,) * len(inputs)


@dataclass(frozen=True, eq=False)
class Activation(Step):
    """An elementwise function."""

    function: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.function(inputs)


@dataclass(frozen=True, eq=False)
class Rectifier(Activation):
    """min(max(x, 0), ceiling): ReLU, or ReLU6 with its ceiling."""

    ceiling: float = math.inf

    def derivative(self, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        return (signal * self.open(output),)

    def open(self, output: torch.Tensor) -> torch.Tensor:
        """Where a value passes: 0 < output < ceiling, boolean."""
        return output > 0 if self.ceiling == math.inf else (output > 0) & (output < self.ceiling)


@dataclass(frozen=True, eq=False)
class Route(Step):
    """Values moved, repeated, dropped or chosen. call: gets all sources, those that are no tensors (sizes) included."""

    call: Callable[..., Any]

    def __call__(self, *inputs: Any) -> Any:
        return self.call(*inputs)

    def derivative(self, inputs: Sequence[Any], output: torch.Tensor, signal: torch.Tensor) -> Sequence[Any]:
        moving = [place for place, value in enumerate(inputs) if isinstance(value, torch.Tensor)]

        def of_tensors(*tensors: torch.Tensor) -> torch.Tensor:
            values = list(inputs)
            for place, tensor in zip(moving, tensors):
                values[place] = tensor
            return self.call(*values)

        signals = Step.derivative(replace(self, call=of_tensors), [inputs[p] for p in moving], output, signal)
        found: list[Any] = [None] * len(inputs)
        for place, one in zip(moving, signals):
            found[place] = one
        return found


@dataclass(frozen=True, eq=False)
class Maximum(Route):
    """Maximum pooling: a kind of its own, because some rules treat it unlike other routes."""


@dataclass(frozen=True, eq=False)
class Constant(Step):
    """What does not depend on the input: parameters, sizes."""

    call: Callable[..., Any]

    def __call__(self, *inputs: Any) -> Any:
        return self.call(*inputs)


@dataclass
class Graph:
    """The steps of a classifier's network in the order in which they run; `Graph.of` makes it.

    Value 0 of a pass is the input, value i the output of step i - 1. Batch normalisation that follows a convolution or
    a linear layer which nothing else reads is folded into it: both names then stand for the folded output.

    places: module path -> the places of its outputs, one for each time that it runs.
    """

    classifier: str
    steps: list[Step]
    places: dict[str, list[int]]
    aliases: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(classifier: Classifier) -> "Graph":
        """The graph of a classifier, kept until its weights change.

        Raises Refusal for a network that cannot be traced, or does something that is none of the steps.
        """
        module = classifier.module
        tensors = [*module.parameters(), *module.buffers()]
        state = tuple((tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in tensors)
        for kept, its_state, graph in _RECENT:
            if kept is module and its_state == state:
                return graph
        graph = _trace(classifier)
        _RECENT.append((module, state, graph))
        return graph

    def place(self, layer: str) -> int:
        """Where the output of a layer is among the values: an alias, a module path, `input` or `logits`."""
        path = self.aliases.get(layer, layer)
        if path not in self.places and path in (INPUT, LOGITS):
            return 0 if path == INPUT else len(self.steps)
        found = self.places.get(path, [])
        if len(found) == 1:
            return found[0]
        if found:
            raise Refusal(f"layer '{layer}' of {self.classifier} runs {len(found)} times: name one that runs once")
        raise Refusal(f"layer '{layer}' is not in {self.classifier}: {nearest(layer, [*self.aliases, *self.places])}")

    @torch.no_grad()
    def run(self, inputs: torch.Tensor) -> list[Any]:
        """Every value of one forward pass of inputs [B,C,H,W]: the input first, the logits [B,K] last."""
        values: list[Any] = [inputs]
        for step in self.steps:
            values.append(step(*(values[source] for source in step.sources)))
        return values

    @torch.no_grad()
    def back(
        self,
        values: Sequence[Any],
        signal: torch.Tensor,
        rule_of: Callable[[Step], Rule],
        start: str = LOGITS,
        keep: Iterable[str] = (INPUT,),
    ) -> dict[str, torch.Tensor]:
        """Signals at the outputs of the layers `keep`, from `signal` at the output of the layer `start`.

        values: what `run` returned. rule_of: step -> its rule. Where several steps read one value, their signals add
        up. A kept layer that the signal does not reach gets zeros.
        """
        first = self.place(start)
        kept = {name: self.place(name) for name in keep}
        places = {*kept.values()}
        signals: dict[int, torch.Tensor] = {first: signal}
        for place in range(first, 0, -1):
            if place not in signals:
                continue
            step = self.steps[place - 1]
            arriving = signals[place] if place in places else signals.pop(place)
            if isinstance(step, Constant):
                continue
            inputs = tuple(values[source] for source in step.sources)
            for source, share in zip(step.sources, rule_of(step)(step, inputs, values[place], arriving)):
                if share is not None:
                    signals[source] = signals[source] + share if source in signals else share
        return {
            name: signals[place] if place in signals else torch.zeros_like(values[place])
            for name, place in kept.items()
        }


def derivative(step: Step, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
    """The rule of an ordinary gradient."""
    return step.derivative(inputs, output, signal)


# ---- from a module to steps ----------------------------------------------------------------------------------------

# (module, state of its weights, graph) of the last networks asked for: the explained one and one with other weights.
_RECENT: deque[tuple[nn.Module, Any, Graph]] = deque(maxlen=2)

# Elementwise, with f(0) = 0: as modules, functions and methods of a tensor.
ACTIVATIONS = (
    nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh, nn.Softsign,
)  # fmt: skip
ACTIVATION_FUNCTIONS = {
    functional.leaky_relu, functional.elu, functional.celu, functional.selu, functional.gelu, functional.silu,
    functional.mish, functional.hardswish, functional.tanh, torch.tanh, torch.selu, "tanh",
}  # fmt: skip
RECTIFIERS = {functional.relu, functional.relu_, torch.relu, torch.relu_, "relu", "relu_"}
MAXIMA = (nn.MaxPool2d, nn.AdaptiveMaxPool2d)
MAXIMUM_FUNCTIONS = {
    functional.max_pool2d, torch.max_pool2d, functional.adaptive_max_pool2d,
    getattr(functional, "_max_pool2d", None),
}  # fmt: skip
AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
AVERAGE_FUNCTIONS = {
    functional.avg_pool2d, functional.adaptive_avg_pool2d, torch._C._nn.avg_pool2d, torch.mean, "mean",
}  # fmt: skip
ROUTES = (
    nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.Identity, nn.Flatten, nn.Unflatten, nn.ZeroPad2d, nn.PixelShuffle,
    nn.PixelUnshuffle, nn.ChannelShuffle, nn.UpsamplingNearest2d,
)  # fmt: skip
ROUTE_FUNCTIONS = {
    functional.dropout, functional.dropout2d, functional.pad, torch.flatten, torch.reshape, torch.squeeze,
    torch.unsqueeze, torch.transpose, torch.permute, torch.cat, torch.concat, operator.getitem, "flatten", "view",
    "reshape", "squeeze", "unsqueeze", "transpose", "permute", "contiguous",
}  # fmt: skip
SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
QUOTIENTS = {operator.truediv, operator.itruediv, torch.div, "div", "div_"}
DIFFERENCES = {operator.sub, operator.isub, torch.sub, "sub", "sub_"}


class _Tracer(fx.Tracer):
    """Traces to the layers of torch.nn, and keeps which node is the output of which module, containers included."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, list[fx.Node]] = {}

    def call_module(self, module: nn.Module, forward: Callable, arguments: tuple, keywords: dict) -> Any:
        path = self.path_of_module(module)
        result = super().call_module(module, forward, arguments, keywords)
        if isinstance(result, fx.Proxy):
            self.outputs.setdefault(path, []).append(result.node)
        return result


def _trace(classifier: Classifier) -> Graph:
    """The graph of a classifier, tried on one random input against the network itself."""
    name, module = classifier.name, classifier.module
    tracer = _Tracer()
    try:
        nodes = list(tracer.trace(module).nodes)
    except Exception as error:
        raise Refusal(f"{name} cannot be traced by torch.fx: {first_line(error)}") from error
    inputs = [node for node in nodes if node.op == "placeholder" and not node.args]
    if len(inputs) != 1:
        raise Refusal(f"{name} takes {len(inputs)} inputs: a backward pass by rules needs a network of one")
    draw = torch.Generator().manual_seed(0)
    # Two samples, so that a step which mixes them or takes the batch for a channel is seen.
    probe = torch.randn(2, *classifier.input_size, generator=draw).to(classifier.device, classifier.dtype)
    builder = _Builder(name, module, inputs[0], probe)
    for node in nodes:
        builder.add(node)
    places = {path: [builder.places[node] for node in found] for path, found in tracer.outputs.items()}
    graph = Graph(name, builder.steps, places, classifier.layers)
    with torch.no_grad():
        expected = module(probe.clone())
    found = graph.run(probe)[-1]
    if found.shape != expected.shape or not torch.allclose(
        found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
    ):
        raise Refusal(f"the steps of {name} that torch.fx finds do not give its logits: it does something else as well")
    return graph


class _Builder:
    """Takes the nodes of a trace in order and makes their steps; runs them on a probe, so that shapes are known."""

    def __init__(self, name: str, module: nn.Module, source: fx.Node, probe: torch.Tensor) -> None:
        self.name, self.module = name, module
        self.modules = dict(module.named_modules())
        self.steps: list[Step] = []
        self.places: dict[fx.Node, int] = {source: 0}
        self.values: list[Any] = [probe]
        self.depends = {0}

    def add(self, node: fx.Node) -> None:
        """The step of a node, where it has one of its own."""
        if node in self.places or node.op in ("placeholder", "output"):
            return
        if self._fold(node):
            return
        sources = tuple(self.places[source] for source in node.all_input_nodes)
        step = self._step(node, sources)
        with torch.no_grad():
            value = step(*(self.values[source] for source in sources))
        if not isinstance(step, Constant):
            if not isinstance(value, torch.Tensor):
                raise Refusal(f"'{node.name}' of {self.name} returns several tensors: no rule takes them apart")
            self.depends.add(len(self.values))
        self.places[node] = len(self.values)
        self.steps.append(step)
        self.values.append(value)

    def _fold(self, node: fx.Node) -> bool:
        """Whether the node is a batch normalisation that could be folded into the layer before it; then it has been."""
        norm = self.modules.get(str(node.target)) if node.op == "call_module" else None
        if not _normalises(norm):
            return False
        before = node.all_input_nodes[0]
        place = self.places[before]
        if place == 0 or len(before.users) > 1:
            return False
        step = self.steps[place - 1]
        folded = step.scaled(*_factor_and_shift(norm)) if isinstance(step, Affine) else None
        if folded is None:
            return False
        self.steps[place - 1] = folded
        with torch.no_grad():
            self.values[place] = folded(*(self.values[source] for source in folded.sources))
        self.places[node] = place
        return True

    def _step(self, node: fx.Node, sources: tuple[int, ...]) -> Step:
        call = self._call(node)
        moving = [s for s in sources if s in self.depends and isinstance(self.values[s], torch.Tensor)]
        if not moving or node.target in (getattr, "size", "dim"):
            return Constant(node.name, sources, call)
        if node.op == "call_module":
            return self._of_module(node, self.modules[str(node.target)], sources, call)
        return self._of_function(node, sources, call)

    def _of_module(self, node: fx.Node, module: nn.Module, sources: tuple[int, ...], call: Callable) -> Step:
        where = (node.name, sources)
        if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and module.padding != "same":
            options = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")}
            bias = None if module.bias is None else module.bias.detach().view(-1, 1, 1)
            return Convolution(*where, module.weight.detach(), bias, options)
        if isinstance(module, nn.Linear):
            return Dense(*where, module.weight.detach(), None if module.bias is None else module.bias.detach())
        if _normalises(module):
            factor, shift = _factor_and_shift(module)
            channels = (-1, *(1,) * (self.values[sources[0]].dim() - 2))
            return Scale(*where, factor.view(channels), shift.view(channels))
        if isinstance(module, nn.ReLU):
            return Rectifier(*where, functional.relu)
        if isinstance(module, nn.ReLU6):
            return Rectifier(*where, functional.relu6, ceiling=6.0)
        if isinstance(module, ACTIVATIONS):
            return Activation(*where, call)
        if isinstance(module, AVERAGES):
            return Average(*where, self._one(), None, call)
        if isinstance(module, MAXIMA):
            return Maximum(*where, call)
        if isinstance(module, ROUTES):
            return Route(*where, call)
        raise self._unknown(node, type(module).__name__)

    def _of_function(self, node: fx.Node, sources: tuple[int, ...], call: Callable) -> Step:
        where, target = (node.name, sources), node.target
        tensors = [s for s in sources if isinstance(self.values[s], torch.Tensor)]
        if target in RECTIFIERS:
            return Rectifier(*where, functional.relu)
        if target is functional.relu6:
            return Rectifier(*where, functional.relu6, ceiling=6.0)
        if target in ACTIVATION_FUNCTIONS:
            return Activation(*where, call)
        if target in MAXIMUM_FUNCTIONS:
            return Maximum(*where, call)
        if target in AVERAGE_FUNCTIONS:
            return Average(*where, self._one(), None, call)
        if target in ROUTE_FUNCTIONS:
            return Route(*where, call)
        shapes = {self.values[source].shape for source in tensors}
        if target in SUMS and len(tensors) == len(node.args) == 2 and len(shapes) == 1 and not node.kwargs:
            return Sum(*where, self._one(), None)
        arithmetic = target in SUMS | PRODUCTS or (target in QUOTIENTS | DIFFERENCES and node.args[0] in self.places)
        if arithmetic and len(tensors) == 1:
            # Affine with one input: its values at 0 and 1 say which.
            zero, one = (call(torch.full_like(self.values[sources[0]], x)).reshape(-1)[0] for x in (0.0, 1.0))
            return Scale(*where, one - zero, zero)
        raise self._unknown(node, getattr(target, "__name__", str(target)))

    def _unknown(self, node: fx.Node, what: str) -> Refusal:
        return Refusal(f"a backward pass by rules has no rule for '{node.name}' of {self.name}, which is a {what}")

    def _one(self) -> torch.Tensor:
        return torch.ones((), dtype=self.values[0].dtype, device=self.values[0].device)

    def _call(self, node: fx.Node) -> Callable[..., Any]:
        """The node's operation as a function of its sources, which leaves them as they are."""
        if node.op == "get_attr":
            value: Any = self.module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return lambda: value.detach()
        if node.op == "call_module":
            function: Callable[..., Any] = self.modules[str(node.target)].forward
        elif node.op == "call_method":
            function = _method(str(node.target).removesuffix("_"))
        else:
            function = node.target
        in_place = node.op == "call_module" and getattr(self.modules[str(node.target)], "inplace", False)
        keywords = {name: value for name, value in node.kwargs.items() if name != "inplace"}

        def call(*inputs: Any) -> Any:
            found = dict(zip(node.all_input_nodes, inputs))
            arguments, named = fx.node.map_arg((node.args, keywords), found.__getitem__)
            return function(*(x.clone() if in_place else x for x in arguments), **named)

        return call


def _method(name: str) -> Callable[..., Any]:
    return lambda tensor, *arguments, **keywords: getattr(tensor, name)(*arguments, **keywords)


def _normalises(module: nn.Module | None) -> bool:
    """Whether it is a batch normalisation by kept statistics, which is a factor and a shift for each channel."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None


def _factor_and_shift(norm: nn.modules.batchnorm._BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """What batch normalisation in evaluation does to each channel [k]: y = factor * x + shift."""
    factor = (norm.running_var + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight.detach()
    shift = -norm.running_mean * factor
    return factor, shift if norm.bias is None else shift + norm.bias.detach()
