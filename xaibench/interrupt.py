"""Ctrl-C that is not lost.

Python raises KeyboardInterrupt wherever the signal finds it. In a destructor or in the callback of a weak reference it
can only print "Exception ignored" and go on, and the program would run to its end as if nobody had asked.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_asked = threading.Event()


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Remember Ctrl-C besides raising KeyboardInterrupt, so that `check` finds it. Where the signal is ignored or
    somebody else handles it, that stays."""
    ours = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    _asked.clear()
    if ours:
        signal.signal(signal.SIGINT, _ask)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def check() -> None:
    """Raise KeyboardInterrupt if somebody has asked for it and the exception was lost."""
    if _asked.is_set():
        raise KeyboardInterrupt


def _ask(number: int, frame: FrameType | None) -> None:
    _asked.set()
    raise KeyboardInterrupt
