"""What a search begins with: its axes with their values, the recipe in all formats, and its context, opened once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saap_edge.chain.context import Context, Known, open_context
from saap_edge.errors import SaapError
from saap_edge.progress import Progress
from saap_edge.recipe import Recipe
from saap_edge.searching.axes import FORMAT, RATIO, axes_of
from saap_edge.searching.space import Space
from saap_edge.worth.fit import STEP, most_of
from saap_edge.worth.frontier import with_formats, with_ratio

__all__ = ["Opened", "make_folder", "open_search"]

MOST = 60  # percent: more is searched only where the values say so


@dataclass(frozen=True)
class Opened:
    """The space of a search, the context of the dense model in all its formats, and what other contexts share with
    it."""

    space: Space
    context: Context
    known: Known


def open_search(
    recipe: Recipe, over: Mapping[str, Sequence[Any]], ratios: Sequence[float], listener: Progress
) -> Opened:  # fmt: skip
    """Open a search over axes.

    Args:
        recipe: what is the same for all.
        over: values by the name of their axis; an empty list: ratios from 0 to MOST percent as far as they can be
            reached, the recipe's formats, or all that the field may be.
        ratios: those of the axis ratio, where it has no values of its own.

    Raises SaapError for axes that cannot be, and as `open_context`.
    """
    axes = axes_of(over, recipe, {RATIO: list(ratios) or [0, recipe.prune.ratio], FORMAT: recipe.export.formats})
    if ratios and not any(axis.field == RATIO for axis in axes):
        if len(ratios) > 1:
            raise SaapError("several --ratio: name ratio in --over")
        recipe = with_ratio(recipe, ratios[0])
    formats = next((axis.values for axis in axes if axis.field == FORMAT), recipe.export.formats)
    recipe, known = with_formats(recipe, tuple(formats)), Known()
    with listener.bar("checking the recipe and the model", None):
        context = open_context(recipe, None, listener.bar, tune=True, known=known)
    reached = tuple(percent / 100 for percent in range(0, min(most_of(context), MOST) + 1, STEP))
    plain = [axis for axis in axes if axis.field == RATIO and not over[axis.name] and not ratios]
    axes = [replace(axis, values=reached) if axis in plain else axis for axis in axes]
    return Opened(Space(axes, recipe), context, known)


def make_folder(out: Path) -> None:
    """Make the folder of a search, which its study may lie in. Raises SaapError where that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise SaapError(f"--out '{out}' is a file: choose a folder") from None
    except OSError as error:
        raise SaapError(f"cannot create '{out}': {error.strerror}") from None
