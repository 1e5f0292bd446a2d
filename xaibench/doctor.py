"""What this installation sees: versions, device, configurations, data. For bug reports and first days."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from .listing import CONF, LISTED, items
from .store import provenance

# What each data set or set of weights looks like on disk, below a data folder.
KNOWN = {
    "mnist": "MNIST/raw",
    "fashion_mnist": "FashionMNIST/raw",
    "cifar10": "cifar-10-batches-py",
    "imagenet": "ILSVRC2012_devkit_t12.tar.gz",
}


def report(
    cache: Path, results: Path, config_dirs: Sequence[Path] = (), data_dirs: Sequence[Path] = ()
) -> list[tuple[str, str]]:
    """Lines of (name, value)."""
    lines = list(provenance.versions().items())
    lines.append(("commit", provenance.commit() or "not a checkout"))
    lines.append(("device", _device()))
    lines.append(("threads", f"{torch.get_num_threads()} of {os.cpu_count()} processors"))
    lines.append(("configurations", str(CONF)))
    for folder in config_dirs:
        lines.append(("configurations", f"{folder} {'' if folder.is_dir() else '(not found)'}".strip()))
    for group in LISTED:
        found = items(group, tuple(config_dirs))
        shadowed = [item.name for item in found if item.shadowed]
        said = f"; taken from ours, not from your file: {', '.join(shadowed)}" if shadowed else ""
        lines.append((f"{group}s", f"{len(found) - len(shadowed)}{said}"))
    for name, folder in (("cache", cache), ("results", results)):
        lines.append((name, f"{folder.absolute()} ({_state(folder)})"))
    for folder in (Path("data"), *data_dirs):
        for name, sign in KNOWN.items():
            lines.append((name, f"{'found' if (folder / sign).exists() else 'not found'} in {folder}"))
    lines.append(("shapes", "generated, always there"))
    return lines


def _device() -> str:
    if not torch.cuda.is_available():
        return "cpu (no CUDA device)"
    return ", ".join(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count()))


def _state(folder: Path) -> str:
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    writable = os.access(existing, os.W_OK)
    there = "exists" if folder.exists() else "not there yet"
    return f"{there}, {'writable' if writable else 'not writable'}"
