"""Whose code runs because a configuration names it, and what a configuration from outside may say.

Importing a module runs it, so a `_target_` is judged by where its module lies, before anything is imported; what is
found there is judged once more before it is called. docs/security.md says the same for users.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from .errors import UserError

OURS = __package__
PLUGINS = "xaibench.plugins"
# Model libraries whose factories take figures and words, and read no files that they are given.
LIBRARIES = ("torchvision.models",)
# Runs code from the network: not even on request.
NEVER = ("torch.hub",)
# Where our classes lie that configurations may name; a function of ours is none but this one.
ROOMS = tuple(f"{OURS}.{room}" for room in ("methods", "metrics", "datasets", "models", "job", "api"))
FACTORIES = (f"{OURS}.models.torchvision_nets.torchvision_net",)
# What a class from elsewhere has, or derives from, to stand at a place of the configuration.
KINDS = {
    "method": ("attribute",),
    "metric": ("evaluate", f"{OURS}.metrics.base.Measure"),
    "dataset": ("__getitem__",),
    "model": ("torch.nn.modules.module.Module",),
}
# The environment carries what the command line allowed to the workers of a sweep.
ALLOWED, BESIDE = "XAIBENCH_ALLOW_TARGET", "XAIBENCH_CONFIG_DIRS"
NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
# What else than these a yaml's aliases can be blown up to.
MOST_VALUES = 10_000
# `${resolver:...}`, which reads environment variables and more, and what may become one. `${other.value}` is neither,
# and oc.select is that with a default.
RESOLVER = re.compile(r"\$\{(?!oc\.select:)[^{}]*:|\$\{[^{}]*\$\{")


@contextlib.contextmanager
def trusting(prefixes: Sequence[str], folders: Sequence[Path]) -> Iterator[None]:
    """While a command runs: targets that it allows (`--allow-target`) besides those of the environment, and the
    folders of its configurations (`--config-dir`), for this process and its workers."""
    for prefix in prefixes:
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", prefix):
            raise UserError(f"--allow-target {prefix}: expected the start of a path, such as timm or my_package.nets")
    before = {name: os.environ.get(name) for name in (ALLOWED, BESIDE)}
    os.environ[ALLOWED] = ",".join(dict.fromkeys([*allowed(), *prefixes]))
    os.environ[BESIDE] = os.pathsep.join(str(folder.expanduser().absolute()) for folder in folders)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def allowed() -> tuple[str, ...]:
    """The prefixes that the user allowed."""
    return tuple(filter(None, (word.strip() for word in os.environ.get(ALLOWED, "").split(","))))


# ---- targets --------------------------------------------------------------------------------------------------------


def check_module(path: str, where: str) -> None:
    """Raise UserError unless the module of a target may be imported. Nothing is imported to find that out."""
    if not NAME.fullmatch(path):
        raise UserError(f"{where}={path}: expected an importable path such as package.module.Class")
    module = path.rpartition(".")[0]
    if _starts(path, NEVER):
        raise UserError(f"{where}={path}: torch.hub runs code from the network, and is never called")
    if not (_starts(path, allowed()) or _is_known(module)):
        raise _untrusted(where, path, _place(module))


def check_object(found: Any, path: str, where: str) -> None:
    """Raise UserError unless what a target names may be called: it comes from such a module itself, and a class is
    what belongs at its place."""
    while isinstance(found, functools.partial):
        found = found.func
    made_in = getattr(found if inspect.isclass(found) or inspect.isroutine(found) else type(found), "__module__", None)
    home = f"{made_in}.{getattr(found, '__name__', '')}"
    if _starts(home, NEVER):
        raise UserError(f"{where}={path}: torch.hub runs code from the network, and is never called")
    if not _starts(path, allowed()) and not _starts(home, allowed()) and not (made_in and _is_known(made_in)):
        raise _untrusted(where, path, f"'{made_in}'")
    if _starts(home, (OURS,)):
        if not inspect.isclass(found) and home not in FACTORIES:
            raise UserError(f"{where}={path}: expected a class of xaibench's; its functions are not for configurations")
        return
    kind = "model" if _starts(home, LIBRARIES) else where.removesuffix("._target_")
    if inspect.isclass(found) and kind in KINDS and not any(_has(found, sign) for sign in KINDS[kind]):
        raise UserError(f"{where}={path}: this class is no {kind}: expected one that has {' or '.join(KINDS[kind])}")


def _has(found: type, sign: str) -> bool:
    if "." in sign:
        return any(f"{base.__module__}.{base.__qualname__}" == sign for base in found.__mro__)
    return callable(getattr(found, sign, None))


def _untrusted(where: str, path: str, place: str) -> UserError:
    return UserError(
        f"{where}={path}: not run: {place} is neither xaibench's, a plugin's, nor beside your yaml or here\n"
        f"if you know and trust it: --allow-target {path} (docs/security.md)"
    )


def _starts(path: str, prefixes: Iterable[str]) -> bool:
    return any(path == prefix or path.startswith(f"{prefix}.") for prefix in prefixes)


def _is_known(module: str) -> bool:
    """Whether a module is ours, of an installed plugin, of a listed library, the user's script, or a file of theirs."""
    top = module.partition(".")[0]
    if top == OURS:
        return _starts(module, ROOMS)
    if module == "__main__" or _starts(module, LIBRARIES) or top in _plugins():
        return True
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return False
    origin = _origin(module)
    if origin is None:  # there is no such module: importing says so
        return True
    # What the calling program has imported from its own files has run already, wherever it is now.
    return _is_users(origin) or (top in sys.modules and not _is_installed(origin))


