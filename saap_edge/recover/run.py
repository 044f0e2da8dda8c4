"""The recover stage: train, decide what is kept, write the folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from saap_edge.evaluate.perplexity import perplexity
from saap_edge.model.folder import save_model, spec_of
from saap_edge.recipe import RecoverSettings
from saap_edge.recover.quantiser import GroupLinear
from saap_edge.recover.train import in_blocks, merge, train_adapters

__all__ = ["recover"]


def recover(
    dense: Any,
    pruned: Any,
    pruned_folder: Path,
    windows: torch.Tensor,
    heldout: torch.Tensor,
    settings: RecoverSettings,
    seed: int,
    out: Path,
    progress: Callable[[int, float], None],
) -> dict[str, Any]:
    """Tune `pruned`, write `out/model` and `out/recover.json`, and return the latter's content.

    `out/model` holds the full-precision weights (for the F16, Q8_0 and fp32 artifacts) and, when tuning helped,
    codes.safetensors (for the 4-bit ones). Two guarantees on `heldout`: the codes are never worse than rounding to
    nearest, the full-precision weights never worse than the untuned ones; what does not improve is left as it was.
    """
    family = spec_of(pruned).family
    torch.manual_seed(seed)
    student = in_blocks(pruned, family, settings.rank)
    recovery = train_adapters(
        dense, student, windows, heldout, tokens=settings.tokens, batch=settings.batch,
        learning_rate=settings.learning_rate, distillation=settings.distillation, seed=seed, progress=progress,
    )  # fmt: skip
    before = {"perplexity_fp": perplexity(pruned, heldout).value, "perplexity_q4": _exp(recovery.start)}
    tuned = recovery.best_step > 0
    master, fp_value, fp_kept = pruned, before["perplexity_fp"], False
    if tuned:
        merged = copy.deepcopy(pruned)
        merge(student, merged)
        value = perplexity(merged, heldout).value
        if value < fp_value:
            master, fp_value, fp_kept = merged, value, True
    model_folder = out / "model"
    model_folder.mkdir()
    # fp32: fp16 would round the weights that the codes of an untuned projection are computed from.
    save_model(master, pruned_folder, model_folder)
    if tuned:
        _save_codes(student, model_folder)
    document = {
        "tokens": recovery.tokens,
        "dense": {
            "perplexity_fp": perplexity(dense, heldout).value,
            "perplexity_q4": perplexity(in_blocks(dense, family), heldout).value,
        },
        "before": before,
        "after": {"perplexity_fp": fp_value, "perplexity_q4": _exp(recovery.best)},
        "kept": f"4-bit codes of step {recovery.best_step} of {recovery.steps}, "
        f"{'tuned' if fp_kept else 'untuned'} full-precision weights",
        "history": [[step, loss] for step, loss in recovery.history],
        "window": heldout.shape[1],
        "heldout_tokens": heldout.numel(),
    }
    (out / "recover.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    return document


def _exp(nll: float) -> float:
    return float(torch.tensor(nll, dtype=torch.float64).exp())


def _save_codes(student: Any, folder: Path) -> None:
    tensors = {}
    for name, module in student.named_modules():
        if isinstance(module, GroupLinear):
            tensors[f"{name}.weight.codes"], tensors[f"{name}.weight.scales"] = module.codes()
    save_file(tensors, folder / "codes.safetensors")
