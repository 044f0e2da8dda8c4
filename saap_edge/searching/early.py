"""Leaving a point before anything expensive runs: predictions say that it cannot keep the budget.

Only what surely misses is left. A size, from the model's shape, has to miss by a tenth, because plans have a grid and
mixed formats no fixed number of bits; of a speed or of memory, the better end of the prediction's interval has to miss.
"""

from __future__ import annotations

import math

from saap_edge.chain.context import Context
from saap_edge.errors import SaapError
from saap_edge.prediction.formulas import load_fit
from saap_edge.prediction.predict import ArtifactCost, Prediction, predict
from saap_edge.worth.fit import cost_at, predicted_figures

__all__ = ["hopeless", "predicted"]

SIZES = ("file_mib", "bytes_per_token", "parameters")
SURE = 0.9  # of a predicted size: no file is smaller


def hopeless(context: Context, artifact: str, ratio: float) -> str | None:
    """Why an artifact of the recipe at a ratio (0: dense) cannot keep the recipe's budget, or the board's memory cannot
    hold it; None where it may."""
    recipe = context.recipe
    try:
        ranges = _ranges(context, artifact, ratio)
    except SaapError:  # the shape does not tell the size of such a format
        return None
    for limit in recipe.budget.limits:
        low, high = ranges.get(limit.metric, (-math.inf, math.inf))
        if (limit.min is not None and high < limit.min) or (limit.max is not None and low > limit.max):
            best = high if high < math.inf else low
            return f"{limit.metric} {limit.text} is out of reach: {best:.4g} at best, predicted"
    told = predicted(context, _cost(context, artifact, ratio))
    if not context.on_target and told.fits is False and told.ram_mib:
        least = f"{told.ram_mib.low:.0f} MiB at best, predicted"
        return f"{context.target.title} has not enough memory: {least}"
    return None


def predicted(context: Context, cost: ArtifactCost) -> Prediction:
    """Speed and memory on the board under the recipe's conditions, in the middle of decoding."""
    bench = context.recipe.bench
    held = bench.prompt_tokens + bench.decode_tokens // 2
    return predict(cost, context.target, bench.prompt_tokens, held, ubatch=bench.ubatch)


def _cost(context: Context, artifact: str, ratio: float) -> ArtifactCost:
    return cost_at(context.spec, artifact, context.recipe.export.group, ratio, context.recipe.bench.kv)


def _ranges(context: Context, artifact: str, ratio: float) -> dict[str, tuple[float, float]]:
    """By metric, the least and the most that it can be; an end that predictions say nothing of is infinite."""
    cost = _cost(context, artifact, ratio)
    figures = predicted_figures(context, cost, _cost(context, artifact, 0))
    found = {name: (SURE * figures[name], math.inf) for name in SIZES}
    found["speedup_vs_dense"] = (0.0, figures["speedup_vs_dense"] * load_fit()["intervals"]["decode-known"][1])
    told = predicted(context, cost)
    for name, estimate in (("decode_tok_s", told.decode_tok_s), ("prefill_tok_s", told.prefill_tok_s)):
        if estimate:
            found[name] = found[f"predicted_{name}"] = (0.0, estimate.high)
    for name, other, estimate in (
        ("ttft_ms", "predicted_ttft_ms", told.ttft_ms), ("peak_rss_mib", "predicted_ram_mib", told.ram_mib),
    ):  # fmt: skip
        if estimate:
            found[name] = found[other] = (estimate.low, math.inf)
    return found
