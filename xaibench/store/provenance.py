"""Who made a number: versions, commit, device. Recorded beside results, never part of a key."""

import functools
import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("xaibench", "torch", "torchvision", "numpy", "scipy", "h5py", "hydra-core", "omegaconf", "pandas")


@functools.cache
def versions() -> dict[str, str]:
    """Python and the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@functools.cache
def sources() -> str:
    """The digest of xaibench's own code: of the bytes of its Python files, by name.

    Bytes, not syntax trees: they are the same under every version of Python and take milliseconds. That an edited
    comment is another digest costs nothing where it matters: a gate computes anew anyway.
    """
    package, sha = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        sha.update(
            f"{path.relative_to(package).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return sha.hexdigest()[:16]


def made_by(device: object) -> dict[str, object]:
    """What an artefact's spec.json records of the run that made it."""
    return {"versions": versions(), "commit": commit(), "sources": sources(), "device": str(device)}


@functools.cache
def commit() -> str:
    """The commit of the checkout that runs, with `+` if it has changes; '' outside a checkout."""
    folder = Path(__file__).parents[1]
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", "--", str(folder)], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
