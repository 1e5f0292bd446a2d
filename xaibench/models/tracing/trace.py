"""From a module to its steps, by torch.fx.

It does not matter whether a layer is a module, a function or an operator, whether a module is used twice, or whether it
works in place: what works in place becomes a step that leaves its input as it is, and what reads that input afterwards
reads the step instead. Only where another view of the same memory is read afterwards is there no such step.
"""

import inspect
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import torch
from torch import fx, nn
from torch.nn import functional

from ...errors import Refusal, first_line
from ..classifier import Classifier
from .steps import (
    Activation,
    Affine,
    Average,
    Choice,
    Constant,
    Convolution,
    Dense,
    Elementwise,
    Maximum,
    Other,
    Pooling,
    Rectifier,
    Route,
    Scale,
    Step,
    Sum,
)

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
    "reshape", "squeeze", "unsqueeze", "transpose", "permute", "contiguous", "clone",
    "expand", "repeat", "flip", torch.flip,
    torch.chunk, torch.split, torch.tensor_split, torch.unbind, torch.stack, "chunk", "split", "tensor_split", "unbind",
)  # fmt: skip
KINDS: dict[Any, Any] = {operation: kind for kind, operations in
         ((Elementwise, ELEMENTWISE), (Activation, ACTIVATIONS), (Maximum, MAXIMA), (Average, AVERAGES),
          (Route, ROUTES))
         for operation in operations}  # fmt: skip
SUMS = (operator.add, torch.add, "add")
DIFFERENCES = (operator.sub, torch.sub, "sub")
PRODUCTS = (operator.mul, torch.mul, "mul")
QUOTIENTS = (operator.truediv, torch.div, "div")
CONVOLUTIONS, LINEAR = (functional.conv2d, torch.conv2d), (functional.linear,)
# What takes no more than shape and kind from its tensor.
BLANKS = (torch.zeros_like, torch.ones_like, torch.full_like, "new_zeros", "new_ones", "new_full")
# Operators that work in place, and the same out of place.
OPERATORS = {getattr(operator, f"i{name}"): getattr(operator, name) for name in (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor",
) if hasattr(operator, f"i{name}")}  # fmt: skip
Call = Callable[..., Any]
SIZES = (getattr, "size", "dim")
# Attributes that are the tensor itself with its axes in another order, and no size.
TRANSPOSED = ("T", "mT", "H", "mH")


