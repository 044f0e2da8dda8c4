"""The recover stage: train weights, put them into blocks, train the blocks; decide what is kept; write the folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saap_edge.evaluate.perplexity import perplexity
from saap_edge.families import Family
from saap_edge.model.blocks import BLOCK_FORMATS, Blocks, dequantise, quantise
from saap_edge.model.folder import load_model, save_model, spec_of
from saap_edge.model.tensors import Codes
from saap_edge.recipe import RecoverSettings
from saap_edge.recover.quantiser import GroupLinear, LoraLinear
from saap_edge.recover.start import in_blocks
from saap_edge.recover.teacher import CachedTeacher, DenseTeacher, Teacher, write_cache
from saap_edge.recover.train import Progress, Recovery, Training, train

__all__ = ["Texts", "recover"]


@dataclass(frozen=True)
class Texts:
    """Token ids [n, window]: `calibration` is what codes are chosen on, `training` what adapters learn from, `heldout`
    what decides what is kept. `heldout` must not overlap the others."""

    calibration: torch.Tensor
    training: torch.Tensor
    heldout: torch.Tensor


def recover(
    dense: Path,
    pruned: Path,
    texts: Texts,
    settings: RecoverSettings,
    group: int,
    seed: int,
    out: Path,
    work: Path,
    progress: Callable[[str, int, float, float], None] = lambda phase, step, loss, heldout: None,
) -> dict[str, Any]:
    """Tune the model in `pruned`, write `out/model` and `out/recover.json`, and return the latter's content.

    `out/model` holds full-precision weights (for files of formats that were not tuned) and codes.safetensors, the
    blocks of the tuned format. Two guarantees on `texts.heldout`: the blocks are never worse than those of the untuned
    weights rounded to nearest, the full-precision weights never worse than the untuned ones.

    Args:
        dense: the teacher's folder; `pruned` may be the same (tuning without pruning).
        group: inputs that share a scale, 32 or a multiple.
        work: a folder for checkpoints and the teacher's cache; with the same one, a killed run goes on from there.
        progress: called with the phase ("teacher", "weights" or "blocks"), the step, and the losses of `train`.
    """
    model = load_model(pruned)
    family, format = spec_of(model).family, BLOCK_FORMATS[settings.format]
    untuned = _measure(model, family, texts.heldout)
    nearest = {name: quantise(_padded(weight), format, group) for name, weight in _projections(model, family)}
    rounded = _measure_blocks(model, nearest, texts.heldout)
    teacher = _teacher(dense, texts.training, settings, work, lambda step: progress("teacher", step, 0.0, 0.0))

    torch.manual_seed(seed)
    weights = _train_weights(model, family, teacher, texts, settings, seed, work, progress)
    fp = _measure(model, family, texts.heldout)
    if fp > untuned:  # exact on the data, but a merged weight is rounded once more
        model, fp = load_model(pruned), untuned
    folder = out / "model"
    folder.mkdir(parents=True)
    # fp32: fp16 would round the weights that codes of untuned formats are computed from.
    save_model(model, pruned, folder)

    student = in_blocks(
        model, family, format, group=group, rank=settings.rank, through=settings.through, method=settings.start,
        windows=texts.calibration,
    )  # fmt: skip
    blocks = train(
        student, teacher, texts.training, texts.heldout, _training(settings, seed, blocks=True), work / "blocks",
        lambda *news: progress("blocks", *news),
    )  # fmt: skip
    tuned = {f"{name}.weight": part.blocks() for name, part in student.named_modules() if isinstance(part, GroupLinear)}
    del student, model
    master = load_model(folder)
    value = _measure_blocks(master, tuned, texts.heldout)
    kept = value < rounded
    Codes.save(tuned if kept else nearest, folder)
    document = {
        "format": settings.format, "group": group, "tokens": weights.tokens + blocks.tokens,
        "before": {"perplexity_fp": untuned, "perplexity_blocks": rounded},
        "after": {"perplexity_fp": fp, "perplexity_blocks": value if kept else rounded},
        "kept": _kept(weights, blocks, settings, kept),
        "weights": _story(weights), "blocks": _story(blocks),
        "window": texts.heldout.shape[1], "heldout_tokens": texts.heldout.numel(),
    }  # fmt: skip
    (out / "recover.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    return document
