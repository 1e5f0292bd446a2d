"""What works in place on a tensor that a network has, and the operation that does the same out of place."""

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional

from .kinds import OPERATORS
from .parts import put


def works_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node changes its first argument, or may."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_method":
        return _in_place_name(str(node.target))
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    return node.target in (put, *OPERATORS) or _in_place_name(name) or bool(_arguments(node).get("inplace", False))


def same_out_of_place(node: fx.Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Target, arguments and keywords of a node, of the operation that does the same out of place if there is one."""
    target, arguments, keywords = node.target, node.args, dict(node.kwargs)
    if node.op == "call_method" and _in_place_name(str(target)):
        plain = str(target).removesuffix("_")
        target = plain if callable(getattr(torch.Tensor, plain, None)) else target
    if node.op == "call_function":
        name = getattr(target, "__name__", "")
        if "inplace" in _arguments(node):
            keywords.pop("inplace", None)
            arguments = arguments[: list(inspect.signature(function_of(node)).parameters).index("inplace")]
        if target in OPERATORS:
            target = OPERATORS[target]
        elif _in_place_name(name):
            found = (getattr(home, name.removesuffix("_"), None) for home in (functional, torch))
            target = next((function for function in found if callable(function)), target)
    return target, arguments, keywords


def shares_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are views of one storage, known by itself: not every device has addresses to compare."""
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


def function_of(node: fx.Node) -> Callable[..., Any]:
    """What a node calls that calls a function."""
    return cast("Callable[..., Any]", node.target)


def _in_place_name(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__") and name not in ("and_", "or_", "not_", "is_")


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call of a Python function by name; empty where it has no signature."""
    try:
        return dict(inspect.signature(function_of(node)).bind(*node.args, **node.kwargs).arguments)
    except (TypeError, ValueError):
        return {}
