"""The space of a search: every combination of the axes' values, each a recipe."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from saap_edge.errors import SaapError
from saap_edge.formats import format_of
from saap_edge.recipe import Recipe
from saap_edge.searching.axes import FORMAT, RATIO, Axis
from saap_edge.sweeping.combinations import placed
from saap_edge.yaml_lines import complaint

__all__ = ["Point", "Space", "key_of"]

MOST = 200_000  # combinations
GROUP = "export.group"

Point = dict[str, Any]  # values by the name of their axis; an axis that changes nothing there is left out


def key_of(point: Mapping[str, Any]) -> str:
    """A point as text: equal for equal points."""
    return json.dumps(point, sort_keys=True, default=str)


class Space:
    """The combinations of `axes` over a recipe. Raises SaapError where they are too many, and where
    a point would have several formats.

    The dense model (ratio 0) is not pruned or recovered: axes of these sections are left out of its points.
    """

    def __init__(self, axes: Sequence[Axis], base: Recipe) -> None:
        self.axes, self.base = list(axes), base
        self._name = {axis.field: axis.name for axis in axes}
        if len(base.export.formats) > 1 and FORMAT not in self._name:
            raise SaapError(
                f"the recipe has {len(base.export.formats)} formats: name format in --over, or choose one with --format"
            )
        count = math.prod(len(axis.values) for axis in axes)
        if count > MOST:
            raise SaapError(f"--over has {count} combinations, more than {MOST}: name fewer values")

    def over(self, field: str) -> bool:
        """Whether a field of the recipe is an axis."""
        return field in self._name

    def point(self, values: Mapping[str, Any]) -> Point:
        """The point of a value for every axis, by its name."""
        dense = values.get(self._name.get(RATIO, ""), 1) == 0
        artifact = values.get(self._name.get(FORMAT, ""), self.base.export.formats[0])
        return {
            axis.name: values[axis.name] for axis in self.axes if not (dense and self._idle(axis.field, artifact))
        }  # fmt: skip

    def _idle(self, field: str, artifact: str) -> bool:
        """Whether a field changes nothing in the dense model as this format."""
        if field == GROUP:
            return not format_of(artifact).scale_bits  # the format has its own group, or none
        return field not in (RATIO, FORMAT)

    @cached_property
    def points(self) -> dict[str, Point]:
        """All points by their keys."""
        names = [axis.name for axis in self.axes]
        values = itertools.product(*(axis.values for axis in self.axes))
        found = (self.point(dict(zip(names, each, strict=True))) for each in values)
        return {key_of(point): point for point in found}

    def ratio(self, point: Mapping[str, Any]) -> float:
        """The share to remove at a point; 0: the dense model."""
        return float(point.get(self._name.get(RATIO, ""), self.base.prune.ratio))

    def format(self, point: Mapping[str, Any]) -> str:
        """The one format of a point."""
        return str(point.get(self._name.get(FORMAT, ""), self.base.export.formats[0]))

    def recipe(self, point: Mapping[str, Any]) -> Recipe:
        """The recipe of a point, with one format, and the limits of the budget on it. The dense model has that of the
        base's ratio. Raises SaapError for values that do not go together."""
        values: dict[str, Any] = {FORMAT: [self.format(point)]}
        for axis in self.axes:
            if axis.name in point and not (axis.field == RATIO and point[axis.name] == 0):
                values |= axis.placed(point[axis.name])
        try:
            recipe = Recipe.model_validate(placed(self.base.model_dump(mode="json"), values))
        except ValidationError as error:
            raise SaapError(complaint(error.errors()[0], Recipe)) from None
        limits = tuple(limit for limit in recipe.budget.limits if limit.artifact in (None, self.format(point)))
        return recipe.model_copy(update={"budget": recipe.budget.model_copy(update={"limits": limits})})

    def label(self, point: Mapping[str, Any]) -> str:
        """What sets a point apart beside ratio and format: "effort=quick group=64"."""
        told = (axis for axis in self.axes if axis.field not in (RATIO, FORMAT) and axis.name in point)
        return " ".join(f"{axis.name}={point[axis.name]}" for axis in told)

    def title(self, point: Mapping[str, Any]) -> str:
        """A point in words."""
        ratio = self.ratio(point)
        return " ".join(filter(None, ["dense" if not ratio else f"{ratio:.3g}", self.format(point), self.label(point)]))
