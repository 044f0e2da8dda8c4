"""The dense model in every format, for comparison with the pruned one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.chain.rule import Inputs, Rule
from saap_edge.chain.texts import calibration
from saap_edge.formats import asked_by_llama_cpp

if TYPE_CHECKING:
    from saap_edge.chain.context import Context

__all__ = ["RULE", "export_folder", "export_settings", "learns"]


def export_settings(context: Context) -> dict[str, Any]:
    """The settings that decide artifacts, and hashes of the code of formats that are not saap-edge's own."""
    from saap_edge.artifacts import code_of_others

    settings = context.recipe.export.model_dump(mode="json")
    others = code_of_others(context.recipe.export.formats)
    return settings | ({"others": others} if others else {})


def learns(context: Context) -> bool:
    """Whether an export reads calibration text: where a K or IQ type of llama.cpp is exported."""
    return asked_by_llama_cpp(context.recipe.export.formats)


def export_folder(
    context: Context, inputs: Inputs, folder: Path, out: Path, role: str, lineage: dict[str, str]
) -> None:  # fmt: skip
    """Write a model in every format of the recipe, with the manifest."""
    from saap_edge.exporting.write import export_artifacts

    settings = context.recipe.export
    with tempfile.TemporaryDirectory() as scratch:
        imatrix = _importance(context, inputs, folder, Path(scratch)) if learns(context) else None
        with context.bar(f"export: {role} formats", len(settings.formats)) as advance:
            export_artifacts(
                folder, out, settings.formats, role, lineage, lambda name: advance(1, f"{name} written"),
                settings.group, imatrix,
            )  # fmt: skip


def _importance(context: Context, inputs: Inputs, folder: Path, out: Path) -> Path:
    from saap_edge.exporting.imatrix import save_importance
    from saap_edge.model.folder import load_model
    from saap_edge.recovery.imatrix import importance_matrix

    texts = calibration(context, inputs, context.recipe.score.samples)
    return save_importance(importance_matrix(load_model(folder), texts), out)


def _dense(context: Context, inputs: Inputs, out: Path) -> None:
    export_folder(context, inputs, context.model, out, "dense", {"model": context.outside(("model",))["model"]})


RULE = Rule("dense", (), _dense, reads=("model",), settings=export_settings, learns=learns)
