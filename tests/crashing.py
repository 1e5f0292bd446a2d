"""A process that runs a benchmark and is killed at a named point: real work, a real SIGKILL."""

import multiprocessing
import os
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# Forked from a server that has imported everything once and computed nothing: a child starts at once.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["xaibench.engine.runner", "xaibench.config", "xaibench.report.terminal", "tests.crashing"]
)

# Point -> (module, attribute, when: before or after the call that reaches it). Shards are the only thing that
# `cache.write_synced` writes; `cache._sync_folder` follows the link to a shard's final name.
POINTS = {
    "temporary file written": ("xaibench.store.cache", "write_synced", "after"),
    "renamed": ("xaibench.store.cache", "_sync_folder", "after"),
    "merged, before the small ones go": ("xaibench.store.cache", "Artefact._forget", "before"),
    "before the manifest": ("xaibench.store.cache", "Artefact.finish", "before"),
    "rows kept": ("xaibench.engine.stage", "Stage.keep", "after"),
    "in the middle of a metric": ("xaibench.metrics.removal.degradation", "Degradation.evaluate", "before"),
    "in the middle of a training": ("xaibench.models.train", "_train_epoch", "before"),
    "a training kept": ("xaibench.store.cache", "Artefact.save_whole", "after"),
    "between rows and card": ("xaibench.scores.score_files", "_remove_superseded", "before"),
}


def kill_at(owner: Any, name: str, when: str, number: int) -> None:
    """Have this process killed before or after the number-th call of an attribute of a module or class."""
    original, calls = getattr(owner, name), iter(range(1, 10**9))

    def killed(*args, **kwargs):
        last = next(calls) == number
        if last and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, killed)


def run(folder: Path, arguments: list[str], point: str | None = None, number: int = 1, many: int = 32) -> BaseProcess:
    """Start `xaibench ARGUMENTS` in a folder, to be killed when it reaches the point for the number-th time.

    many: so many small shards are merged.
    """
    process = _CONTEXT.Process(target=_child, args=(str(folder), arguments, point, number, many))
    process.start()
    return process


def _child(folder: str, arguments: list[str], point: str | None, number: int, many: int) -> None:
    import importlib

    import torch

    from xaibench.cli import main
    from xaibench.store import cache

    cache.MANY = many
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    if point is not None:
        module, path, when = POINTS[point]
        *parents, name = path.split(".")
        owner = importlib.import_module(module)
        for parent in parents:
            owner = getattr(owner, parent)
        kill_at(owner, name, when, number)
    sys.exit(main(arguments))
