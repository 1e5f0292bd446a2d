"""From the nodes of a trace to steps.

It does not matter whether a layer is a module, a function or an operator, whether a module is used twice, or whether it
works in place: what works in place becomes a step that leaves its input as it is, and what reads that input afterwards
reads the step instead. Only where another view of the same memory is read afterwards is there no such step.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional

from ...errors import Refusal
from .in_place import function_of, same_out_of_place, shares_memory, works_in_place
from .kinds import (
    BATCH_NORMS,
    BLANKS,
    CONVOLUTIONS,
    DIFFERENCES,
    DIVISORS,
    GATES,
    KINDS,
    LINEAR,
    MATRIX_PRODUCTS,
    NEGATIVES,
    OTHER_CONVOLUTIONS,
    PADS,
    POWERS,
    PRODUCTS,
    QUOTIENTS,
    SIZES,
    SOFTMAXES,
    SUMS,
    TRANSPOSED,
)
from .layers import PADDED, ceiling_of, contraction, convolution, factor_and_shift, kept_statistics, normalises
from .normalisation import normalised
from .parts import put
from .steps import (
    Activation,
    Affine,
    Average,
    Choice,
    Constant,
    Contraction,
    Convolution,
    Dense,
    Elementwise,
    Normalisation,
    Other,
    Pooling,
    Product,
    Rectifier,
    Route,
    Scale,
    Softmax,
    Step,
    Sum,
)
from .tracer import Applied

Call = Callable[..., Any]


class Builder:
    """Takes the nodes of a trace in order and makes their steps; runs them on a probe, so that shapes are known.

    What returns several tensors, or no tensor, is no step, but a part of each step that reads it (`several`).
    """

    def __init__(self, name: str, module: nn.Module, source: fx.Node, probe: torch.Tensor) -> None:
        self.name, self.module = name, module
        self.modules = dict(module.named_modules())
        self.steps: list[Step] = []
        self.places: dict[fx.Node, int] = {source: 0}
        self.values: list[Any] = [probe]
        self.output = 0
        self.depends = {0}
        self.fixed: set[int] = set()  # places of what is the same for every input and batch size
        self.several: dict[fx.Node, _Several] = {}
        self.pads: dict[int, tuple[int, tuple[int, ...], str]] = {}  # where padding is: its source, sides, mode
        self.gates: dict[int, bool] = {}  # places of gates: whether it is one over something

    def add(self, node: fx.Node) -> None:
        """The step of a node, where it has one of its own."""
        if node in self.places or node.op == "placeholder":
            return
        if node.op == "output":
            if any(source in self.several for source in node.all_input_nodes):
                raise Refusal(
                    f"{self.name} returns several tensors: a backward pass by rules starts from one of logits"
                )
            result = node.args[0]
            if not isinstance(result, fx.Node):
                raise Refusal(
                    f"{self.name} returns a {_kind_of(result)}, a backward pass by rules starts from a tensor of "
                    "logits: `xaibench run` takes them out, and so does a module around it that returns them alone"
                )
            self.output = self.places[result]
            return
        if self._works_in_fixed(node):
            call, sources = self._call(node, False)
            self._keep(node, call(*(self.values[source] for source in sources)))
            return
        changed = self._out_of_place(node)
        if not self._fold(node):
            call, sources = self._call(node, changed is not None)
            if all(source in self.fixed for source in sources):
                self._keep(node, call(*(self.values[source] for source in sources)))
            else:
                step = self._step(node, sources, call)
                value = self._run(step)
                if not isinstance(step, Constant) and not isinstance(value, torch.Tensor):
                    self.several[node] = _Several(call, sources, self._routes(node))
                    return
                self.places[node] = self._append(step, value)
                self._notice(node, step)
        if changed is not None:
            changed.replace_all_uses_with(node, delete_user_cb=lambda user: not self._done(user))

    def _keep(self, node: fx.Node, value: Any) -> None:
        """A step for what is the same for every input."""
        self.places[node] = self._append(Constant(node.name, (), lambda: value), value)
        self.fixed.add(self.places[node])

    def _notice(self, node: fx.Node, step: Step) -> None:
        """Keep what later steps want to know of this one: whether it is a gate, or padding."""
        place, module = self.places[node], self.modules.get(str(node.target)) if node.op == "call_module" else None
        target = type(module) if module is not None else node.target
        moving = self._moving(step.sources)
        if target in GATES or isinstance(step, Softmax):
            self.gates[place] = False
        elif target in DIVISORS or (isinstance(step, Elementwise) and target in POWERS):
            if target in DIVISORS or (isinstance(node.args[1], int | float) and node.args[1] < 0):
                self.gates[place] = True
        elif isinstance(step, Route | Scale) and len(moving) == 1 and moving[0] in self.gates:
            self.gates[place] = self.gates[moving[0]]
        if isinstance(step, Route) and target in (functional.pad, *PADS):
            given = (
                {"pad": module.padding} if module is not None else self._given(node, ("input", "pad", "mode", "value"))
            )
            mode = PADDED.get(target, "constant")
            mode = (given or {}).get("mode") or mode
            value = getattr(module, "value", None) or (given or {}).get("value") or 0
            if given is not None and value == 0 and len(given["pad"]) in (2, 4):
                self.pads[place] = (step.sources[0], tuple(given["pad"]), mode)

    def _given(self, node: fx.Node, names: tuple[str, ...]) -> dict[str, Any] | None:
        """The arguments of a function but for its first, by name, if they are the same for every input."""
        given: dict[str, Any] = {**dict(zip(names, node.args)), **node.kwargs}
        given.pop(names[0], None)
        if any(self.places.get(one) not in self.fixed for one in _nodes(given)):
            return None
        return dict(fx.node.map_arg(given, lambda one: self.values[self.places[one]]))

    def _works_in_fixed(self, node: fx.Node) -> bool:
        """Whether a node works in place on what is the same for every input, and no weights: it may, once."""
        fixed = all(self.places.get(one) in self.fixed for one in node.all_input_nodes)
        if not (fixed and node.args and works_in_place(node, self.modules)) or node.target is put:
            return False
        value = self.values[self.places[node.all_input_nodes[0]]]
        weights = (*self.module.parameters(), *self.module.buffers())
        return isinstance(value, torch.Tensor) and not any(shares_memory(value, weight) for weight in weights)

    def _out_of_place(self, node: fx.Node) -> fx.Node | None:
        """The node whose value this one changes in place, if it does; then its operation has become the one that does
        not, where there is one. Raises Refusal where another view of that value is read afterwards."""
        changes = works_in_place(node, self.modules)
        node.target, node.args, node.kwargs = same_out_of_place(node)
        changed: Any = (node.args[0] if node.args else node.kwargs.get("input")) if changes else None
        value = self.values[self.places[changed]] if changed in self.places else None
        if not isinstance(value, torch.Tensor):
            return None
        found: dict[fx.Node, tuple[int, ...]] = {other: (place,) for other, place in self.places.items()}
        found |= {other: made.sources for other, made in self.several.items()}
        for other, places in found.items():
            values = [self.values[place] for place in places]
            same = any(isinstance(v, torch.Tensor) and shares_memory(v, value) for v in values)
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
        scale = self._batch_norm(node)
        if scale is None:
            return False
        before = node.all_input_nodes[0]
        place = self.places.get(before, 0)
        if place == 0 or len(before.users) > 1:
            return False
        step = self.steps[place - 1]
        folded = step.scaled(*scale) if isinstance(step, Affine) else None
        if folded is None:
            return False
        self.steps[place - 1] = folded
        self.values[place] = self._run(folded)
        self.places[node] = place
        return True

    def _batch_norm(self, node: fx.Node) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Factor and shift [k] of a batch normalisation by kept statistics, a module or a function; None for others."""
        if node.op == "call_module":
            norm = self.modules[str(node.target)]
            return factor_and_shift(*kept_statistics(norm)) if normalises(norm) else None
        if node.target not in BATCH_NORMS or not isinstance(node.args[0], fx.Node):
            return None
        statistics, weights = ("running_mean", "running_var"), ("weight", "bias")
        pairs = (*weights, *statistics) if node.target is torch.batch_norm else (*statistics, *weights)
        names = ("input", *pairs, "training", "momentum", "eps", "cudnn_enabled")
        given = self._given(node, names)
        if given is None or given.get("training") or given["running_mean"] is None:
            return None
        mean, variance, weight, bias = (given.get(name) for name in (*statistics, *weights))
        return factor_and_shift(mean, variance, weight, bias, given.get("eps", 1e-5))

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
        target = node.target if module is None else type(module)
        kind = KINDS.get(target, Other)
        if kind is Route:
            return Route(node.name, sources, call)
        affine = self._arithmetic(node, sources, call) if module is None else self._layer((node.name, sources), module)
        if affine is not None:
            return affine
        if len(moving) > 1:
            return self._product(node, moving, call, sources) or other
        # A function of one tensor: what else it reads (the size of a window) is the same for every input.
        where, bound = (node.name, tuple(moving)), self._bound(call, sources)
        ceiling = ceiling_of(node, module)
        if ceiling is not None:
            return Rectifier(*where, bound, ceiling)
        if type(module) is nn.MaxPool2d and not module.return_indices:
            return self._pooling(where, module, bound)
        if kind is Average:
            return Average(*where, self._one(), None, bound)
        if kind is not Other:
            return cast(Step, kind(*where, bound))
        return self._of_one_tensor(node, module, bound) or other

    def _of_one_tensor(self, node: fx.Node, module: nn.Module | None, call: Call) -> Step | None:
        """A softmax, a normalisation, a power or a function of somebody's, of one tensor."""
        (place,) = self._moving(self._places(node))
        where, values = (node.name, (place,)), self.values[place]
        if node.target in SOFTMAXES:
            dim = (self._given(node, ("input", "dim")) or {}).get("dim")
            return None if dim is None else Softmax(*where, call, dim)
        parts = normalised(module, node.target, lambda names: self._given(node, names), values)
        if parts is not None:
            return Normalisation(*where, call, parts.mean, parts.average, parts.scale, parts.bias)
        if node.target in MATRIX_PRODUCTS and len(node.all_input_nodes) == 1:
            equation = node.args[:-2]
            function = (lambda x, y: torch.einsum(*equation, x, y)) if equation else torch.matmul
            return Product(node.name, (place, place), function) if len(node.args) in (2, 3) else None
        if node.target in POWERS or (node.target in PRODUCTS and node.args[0] is node.args[1]):
            zero = bool((call(torch.zeros_like(values)) == 0).all())
            return (Activation if zero else Elementwise)(*where, call)
        if isinstance(node.target, Applied) and _is_elementwise(call, values):
            zero = bool((call(torch.zeros_like(values)) == 0).all())
            return (Activation if zero else Elementwise)(*where, call)
        return None

    def _places(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(self.places[one] for one in node.all_input_nodes if one in self.places)

    def _product(self, node: fx.Node, moving: list[int], call: Call, sources: tuple[int, ...]) -> Step | None:
        """A product of two tensors that depend on the input, or one over the other, if it is one."""
        if len(moving) != 2 or (node.target not in MATRIX_PRODUCTS + PRODUCTS + QUOTIENTS):
            return None
        if node.target in QUOTIENTS:
            first, second = self._in_order(node)
            return (
                None if node.kwargs else Product(node.name, (first, self._one_over(node, second)), torch.mul, 1, True)
            )
        function = self._bound(call, sources)
        if node.target not in (torch.einsum,) and len(node.args) == 2:
            function, moving = torch.mul if node.target in PRODUCTS else torch.matmul, [*self._in_order(node)]
        gates = [self.gates.get(place) for place in moving]
        # Of two gates, what divides is one.
        only = [i for i, gate in enumerate(gates) if gate is not None]
        only = only if len(only) < 2 else [i for i in only if gates[i]]
        gate = only[0] if len(only) == 1 else None
        return Product(node.name, tuple(moving), function, gate, bool(gate is not None and gates[gate]))

    def _bound(self, call: Callable[..., Any], sources: tuple[int, ...]) -> Callable[..., Any]:
        """A call as a function of its sources that depend on the input."""
        moving = [i for i, source in enumerate(sources) if source in self.depends]
        if len(sources) == len(moving):
            return call
        values = [None if i in moving else self.values[source] for i, source in enumerate(sources)]

        def bound(*inputs: Any) -> Any:
            given = dict(zip(moving, inputs))
            return call(*(given.get(i, value) for i, value in enumerate(values)))

        return bound

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
            return self._behind_padding(convolution(where, module.weight, module.bias, mode, **options))
        if isinstance(module, nn.Linear):
            return Dense(*where, module.weight.detach(), None if module.bias is None else module.bias.detach())
        if normalises(module):
            return self._per_channel(where, factor_and_shift(*kept_statistics(module)))
        if isinstance(module, nn.modules.conv._ConvNd) and module.padding_mode == "zeros":
            options = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")}
            kind = type(module).__name__.lower().replace("transpose", "_transpose")
            if module.transposed:
                options["output_padding"] = module.output_padding
            function = getattr(functional, kind, None)
            if function is not None:
                return contraction(where, function, module.weight, module.bias, options)
        return None

    def _per_channel(self, where: tuple[str, tuple[int, ...]], scale: tuple[torch.Tensor, torch.Tensor]) -> Scale:
        channels = (-1, *(1,) * (self.values[where[1][0]].dim() - 2))
        return Scale(*where, *(values.view(channels) for values in scale))

    def _behind_padding(self, step: Convolution) -> Convolution:
        """A convolution that pads its input itself as the step does that it reads, if that is padding."""
        (source,) = step.sources
        if source not in self.pads or step.around is not None:
            return step
        source, sides, mode = self.pads[source]
        left, right, top, bottom = (*sides, 0, 0, 0, 0)[:4]
        own = tuple(step.options["padding"])
        if mode == "constant" and own == (0, 0) and left == right >= 0 and top == bottom >= 0:
            return replace(step, sources=(source,), options={**step.options, "padding": (top, left)})
        return replace(step, sources=(source,), around={"pad": sides, "mode": mode})

    def _arithmetic(self, node: fx.Node, sources: tuple[int, ...], call: Call) -> Step | None:
        """A sum or difference of tensors, arithmetic with a number or another constant, or a `_functional` layer, if it
        is one."""
        if node.target in CONVOLUTIONS + LINEAR + OTHER_CONVOLUTIONS + BATCH_NORMS:
            return self._functional(node)
        target, tensors = node.target, [s for s in sources if isinstance(self.values[s], torch.Tensor)]
        moving = self._moving(sources)
        if target in MATRIX_PRODUCTS:
            return self._by_constant(node, moving, tensors, call, sources)
        if target in NEGATIVES and len(moving) == 1:
            return Scale(node.name, tuple(moving), -self._one(), None)
        if len(node.args) != 2 or node.kwargs:
            return None
        if len(tensors) == 2 and target in SUMS:
            return Sum(node.name, self._in_order(node), self._one(), None)
        if len(tensors) == 2 and target in DIFFERENCES:
            first, second = self._in_order(node)
            negative = Scale(f"minus_{node.name}", (second,), -self._one(), None)
            place = self._append(negative, self._run(negative))
            if second in self.fixed:
                self.depends.discard(place)
            return Sum(node.name, (first, place), self._one(), None)
        if len(moving) != 1:
            return None
        if len(tensors) == 2 and target in PRODUCTS + QUOTIENTS:
            return self._by_constant(node, moving, tensors, call, sources)
        if len(tensors) == 1 and node.args[0] is node.args[1]:
            return Scale(node.name, tuple(moving), 2 * self._one(), None) if target in SUMS else None
        below = target in QUOTIENTS and self.places.get(cast(Any, node.args[0]), -1) not in self.depends
        if len(tensors) == 1 and target in SUMS + DIFFERENCES + PRODUCTS + QUOTIENTS and not below:
            # Affine with one input: its values at 0 and 1 say which.
            call = self._bound(call, sources)
            zero, one = (call(torch.full_like(self.values[moving[0]], x)).reshape(-1)[0] for x in (0.0, 1.0))
            return Scale(node.name, tuple(moving), one - zero, zero)
        if len(tensors) == 1 and below and isinstance(node.args[0], int | float):
            return Scale(node.name, (self._one_over(node, moving[0]),), node.args[0] * self._one(), None)
        return None

    def _in_order(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(self.places[cast(Any, one)] for one in node.args)

    def _one_over(self, node: fx.Node, source: int) -> int:
        """The place of one over what is at `source`."""
        below = Elementwise(f"one_over_{node.name}", (source,), torch.reciprocal)
        place = self._append(below, self._run(below))
        self.gates[place] = True
        return place

    def _by_constant(
        self, node: fx.Node, moving: list[int], tensors: list[int], call: Call, sources: tuple[int, ...]
    ) -> Step | None:
        """A product with a tensor that does not depend on the input, if it is one."""
        if len(moving) != 1 or len(tensors) != 2 or not {*sources} <= {*tensors}:
            return None
        (constant,) = {*tensors} - {*moving}
        value, first = self.values[constant], sources[0] == moving[0]
        where = (node.name, tuple(moving))
        if constant not in self.fixed:
            # Its size is that of the batch.
            if node.target in QUOTIENTS:
                return None
            if node.target in PRODUCTS:
                return Product(node.name, (moving[0], constant), torch.mul, 1, True)
            return Product(node.name, sources, call, sources.index(constant), True)
        if node.target in PRODUCTS:
            return Scale(*where, value, None)
        if node.target in QUOTIENTS:
            if first:
                return Scale(*where, 1 / value, None)
            return Scale(node.name, (self._one_over(node, moving[0]),), value, None)
        if first and value.dim() == 2 and node.target is not torch.einsum:
            return Dense(*where, value.mT, None)
        return Contraction(*where, value, None, call if first else lambda x, y: call(y, x))

    def _functional(self, node: fx.Node) -> Affine | None:
        """A convolution, a linear layer or a batch normalisation that is a function, if its weights do not depend on
        the input."""
        scale = self._batch_norm(node)
        if scale is not None:
            return self._per_channel((node.name, (self.places[node.all_input_nodes[0]],)), scale)
        names: tuple[str, ...] = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        if "transpose" in getattr(node.target, "__name__", ""):
            names = (*names[:5], "output_padding", "groups", "dilation")
        given = self._given(node, names)
        x: Any = node.args[0] if node.args else node.kwargs.get("input")
        if given is None or self.places.get(x) not in self.depends or node.target in BATCH_NORMS:
            return None
        where = (node.name, (self.places[x],))
        weight, bias = given.pop("weight"), given.pop("bias", None)
        if node.target in LINEAR:
            return Dense(*where, weight, bias)
        if node.target in CONVOLUTIONS:
            return self._behind_padding(convolution(where, weight, bias, None, **given))
        return contraction(where, cast(Any, node.target), weight, bias, given)

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
            function = function_of(node)
        # As they are now: a step in place further up changes what this node reads, not what it makes of it.
        read = tuple(node.all_input_nodes)
        given: Any = (node.args, node.kwargs)
        several = {one: self.several[one] for one in read if one in self.several}
        places = {one: self.places[one] for one in read if one not in several}
        sources = tuple(dict.fromkeys([*places.values(), *(s for one in several.values() for s in one.sources)]))
        # Which source each argument is; None: it is the same for every input.
        which = [
            sources.index(places[one]) if isinstance(one, fx.Node) and one in places else None for one in node.args
        ]
        if len(_nodes(given)) == sum(i is not None for i in which) and not in_place:
            # No need to look for sources within the arguments, which takes longer than what is done to a small tensor.
            plain, options = list(zip(which, node.args)), node.kwargs
            return lambda *inputs: function(*(x if i is None else inputs[i] for i, x in plain), **options), sources

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


def _kind_of(result: Any) -> str:
    """What a network returns, without torch.fx's word for it."""
    return next((kind.__name__ for kind in (dict, list, tuple) if isinstance(result, kind)), type(result).__name__)


def _nodes(given: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(given, found.append)
    return found


@torch.no_grad()
def _is_elementwise(call: Call, values: torch.Tensor) -> bool:
    """Whether a function treats each value by itself: it does the same to values in another order, and to one alone."""
    found = call(values)
    if not isinstance(found, torch.Tensor) or found.shape != values.shape:
        return False
    order = torch.randperm(values.numel(), generator=torch.Generator().manual_seed(0)).to(values.device)
    other = call(values.flatten()[order].view_as(values))
    alone = call(values.flatten()[:1].view([1] * values.dim()))
    return torch.allclose(other.flatten(), found.flatten()[order]) and torch.allclose(
        alone.flatten(), found.flatten()[:1]
    )


def _what(node: fx.Node, module: nn.Module | None) -> str:
    """What a node is and where, in words, for who has no rule for it."""
    if module is not None:
        return f"a module {type(module).__name__}"
    name = getattr(node.target, "__name__", str(node.target))
    inside = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    where = f" in '{inside[-1]}'" if inside else ""
    if node.target in CONVOLUTIONS + LINEAR:
        return f"a {name}{where} whose weights depend on the input"
    return f"a call of {name}{where}"


def _method(name: str) -> Callable[..., Any]:
    return lambda tensor, *arguments, **keywords: getattr(tensor, name)(*arguments, **keywords)
