"""Finding the least pruning that meets a budget. Predictions say where to begin; compiled models decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from saap_edge.cache import StageResult
from saap_edge.chain.chains import COMPILE, DENSE, ORDER
from saap_edge.chain.context import Context, open_context
from saap_edge.chain.run import Before, run_stages
from saap_edge.chain.space import space_of
from saap_edge.documents.bench import Bench
from saap_edge.documents.gate import Gate
from saap_edge.engines.options import kv_type
from saap_edge.errors import EXIT_FAILED, EXIT_INCONCLUSIVE, EXIT_OK, SaapError
from saap_edge.files import save_document
from saap_edge.formats import format_of, kind_of
from saap_edge.gating import Kind, Limit, Verdict, judge
from saap_edge.model.spec import ModelSpec
from saap_edge.prediction.cost import cached_as
from saap_edge.prediction.predict import ArtifactCost, artifact_cost, predict
from saap_edge.progress import Bar
from saap_edge.pruning.space import HALF, plain_cost, staying_weights
from saap_edge.recipe import Recipe
from saap_edge.worth.frontier import open_at, with_ratio
from saap_edge.worth.judgeable import check_baseline, check_board
from saap_edge.worth.next_ratio import STEP, Outcome, least_met, next_try

__all__ = [
    "SCHEMA", "STEP", "by_prediction", "cost_at", "exit_code_of", "fit", "judged_at", "limited_formats", "most_of",
    "outcome_of", "patient", "predicted_figures", "row_of", "save_found",
]  # fmt: skip

SCHEMA = 1
CHAIN = ORDER[: ORDER.index("gate") + 1]
ROUNDS = 64  # at most, where noise leaves a limit open
QUALITY = ("perplexity", "perplexity_increase_pct")  # more pruning makes these worse, and all others better


def fit(
    recipe: Recipe, out: Path, bar: Bar, done: Callable[[StageResult], None],
    before: Before = lambda context, steps: None,
) -> dict[str, Any]:  # fmt: skip
    """Find the least ratio at which one of the recipe's formats meets all limits on it.

    Writes fit.json, and the recipe of what was found as fit.yaml, into `out`. Returns the fit document (schema 1).
    Raises SaapError when the budget has no limit or one that can never be judged here, and for all that the stages
    refuse.
    """
    formats, recipe = limited_formats(recipe), patient(recipe)
    check_baseline(recipe.budget)
    context = open_context(with_ratio(recipe, STEP / 100), None, bar)
    dense = cost_at(context.spec, formats[0], recipe.export.group, 0)
    check_board(recipe.budget, context.on_target, context.target.title, predicted_figures(context, dense, dense).keys())
    most = most_of(context)
    first = {name: _first(context, name, most) for name in formats}
    tries: dict[str, dict[int, Outcome]] = {name: {} for name in formats}
    rows: list[dict[str, Any]] = []
    while (ratio := _next(tries, first, most)) is not None:
        tried = open_at(recipe, ratio / 100, bar)
        verdicts, folder = judged_at(tried, out, done, before)
        for name in formats:
            row = row_of(context, ratio, name, verdicts, folder)
            tries[name][ratio] = row["outcome"]
            rows.append(row)
    return _finish(recipe, context, rows, first, out)


def patient(recipe: Recipe) -> Recipe:
    """The recipe with more rounds while a verdict is undecided: noise would look like too little pruning. If the recipe
    says how many rounds, it stays as it is."""
    bench = recipe.bench
    more = bench.model_copy(update={"max_rounds": bench.max_rounds or max(ROUNDS, bench.rounds)})
    return recipe.model_copy(update={"bench": more})


def limited_formats(recipe: Recipe) -> list[str]:
    """Formats that a limit is on. Raises SaapError when there are none, or one that is not exported."""
    named = {limit.artifact for limit in recipe.budget.limits}
    formats: list[str] = [name for name in recipe.export.formats if None in named or name in named]
    if not recipe.budget.limits:
        raise SaapError("the budget has no limits: there is nothing to fit (limits: {decode_tok_s: {min: 10}})")
    others = sorted(filter(None, named - set(recipe.export.formats)))
    if others:
        raise SaapError(
            f"the budget has a limit on {others[0]}, which is not exported ({', '.join(recipe.export.formats)}): name "
            "it with --format"
        )
    return formats


def most_of(context: Context) -> int:
    """The largest percentage, a multiple of STEP, that can be removed."""
    space = space_of(context.spec, context.recipe, context.target)
    return max((ratio for ratio in range(STEP, 100, STEP) if space.met(space.most(), ratio / 100)), default=0)


def _next(tries: Mapping[str, Mapping[int, Outcome]], first: Mapping[str, int], most: int) -> int | None:
    """The least ratio that a format still has to try. None where none of them could be less than the one found."""
    found = min((ratio for own in tries.values() if (ratio := least_met(own)) is not None), default=most + 1)
    wanted = (next_try(own, first[name], most) for name, own in tries.items())
    return min((ratio for ratio in wanted if ratio is not None and ratio < found), default=None)


def cost_at(spec: ModelSpec, artifact_format: str, group: int, ratio: float, kv: str | None = None) -> ArtifactCost:
    """Estimate what an artifact costs with `ratio` of every layer removed, from the dense model's shape alone.

    `group` inputs share a scale in ONNX formats; `kv` is the type of the KV cache, None the format's own. Raises
    SaapError for a format whose size the shape does not tell.
    """
    record, kept = format_of(artifact_format), 1 - ratio
    weight, table = record.weight_bits(group)
    kind = kind_of(record.kind)
    wide = kind.wide_queries
    count = replace(plain_cost(spec), queries=not (spec.taps and wide))
    weights = sum(count.layer(shape, spec.hidden, spec.head_dim) for shape in spec.layers) * kept
    weights += staying_weights(spec, wide)
    numbers = spec.vocab_size * spec.hidden  # of the embedding, and again of an untied head
    tables = 1 if spec.tied else 2
    matrix = spec.per_layer_projection() * (max(table, 8 * HALF) if kind.float_matrix else table)
    # KV heads of layers that share keys and values stay.
    cached = sum(2 * spec.kv_width(layer) * (1 if layer.kv else kept) for layer in spec.layers)
    others = spec.per_layer_table()
    number = record.kv_bytes if kv is None else kv_type(kv).size / kv_type(kv).block
    return ArtifactCost(
        format=artifact_format, projection_bytes=round((weights * weight + numbers * table + matrix) / 8),
        kv_bytes_per_token=round(cached * number),
        file_bytes=round((weights * weight + (tables * numbers + others) * table + matrix) / 8),
        parameters=round(weights + tables * numbers + others + spec.per_layer_projection()), kv=kv,
        state_bytes=round(spec.state_bytes() * (kept if spec.delta else 1)),
    )  # fmt: skip


def predicted_figures(context: Context, cost: ArtifactCost, dense: ArtifactCost) -> dict[str, float]:
    """The gate's metrics, as far as they can be computed without measuring."""
    settings = context.recipe.bench
    held = settings.prompt_tokens + settings.decode_tokens // 2
    read, before = (each.projection_bytes + each.kv_bytes_per_token * held for each in (cost, dense))
    figures: dict[str, float] = {
        "file_mib": cost.file_bytes / 2**20, "kv_bytes_per_token": cost.kv_bytes_per_token, "bytes_per_token": read,
        "parameters": cost.parameters, "speedup_vs_dense": before / read,
    }  # fmt: skip
    prediction = predict(cost, context.target, settings.prompt_tokens, held, ubatch=settings.ubatch)
    told = {
        "decode_tok_s": prediction.decode_tok_s, "prefill_tok_s": prediction.prefill_tok_s,
        "ttft_ms": prediction.ttft_ms, "peak_rss_mib": prediction.ram_mib,
    }  # fmt: skip
    for name, estimate in told.items():
        if estimate is not None:
            figures[name] = figures[f"predicted_{name.replace('peak_rss', 'ram')}"] = estimate.value
    return figures


