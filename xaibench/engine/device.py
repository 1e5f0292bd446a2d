"""Where the network runs, and how much of it at once."""

import ctypes
import functools
import os
import resource

import torch

from ..errors import UserError

# Of glibc's mallopt: what it sets, how much freed memory stays, and the size up to which blocks come from there: of
# these the first that it takes (versions before 2.35 take no more than 32 MiB).
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT, BLOCKS = 2**30, (2**30, 2**25)
OWN_CHOICE = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device's allocator on CUDA, else the peak resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def find_device(name: str) -> torch.device:
    """`auto`, or a torch device name, as a device with kernels that give the same numbers every time."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise UserError(f"runner.device={name}: not available here ({reason}); use auto or cpu") from error
    if device.type == "cpu":
        keep_freed_memory()
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
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not OWN_CHOICE & os.environ.keys():
        mallopt(TRIM_THRESHOLD, KEPT)
        any(mallopt(MMAP_THRESHOLD, size) for size in BLOCKS)


def default_batch_size(input_size: tuple[int, int, int], device: torch.device) -> int:
    """Inputs per call of the network. On a CPU few enough that their activations stay in its caches: 32 of 64x64
    pixels, 8 of 224x224 (measured by scripts/bench.py; 64 of 64x64 take 1.6 times as long each). Of the points of a
    plane, whose network is nothing but overhead, thousands."""
    pixels = input_size[1] * input_size[2]
    values, usual = (2**26, 256) if device.type == "cuda" else (2**17, 64)
    return min(max(values // pixels, 8), max(usual, 2**13 // pixels))
