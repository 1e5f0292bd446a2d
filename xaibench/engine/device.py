"""Where the network runs, and how much of it at once."""

import contextlib
import ctypes
import functools
import math
import multiprocessing
import os
import re
import sys
from pathlib import Path

import torch

from ..errors import UserError
from ..store.cache import SHARD_SAMPLES

# Of glibc's mallopt: what it sets, how much freed memory stays, and the size up to which blocks come from there: of
# these the first that it takes (versions before 2.35 take no more than 32 MiB).
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT, BLOCKS = 2**30, (2**30, 2**25)
OWN_CHOICE = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}

# Floating-point operations of a block of samples, at most, so that a kill loses no more than about half a minute: of
# two cores of a CPU (for input_iba on the bundled network that is one image), or of a small GPU, which does some 3e12
# in a second; large ones take a few seconds.
BLOCK_FLOPS, BLOCK_FLOPS_OF_GPU = 5e11, 1e14
# Values of the inputs of a block up to which it may have more than SHARD_SAMPLES.
SHARD_VALUES = 2**13


def begin_peak(device: torch.device) -> None:
    """Have `peak_memory` count from now on. Where the kernel does not allow that (it is Linux that does), the figure
    of a CPU stays that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """The most since `begin_peak`, in bytes: of the device's allocator on CUDA, else of this process's resident size,
    what the C library keeps of freed memory included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows, where this module serves `explain`

    # Kilobytes, but bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def synchronise(device: torch.device) -> None:
    """Wait until what was asked of a device is done: CUDA answers before it is, and a clock would not see it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or what it was raised from, says that no memory was left, here or on a device."""
    if error is None:
        return False
    own = isinstance(error, torch.OutOfMemoryError | MemoryError)
    # What torch says of a CPU has no class of its own.
    own |= isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return own or ran_out_of_memory(error.__cause__)


def turn(places: int) -> int:
    """Which of so many places this process has: workers that a launcher starts side by side take turns, by the number
    at the end of their process's name; the first is everybody else's."""
    number = re.search(r"(\d+)$", multiprocessing.current_process().name)
    return (int(number[1]) - 1) % places if number else 0


def find_device(name: str) -> torch.device:
    """`auto`, or a torch device name, as a device with kernels that give the same numbers every time.

    auto: a GPU, if there is one; of several each worker of a sweep takes its own, see `turn`.
    """
    if name == "auto":
        name = f"cuda:{turn(torch.cuda.device_count())}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise UserError(f"runner.device={name}: not available here ({reason}); use auto or cpu") from error
    if device.type == "cpu":
        keep_freed_memory()
    elif device.type == "cuda":
        torch.cuda.set_device(device)  # or what has no device of its own would also take memory of the first
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return device


@functools.cache
def keep_freed_memory() -> None:
    """Have the C library keep what is freed for the tensors that come next, in this process, where that is glibc.

    Otherwise it gives the memory of a step's activations back, and gets the same pages from the kernel for the next
    step, each set to zero when it is touched: a quarter of the time of a small network. The peak is the same. Who has
    set a threshold in the environment has chosen.
    """
    if sys.platform == "win32":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not OWN_CHOICE & os.environ.keys():
        mallopt(TRIM_THRESHOLD, KEPT)
        any(mallopt(MMAP_THRESHOLD, size) for size in BLOCKS)


def default_batch_size(input_size: tuple[int, int, int], device: torch.device) -> int:
    """Inputs per call of the network. On a CPU few enough that their activations stay in its caches: 32 of 64x64
    pixels, 8 of 224x224 (measured by scripts/bench.py; 64 of 64x64 take 1.6 times as long each). Of the points of a
    plane, whose network is nothing but overhead, thousands."""
    pixels = input_size[1] * input_size[2]
    values, usual = (2**17, 64) if device.type == "cpu" else (2**26, 256)
    return min(max(values // pixels, 8), max(usual, 2**13 // pixels))


def block_size(flops: float, input_size: tuple[int, int, int], device: torch.device) -> int:
    """Samples per block, of which each takes so many floating-point operations: at most 64, on a GPU at most those of
    one call of the network; fewer where one of them takes long, and of points of a plane, of which 64 would be mostly
    overhead, thousands."""
    most = max(SHARD_SAMPLES, SHARD_VALUES // math.prod(input_size))
    if device.type == "cpu":
        return int(min(max(BLOCK_FLOPS // max(flops, 1), 1), most))
    return int(min(max(BLOCK_FLOPS_OF_GPU // max(flops, 1), 1), max(most, default_batch_size(input_size, device))))
