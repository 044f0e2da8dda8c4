"""Recipes from what a caller gives: a file, a document or a recipe, with options on top."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.errors import SaapError

if TYPE_CHECKING:
    from saap_edge.gating import Budget
    from saap_edge.recipe import Recipe

__all__ = ["budget_of", "recipe_of", "with_formats"]

_PLACES = {
    "model": "model", "target": "target", "ratio": "prune.ratio", "method": "prune.method", "effort": "prune.effort",
    "tokens": "recover.tokens", "teacher": "recover.teacher", "shard": "recover.shard",
}  # fmt: skip


def recipe_of(
    recipe: Recipe | Mapping[str, Any] | str | Path | None = None, *, model: str | Path | None = None,
    target: str | Path | None = None, ratio: float | None = None, method: str | None = None, effort: str | None = None,
    tokens: int | None = None, teacher: str | Path | None = None, shard: bool | None = None,
    data: str | Path | None = None, formats: Sequence[str] | None = None,
    budget: Budget | Mapping[str, Any] | str | Path | None = None,
) -> Recipe:  # fmt: skip
    """A recipe that was checked. Options replace what `recipe` says; what neither says has its default.

    Args:
        recipe: a YAML file, a document or a `Recipe`.
        model: Hugging Face folder, .gguf file or hub name; the bundled model where nothing names one.
        target: the board, by name or YAML file.
        ratio: share of the dense cost to remove, in (0, 1).
        method: how the plan is made (docs/method.md).
        effort: how many plans are tried: quick, normal or thorough.
        tokens: training tokens of recovery.
        teacher: the dense model that recovery learns from.
        shard: share frozen weights out over the processes of a launch (docs/clusters.md).
        data: folder with calibration.txt, heldout.txt and test.txt; or "self", so that the model writes its own
            calibration text, or "half", so that it writes half of it (docs/method.md). A folder of such a name: ./self.
        formats: artifacts to export, as "gguf-q4_0".
        budget: limits of the gate.

    Raises SaapError that names the wrong field, and its line in a file.

    Examples:
        >>> se.recipe_of(target="rpi5", ratio=0.2).prune.ratio
        0.2
        >>> se.recipe_of("recipe.yaml", formats=["onnx-int4"]).export.formats
        ('onnx-int4',)
    """
    from pydantic import ValidationError

    from saap_edge.recipe import Recipe

    given = {
        "model": model, "target": target, "ratio": ratio, "method": method, "effort": effort,
        "tokens": tokens, "teacher": teacher, "shard": shard,
    }  # fmt: skip
    document = _document(recipe)
    for name, value in given.items():
        if value is not None:
            section, _, field = _PLACES[name].rpartition(".")
            plain = str(value) if isinstance(value, Path) else value
            (document.setdefault(section, {}) if section else document)[field] = plain
    if data is not None:
        document["data"] = _data_of(data, document.get("data") or {})
    if formats is not None:
        document.setdefault("export", {})["formats"] = list(formats)
    if budget is not None:
        document["budget"] = budget_of(budget).model_dump(mode="json")
    try:
        return _anchored(Recipe.model_validate(document))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        option = next((f"--{name} ({place})" for name, known in _PLACES.items() if known == place), place)
        raise SaapError(f"{option}: {first['msg']}, got {first['input']!r}") from None


def _data_of(data: str | Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's section on texts that --data stands for; `said` is what the recipe has there."""
    from saap_edge.recipe import SELF, bundled_text

    if data not in (SELF, "half"):
        texts = {role: str(Path(data) / f"{role}.txt") for role in ("calibration", "heldout", "test")}
        return texts | {name: said[name] for name in ("self_tokens",) if name in said}
    file = said.get("calibration") or str(bundled_text("calibration"))
    file = file[-1] if isinstance(file, list | tuple) else str(bundled_text("calibration")) if file == SELF else file
    return {**said, "calibration": SELF if data == SELF else [SELF, file]}


def with_formats(recipe: Recipe, formats: Sequence[str], option: str) -> Recipe:
    """The recipe with other formats. Raises SaapError that names `option` where a format is unknown."""
    try:
        return recipe_of(recipe, formats=formats)
    except SaapError as error:
        raise SaapError(f"{option}: {error}") from None


def budget_of(budget: Budget | Mapping[str, Any] | str | Path) -> Budget:
    """Limits from a YAML file, a document or a budget. Raises SaapError that names the field and the line."""
    from pydantic import ValidationError

    from saap_edge.gating import Budget
    from saap_edge.yaml_lines import load_yaml_model

    if isinstance(budget, str | Path):
        return load_yaml_model(Path(budget), Budget)
    try:
        return Budget.model_validate(budget if isinstance(budget, Budget) else dict(budget))
    except ValidationError as error:
        first = error.errors()[0]
        raise SaapError(f"budget: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _document(recipe: Recipe | Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    """The recipe as a document of its own, which the caller may change."""
    from saap_edge.recipe import Recipe
    from saap_edge.yaml_lines import load_yaml_model

    if recipe is None:
        return {}
    if isinstance(recipe, str | Path):
        recipe = load_yaml_model(Path(recipe), Recipe)
    document = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else dict(recipe)
    copy: dict[str, Any] = json.loads(json.dumps(document))
    return copy


def _anchored(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths: a later stage may be run from another folder."""
    texts: dict[str, Any] = {role: path.absolute() for role, path in recipe.data.files.items() if role != "calibration"}
    local = Path(recipe.model)
    model = str(local.absolute()) if local.exists() else recipe.model
    return recipe.model_copy(update={"model": model, "data": recipe.data.model_copy(update=texts)})
