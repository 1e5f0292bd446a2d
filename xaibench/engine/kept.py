"""What the cells of a sweep share. On its own: who only launches cells loads no torch."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..store.keys import canonical

T = TypeVar("T")


class Kept:
    """What was made for one cell and serves the next ones: the last few networks, splits and fits.

    A name says what a thing was made from; a file is named with its size and time: a changed one is loaded anew.
    """

    def __init__(self, most: int = 4) -> None:
        self.most = most
        self._kinds: dict[str, OrderedDict[str, Any]] = {}

    def get(self, kind: str, name: Mapping[str, Any], make: Callable[[], T], most: int | None = None) -> T:
        """The thing of this kind and name: the one that is kept, or what `make` returns. most: of this kind."""
        things, key = self._kinds.setdefault(kind, OrderedDict()), canonical(name)
        if key not in things:
            things[key] = make()
            while len(things) > (most or self.most):
                things.popitem(last=False)
        things.move_to_end(key)
        return things[key]

    def clear(self) -> None:
        """Forget everything."""
        self._kinds.clear()


# The one store of the process, of the cells of a sweep; `running` empties it before and after each sweep.
KEPT = Kept()