def _first(context: Context, name: str, most: int) -> int:
    """The least ratio at which all predictable metrics are within their limits."""
    limits = [limit for limit in context.recipe.budget.limits if limit.artifact in (None, name)]
    group, kv = context.recipe.export.group, context.recipe.bench.kv
    dense = cost_at(context.spec, name, group, 0, kv)
    for ratio in range(0, most + 1, STEP):
        figures = predicted_figures(context, cost_at(context.spec, name, group, ratio / 100, kv), dense)
        if all(_within(limit, figures[limit.metric]) for limit in limits if limit.metric in figures):
            return ratio
    return most


def _within(limit: Limit, value: float) -> bool:
    return (limit.min is None or value >= limit.min) and (limit.max is None or value <= limit.max)


def judged_at(
    context: Context, out: Path, done: Callable[[StageResult], None],
    before: Before = lambda context, steps: None,
) -> tuple[list[Verdict], Path]:  # fmt: skip
    """Verdicts of the gate on a recipe, or on its dense model where the context is to tune; the artifacts' folder."""
    if not context.tune:
        results = run_stages(context, COMPILE, CHAIN, out=out, done=done, before=before).results
        folders = {result.name: result.folder for result in results}
        return Gate.read(folders["gate"] / "gate.json").verdicts, folders["export"]
    results = run_stages(context, DENSE, tuple(rule.name for rule in DENSE), out=out, done=done).results
    folders = {result.name: result.folder for result in results}
    bench = Bench.read(folders["densebench"] / "bench.json")
    return judge(bench, context.recipe.budget, context.on_target, context.target), folders["dense"]


