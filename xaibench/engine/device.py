"""Where the network runs, and how much of it at once."""

import resource

import torch

from ..errors import UserError


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
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return device


def default_batch_size(input_size: tuple[int, int, int], device: torch.device) -> int:
    """Inputs per call of the network. On a CPU few enough that their activations stay in its caches: 32 of 64x64
    pixels, 8 of 224x224 (measured by scripts/bench.py; 64 of 64x64 take 1.6 times as long each). Of the points of a
    plane, whose network is nothing but overhead, thousands."""
    pixels = input_size[1] * input_size[2]
    values, usual = (2**26, 256) if device.type == "cuda" else (2**17, 64)
    return min(max(values // pixels, 8), max(usual, 2**13 // pixels))
