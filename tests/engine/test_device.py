"""What a run sets in its process."""

import ctypes
import os
import resource

import pytest
import torch

from xaibench.engine.device import OWN_CHOICE, find_device


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
@pytest.mark.skipif(bool(OWN_CHOICE & os.environ.keys()), reason="the environment sets the allocator's thresholds")
def test_memory_that_is_freed_is_used_again():
    """The kernel counts the pages that it hands out: tensors of 128 MiB, freed and made again, get no new ones."""

    def pages():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        assert sum(float(part[-1]) for part in [torch.zeros(2**21) for _ in range(16)]) == 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    find_device("cpu")
    # Otherwise all of them, each time; something small that lies between may cost a time one of the tensors.
    found = [pages() for _ in range(8)]
    assert min(found) < 2**27 / resource.getpagesize() / 100, found
