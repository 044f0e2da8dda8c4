"""The axes of a search: fields of the recipe, and the values that each may take."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from saap_edge.errors import SaapError
from saap_edge.recipe import Recipe
from saap_edge.settings import Section
from saap_edge.sweeping.combinations import placed
from saap_edge.yaml_lines import complaint

__all__ = ["FORMAT", "RATIO", "Axis", "axes_of", "parsed"]

RATIO, FORMAT = "prune.ratio", "export.formats"
SECTIONS = ("score", "prune", "recover", "export")  # what is made; how it is measured and judged stays the same
FIXED = ("score.window",)  # perplexity over windows of another length is another figure
NAMES = {"format": FORMAT}  # beside the last part of every field


@dataclass(frozen=True)
class Axis:
    """What a search varies.

    Attributes:
        name: as people write it, "ratio".
        field: of the recipe, "prune.ratio". Of `FORMAT`, a value is one format.
        values: what it may be; numbers ascend.
    """

    name: str
    field: str
    values: tuple[Any, ...]

    @property
    def ordered(self) -> bool:
        """Whether values that stand beside each other are alike: they are numbers."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    def placed(self, value: Any) -> dict[str, Any]:
        """The recipe's field with a value."""
        return {self.field: [value] if self.field == FORMAT else value}


def parsed(given: Sequence[str]) -> dict[str, list[Any]]:
    """Axes as --over has them: names with commas between them, or one name with its values.

    >>> parsed(["ratio,format", "effort=quick,normal"])
    {'ratio': [], 'format': [], 'effort': ['quick', 'normal']}
    """
    found: dict[str, list[Any]] = {}
    for text in given:
        name, equals, values = text.partition("=")
        if equals and ("," in name or not values):
            raise SaapError(f"--over {text}: give one axis its values as ratio=0.2,0.3, and others by another --over")
        try:
            wanted = {name: [yaml.safe_load(value) for value in values.split(",")]} if equals else name.split(",")
        except yaml.YAMLError:
            raise SaapError(f"--over {text}: these are no values") from None
        for each in wanted:
            if each in found:
                raise SaapError(f"--over names {each} twice")
            found[each] = wanted[each] if isinstance(wanted, dict) else []
    return found


def axes_of(given: Mapping[str, Sequence[Any]], recipe: Recipe, own: Mapping[str, Sequence[Any]]) -> list[Axis]:
    """The axes of a search. One without values has those of `own` (by field), else all that the recipe's field may be.

    Raises SaapError for a name that is no field, a field without values, and a value that the recipe refuses.
    """
    axes = [_axis(name, list(values), own) for name, values in given.items()]
    if not axes:
        raise SaapError("--over names no axis: ratio, format, group, effort, or other fields of the recipe")
    fields = [axis.field for axis in axes]
    twice = next((axis for axis in axes if fields.count(axis.field) > 1), None)
    if twice:
        raise SaapError(f"--over names {twice.field} twice")
    for axis in axes:
        for value in axis.values:
            _check(axis, value, recipe)
    return axes


def _axis(name: str, values: list[Any], own: Mapping[str, Sequence[Any]]) -> Axis:
    field = _field(name)
    values = values or list(own.get(field, ())) or list(_choices(dict(_fields())[field]))
    if not values:
        raise SaapError(f"--over {name}: {field} may be anything: give values, as --over {name}=A,B")
    distinct = list({repr(value): value for value in values}.values())
    axis = Axis(name, field, tuple(distinct))
    return Axis(name, field, tuple(sorted(distinct))) if axis.ordered else axis


def _field(name: str) -> str:
    """The field that a name means: all of it, or its last part, where no other field ends so."""
    fields = dict(_fields())
    if name in FIXED or name in [field.rpartition(".")[2] for field in FIXED]:
        raise SaapError(f"--over {name}: it decides what perplexity is, and has to be the same for all")
    if name in NAMES or name in fields:
        return NAMES.get(name, name)
    found = [field for field in fields if field.rpartition(".")[2] == name]
    if len(found) > 1:
        raise SaapError(f"--over {name}: which of {', '.join(found)}?")
    if found:
        return found[0]
    known = [*NAMES, *(field.rpartition(".")[2] for field in fields)]
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean '{near[0]}'?" if near else "e.g. ratio, format, group, effort or recover.tokens"
    raise SaapError(f"--over {name}: no field of the recipe's sections {', '.join(SECTIONS)} ({hint})")


def _fields() -> Iterator[tuple[str, Any]]:
    """(dotted field, its annotation) of all that may be an axis."""
    for section in SECTIONS:
        yield from _fields_of(section, Recipe.model_fields[section].annotation)


def _fields_of(place: str, section: Any) -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        inner, own = field.annotation, f"{place}.{name}"
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _fields_of(own, inner)
        elif own not in FIXED:
            yield own, inner


def _choices(annotation: Any) -> tuple[Any, ...]:
    """All values of a field that has few; () where it may be anything.

    >>> _choices(Literal["quick", "normal"]), _choices(bool), _choices(int), _choices(Literal["ffn"] | None)
    (('quick', 'normal'), (False, True), (), ('ffn', None))
    """
    origin = get_origin(annotation)
    if origin is Annotated:
        return _choices(get_args(annotation)[0])
    if origin is Literal:
        return get_args(annotation)
    if origin in (Union, types.UnionType):
        parts = [(None,) if part is type(None) else _choices(part) for part in get_args(annotation)]
        return tuple(value for part in parts for value in part) if all(parts) else ()
    return (False, True) if annotation is bool else ()


def _check(axis: Axis, value: Any, recipe: Recipe) -> None:
    """Raise SaapError where the recipe refuses a value of an axis."""
    if axis.field == RATIO and value == 0:  # the dense model
        return
    try:
        Recipe.model_validate(placed(recipe.model_dump(mode="json"), axis.placed(value)))
    except ValidationError as error:
        raise SaapError(f"--over {axis.name}={value}: {complaint(error.errors()[0], Recipe)}") from None
