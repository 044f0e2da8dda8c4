"""Things by name that may come from outside: those of this package, those registered by a program, and those of
installed packages, which name them as entry points.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from saap_edge.errors import SaapError

__all__ = ["Registry", "source_file"]

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Things of one kind, by name.

    Args:
        kind: what they are, for messages: "pruning order".
        group: of the entry points under which packages name theirs; one is loaded when its name is first asked for.
        own: what this package has.
        names: of what this package has, where the things themselves are defined elsewhere, because a board has to know
            the names without what they need.
    """

    def __init__(self, kind: str, group: str, own: Mapping[str, T] | None = None, names: Iterable[str] = ()) -> None:
        self._kind, self._group = kind, group
        self._things: dict[str, T] = dict(own or {})
        self._own = {*self._things, *names}

    def register(self, name: str, thing: T) -> None:
        """Add one, or put another in the place of one that was registered. Raises SaapError for a name of this
        package's own."""
        if name in self._own:
            raise SaapError(f"the {self._kind} '{name}' is saap-edge's own: give yours another name")
        self._things[name] = thing

    def outside(self, name: str) -> bool:
        """It is none of this package's own."""
        return name in self and name not in self._own

    def check(self, name: str) -> str:
        """The name itself. Raises SaapError, with the nearest known one, where it is unknown."""
        if name not in self and name not in self._own:
            known = sorted({*self, *self._own})
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
            raise SaapError(f"unknown {self._kind} '{name}', {hint}")
        return name

    def __getitem__(self, name: str) -> T:
        if name not in self._things:
            found = _installed(self._group).get(name)
            if found is None:
                raise KeyError(name)
            self._things[name] = _loaded(found, self._kind)
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        return name in self._things or name in _installed(self._group)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._things, *_installed(self._group))))

    def __len__(self) -> int:
        return len(list(iter(self)))


@cache
def _installed(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def _loaded(point: EntryPoint, kind: str) -> Any:
    try:
        return point.load()
    except Exception as error:  # of whatever kind: it is another package's code
        where = point.dist.name if point.dist else "a package"
        raise SaapError(f"the {kind} '{point.name}' of {where} cannot be loaded: {error}") from None


def source_file(thing: Callable[..., Any]) -> Path | None:
    """The file that a function from outside is in: what was made with it is made again when that changes. None where
    it was typed in."""
    found = inspect.getsourcefile(inspect.unwrap(thing))
    return Path(found) if found and Path(found).is_file() else None