def row_of(context: Context, ratio: float, name: str, verdicts: list[Verdict], folder: Path) -> dict[str, Any]:
    """The result of one format at one ratio. Limits on figures of another board are judged by predictions, and marked
    so."""
    own = [verdict.as_dict() for verdict in verdicts if verdict.artifact == name]
    figures: dict[str, float] = {}
    if not context.on_target:
        kv = context.recipe.bench.kv
        dense = cost_at(context.spec, name, context.recipe.export.group, 0, kv)
        figures = predicted_figures(context, cached_as(artifact_cost(folder, name), kv), dense)
    limits = {(limit.metric, limit.text): limit for limit in context.recipe.budget.limits}
    for verdict in own:
        limit = limits[verdict["metric"], verdict["limit"]]
        settled = verdict["kind"] in (Kind.BOARD, Kind.PREDICTED) and verdict["metric"] in figures
        if verdict["verdict"] == "inconclusive" and settled:
            value = figures[verdict["metric"]]
            verdict |= {"predicted": True, "value": value, "verdict": "pass" if _within(limit, value) else "fail"}
            verdict["reason"] = f"{value:.4g}, predicted for {context.target.title}"
    return {"ratio": ratio, "format": name, "outcome": outcome_of(own), "verdicts": own}


def outcome_of(verdicts: list[dict[str, Any]]) -> Outcome:
    """What the verdicts on one format say about the ratio. An undecided limit counts as not met.

    >>> outcome_of([{"metric": "decode_tok_s", "verdict": "fail"}, {"metric": "perplexity", "verdict": "pass"}])
    'more'
    >>> outcome_of([{"metric": "perplexity", "verdict": "fail"}])
    'less'
    """
    open_or_failed = [verdict["metric"] for verdict in verdicts if verdict["verdict"] != "pass"]
    lost = any(metric in QUALITY for metric in open_or_failed)
    short = any(metric not in QUALITY for metric in open_or_failed)
    return "both" if lost and short else "less" if lost else "more" if short else "meets"


def _finish(
    recipe: Recipe, context: Context, rows: list[dict[str, Any]], first: dict[str, int], out: Path
) -> dict[str, Any]:
    met = [row for row in rows if row["outcome"] == "meets"]
    best = min(met, key=lambda row: (row["ratio"], recipe.export.formats.index(row["format"])), default=None)
    document = {
        "schema": SCHEMA, "exit_code": exit_code_of(best, rows), "model": context.model_name,
        "target": context.target.name,
        "found": best and {"ratio": best["ratio"], "format": best["format"], "predicted": by_prediction(best)},
        "predicted_first": first, "tries": rows,
    }  # fmt: skip
    save_found(document, with_ratio(recipe, best["ratio"] / 100) if best else None, out)
    return document


def by_prediction(row: dict[str, Any]) -> bool:
    """Whether a verdict of a row rests on a prediction."""
    return any(verdict.get("predicted") for verdict in row["verdicts"])


def exit_code_of(best: dict[str, Any] | None, rows: list[dict[str, Any]]) -> int:
    """0 where something was found, 1 where not, 3 where that rests on a prediction or noise left it open."""
    unclear = any(v["verdict"] == "inconclusive" for row in rows for v in row["verdicts"])
    predicted = best is not None and by_prediction(best)
    return EXIT_INCONCLUSIVE if predicted or (best is None and unclear) else EXIT_OK if best else EXIT_FAILED


def save_found(document: dict[str, Any], recipe: Recipe | None, out: Path) -> None:
    """Write fit.json, and as fit.yaml the recipe of what was found, unless that is the dense model."""
    save_document(document, out / "fit.json")
    found = document["found"]
    if recipe is not None and found["ratio"]:
        written = recipe.model_dump(mode="json")
        written["export"]["formats"] = [found["format"]]
        (out / "fit.yaml").write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
