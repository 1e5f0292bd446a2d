"""A network as the list of its steps, run forwards with every value kept and backwards by rules of the caller's choice.

Rule-based attribution (LRP, excitation backpropagation, guided backpropagation, DeepLIFT, ...) replaces the derivative
of each layer by a rule of its own. There are few kinds of steps, and a rule needs to know no more:

    Affine      convolution, linear layer, batch normalisation, average pooling, sum: weights, perhaps a bias
    Elementwise a function of each value by itself; an `Activation` has f(0) = 0, a `Rectifier` is a ReLU
    Route       every value of the output is one of the inputs, or a constant: maximum pooling, concatenation, reshaping
    Constant    no function of the input
    Other       anything else: a derivative, but no rule

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

    @abstractmethod
    def derivative(self, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        """The ordinary backward pass, the rule of a gradient: signal [B,...] at the output -> signals at the inputs."""


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
        # What autograd calls; `nn.grad.conv2d_input` hands it an input without a memory layout, which is slower.
        stride, padding, dilation, groups = (self.options[name] for name in ("stride", "padding", "dilation", "groups"))
        return torch.ops.aten.convolution_backward(
            signal, inputs[0], weight, None, stride, padding, dilation, False, (0, 0), groups, (True, False, False)
        )[:1]

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
class Call(Step):
    """A function of the sources, those that are no tensors (sizes) included; its derivative is autograd's."""

    function: Callable[..., Any]

    def __call__(self, *inputs: Any) -> Any:
        return self.function(*inputs)

    def derivative(self, inputs: Sequence[Any], output: torch.Tensor, signal: torch.Tensor) -> Sequence[Any]:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_(True) if _differentiable(x) else x for x in inputs]
            wanted = [x for x in leaves if _differentiable(x)]
            found = iter(torch.autograd.grad(self.function(*leaves), wanted, signal, materialize_grads=True))
        return [next(found) if _differentiable(x) else None for x in leaves]


class Elementwise(Call):
    """A function of each value by itself."""


class Activation(Elementwise):
    """One with f(0) = 0, which can pass on what reaches it without adding to it."""


