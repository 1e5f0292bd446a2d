"""Who made a number: versions, commit, device. Recorded beside results, never part of a key."""

import functools
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