def _plugins() -> set[str]:
    return {entry.value.partition(".")[0] for entry in importlib.metadata.entry_points(group=PLUGINS)}


def _place(module: str) -> str:
    top = module.partition(".")[0]
    origin = None if top == OURS or top in sys.stdlib_module_names else _origin(module)
    return f"'{module}'" + (f" ({origin})" if origin else "")


def _origin(module: str) -> Path | None:
    """The file that would be run first to import a module, found without running any; of a folder without
    `__init__.py` that folder. None if there is nothing of the name.

    What is imported or installed comes first, as for Python, then the user's folders. One of these comes onto the
    search path where something is found in it, and not before: nobody else's optional import finds its files.
    """
    places: list[str] | None = None
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}".lstrip(".")
        try:
            spec = PathFinder.find_spec(name, places) if places is not None else _top_level(name)
        except ValueError:  # something else than an import made it
            return Path(getattr(sys.modules[name], "__file__", None) or os.devnull).resolve()
        if spec is None:
            return None
        if spec.origin is not None and spec.has_location:
            return Path(spec.origin).resolve()
        places = list(spec.submodule_search_locations or ())
        if not places:
            return Path(spec.origin or name)
    return Path(places[0]).resolve() if places else None


def _top_level(name: str) -> ModuleSpec | None:
    spec = importlib.util.find_spec(name)
    if name in sys.modules:
        return spec
    for folder in map(str, _folders()):
        own = PathFinder.find_spec(name, [folder])
        if own is None or (spec is not None and own.origin == spec.origin):
            continue
        if spec is None:
            sys.path.append(folder)
        elif spec.origin is None or _is_installed(Path(spec.origin).resolve()):
            continue
        else:  # another file of the name that nobody installed: the user's own goes before
            sys.path.insert(0, folder)
        return own
    return spec


def _folders() -> list[Path]:
    """The working directory, and the folders of the user's yaml files."""
    given = [Path(folder) for folder in os.environ.get(BESIDE, "").split(os.pathsep) if folder]
    return [Path.cwd(), *given, *(folder / group for folder in given for group in KINDS)]


def _is_users(file: Path) -> bool:
    """Whether a file, links followed, lies below one of the user's folders, and in no installation below it."""
    return not _is_installed(file) and any(file.is_relative_to(folder.resolve()) for folder in _folders())


def _is_installed(file: Path) -> bool:
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    if any(file.is_relative_to(folder) for folder in installed):
        return True
    return not {"site-packages", "dist-packages"}.isdisjoint(file.parts) or not file.is_absolute()


# ---- configurations from outside ------------------------------------------------------------------------------------


def check_yaml(path: Path, name: str) -> None:
    """Raise UserError unless a yaml from outside does no more than choose and set what xaibench has: no section of
    Hydra's (its callbacks and launchers name code), no resolver, no folders to write to, nothing that blows up.

    name: as Hydra asks for it, below its folder.
    """
    import yaml

    if "hydra" in re.split(r"[/\\.]", name):
        raise UserError(
            f"{path}: Hydra's own configuration is not taken from --config-dir; give it on the command line"
        )
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
        if re.match(r"#\s*@package\s", line) and "hydra" in line:
            raise UserError(f"{path}: '{line.strip()}' changes Hydra's own configuration; remove it")
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        said = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: this is no yaml of plain values ({said})") from error
    for number, (place, value) in enumerate(_values(values)):
        if number >= MOST_VALUES:
            raise UserError(f"{path}: more than {MOST_VALUES} values, aliases written out; it is not read")
        _check_value(path, place, value)


def _check_value(path: Path, place: tuple[str, ...], value: Any) -> None:
    words = " ".join([*place, *([value] if isinstance(value, str) else [])])
    if place[:1] == ("defaults",):
        if re.search(r"hydra|\.\.|\$\{", words):
            raise UserError(
                f"{path}: defaults: {words.removeprefix('defaults ')} is not taken from --config-dir; remove it"
            )
        return
    top = (place or ("",))[0].partition(".")[0]
    if top == "hydra":
        raise UserError(f"{path}: a hydra: section is not taken from --config-dir; give it on the command line")
    if top == "paths":
        raise UserError(
            f"{path}: paths: is not taken from --config-dir; give paths.cache and paths.results in the command"
        )
    if RESOLVER.search(words):
        raise UserError(f"{path}: {'.'.join(place)}={value}: resolvers are not run from --config-dir; write the value")


def _values(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key and value with the keys that lead to it, depth first."""
    yield place, value
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _values(inner, (*place, str(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner, place)


# ---- what spreadsheets would run ------------------------------------------------------------------------------------


def no_formula(text: str) -> str:
    """A text as spreadsheets take it for a text: one that would be a formula there (=1+1, @x) gets a quote before."""
    if not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
