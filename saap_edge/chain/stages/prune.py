"""The model cut to its plan and repaired: a Hugging Face folder, and prune.json with perplexities before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.chain.rule import Inputs, Rule
from saap_edge.chain.stages.score import dense_model, score_settings
from saap_edge.chain.texts import HELDOUT_WINDOWS, calibration, windows
from saap_edge.files import write_json

if TYPE_CHECKING:
    from saap_edge.chain.context import Context

__all__ = ["RULE"]


def _settings(context: Context) -> dict[str, Any]:
    prune = context.recipe.prune.model_dump(mode="json")
    return score_settings(context) | {name: prune[name] for name in ("repair", "samples", "mix", "bias")}


def _prune(context: Context, inputs: Inputs, out: Path) -> None:
    from saap_edge.model.folder import save_model
    from saap_edge.pruning.kept import kept_structures
    from saap_edge.pruning.plan import check_fits, load_plan
    from saap_edge.pruning.planner import load_values

    plan, settings = load_plan(inputs["plan"]), context.recipe.prune
    model = dense_model(context)
    check_fits(plan, context.spec)
    kept = kept_structures(load_values(inputs["plan"]), plan.widths)
    heldout = windows(context, "heldout", HELDOUT_WINDOWS)
    texts = calibration(context, inputs, settings.samples)[: None if settings.repair else 0]
    pruned, figures = _cut_and_repaired(context, model, kept, heldout, texts)
    (out / "model").mkdir()
    save_model(pruned, context.model, out / "model")
    document = {
        "heldout_perplexity": figures, "window": heldout.shape[1], "heldout_tokens": heldout.numel(),
        "kept": [{kind: indices.tolist() for kind, indices in layer.items()} for layer in kept],
    }  # fmt: skip
    write_json(out / "prune.json", document)


def _cut_and_repaired(
    context: Context, model: Any, kept: Any, heldout: Any, texts: Any
) -> tuple[Any, dict[str, float]]:
    """The pruned model, and held-out perplexity of each step: the dense model, the cut one and the repaired one."""
    from saap_edge.pruning.repair import Variant, judge_variants
    from saap_edge.pruning.surgery import cut

    settings, precision = context.recipe.prune, context.recipe.score.precision
    variants = [Variant(kept, None), *([Variant(kept, settings.mix, settings.bias)] if settings.repair else [])]
    with context.bar("prune: layers", len(kept)) as advance:
        found = judge_variants(
            model, variants, texts, heldout, store=len(variants) - 1, progress=lambda: advance(1), precision=precision
        )
    figures = dict(zip(("dense", "cut", "repaired"), (one.value for one in found), strict=False))
    return cut(model, kept), figures


RULE = Rule("prune", ("plan",), _prune, reads=("model", "heldout"), settings=_settings, learns=True)