@dataclass(frozen=True, eq=False)
class Rectifier(Activation):
    """min(max(x, 0), ceiling): ReLU, or ReLU6 with its ceiling."""

    ceiling: float = math.inf

    def derivative(self, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
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

    def derivative(self, inputs: Sequence[Any], output: torch.Tensor, signal: torch.Tensor) -> Sequence[Any]:
        if len(inputs) == 1:
            return super().derivative(inputs, output, signal)
        values, (_, places) = inputs
        return (torch.ops.aten.max_pool2d_with_indices_backward(signal, values, *self.windows, places), None)


class Constant(Call):
    """What no signal goes back through: what does not depend on the input, such as parameters and sizes."""


class Choice(Constant):
    """The maxima of `Pooling` and their places: the signal goes by the pooling itself."""


class Other(Call):
    """What is none of these, and so has a derivative but no rule: products, normalisation by the input, attention."""


def _differentiable(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


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

        Raises Refusal for a network that cannot be traced, or whose trace does something else than the network.
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

    def trunk(self) -> list[str]:
        """The names of the layers of the main path, from the bottom up, without the logits.

        A layer here is a convolution, a linear layer, or a block whose branches come together again (a residual block
        with its sum), with the activation behind it, if that is a module; every way from the input to the logits leads
        through its output. Outputs that no module has are left out, as they have no name.
        """
        names: dict[int, str] = {}
        for path, places in self.places.items():
            if len(places) == 1 and path.count(".") < names.get(places[0], path + ".").count("."):
                names[places[0]] = path
        last_read = {source: place for place, step in enumerate(self.steps, 1) for source in step.sources}
        found: list[int] = []
        before, read_until = 0, last_read[0]
        for place, step in enumerate(self.steps, 1):
            if isinstance(step, Constant):
                continue
            if read_until <= place:  # what lies further up reads nothing from below
                if any(isinstance(one, Convolution | Dense) for one in self.steps[before:place]):
                    found.append(place)
                elif isinstance(step, Activation) and place in names and found[-1:] == [before]:
                    found[-1] = place
                before = place
            read_until = max(read_until, last_read.get(place, 0))
        return [names[place] for place in found if place in names and place < len(self.steps)]

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

    def of_kind(self, kind: type[Step]) -> list[Step]:
        """The steps of one kind."""
        return [step for step in self.steps if isinstance(step, kind)]


def derivative(step: Step, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
    """The rule of an ordinary gradient."""
    return step.derivative(inputs, output, signal)


# ---- from a module to steps ----------------------------------------------------------------------------------------

# (module, state of its weights, graph) of the last networks asked for: the explained one and one with other weights.
_RECENT: deque[tuple[nn.Module, Any, Graph]] = deque(maxlen=2)

# Modules, functions and methods of a tensor by kind. Activations have f(0) = 0.
ELEMENTWISE = (
    nn.Sigmoid, nn.Softplus, nn.Hardsigmoid, nn.LogSigmoid, functional.sigmoid, functional.softplus,
    functional.hardsigmoid, functional.logsigmoid, torch.sigmoid, "sigmoid",
)  # fmt: skip
ACTIVATIONS = (
    nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh, nn.Softsign,
    functional.leaky_relu, functional.elu, functional.celu, functional.selu, functional.gelu, functional.silu,
    functional.mish, functional.hardswish, functional.tanh, torch.tanh, torch.selu, "tanh",
)  # fmt: skip
MAXIMA = (
    nn.MaxPool2d, nn.AdaptiveMaxPool2d, functional.max_pool2d, torch.max_pool2d, functional.adaptive_max_pool2d,
    torch.amax, "amax",
)  # fmt: skip
AVERAGES = (
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d, torch.mean, "mean",
)  # fmt: skip
ROUTES = (
    nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.Identity, nn.Flatten, nn.Unflatten, nn.ZeroPad2d, nn.PixelShuffle,
    nn.PixelUnshuffle, nn.ChannelShuffle, nn.UpsamplingNearest2d,
    functional.dropout, functional.dropout2d, functional.pad, torch.flatten, torch.reshape, torch.squeeze,
    torch.unsqueeze, torch.transpose, torch.permute, torch.cat, torch.concat, operator.getitem, "flatten", "view",
    "reshape", "squeeze", "unsqueeze", "transpose", "permute", "contiguous",
)  # fmt: skip
KINDS = {operation: kind for kind, operations in
         ((Elementwise, ELEMENTWISE), (Activation, ACTIVATIONS), (Maximum, MAXIMA), (Average, AVERAGES),
          (Route, ROUTES))
         for operation in operations}  # fmt: skip
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
DIFFERENCES = (operator.sub, operator.isub, torch.sub, "sub", "sub_")
PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
QUOTIENTS = (operator.truediv, operator.itruediv, torch.div, "div", "div_")
SIZES = (getattr, "size", "dim")


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
    # Two samples, so that a step which mixes them or takes the batch for a channel is seen.
    probe = classifier.probe(2)
    builder = _Builder(name, module, inputs[0], probe)
    for node in nodes:
        builder.add(node)
    places = {path: [builder.places[node] for node in found] for path, found in tracer.outputs.items()}
    with torch.no_grad():
        expected = module(probe.clone())
    found = builder.values[-1]
    if found.shape != expected.shape or not torch.allclose(
        found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
    ):
        raise Refusal(f"the steps of {name} that torch.fx finds do not give its logits: it does something else as well")
    return Graph(name, builder.steps, places, classifier.layers)


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
        self.places[node] = self._append(self._step(node, sources))

    def _append(self, step: Step) -> int:
        with torch.no_grad():
            value = step(*(self.values[source] for source in step.sources))
        if not isinstance(step, Constant):
            if not isinstance(value, torch.Tensor):
                raise Refusal(f"'{step.name}' of {self.name} returns several tensors: no rule takes them apart")
            self.depends.add(len(self.values))
        self.steps.append(step)
        self.values.append(value)
        return len(self.steps)

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
        where, call = (node.name, sources), self._call(node)
        moving = [s for s in sources if s in self.depends and isinstance(self.values[s], torch.Tensor)]
        if not moving or node.target in SIZES:
            return Constant(*where, call)
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        ceiling = _ceiling(node, module)
        if ceiling is not None:
            return Rectifier(*where, call, ceiling)
        if type(module) is nn.MaxPool2d and not module.return_indices:
            return self._pooling(where, module, call)
        kind = KINDS.get(node.target if module is None else type(module), Other)
        if kind is Average:
            return Average(*where, self._one(), None, call)
        if kind is not Other:
            return kind(*where, call)
        affine = self._arithmetic(node, sources, call) if module is None else self._layer(where, module)
        return affine or Other(*where, call)

    def _pooling(self, where: tuple[str, tuple[int, ...]], module: nn.MaxPool2d, call: Callable) -> Pooling:
        """Maximum pooling, behind a step that finds the maxima once for both passes."""
        name, sources = where
        pairs = [nn.modules.utils._pair(getattr(module, x)) for x in ("kernel_size", "stride", "padding", "dilation")]
        windows = (*pairs, module.ceil_mode)
        choice = Choice(f"{name}_places", sources, lambda x: torch.ops.aten.max_pool2d_with_indices(x, *windows))
        return Pooling(name, (*sources, self._append(choice)), call, windows)

    def _layer(self, where: tuple[str, tuple[int, ...]], module: nn.Module) -> Affine | None:
        """A module with weights as an affine step, if it is one."""
        if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and module.padding != "same":
            options = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")}
            options["padding"] = (0, 0) if module.padding == "valid" else module.padding
            bias = None if module.bias is None else module.bias.detach().view(-1, 1, 1)
            return Convolution(*where, module.weight.detach(), bias, options)
        if isinstance(module, nn.Linear):
            return Dense(*where, module.weight.detach(), None if module.bias is None else module.bias.detach())
        if _normalises(module):
            factor, shift = _factor_and_shift(module)
            _, (source,) = where
            channels = (-1, *(1,) * (self.values[source].dim() - 2))
            return Scale(*where, factor.view(channels), shift.view(channels))
        return None

    def _arithmetic(self, node: fx.Node, sources: tuple[int, ...], call: Callable) -> Affine | None:
        """A sum or difference of tensors of one shape, or arithmetic with a number, as an affine step, if it is one."""
        target, tensors = node.target, [s for s in sources if isinstance(self.values[s], torch.Tensor)]
        if len(node.args) != 2 or node.kwargs or len({self.values[source].shape for source in tensors}) != 1:
            return None
        if len(tensors) == 2 and target in SUMS:
            return Sum(node.name, sources, self._one(), None)
        if len(tensors) == 2 and target in DIFFERENCES:
            negative = self._append(Scale(f"minus_{node.name}", sources[1:], -self._one(), None))
            return Sum(node.name, (sources[0], negative), self._one(), None)
        of_number = target in SUMS + DIFFERENCES + PRODUCTS or (target in QUOTIENTS and node.args[0] in self.places)
        if len(sources) == 1 and len(tensors) == 1 and of_number and not all(a in self.places for a in node.args):
            # Affine with one input: its values at 0 and 1 say which.
            zero, one = (call(torch.full_like(self.values[sources[0]], x)).reshape(-1)[0] for x in (0.0, 1.0))
            return Scale(node.name, sources, one - zero, zero)
        return None

    def _one(self) -> torch.Tensor:
        return torch.ones((), dtype=self.values[0].dtype, device=self.values[0].device)

    def _call(self, node: fx.Node) -> Callable[..., Any]:
        """The node's operation as a function of its sources, which leaves them as they are."""
        if node.op == "get_attr":
            value: Any = self.module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return lambda: value.detach() if isinstance(value, torch.Tensor) else value
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


# How the functions that cut a range name its ends.
_ENDS = {
    "clamp": ("min", "max"),
    "clip": ("min", "max"),
    "clamp_min": ("min", "max"),
    "hardtanh": ("min_val", "max_val"),
}


def _ceiling(node: fx.Node, module: nn.Module | None) -> float | None:
    """Above which value a ReLU, however it is written, cuts (infinity: none does); None for what is not a ReLU."""
    if module is not None:
        if isinstance(module, nn.Hardtanh):  # nn.ReLU6 is one
            return float(module.max_val) if module.min_val == 0 else None
        return math.inf if isinstance(module, nn.ReLU) else None
    name = getattr(node.target, "__name__", str(node.target)).removesuffix("_")
    if name in ("relu", "relu6"):
        return 6.0 if name == "relu6" else math.inf
    ends = _ENDS.get(name, ())
    bounds = dict(zip(ends, node.args[1:])) | node.kwargs
    low, high = (bounds.get(end) for end in ends or ("", ""))
    if isinstance(low, int | float) and low == 0 and isinstance(high, int | float | None):
        return math.inf if high is None else float(high)
    return None


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
