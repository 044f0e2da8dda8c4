"""The model cut to its plan and repaired: a Hugging Face folder, and prune.json with perplexities before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.chain.rule import Inputs, Rule
from saap_edge.chain.stages.score import dense_model, score_settings
from saap_edge.chain.texts import HELDOUT_WINDOWS, windows
from saap_edge.files import write_json

if TYPE_CHECKING:
    from saap_edge.chain.context import Context

__all__ = ["RULE"]


def _settings(context: Context) -> dict[str, Any]:
    prune = context.recipe.prune.model_dump(mode="json")
    return score_settings(context) | {name: prune[name] for name in ("repair", "mix", "bias")}


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
    texts: Any = windows(context, "calibration", context.recipe.score.samples) if settings.repair else []
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
    """The pruned model, and held-out perplexity of each step."""
    from saap_edge.model.perplexity import perplexity
    from saap_edge.pruning.repair import repair
    from saap_edge.pruning.surgery import cut

    settings = context.recipe.prune
    layer = 3 * len(texts) / len(kept)  # a repair runs every window three times
    work = 3 * (len(heldout) + len(texts)) if settings.repair else 2 * len(heldout)
    with context.bar("prune: passes over windows", work) as advance:
        figures = {"dense": perplexity(model, heldout, advance).value}
        pruned = cut(model, kept)
        figures["cut"] = perplexity(pruned, heldout, advance).value
        if settings.repair:
            repair(model, kept, texts, settings.mix, settings.bias, lambda: advance(layer))
            pruned = cut(model, kept)
            figures["repaired"] = perplexity(pruned, heldout, advance).value
    return pruned, figures


RULE = Rule("prune", ("plan",), _prune, reads=("model", "calibration", "heldout"), settings=_settings)
