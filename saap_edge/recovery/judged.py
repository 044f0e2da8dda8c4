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
from saap_edge.model.tensors import Codes
from saap_edge.recovery.heldout import Found, Heldout
from saap_edge.recovery.settings import RecoverSettings
from saap_edge.recovery.train import Recovery

__all__ = ["Trained", "judged", "projections"]


@dataclass(frozen=True)
class Trained:
    """What training gave.

    Attributes:
        tuned: trained blocks, by weight name.
        untuned: what the full-precision weights had on held-out text before training.
        fp: what the trained ones have.
        better: the trained full-precision weights are kept.
        first: the first layer whose full-precision weights were trained.
        weights, blocks: the two phases of training.
        fault: why trained weights were given up, or None.
    """

    tuned: Mapping[str, Blocks]
    untuned: Found
    fp: Found
    better: bool
    first: int
    weights: Recovery
    blocks: Recovery
    fault: str | None


def judged(
    dense: Path, pruned: Path, folder: Path, heldout: Heldout, trained: Trained, *, family: Family,
    format: BlockFormat, group: int, settings: RecoverSettings, measured: Callable[[], None],
) -> dict[str, Any]:  # fmt: skip
    """Measure what would ship, keep the better blocks in `folder`, and return the content of recover.json.

    Args:
        dense, pruned: folders of the teacher and of the untuned model.
        folder: the tuned model; its full-precision weights are already there.
        heldout: what all figures are of.
        group: inputs that share a scale.
        measured: called after each of three measurements.
    """

    def nearest(name: str, weight: torch.Tensor) -> Blocks:
        return quantise(torch.nn.functional.pad(weight, (0, -weight.shape[1] % BLOCK)), format, group)

    tuned, better, share = trained.tuned, trained.better, settings.distillation
    rounded = _rounded(pruned, family, nearest, heldout)
    measured()
    found = _rounded(folder, family, lambda name, weight: tuned[name], heldout)
    measured()
    kept = found.loss(share) < rounded.loss(share)
    if kept:
        Codes.save(tuned, folder)
    elif better:  # the exporter would round the tuned weights, which may be worse than the untuned ones rounded
        Codes.save({name: nearest(name, weight) for name, weight in projections(load_model(pruned), family)}, folder)
    dense_fp = heldout.measure(load_model(dense))
    measured()
    after = (trained.fp if better else trained.untuned), (found if kept else rounded)
    return {
        "format": format.name, "group": group, "adapter": settings.adapter,
        "tokens": trained.weights.tokens + trained.blocks.tokens,
        "dense": _figures(dense_fp, _rounded(dense, family, nearest, heldout)),
        "before": _figures(trained.untuned, rounded),
        "after": _figures(*after),
        "first_trained_layer": trained.first,
        "kept": f"{'tuned' if better else 'untuned'} weights, {'tuned' if kept else 'untuned'} blocks",
        "phases": {"weights": asdict(trained.weights), "blocks": asdict(trained.blocks)},
        "notes": _notes(settings, trained.weights, trained.blocks, trained.fault),
        "window": heldout.windows.shape[1], "heldout_tokens": heldout.windows.numel(),
    }  # fmt: skip


def _figures(fp: Found, blocks: Found) -> dict[str, float]:
    """Figures of full-precision weights and of blocks, as JSON."""
    figures = {"perplexity_fp": fp.perplexity.value, "perplexity_blocks": blocks.perplexity.value}
    if fp.divergence is not None and blocks.divergence is not None:
        figures |= {"divergence_fp": fp.divergence, "divergence_blocks": blocks.divergence}
    return figures


@torch.no_grad()
def _rounded(folder: Path, family: Family, change: Callable[[str, torch.Tensor], Blocks], heldout: Heldout) -> Found:
    """What the model in `folder` has with its projections set to the values of the blocks of `change`."""
    model = load_model(folder)
    for name, weight in projections(model, family):
        weight.copy_(dequantise(change(name, weight))[:, : weight.shape[1]])
    return heldout.measure(model)


def projections(model: Any, family: Family) -> list[tuple[str, torch.Tensor]]:
    """Full name and weight of every projection of a transformers model."""
    return [
        (f"model.layers.{index}.{name}.weight", layer.get_submodule(name).weight.detach())
        for index, layer in enumerate(model.model.layers)
        for name in family.linears(layer)
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
