"""From a specification, `{_target_: package.Class, parameter: value}`, to an object and to its canonical description.

Our own, because `hydra.utils.instantiate` is changing its interface, and because a benchmark must refuse a parameter
that nobody reads: `+method.stpes=5` would otherwise silently run with the default.
"""

import functools
import importlib
import inspect
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from . import trust
from .errors import BrokenImport, UserError, XaibenchError, first_line, nearest
from .source import source_digest

TARGET = "_target_"
# In descriptions: the digest of the code of a class from outside.
SOURCE = "_source_"
OURS = __package__
T = TypeVar("T")
_NEVER = object()  # equals no value


def build(spec: Mapping[str, Any], where: str) -> Any:
    """Import the target, build nested specifications, and call it with the checked and coerced parameters.

    where: the config path to name in messages, such as "method". Raises UserError for an unknown target or
    parameter, a value of the wrong type, whatever the constructor itself refuses with ValueError, and any error of one
    that is not ours.
    """
    target, parameters = bind(spec, where)
    parameters = {k: build(v, f"{where}.{k}") if is_spec(v) else v for k, v in parameters.items()}
    try:
        return target(**parameters)
    except XaibenchError:
        raise
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:
        if frozen_name(spec[TARGET]).startswith(f"{OURS}."):
            raise
        raise UserError(f"{where}: {spec[TARGET]} failed, {type(error).__name__}: {first_line(error)}") from error


def with_defaults(made: Any, base: type[T]) -> T:
    """An object of an ordinary class, which need not derive from `base`: what it does not define, it has from there."""
    if not isinstance(made, base):
        try:
            made.__class__ = type(type(made).__name__, (type(made), base), {})
        except TypeError as error:
            kind, given = base.__name__, type(made).__name__
            raise UserError(f"expected an object of a {kind} of one's own, {TARGET} gives a {given}") from error
    return made


def describe(spec: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The canonical description of a specification: target and every parameter, defaults included, as plain data; of a
    class from outside also the digest of its code, '' if it has none (`source.source_digest`).

    A class that has got a parameter since keys were made of it names it in `added`, with the value that leaves its
    numbers as they were: at that value it is left out, and the keys are as they were, too.
    """
    target, parameters = bind(spec, where)
    added = getattr(target, "added", {})
    described = {k: describe(v, f"{where}.{k}") if is_spec(v) else _plain(v) for k, v in parameters.items()}
    described = {k: v for k, v in described.items() if v != added.get(k, _NEVER)}
    return {TARGET: frozen_name(spec[TARGET]), **described, **source_of(spec, where)}


def source_of(spec: Mapping[str, Any], where: str) -> dict[str, str]:
    """What a description says of the code of its target: nothing of ours, which has a `version`."""
    if str(spec[TARGET]).partition(".")[0] == OURS:
        return {}
    return {SOURCE: source_digest(locate(spec[TARGET], f"{where}.{TARGET}"))}


def sourceless(spec: Mapping[str, Any], where: str) -> list[str]:
    """The targets of a specification, nested ones included, that have no source to know them by."""
    nested = [name for k, v in spec.items() if is_spec(v) for name in sourceless(v, f"{where}.{k}")]
    return [*([str(spec[TARGET])] if source_of(spec, where).get(SOURCE) == "" else []), *nested]


def frozen_name(path: str) -> str:
    """The name of a class in keys, wherever its file lies: for one of ours `xaibench.ROOM.FILE.CLASS`, without the
    folder of its family. Caches outlive a move, and so do configurations that name a class so (see `locate`)."""
    parts = path.split(".")
    return ".".join([*parts[:2], *parts[-2:]]) if parts[0] == OURS else path


def bind(spec: Mapping[str, Any], where: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The target and its full parameters: names checked against its signature, values coerced by its annotations."""
    if not is_spec(spec):
        raise UserError(f"{where}: expected a configuration with _target_, the importable path of a class")
    target = locate(spec[TARGET], f"{where}.{TARGET}")
    signature, hints = _declared(target)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    names = [n for n, p in signature.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    bound: dict[str, Any] = {}
    for name, value in spec.items():
        if name == TARGET:
            continue
        if name not in names and not open_ended:
            near = nearest(name, names) or "it has none"
            raise UserError(f"{where}.{name} is not a parameter of {spec[TARGET]}: {near}")
        bound[name] = coerce(value, hints.get(name, Any), f"{where}.{name}")
    for name in names:
        default = signature.parameters[name].default
        if name in bound:
            continue
        if default is inspect.Parameter.empty:
            raise UserError(f"{where}.{name} is missing: {spec[TARGET]} needs it, set {where}.{name}=...")
        bound[name] = default
    return target, bound


def locate(path: str, where: str) -> Callable[..., Any]:
    """Import `package.module.Name`, if its code may run (`trust`): this is the one place where configurations become
    code. The working directory and the folders of the user's yaml files count as importable."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    trust.check_module(str(path), where)
    module_name, _, name = _current(str(path)).rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that exists but misses a dependency of its own is a different mistake.
        if error.name and not module_name.startswith(error.name):
            raise BrokenImport(where, path, f"importing it failed, no module named '{error.name}'") from error
        raise BrokenImport(where, path, f"there is no module '{error.name or module_name}'") from error
    except Exception as error:
        raise BrokenImport(where, path, f"importing it failed, {type(error).__name__}: {error}") from error
    if not callable(found := getattr(module, name, None)):
        callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{where}={path}: {module_name} has no class '{name}': {nearest(name, callables)}")
    trust.check_object(found, str(path), where)
    return found


def _current(path: str) -> str:
    """The importable path of a class of ours that goes by its frozen name; any other path as it is."""
    parts = path.split(".")
    if parts[0] != OURS or len(parts) != 4:
        return path
    families = sorted((Path(__file__).parent / parts[1]).glob(f"*/{parts[2]}.py"))
    return ".".join([*parts[:2], families[0].parent.name, *parts[2:]]) if families else path


def is_spec(value: Any) -> bool:
    """Whether a value is a nested specification."""
    return isinstance(value, Mapping) and TARGET in value


def coerce(value: Any, hint: Any, where: str) -> Any:
    """A config value as its annotation says: 10 -> 10.0 for float, lists -> tuples; refuses what does not fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for option in (a for a in arguments if a is not type(None)):
            try:
                return coerce(value, option, where)
            except UserError as error:
                failure = error
        raise failure
    if origin is typing.Literal:
        if value not in arguments:
            raise UserError(f"{where}={value}: {nearest(value, arguments)}")
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}={value}: expected a finite number")
    if hint in (int, float, str, bool):
        return _scalar(value, hint, where)
    if origin in (list, tuple) or hint in (list, tuple):
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}={value}: expected a list, such as [1,2]")
        item = arguments[0] if arguments else Any
        return tuple(coerce(v, item, f"{where}[{i}]") for i, v in enumerate(value))
    return value


def _scalar(value: Any, hint: type, where: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and is_number:
        return float(value)
    if hint is int and is_number and value == int(value):
        return int(value)
    if hint is str and (is_number or isinstance(value, str)):
        return str(value)
    if hint is bool and isinstance(value, bool):
        return value
    expected = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[hint]
    raise UserError(f"{where}={value}: expected {expected}")


@functools.lru_cache(maxsize=512)
def _declared(target: Callable[..., Any]) -> tuple[inspect.Signature, dict[str, Any]]:
    """The parameters of a target, and their annotations: asked of the same classes by every cell of a sweep."""
    return inspect.signature(target), _hints(target)


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):
        return {}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
