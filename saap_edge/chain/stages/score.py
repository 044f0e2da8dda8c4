"""Importance of every KV group, query slot and FFN channel, per calibration batch: scores.safetensors, scores.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.chain.rule import Inputs, Rule
from saap_edge.chain.texts import calibration, calibration_hash

if TYPE_CHECKING:
    from saap_edge.chain.context import Context

__all__ = ["RULE", "batches_of", "dense_model", "score_settings", "scores_of"]


def score_settings(context: Context) -> dict[str, Any]:
    """The settings that decide scores."""
    return context.recipe.score.model_dump(mode="json")


def batches_of(context: Context, inputs: Inputs) -> list[Any]:
    """Calibration windows in batches. Importance is kept as one figure for each batch."""
    import torch

    settings = context.recipe.score
    batches = torch.tensor_split(calibration(context, inputs, settings.samples), settings.batches)
    return [batch for batch in batches if len(batch)]


def dense_model(context: Context, dtype: str = "float32") -> Any:
    """The dense model, loaded onto the GPUs if there are any."""
    import torch

    from saap_edge.model.folder import load_model, placement

    return load_model(context.model, getattr(torch, dtype), placement())


def scores_of(
    context: Context, inputs: Inputs, model: Any, batches: list[Any], progress: Callable[[], None] = lambda: None,
    **share: Any,
) -> Any:  # fmt: skip
    """The scores of a loaded model; `share`: the batches of this process (pruning/shares.py), all where absent."""
    from saap_edge.pruning.score import score_model

    settings = context.recipe.score
    conditions = {"text_sha256": calibration_hash(context, inputs), **settings.model_dump()}
    return score_model(
        model, batches, conditions, progress, second_order=settings.second_order,
        running_fisher=settings.running_fisher, checkpointing=settings.checkpointing, precision=settings.precision,
        **share,
    )  # fmt: skip


def _score(context: Context, inputs: Inputs, out: Path) -> None:
    from saap_edge.pruning.score import save_scores
    from saap_edge.pruning.shares import share_of_this_process

    batches, share = batches_of(context, inputs), share_of_this_process()
    model = dense_model(context, context.recipe.score.dtype)
    with context.bar("score: calibration batches", len(share.of(len(batches)))) as advance:
        save_scores(scores_of(context, inputs, model, batches, lambda: advance(1), share=share), out)


RULE = Rule("score", (), _score, reads=("model",), settings=score_settings, learns=True)
