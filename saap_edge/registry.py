"""Registries that others can add to: records by name, of saap-edge, of entry points and of the running program."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from saap_edge.errors import SaapError

__all__ = ["Registry", "resolve", "source_file"]


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Record = TypeVar("Record", bound=_Named)


def resolve(entry: str) -> Any:
    """The object that "package.module:name" names; its module is imported only now.

    Raises SaapError when there is none.

    >>> resolve("json:loads")("[1, 2]")
    [1, 2]
    """
    module, _, name = entry.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SaapError(f"'{entry}' cannot be loaded: {error}") from error


class Registry(Mapping[str, Record], Generic[Record]):
    """Records by name, in the order they were registered.

    At the first look, the registry imports `modules`, which register saap-edge's own records. It loads the entry points
    of `group` when a name is not among those, or when all names are asked for. An entry point names a record.

    Args:
        what: what the records are, for messages: "pruning order".
        group: group of entry points.
        modules: modules that register records.
        own: records that are there from the beginning.
        taken: names that saap-edge itself uses without a record.

    >>> from saap_edge.formats import FORMATS
    >>> FORMATS.find("gguf-q40")
    Traceback (most recent call last):
    saap_edge.errors.SaapError: unknown format 'gguf-q40', did you mean 'gguf-q4_0'?
    """

    def __init__(
        self, what: str, group: str, modules: tuple[str, ...] = (), *, own: Iterable[Record] = (),
        taken: Iterable[str] = (),
    ) -> None:  # fmt: skip
        self._what, self._group, self._modules = what, group, modules
        self._records: dict[str, Record] = {record.name: record for record in own}
        self._taken = dict.fromkeys((*self._records, *taken))  # in their order, as people are told of them
        self._loaded = self._asked = False

    def register(self, record: Record, *, replace: bool = False) -> Record:
        """Add a record and return it. With `replace`, it takes the place of an earlier record of that name.

        Raises SaapError when the name is saap-edge's own, or another record has it.
        """
        if record.name in self._taken and self._records.get(record.name) != record:
            raise SaapError(f"the {self._what} '{record.name}' is saap-edge's own: choose another name")
        if replace:
            self._records[record.name] = record
        if self._records.setdefault(record.name, record) != record:
            raise SaapError(f"there is another {self._what} '{record.name}' already: choose another name")
        return record

    def find(self, name: str) -> Record:
        """The record of that name. Raises SaapError that suggests the nearest name when there is none."""
        found = self.get(name)
        if found is None:
            self.check(name)
            raise SaapError(f"the {self._what} '{name}' is built into saap-edge, and has no record of its own")
        return found

    def check(self, name: str) -> str:
        """The name, if it is known. Raises SaapError that suggests the nearest known one otherwise."""
        if name in self._taken or name in self:
            return name
        known = list(dict.fromkeys((*self._taken, *self)))
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
        raise SaapError(f"unknown {self._what} '{name}', {hint}")

    def __getitem__(self, name: str) -> Record:
        self._load()
        if name not in self._records:
            self._ask()
        return self._records[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        self._ask()
        return iter(dict(self._records))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _load(self) -> None:
        if not self._loaded:
            self._loaded = True
            for module in self._modules:
                importlib.import_module(module)

    def _ask(self) -> None:
        """Register what the installed packages offer. Raises SaapError when one of them does not load."""
        if not self._asked:
            self._asked = True
            for point in entry_points(group=self._group):
                try:
                    record = point.load()
                except Exception as error:  # the code of others
                    raise SaapError(
                        f"the {self._what} '{point.name}' cannot be loaded ({point.value}): {error}"
                    ) from error
                self.register(record)


def source_file(thing: Callable[..., Any]) -> Path | None:
    """The file that a function is in, so that its results are made again when the file changes. None where it was typed
    in."""
    found = inspect.getsourcefile(inspect.unwrap(thing))
    return Path(found) if found and Path(found).is_file() else None
