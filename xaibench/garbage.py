"""Garbage collection, which looks through all objects time and again, where many are made that stay."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection: to be used where hardly any object refers to itself. Imports, configurations and
    thousands of summaries take a tenth to a third less time so, and no more memory."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
