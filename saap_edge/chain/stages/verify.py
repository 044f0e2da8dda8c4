"""Checking that every artifact answers in its own runtime as torch does: verify.json, or an error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saap_edge.chain.rule import Inputs, Rule
from saap_edge.chain.texts import text
from saap_edge.documents.verify import Verify

if TYPE_CHECKING:
    from saap_edge.chain.context import Context

__all__ = ["DENSE", "RULE"]


def _verify(context: Context, inputs: Inputs, out: Path) -> None:
    model = inputs["recover"] / "model"
    _verify_all(context, [(inputs["dense"], context.model), (inputs["export"], model)], out)


def _verify_dense(context: Context, inputs: Inputs, out: Path) -> None:
    _verify_all(context, [(inputs["dense"], context.model)], out)


def _verify_all(context: Context, folders: list[tuple[Path, Path]], out: Path) -> None:
    """Verify all artifacts. `folders` pairs each export folder with the model folder that it was made from."""
    from saap_edge.evaluation.parity import require
    from saap_edge.evaluation.verify import verify_folder

    told = text(context, "test")
    with context.bar("verify: artifacts", len(folders) * len(context.recipe.export.formats)) as advance:
        parities = [
            parity
            for artifacts, model in folders
            for parity in verify_folder(artifacts, model, told, context.threads, lambda: advance(1), context.warnings)
        ]
    require(parities)
    Verify(artifacts=parities).write(out / "verify.json")


RULE = Rule("verify", ("export", "dense", "recover"), _verify, reads=("model", "test"))
DENSE = Rule("densecheck", ("dense",), _verify_dense, reads=("model", "test"))
