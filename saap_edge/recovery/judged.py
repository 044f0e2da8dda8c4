"""Decide what of a recovery is kept: every candidate is measured alone, as it would ship."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from saap_edge.families import Family
from saap_edge.model.blocks import BLOCK, BlockFormat, Blocks, dequantise, quantise
from saap_edge.model.folder import load_model
from saap_edge.model.perplexity import perplexity
from saap_edge.model.tensors import Codes
from saap_edge.recovery.settings import RecoverSettings
from saap_edge.recovery.train import Recovery

__all__ = ["Trained", "judged", "projections"]


@dataclass(frozen=True)
class Trained:
    """What training gave.

    Attributes:
        tuned: trained blocks, by weight name.
        untuned: held-out perplexity of the full-precision weights before training.
        fp: held-out perplexity of the full-precision weights that are kept.
        weights, blocks: the two phases of training.
        fault: why trained weights were given up, or None.
    """

    tuned: Mapping[str, Blocks]
    untuned: float
    fp: float
    weights: Recovery
    blocks: Recovery
    fault: str | None


def judged(
    dense: Path, pruned: Path, folder: Path, heldout: torch.Tensor, trained: Trained, *, family: Family,
    format: BlockFormat, group: int, settings: RecoverSettings, measured: Callable[[], None],
) -> dict[str, Any]:  # fmt: skip
    """Measure what would ship, keep the better blocks in `folder`, and return the content of recover.json.

    Args:
        dense, pruned: folders of the teacher and of the untuned model.
        folder: the tuned model; its full-precision weights are already there.
        heldout: token ids [m, window]; all perplexities are taken on them.
        group: inputs that share a scale.
        measured: called after each of three measurements.
    """

    def nearest(name: str, weight: torch.Tensor) -> Blocks:
        return quantise(torch.nn.functional.pad(weight, (0, -weight.shape[1] % BLOCK)), format, group)

    tuned, better = trained.tuned, trained.fp < trained.untuned
    rounded = _rounded_perplexity(pruned, family, nearest, heldout)
    measured()
    value = _rounded_perplexity(folder, family, lambda name, weight: tuned[name], heldout)
    measured()
    kept = value < rounded
    if kept:
        Codes.save(tuned, folder)
    elif better:  # the exporter would round the tuned weights, which may be worse than the untuned ones rounded
        Codes.save({name: nearest(name, weight) for name, weight in projections(load_model(pruned), family)}, folder)
    dense_fp = perplexity(load_model(dense), heldout).value
    measured()
    return {
        "format": format.name, "group": group, "adapter": settings.adapter,
        "tokens": trained.weights.tokens + trained.blocks.tokens,
        "dense": {
            "perplexity_fp": dense_fp,
            "perplexity_blocks": _rounded_perplexity(dense, family, nearest, heldout),
        },
        "before": {"perplexity_fp": trained.untuned, "perplexity_blocks": rounded},
        "after": {"perplexity_fp": trained.fp, "perplexity_blocks": value if kept else rounded},
        "kept": f"{'tuned' if better else 'untuned'} weights, {'tuned' if kept else 'untuned'} blocks",
        "phases": {"weights": asdict(trained.weights), "blocks": asdict(trained.blocks)},
        "notes": _notes(settings, trained.weights, trained.blocks, trained.fault),
        "window": heldout.shape[1], "heldout_tokens": heldout.numel(),
    }  # fmt: skip


@torch.no_grad()
def _rounded_perplexity(
    folder: Path, family: Family, change: Callable[[str, torch.Tensor], Blocks], heldout: torch.Tensor
) -> float:
    """Held-out perplexity of the model in `folder` with its projections set to the values of the blocks of `change`."""
    model = load_model(folder)
    for name, weight in projections(model, family):
        weight.copy_(dequantise(change(name, weight))[:, : weight.shape[1]])
    return perplexity(model, heldout).value


def projections(model: Any, family: Family) -> list[tuple[str, torch.Tensor]]:
    """Full name and weight of every projection of a transformers model."""
    return [
        (f"model.layers.{index}.{name}.weight", layer.get_submodule(name).weight.detach())
        for index, layer in enumerate(model.model.layers)
        for _, name in family.projections(layer)
    ]


def _notes(settings: RecoverSettings, weights: Recovery, blocks: Recovery, fault: str | None) -> list[str]:
    """A line about each phase whose training diverged, was given up or found nothing better."""
    notes = []
    phases = (
        ("weights", weights, f"recover.weights_learning_rate than {settings.weights_learning_rate:g}"),
        ("blocks", blocks, f"recover.learning_rate than {settings.learning_rate:g}"),
    )
    for phase, recovery, lower in phases:
        given_up = fault if phase == "weights" else None
        kept = (
            f"those of step {recovery.best_step} are kept"
            if recovery.best_step and not given_up
            else ("those that came in are kept")
        )
        if recovery.diverged_at is not None:
            what = f"training diverged at step {recovery.diverged_at} of {recovery.steps}"
        elif given_up:
            what = f"what was trained cannot be used ({given_up})"
        elif recovery.best_step or len(recovery.history) < 2:
            continue
        else:
            what = (
                f"training found nothing better ({recovery.start:.4g} nats before, {recovery.history[-1][1]:.4g} after)"
            )
        notes.append(f"{phase}: {what}: {kept}; a lower {lower} may help")
    return notes
