"""Combinations of a sweep's values, and names for them that people can read. Knows nothing of recipes."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

__all__ = ["Choice", "excluded", "names_of", "placed", "product"]

LONGEST = 80  # characters of a name: folders of stages and files lie below it


@dataclass(frozen=True)
class Choice:
    """One combination.

    Attributes:
        values: what it sets, by dotted field of the recipe.
        places: where each value stands in the sweep file, by the same field.
        name: given by the file, or None.
    """

    values: Mapping[str, Any]
    places: Mapping[str, tuple[Any, ...]]
    name: str | None = None


def product(axes: Mapping[str, Sequence[Any]]) -> list[Choice]:
    """Every combination of the axes' values; the last axis varies first.

    >>> [choice.values for choice in product({"seed": [1, 2], "target": ["rpi5"]})]
    [{'seed': 1, 'target': 'rpi5'}, {'seed': 2, 'target': 'rpi5'}]
    """
    found = []
    for indices in itertools.product(*(range(len(values)) for values in axes.values())):
        chosen = dict(zip(axes, indices, strict=True))
        found.append(
            Choice(
                {field: axes[field][index] for field, index in chosen.items()},
                {field: ("axes", field, index) for field, index in chosen.items()},
            )
        )
    return found


def excluded(choice: Choice, rule: Mapping[str, Any]) -> bool:
    """Whether a rule of `exclude` leaves the combination out: all its fields have that value, or one of the list.

    >>> excluded(Choice({"seed": 1, "target": "rpi5"}, {}), {"seed": [1, 2]})
    True
    """
    return all(
        field in choice.values
        and (choice.values[field] == wanted or (isinstance(wanted, list) and choice.values[field] in wanted))
        for field, wanted in rule.items()
    )


def placed(document: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The document with a value at each dotted field. A mapping is merged into a section, all else replaces.

    >>> placed({"prune": {"ratio": 0.3, "effort": "quick"}}, {"prune.ratio": 0.5, "seed": 1})
    {'prune': {'ratio': 0.5, 'effort': 'quick'}, 'seed': 1}
    """
    copy = deepcopy(dict(document))
    for field, value in values.items():
        *sections, last = field.split(".")
        part = copy
        for section in sections:
            inner = part.get(section)
            part[section] = inner if isinstance(inner, dict) else {}
            part = part[section]
        known = part.get(last)
        part[last] = {**known, **value} if isinstance(value, dict) and isinstance(known, dict) else value
    return copy


def names_of(choices: Sequence[Choice]) -> list[str]:
    """A name for every combination, which can be that of a folder: the values in which they differ.

    >>> names_of(product({"prune.ratio": [0.1, 0.2], "target": ["rpi5"]}))
    ['ratio=0.1', 'ratio=0.2']
    >>> names_of([Choice({}, {})])
    ['base']
    """
    varied = {
        field
        for field in dict.fromkeys(field for choice in choices for field in choice.values)
        if len({json.dumps(choice.values.get(field), default=str) for choice in choices}) > 1
    }
    shown = _short_fields(varied)
    names: list[str] = []
    for choice in choices:
        parts = (f"{shown[field]}={_word(value)}" for field, value in choice.values.items() if field in varied)
        names.append(_unlike(choice.name or _clipped(",".join(parts)) or "base", names))
    return names


def _short_fields(fields: Iterable[str]) -> dict[str, str]:
    """The last part of every field, or all of it where two end alike."""
    lasts = {field: field.rpartition(".")[2] for field in fields}
    return {field: last if [*lasts.values()].count(last) == 1 else field for field, last in lasts.items()}


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return "+".join(f"{field}-{_word(entry)}" for field, entry in value.items())
    if isinstance(value, list):
        return "+".join(map(_word, value))
    text = PurePath(value).name if isinstance(value, str) and "/" in value else str(value)
    return re.sub(r"[^\w.+-]+", "-", text).strip("-") or "none"


def _clipped(name: str) -> str:
    """The name, or its beginning and a hash where it is too long."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{digest}"


def _unlike(name: str, others: Sequence[str]) -> str:
    """The name, with a number behind it where another has it already."""
    numbered = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    return next(each for each in numbered if each not in others)
