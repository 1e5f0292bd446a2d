"""The exceptions that users see, and words of messages. Each is one or two lines: the value, what was expected, the
nearest."""

import difflib
from collections.abc import Iterable
from typing import TypeVar

Word = TypeVar("Word", bound=str)


class XaibenchError(Exception):
    """Something a person has to act on; shown without a traceback."""

    exit_code = 1


class UserError(XaibenchError):
    """A mistake in what the user asked for: exit code 2."""

    exit_code = 2


class BrokenImport(UserError):
    """A class that cannot be imported, though its configuration names it. where: the configuration's key."""

    def __init__(self, where: str, path: str, why: str) -> None:
        self.where = where
        super().__init__(f"{where}={path}: {why}")


class Refusal(UserError):
    """A pairing that cannot work, such as guided backpropagation on a network without ReLU modules."""


class NotComparable(XaibenchError):
    """Results that a check must not compare: exit code 3."""

    exit_code = 3


class CacheError(XaibenchError):
    """The cache could not be written: a full disk, for example. What was finished before stays valid."""


class Elsewhere(XaibenchError):
    """Another process is at what is asked for, and nobody waits for it."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """The words 'did you mean X?', or the choices there are; '' if there are none."""
    choices = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    if not choices:
        return ""
    shown = ", ".join(choices[:12]) + (", ..." if len(choices) > 12 else "")
    return f"choose from: {shown}"


def one_of(name: str, value: Word, choices: Iterable[str]) -> Word:
    """The value, if it is one of the choices; else raises ValueError, as constructors do, with the nearest one."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name}={value}: {nearest(value, choices)}")
    return value


def first_line(error: BaseException) -> str:
    """What another library's error says, cut to what fits into one of our lines."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(":")


def unforeseen(error: BaseException) -> str:
    """What is said of an error that nobody has thought of, so that another library's words do not stand alone."""
    return f"this failed in a way that was not foreseen: {type(error).__name__}: {first_line(error)}"


def about(seconds: float | None) -> str:
    """A duration for people; '' for None."""
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
