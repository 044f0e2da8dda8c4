"""sweep.yaml: a base recipe, axes whose values are combined, further recipes, and combinations that are left out.

Every recipe is checked by the recipe's own schema, and all faults are told at once, each with file and line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from saap_edge.errors import SaapError
from saap_edge.recipe import Recipe
from saap_edge.settings import Section
from saap_edge.sweeping.combinations import Choice, excluded, names_of, placed, product
from saap_edge.yaml_lines import YamlFile, complaint, field_of, load_yaml_model, read_yaml

__all__ = ["Entry", "SweepFile", "load_sweep"]

_NAME = re.compile(r"\w[\w.+=,-]*")


class SweepFile(Section):
    """The file of a sweep."""

    base: str | dict[str, Any] = Field(
        default_factory=dict, description="recipe: its fields, or a path from the sweep file's folder"
    )
    axes: dict[str, list[Any]] = Field(
        default_factory=dict, description="values to combine, by dotted field of the recipe"
    )
    recipes: list[dict[str, Any]] = Field(
        default_factory=list, description="further recipes: dotted fields, and a name if you like"
    )
    exclude: list[dict[str, Any]] = Field(
        default_factory=list, description="combinations of the axes that are left out; a list means any of its values"
    )


@dataclass(frozen=True)
class Entry:
    """One recipe of a sweep: its name, the values that make it, and the recipe itself."""

    name: str
    values: Mapping[str, Any]
    recipe: Recipe


def load_sweep(path: Path) -> tuple[list[Entry], list[str]]:
    """The recipes of a sweep file, and notes on those that are the same as another, which are merged.

    Raises SaapError with all faults, each with file, line and field; where nothing is left; and where a rule of
    `exclude` leaves nothing out.
    """
    sweep, file = load_yaml_model(path, SweepFile), read_yaml(path)
    faults = list(_misnamed(sweep, file))
    choices = [*(product(sweep.axes) if sweep.axes or not sweep.recipes else [])]
    for index, rule in enumerate(sweep.exclude):
        if not any(excluded(choice, rule) for choice in choices):
            faults.append(file.told(("exclude", index), "no combination of the axes is like this"))
    choices = [choice for choice in choices if not any(excluded(choice, rule) for rule in sweep.exclude)]
    choices += [_further(entry, index) for index, entry in enumerate(sweep.recipes)]
    if not choices and not faults:
        raise SaapError(f"{path}:{file.line(('exclude',))}: exclude: no recipe is left")
    base = _base(sweep, path)
    names, entries = names_of(choices), []
    for name, choice in zip(names, choices, strict=True):
        try:
            recipe = Recipe.model_validate(placed(base.document, choice.values))
        except ValidationError as error:
            faults += [_fault(one, choice, name, file, base) for one in error.errors()]
        else:
            entries.append(Entry(name, choice.values, recipe))
    if faults:
        raise SaapError("; ".join(dict.fromkeys(faults)))
    return _merged(entries)


def _base(sweep: SweepFile, path: Path) -> YamlFile:
    """The base recipe with its lines; one that is written into the sweep file has those of that file."""
    if isinstance(sweep.base, str):
        return read_yaml(path.parent / sweep.base)
    return YamlFile(path, sweep.base, None)


def _misnamed(sweep: SweepFile, file: YamlFile) -> Iterator[str]:
    """Faults of what stands beside the values: empty axes, and names that no folder can have or two recipes have."""
    for field, values in sweep.axes.items():
        if not values:
            yield file.told(("axes", field), "an axis needs values", name=(field,))
    seen = set[str]()
    for index, entry in enumerate(sweep.recipes):
        name = entry.get("name")
        if name is None:
            continue
        place = ("recipes", index, "name")
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            yield file.told(place, f"{name!r} cannot be a folder's name: letters, digits and . + = , - _")
        elif name in seen:
            yield file.told(place, f"'{name}' is the name of another recipe, too")
        seen.add(str(name))


def _further(entry: Mapping[str, Any], index: int) -> Choice:
    values = {field: value for field, value in entry.items() if field != "name"}
    return Choice(values, {field: ("recipes", index, field) for field in values}, entry.get("name"))


def _fault(error: Any, choice: Choice, name: str, file: YamlFile, base: YamlFile) -> str:
    """A fault of one recipe, where the value stands that makes it: in the axes, or in the base."""
    location, message = field_of(error), complaint(error, Recipe)
    for field, place in choice.places.items():
        parts = field.split(".")
        shared = min(len(parts), len(location))
        if location[:shared] == parts[:shared] and len(location) >= len(parts):
            return file.told((*place, *location[len(parts) :]), message, name=location)
    touched = any(field.split(".")[: len(location)] == location for field in choice.values)
    if touched:  # values that do not go together
        message = f"{message} (recipe {name})"
    if base.root is None:
        return file.told(("base", *location), message, name=location)
    return base.told(location, message)


def _merged(entries: list[Entry]) -> tuple[list[Entry], list[str]]:
    """Each recipe once, and a note on every other that says the same."""
    first: dict[str, Entry] = {}
    notes = []
    for entry in entries:
        key = json.dumps(entry.recipe.model_dump(mode="json"), sort_keys=True)
        if key in first:
            notes.append(f"recipe {entry.name} is the same as {first[key].name}: it is run once, under that name")
        first.setdefault(key, entry)
    return list(first.values()), notes