class _Tracer(fx.Tracer):
    """Traces to the layers of torch.nn, and keeps which node is the output of which module, containers included."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, list[fx.Node]] = {}

    def call_module(
        self, module: nn.Module, forward: Call, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Any:
        path = self.path_of_module(module)
        result = super().call_module(module, forward, arguments, keywords)
        if isinstance(result, fx.Proxy):
            self.outputs.setdefault(path, []).append(result.node)
        return result


def trace(classifier: Classifier) -> tuple[list[Step], dict[str, list[int]]]:
    """The steps of a classifier's network, and where each module's outputs are, see `Graph`.

    Tried on a random input against the network itself. Raises Refusal for a network that cannot be traced, or whose
    trace does something else than the network.
    """
    name, module = classifier.name, classifier.module
    tracer = _Tracer()
    classifier.refuse_torchscript()
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
    outputs = {path: [node for node in found if node in builder.places] for path, found in tracer.outputs.items()}
    places = {path: [builder.places[node] for node in found] for path, found in outputs.items()}
    with torch.no_grad():
        expected = module(probe.clone())
    found = builder.values[-1]
    if found.shape != expected.shape or not torch.allclose(
        found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
    ):
        raise Refusal(f"the steps of {name} that torch.fx finds do not give its logits: it does something else as well")
    return builder.steps, places


class _Builder:
    """Takes the nodes of a trace in order and makes their steps; runs them on a probe, so that shapes are known.

    What returns several tensors, or no tensor, is no step, but a part of each step that reads it (`several`).
    """

    def __init__(self, name: str, module: nn.Module, source: fx.Node, probe: torch.Tensor) -> None:
        self.name, self.module = name, module
        self.modules = dict(module.named_modules())
        self.steps: list[Step] = []
        self.places: dict[fx.Node, int] = {source: 0}
        self.values: list[Any] = [probe]
        self.depends = {0}
        self.several: dict[fx.Node, _Several] = {}

    def add(self, node: fx.Node) -> None:
        """The step of a node, where it has one of its own."""
        if node in self.places or node.op == "placeholder":
            return
        if node.op == "output":
            if any(source in self.several for source in node.all_input_nodes):
                raise Refusal(
                    f"{self.name} returns several tensors: a backward pass by rules starts from one of logits"
                )
            return
        changed = self._out_of_place(node)
        if not self._fold(node):
            call, sources = self._call(node, changed is not None)
            step = self._step(node, sources, call)
            value = self._run(step)
            if not isinstance(step, Constant) and not isinstance(value, torch.Tensor):
                self.several[node] = _Several(call, sources, self._routes(node))
                return
            self.places[node] = self._append(step, value)
        if changed is not None:
            changed.replace_all_uses_with(node, delete_user_cb=lambda user: not self._done(user))

    def _out_of_place(self, node: fx.Node) -> fx.Node | None:
        """The node whose value this one changes in place, if it does; then its operation has become the one that does
        not, where there is one. Raises Refusal where another view of that value is read afterwards."""
        changes = _works_in_place(node, self.modules)
        node.target, node.args, node.kwargs = _same_out_of_place(node)
        changed: Any = (node.args[0] if node.args else node.kwargs.get("input")) if changes else None
        value = self.values[self.places[changed]] if changed in self.places else None
        if not isinstance(value, torch.Tensor):
            return None
        memory = value.untyped_storage().data_ptr()
        found: dict[fx.Node, tuple[int, ...]] = {other: (place,) for other, place in self.places.items()}
        found |= {other: made.sources for other, made in self.several.items()}
        for other, places in found.items():
            values = [self.values[place] for place in places]
            same = any(isinstance(v, torch.Tensor) and v.untyped_storage().data_ptr() == memory for v in values)
            unread = (user for user in other.users if not self._done(user) and user is not node)
            if same and other is not changed and any(unread):
                raise Refusal(
                    f"'{node.name}' of {self.name} works in place on a view, and '{other.name}', a view of the same "
                    "values, is read afterwards: write it out of place"
                )
        return changed

    def _done(self, node: fx.Node) -> bool:
        return node in self.places or node in self.several

    @torch.no_grad()
    def _run(self, step: Step) -> Any:
        return step(*(self.values[source] for source in step.sources))

    def _append(self, step: Step, value: Any) -> int:
        if not isinstance(step, Constant):
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
        place = self.places.get(before, 0)
        if place == 0 or len(before.users) > 1:
            return False
        step = self.steps[place - 1]
        folded = step.scaled(*_factor_and_shift(norm)) if isinstance(step, Affine) else None
        if folded is None:
            return False
        self.steps[place - 1] = folded
        self.values[place] = self._run(folded)
        self.places[node] = place
        return True

    def _routes(self, node: fx.Node) -> bool:
        """Whether a node moves values alone, and so does what it reads of those that return several tensors."""
        target = type(self.modules[str(node.target)]) if node.op == "call_module" else node.target
        return KINDS.get(target) is Route and all(
            self.several[s].routes for s in node.all_input_nodes if s in self.several
        )

    def _moving(self, sources: tuple[int, ...]) -> list[int]:
        """Those of the sources that are tensors which depend on the input."""
        return [source for source in sources if source in self.depends]

    def _step(self, node: fx.Node, sources: tuple[int, ...], call: Callable[..., Any]) -> Step:
        moving = self._moving(sources)
        if moving and node.target is getattr and node.args[1] in TRANSPOSED:
            return Route(node.name, sources, call)
        if not moving or node.target in SIZES or node.target in BLANKS:
            return Constant(node.name, sources, call)
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        made = node.args[0] if node.target is operator.getitem else None
        if isinstance(made, fx.Node) and made in self.several:  # the module that returns several, and not its first one
            what, whose = made, self.modules[str(made.target)] if made.op == "call_module" else None
        else:
            what, whose = node, module
        other = Other(what.name, sources, call, _what(what, whose))
        if any(source in self.several for source in node.all_input_nodes):
            return Route(node.name, sources, call) if self._routes(node) else other
        kind = KINDS.get(node.target if module is None else type(module), Other)
        if kind is Route:
            return Route(node.name, sources, call)
        affine = self._arithmetic(node, sources, call) if module is None else self._layer((node.name, sources), module)
        if affine is not None or len(moving) > 1:
            return affine or other
        # A function of one tensor: what else it reads (the size of a window) is the same for every input.
        where, call = (node.name, tuple(moving)), self._bound(call, sources)
        ceiling = _ceiling(node, module)
        if ceiling is not None:
            return Rectifier(*where, call, ceiling)
        if type(module) is nn.MaxPool2d and not module.return_indices:
            return self._pooling(where, module, call)
        if kind is Average:
            return Average(*where, self._one(), None, call)
        return other if kind is Other else kind(*where, call)

    def _bound(self, call: Callable[..., Any], sources: tuple[int, ...]) -> Callable[..., Any]:
        """A call as a function of its one source that depends on the input."""
        if len(sources) == 1:
            return call
        values = [None if source in self.depends else self.values[source] for source in sources]
        moving = [source in self.depends for source in sources]
        return lambda x: call(*(x if moves else value for moves, value in zip(moving, values)))

    def _pooling(self, where: tuple[str, tuple[int, ...]], module: nn.MaxPool2d, call: Call) -> Pooling:
        """Maximum pooling, behind a step that finds the maxima once for both passes."""
        name, sources = where
        pairs = [nn.modules.utils._pair(getattr(module, x)) for x in ("kernel_size", "stride", "padding", "dilation")]
        windows = (*pairs, module.ceil_mode)
        choice = Choice(f"{name}_places", sources, lambda x: torch.ops.aten.max_pool2d_with_indices(x, *windows))
        return Pooling(name, (*sources, self._append(choice, self._run(choice))), call, windows)

    def _layer(self, where: tuple[str, tuple[int, ...]], module: nn.Module) -> Affine | None:
        """A module with weights as an affine step, if it is one."""
        if isinstance(module, nn.Conv2d):
            mode = None if module.padding_mode == "zeros" else module.padding_mode
            options = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")}
            return _convolution(where, module.weight, module.bias, mode, **options)
        if isinstance(module, nn.Linear):
            return Dense(*where, module.weight.detach(), None if module.bias is None else module.bias.detach())
        if _normalises(module):
            factor, shift = _factor_and_shift(module)
            _, (source,) = where
            channels = (-1, *(1,) * (self.values[source].dim() - 2))
            return Scale(*where, factor.view(channels), shift.view(channels))
        return None

    def _arithmetic(self, node: fx.Node, sources: tuple[int, ...], call: Call) -> Affine | None:
        """A sum or difference of tensors of one shape, arithmetic with a number, or a `_functional` layer as an affine
        step, if it is one."""
        if node.target in CONVOLUTIONS + LINEAR:
            return self._functional(node)
        target, tensors = node.target, [s for s in sources if isinstance(self.values[s], torch.Tensor)]
        if len(node.args) != 2 or node.kwargs or len({self.values[source].shape for source in tensors}) != 1:
            return None
        if len(tensors) == 2 and target in SUMS:
            return Sum(node.name, sources, self._one(), None)
        if len(tensors) == 2 and target in DIFFERENCES:
            negative = Scale(f"minus_{node.name}", sources[1:], -self._one(), None)
            place = self._append(negative, self._run(negative))
            return Sum(node.name, (sources[0], place), self._one(), None)
        divided = target in QUOTIENTS and self.places.get(cast(Any, node.args[0]), -1) in self.depends
        of_number = target in SUMS + DIFFERENCES + PRODUCTS or divided
        moving = self._moving(sources)
        if len(moving) == 1 == len(tensors) and of_number and node.args[0] is not node.args[1]:
            # Affine with one input: its values at 0 and 1 say which.
            call = self._bound(call, sources)
            zero, one = (call(torch.full_like(self.values[moving[0]], x)).reshape(-1)[0] for x in (0.0, 1.0))
            return Scale(node.name, tuple(moving), one - zero, zero)
        return None

    def _functional(self, node: fx.Node) -> Affine | None:
        """A convolution or a linear layer that is a function, if its weights do not depend on the input."""
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given: dict[str, Any] = {**dict(zip(names, node.args)), **node.kwargs}
        x, *weights = (given.pop(name, None) for name in names[:3])
        known: dict[Any, Any] = {
            n: self.values[self.places[n]] for n in node.all_input_nodes if self.places.get(n) not in self.depends
        }
        if x in known or x not in self.places or any(isinstance(w, fx.Node) and w not in known for w in weights):
            return None
        weight: Any = known.get(weights[0])
        bias: Any = known.get(weights[1])
        where = (node.name, (self.places[x],))
        if node.target in LINEAR:
            return Dense(*where, weight, bias)
        return _convolution(where, weight, bias, None, **cast(Any, fx.node.map_arg(given, known.__getitem__)))

    def _one(self) -> torch.Tensor:
        return torch.ones((), dtype=self.values[0].dtype, device=self.values[0].device)

    def _call(self, node: fx.Node, in_place: bool) -> tuple[Callable[..., Any], tuple[int, ...]]:
        """The node's operation as a function of its sources, which leaves them as they are, and the sources.

        in_place: whether it may work in place on the first of its arguments; then it gets a copy.
        """
        if node.op == "get_attr":
            value: Any = self.module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return lambda: value.detach() if isinstance(value, torch.Tensor) else value, ()
        if node.op == "call_module":
            function: Callable[..., Any] = self.modules[str(node.target)].forward
        elif node.op == "call_method":
            function = _method(str(node.target))
        else:
            function = _function(node)
        # As they are now: a step in place further up changes what this node reads, not what it makes of it.
        read = tuple(node.all_input_nodes)
        given: Any = (node.args, node.kwargs)
        several = {one: self.several[one] for one in read if one in self.several}
        places = {one: self.places[one] for one in read if one not in several}
        sources = tuple(dict.fromkeys([*places.values(), *(s for one in several.values() for s in one.sources)]))

        def call(*inputs: Any) -> Any:
            values = dict(zip(sources, inputs))
            found = {one: values[place] for one, place in places.items()}
            found |= {one: made.call(*(values[s] for s in made.sources)) for one, made in several.items()}
            arguments, named = fx.node.map_arg(given, found.__getitem__)
            first = [arguments[0].clone()] if in_place else arguments[:1]
            return function(*first, *arguments[1:], **named)

        return call, sources


@dataclass(frozen=True)
class _Several:
    """What returns several tensors, or none: a function of the values at `sources`. routes: whether it moves values
    alone."""

    call: Callable[..., Any]
    sources: tuple[int, ...]
    routes: bool


def _convolution(
    where: tuple[str, tuple[int, ...]],
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    mode: str | None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Convolution:
    """A convolution as torch.nn.functional.conv2d takes it. mode: of `pad`, for what is no padding with zeros."""
    stride, dilation = (nn.modules.utils._pair(value) for value in (stride, dilation))
    sides = None if isinstance(padding, str) else nn.modules.utils._pair(padding)
    whole = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:])]
    if padding == "valid":
        sides = (0, 0)
    if padding == "same" and all(size % 2 == 0 for size in whole):
        sides = (whole[0] // 2, whole[1] // 2)
    around = None
    if mode is not None or sides is None:
        # As `pad` wants it: the last dimension first. What cannot be halved has one more behind than before.
        before_behind = [(s, s) for s in sides] if sides is not None else [(n // 2, n - n // 2) for n in whole]
        around = {"pad": (*before_behind[1], *before_behind[0]), "mode": mode or "constant"}
        sides = (0, 0)
    options = {"stride": stride, "padding": sides, "dilation": dilation, "groups": groups}
    return Convolution(*where, weight.detach(), None if bias is None else bias.detach().view(-1, 1, 1), options, around)


def _what(node: fx.Node, module: nn.Module | None) -> str:
    """What a node is, in words, for who has no rule for it."""
    if module is not None:
        return f"a module {type(module).__name__}"
    name = getattr(node.target, "__name__", str(node.target))
    if node.target in CONVOLUTIONS + LINEAR:
        return f"a {name} whose weights depend on the input"
    return f"a call of {name}"


def _works_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node changes its first argument, or may."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_method":
        return _in_place_name(str(node.target))
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    return node.target in OPERATORS or _in_place_name(name) or bool(_arguments(node).get("inplace", False))


def _in_place_name(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__") and name not in ("and_", "or_", "not_", "is_")


def _same_out_of_place(node: fx.Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Target, arguments and keywords of a node, of the operation that does the same out of place if there is one."""
    target, arguments, keywords = node.target, node.args, dict(node.kwargs)
    if node.op == "call_method" and _in_place_name(str(target)):
        plain = str(target).removesuffix("_")
        target = plain if callable(getattr(torch.Tensor, plain, None)) else target
    if node.op == "call_function":
        name = getattr(target, "__name__", "")
        if "inplace" in _arguments(node):
            keywords.pop("inplace", None)
            arguments = arguments[: list(inspect.signature(_function(node)).parameters).index("inplace")]
        if target in OPERATORS:
            target = OPERATORS[target]
        elif _in_place_name(name):
            found = (getattr(home, name.removesuffix("_"), None) for home in (functional, torch))
            target = next((function for function in found if callable(function)), target)
    return target, arguments, keywords


def _function(node: fx.Node) -> Callable[..., Any]:
    """What a node calls that calls a function."""
    return cast("Callable[..., Any]", node.target)


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call of a Python function by name; empty where it has no signature."""
    try:
        return dict(inspect.signature(_function(node)).bind(*node.args, **node.kwargs).arguments)
    except (TypeError, ValueError):
        return {}


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
    name = getattr(node.target, "__name__", str(node.target))
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


def _normalises(module: nn.Module | None) -> TypeGuard[nn.modules.batchnorm._BatchNorm]:
    """Whether it is a batch normalisation by kept statistics, which is a factor and a shift for each channel."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None


def _factor_and_shift(norm: nn.modules.batchnorm._BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """What batch normalisation in evaluation does to each channel [k]: y = factor * x + shift."""
    mean, variance = cast(torch.Tensor, norm.running_mean), cast(torch.Tensor, norm.running_var)
    factor = (variance + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight.detach()
    shift = -mean * factor
    return factor, shift if norm.bias is None else shift + norm.bias.detach()
