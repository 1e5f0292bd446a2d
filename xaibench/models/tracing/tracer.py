"""torch.fx's trace of a network, which knows the sizes of things.

torch.fx runs a network's Python on stand-ins, and stops where Python wants a number or a decision. Here a stand-in
knows what it stands for, from runs of inputs of two batch sizes side by side: sizes that are the same in both are
numbers, and what depends on the batch size remains a step of the network. What depends on the values of the input
stays unknown: a network that decides by them is no fixed list of steps.
"""

import operator
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, partialmethod
from typing import Any

import torch
from torch import fx, nn

from ..classifier import Classifier
from .parts import PARTS, multi_head_attention, put

# Modules of torch.nn that consist of others, or of functions that have rules of their own.
LOOKED_INTO = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.GLU, nn.Softmax)
# Functions and methods that make a tensor of nothing but sizes.
FACTORIES = ("zeros", "ones", "full", "empty", "arange")
# Methods that repeat a tensor as often as sizes say, which may be one's that is there before the network runs.
REPEATERS = ("expand", "repeat", "tile", "broadcast_to")
MAKERS = ("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")


class Untraceable(Exception):
    """What a network does that is no fixed list of steps, in words."""


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor that is there before the network runs, as an operation without inputs."""

    value: torch.Tensor
    __name__ = "constant"

    def __call__(self) -> torch.Tensor:
        return self.value.clone()  # somebody may work in place on it


class Stand(fx.Proxy):
    """The stand-in for a value of a network."""

    tracer: "Tracer"

    def __getattr__(self, name: str) -> Any:
        if name in ("mT", "T"):
            return self.transpose(-2, -1) if name == "mT" else self.t()
        return super().__getattr__(name)

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.tracer.shape(self)

    @property
    def ndim(self) -> int:
        return len(self.tracer.known(self.node)[0].shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tracer.known(self.node)[0].dtype

    @property
    def device(self) -> torch.device:
        return self.tracer.known(self.node)[0].device

    def size(self, dim: int | None = None) -> Any:
        if dim == 0:
            return self.tracer.number("call_method", "size", (self, 0))
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return self.ndim

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def numel(self) -> Any:
        return self.tracer.number("call_method", "numel", (self,))

    def __len__(self) -> int:
        return self.tracer.plain(self, len)

    def __iter__(self) -> Iterator[Any]:
        return (self.tracer.create_proxy("call_function", operator.getitem, (self, i), {}) for i in range(len(self)))

    def __bool__(self) -> bool:
        return self.tracer.plain(self, bool)

    def __int__(self) -> int:
        return self.tracer.plain(self, int)

    def __index__(self) -> int:
        return self.tracer.plain(self, int)

    def __float__(self) -> float:
        return self.tracer.plain(self, float)

    def __setitem__(self, place: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", put, (self, place, value), {})


class Number(Stand):
    """The stand-in for a number that depends on the batch size."""


class Tracer(fx.Tracer):
    """Traces to the layers of torch.nn, and keeps which node is the output of which module, containers included.

    outputs: module path -> its outputs. failed: the path of the innermost module in which the trace stopped. sized:
        whether sizes other than the batch's have become numbers, so that the trace is for these alone.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.outputs: dict[str, list[fx.Node]] = {}
        self.failed, self.sized = "", False
        self._inputs = [classifier.probe(count) for count in (2, 3)]
        self._values: list[dict[fx.Node, Any]] = [{}, {}]
        self._last: fx.Node | None = None
        self._running = False

    def trace_steps(self, module: nn.Module) -> list[fx.Node]:
        """The nodes of a network of one input. Raises whatever its forward pass does on stand-ins."""
        with _functions_seen(self), _left_as_it_was(module):
            return list(self.trace(module).nodes)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """The input alone has a stand-in; other arguments of the forward pass have their defaults."""
        inside = wrapped(self.root)
        given = [self.create_proxy("placeholder", "inputs", (), {})]
        return (inside, given) if inside is not None else (root_fn, [self.root, *given])

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        looked_into = type(m) in LOOKED_INTO or wrapped(m) is not None
        return not looked_into and super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._running:
            return forward(*args, **kwargs)
        if type(m) is nn.MultiheadAttention:
            forward = partial(multi_head_attention, m)
        path = self.path_of_module(m)
        try:
            result = super().call_module(m, wrapped(m) or forward, args, kwargs)
        except Exception:
            self.failed = self.failed or path
            raise
        if isinstance(result, fx.Proxy):
            self.outputs.setdefault(path, []).append(result.node)
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Stand(node, self)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.Tensor):
            return self.create_node("call_function", Held(a.detach()), (), {})
        return super().create_arg(a)

    def create_proxy(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *more: Any, **options: Any
    ) -> Any:
        if kind in ("call_function", "call_method"):
            parts = PARTS.get(target, target if _is_of_python(target) else None)
            found = NotImplemented if parts is None else parts(*args, **kwargs)
            if found is not NotImplemented:
                return found
        given = _stands(args, kwargs)
        if given and all(isinstance(one, Number) for one in given):
            return self.number(kind, target, args, kwargs)
        if kind == "call_method" and target in MAKERS and len(given) == 1:
            return getattr(self.known(given[0].node)[0], target)(*args[1:], **kwargs)
        return super().create_proxy(kind, target, args, kwargs, *more, **options)

    def known(self, node: fx.Node) -> tuple[Any, Any]:
        """What a node is for either batch size."""
        self._running = True
        try:
            with torch.no_grad():
                while node not in self._values[1]:
                    self._last = next(iter(self.graph.nodes)) if self._last is None else self._last.next
                    for values, inputs in zip(self._values, self._inputs):
                        values[self._last] = self._run(self._last, values, inputs)
        finally:
            self._running = False
        return self._values[0][node], self._values[1][node]

    def shape(self, stand: Stand) -> tuple[Any, ...]:
        """The sizes of a tensor: numbers, but for those that depend on the batch size."""
        self.sized = True
        sizes = zip(*(value.shape for value in self.known(stand.node)))
        return tuple(
            one if one == other else self._as_number("call_method", "size", (stand, place), {})
            for place, (one, other) in enumerate(sizes)
        )

    def number(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """What is made of numbers: itself, where it does not depend on the batch size."""
        found = self._as_number(kind, target, args, kwargs or {})
        one, other = self.known(found.node)
        if isinstance(one, torch.Tensor):
            return Stand(found.node, self)
        return one if type(one) is type(other) and one == other else found

    def plain(self, stand: Stand, kind: Callable[[Any], Any]) -> Any:
        """A value that Python asks for. Raises Untraceable for one that it cannot have."""
        one, other = self.known(stand.node)
        if isinstance(one, torch.Tensor) and kind is not len and self._depends(stand.node):
            raise Untraceable(
                "it decides by the values of the input, and then has no fixed steps\n"
                "write both ways as one, such as torch.where(condition, this, that)"
            )
        if kind(one) != kind(other):
            raise Untraceable(
                "it uses the batch size as a number of Python's\n"
                "give sizes to tensors as x.shape[0] or -1, such as x.new_zeros(x.shape[0], 4), and do not loop over it"
            )
        return kind(one)

    def _as_number(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Number:
        return Number(super().create_proxy(kind, target, args, kwargs).node, self)

    def _depends(self, node: fx.Node) -> bool:
        """Whether a node's value depends on the input."""
        waiting, seen = [node], {node}
        while waiting:
            one = waiting.pop()
            if one.op == "placeholder":
                return True
            waiting += [source for source in one.all_input_nodes if source not in seen]
            seen.update(one.all_input_nodes)
        return False

    def _run(self, node: fx.Node, values: dict[fx.Node, Any], inputs: torch.Tensor) -> Any:
        if node.op == "placeholder":
            return inputs.clone()
        given: Any = (node.args, node.kwargs)
        args, kwargs = fx.node.map_arg(given, values.__getitem__)
        if node.op == "call_function":
            function: Any = node.target
            return function(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        found: Any = self.root
        for part in str(node.target).split("."):
            found = getattr(found, part)
        return found(*args, **kwargs) if node.op == "call_module" else found


def wrapped(module: Any) -> nn.Module | None:
    """What a wrapper that computes nothing has in it: DataParallel, torch.compile's; None for other modules."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inside: nn.Module = module.module
        return inside
    # By name: to import its class is to import the compiler.
    return module._orig_mod if type(module).__name__ == "OptimizedModule" else None


def _is_of_python(function: Any) -> bool:
    """Whether somebody wrote it in Python, outside of torch: torch.fx was told to leave it as a whole."""
    return (
        isinstance(function, types.FunctionType)
        and function is not put
        and not (function.__module__ == "torch" or function.__module__.startswith("torch."))
    )


def _stands(*given: Any) -> list[fx.Proxy]:
    found: list[fx.Proxy] = []
    fx.node.map_aggregate(given, lambda one: found.append(one) if isinstance(one, fx.Proxy) else None)
    return found


@contextmanager
def _functions_seen(tracer: Tracer) -> Iterator[None]:
    """What does not know of stand-ins makes nodes of them: functions with a backward pass of their own
    (torch.autograd.Function), and those that make a tensor of a size, such as torch.zeros(x.shape[0], 4) or
    self.embedding.expand(x.shape[0], 4)."""
    plain = torch.autograd.Function.__dict__["apply"]
    factories = {name: getattr(torch, name) for name in FACTORIES}

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if _stands(args, kwargs):
            return tracer.create_proxy("call_function", Applied(cls), args, kwargs)
        return plain.__get__(None, cls)(*args, **kwargs)

    def made(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if _stands(args, kwargs):
            return tracer.number("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    def repeated(name: str, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if _stands(args, kwargs):
            return tracer.create_proxy("call_method", name, (tensor, *args), kwargs)
        return getattr(super(torch.Tensor, tensor), name)(*args, **kwargs)

    setattr(torch.autograd.Function, "apply", classmethod(apply))  # noqa: B010
    for name, function in factories.items():
        setattr(torch, name, partial(made, function))
    for name in REPEATERS:  # inherited from a class that is not Python's, so that deleting them brings those back
        setattr(torch.Tensor, name, partialmethod(partial(repeated, name)))
    try:
        yield
    finally:
        setattr(torch.autograd.Function, "apply", plain)  # noqa: B010
        for name, function in factories.items():
            setattr(torch, name, function)
        for name in REPEATERS:
            delattr(torch.Tensor, name)


@contextmanager
def _left_as_it_was(module: nn.Module) -> Iterator[None]:
    """A network that keeps something it computed, for the next time, does not keep stand-ins."""
    before = [(part, dict(vars(part))) for part in module.modules()]
    tables = [(table, table.copy()) for _, kept in before for table in kept.values() if isinstance(table, dict | list)]
    try:
        yield
    finally:
        for part, kept in before:
            if len(vars(part)) != len(kept) or any(value is not kept[name] for name, value in vars(part).items()):
                vars(part).clear()
                vars(part).update(kept)
        for table, copy in tables:
            if isinstance(table, list):
                table[:] = copy
            elif isinstance(copy, dict):
                table.clear()
                table.update(copy)


@dataclass(frozen=True)
class Applied:
    """A torch.autograd.Function as an operation."""

    function: Any

    @property
    def __name__(self) -> str:
        return self.function.__name__

    def __call__(self, *inputs: Any) -> Any:
        return self.function.apply(*inputs)
