"""Ctrl-C that is not lost, and signals that wait until what is being computed is written.

Python raises KeyboardInterrupt wherever the signal finds it. In a destructor or in the callback of a weak reference it
can only print "Exception ignored" and go on, and the program would run to its end as if nobody had asked.

Schedulers send a signal some time before they end a job. Answered at once it would lose the block that is half done.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_asked = threading.Event()
# What answers the signals that have come and were put off.
_put_off: list[Callable[[], None]] = []


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


@contextlib.contextmanager
def put_off(number: int, seconds: float) -> Iterator[None]:
    """Have a signal answered at the next `answer`, by whoever handles it now; after so many seconds, or when it comes
    once more, wherever that finds the program. Where nobody handles it, that stays."""
    theirs = signal.getsignal(number)
    if not callable(theirs) or threading.current_thread() is not threading.main_thread():
        yield
        return
    again = threading.Timer(seconds, os.kill, (os.getpid(), number))
    again.daemon = True

    def wait(number: int, frame: FrameType | None) -> None:
        if _put_off:
            _put_off.clear()
            theirs(number, frame)
        else:
            _put_off.append(lambda: theirs(number, None))
            again.start()

    signal.signal(number, wait)
    try:
        yield
    finally:
        again.cancel()
        _put_off.clear()
        signal.signal(number, theirs)


def answer() -> None:
    """Answer a signal that was put off, where all that has been computed is written: what handles it may end the
    process."""
    if _put_off:
        _put_off.pop()()
