"""What the code of a class from outside says, as a digest for keys: an edited formula is another method.

Of our own classes the integer `version` says it, and a test for each that it was bumped; of a user's, their code.
"""

import ast
import functools
import hashlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

OURS = __package__
# Folders of installed distributions: what lies side by side there has nothing to do with each other.
_INSTALLED = ("site-packages", "dist-packages")


@functools.cache
def source_digest(target: Callable[..., Any]) -> str:
    """The digest of the code of a class or function: the syntax trees, without comments and docstrings, of its module
    and of all that it imports from beside it, directly or not.

    Beside it is what lies in the folder that holds its module or package, installed distributions in there left aside.
    Of a distribution that pip installed, the digests that pip recorded stand for what is beside the module. '' if there
    is no source: a class of an interactive session, or a compiled one.
    """
    module = sys.modules.get(getattr(target, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    if module is None or file is None or not file.endswith(".py") or not Path(file).is_file():
        return ""
    # What runs as a script is called __main__, and is imported by nobody.
    path, name = Path(file).resolve(), module.__spec__.name if module.__spec__ else Path(file).stem
    folder = _top(path, name)
    parts = {name: _code(path)}
    if any(part in _INSTALLED for part in folder.parts):
        parts |= _recorded(name.partition(".")[0])
    else:
        parts |= {found: _code(file) for found, file in _beside(path, name, folder)}
    sha = hashlib.sha256()
    for found, code in sorted(parts.items()):
        sha.update(f"{found}\0{hashlib.sha256(code).hexdigest()}\n".encode())
    return sha.hexdigest()[:16]


def _top(path: Path, name: str) -> Path:
    """The folder that holds the module, or the package that it belongs to."""
    depth = name.count(".") + (path.name == "__init__.py")
    return path.parents[depth]


def _code(path: Path) -> bytes:
    """A file without what changes no number: comments, docstrings, layout. A compiled one as it is."""
    data = path.read_bytes()
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError):
        return data
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    # As text, not as a dump: dumps are spelled otherwise from one version of Python to the next.
    return ast.unparse(tree).encode("utf-8", "surrogatepass")


def _beside(path: Path, name: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, file) of every module beside this one that it imports, directly or not."""
    entries = (Path(entry).resolve() for entry in sys.path if entry)
    roots = dict.fromkeys([folder, path.parent, *(entry for entry in entries if _is_beside(entry, folder))])
    seen, waiting = {path}, [(name, path)]
    while waiting:
        importer, file = waiting.pop()
        for wanted in _imports(importer, file):
            for root in roots:
                found = _file_of(wanted, root)
                if found is None or found in seen or not _is_beside(found, folder):
                    continue
                seen.add(found)
                waiting.append((wanted, found))
                yield found.relative_to(folder).as_posix(), found


def _is_beside(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder) and not any(part in _INSTALLED for part in path.relative_to(folder).parts)


def _imports(name: str, path: Path) -> Iterator[str]:
    """The names of the modules that a file may import, with the packages that they lie in; ours are left out."""
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            found = [f"{start}.{alias.name}".lstrip(".") for alias in node.names]
        else:
            continue
        for wanted in found:
            parts = wanted.split(".")
            if parts[0] != OURS:
                yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _file_of(name: str, root: Path) -> Path | None:
    """The file of a module below a folder of the search path, as Python looks for it."""
    place = root.joinpath(*name.split("."))
    for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
        if file.is_file():
            return file.resolve()
    return next((file.resolve() for file in sorted(place.parent.glob(f"{place.name}.*.so"))), None)


def _recorded(package: str) -> dict[str, bytes]:
    """What pip recorded of the Python files of the distributions that a package is from: their names and digests."""
    try:  # most bear the name of their package; to look through all of them takes a second
        names = [importlib.metadata.distribution(package).metadata["Name"]]
    except importlib.metadata.PackageNotFoundError:
        names = sorted(set(importlib.metadata.packages_distributions().get(package, [])))
    found: dict[str, bytes] = {}
    for name in names:
        files = importlib.metadata.files(name) or ()
        found |= {str(file): file.hash.value.encode() for file in files if file.suffix == ".py" and file.hash}
        found[f"{name} version"] = importlib.metadata.version(name).encode()
    return found
