"""Measuring speed, memory and perplexity of artifacts, by turns with those they are compared with: bench.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.chain.rule import Inputs, Rule
from saap_edge.chain.texts import windows
from saap_edge.files import file_hash
from saap_edge.gating.rerun import asks_instructions, decides, timed_limits

if TYPE_CHECKING:
    from saap_edge.chain.context import Context
    from saap_edge.measuring.conditions import BenchConditions

__all__ = ["DENSE", "RULE", "conditions_of", "point"]


def _settings(context: Context) -> dict[str, Any]:
    recipe, facts = context.recipe, context.machine
    settings = recipe.bench.model_dump(mode="json") | {"threads": context.threads, "window": recipe.score.window}
    settings["instructions"] = asks_instructions(recipe.budget)
    if recipe.bench.max_rounds:  # then the limits decide how many rounds are run
        settings["limits"] = timed_limits(recipe.budget).model_dump(mode="json")
    return settings | {name: facts[name] for name in ("cpu", "cores")}


def conditions_of(context: Context) -> BenchConditions:
    """The conditions under which the recipe measures."""
    from saap_edge.measuring.conditions import BenchConditions

    settings = context.recipe.bench
    return BenchConditions(
        context.threads, settings.prompt_tokens, settings.decode_tokens, settings.rounds,
        windows(context, "test", settings.perplexity_windows).tolist(), file_hash(context.recipe.data.test)[:12],
        contexts=tuple(sorted(set(settings.contexts))), max_rounds=settings.max_rounds,
        instructions=asks_instructions(context.recipe.budget), chat=settings.chat, kv=settings.kv,
        ubatch=settings.ubatch,
    )  # fmt: skip


def _measure(context: Context, dense: Path, pruned: Path, out: Path) -> None:
    """Measure two export folders as the recipe says, until its budget is decided."""
    from saap_edge.measuring.folders import bench_folders

    decided = decides(context.recipe.budget, context.target)
    bench_folders(dense, pruned, conditions_of(context), context.bar, decided).write(out / "bench.json")


def _bench(context: Context, inputs: Inputs, out: Path) -> None:
    _measure(context, inputs["dense"], inputs["export"], out)


def _bench_dense(context: Context, inputs: Inputs, out: Path) -> None:
    _measure(context, inputs["dense"], inputs["dense"], out)


RULE = Rule("bench", ("verify", "export", "dense"), _bench, reads=("test",), settings=_settings)
DENSE = Rule("densebench", ("dense",), _bench_dense, reads=("test",), settings=_settings)  # the model without pruning


def point(anchor: str, artifact: str) -> Rule:
    """The stage that measures one artifact by turns with the anchor: point.json.

    `anchor` and `artifact` are formats; the folders of the inputs "anchor" and "artifact" hold them.
    """

    def settings(context: Context) -> dict[str, Any]:
        return _settings(context) | {"anchor": anchor, "format": artifact}

    return Rule("point", ("anchor", "artifact"), _beside(anchor, artifact), reads=("test",), settings=settings)


def _beside(anchor: str, artifact: str) -> Callable[[Context, Inputs, Path], None]:
    def body(context: Context, inputs: Inputs, out: Path) -> None:
        from saap_edge.measuring.folders import measure_beside

        pair = (inputs["anchor"], anchor), (inputs["artifact"], artifact)
        conditions = replace(conditions_of(context), contexts=(), chat=0)  # the frontier does not show them
        measure_beside(*pair, conditions, context.bar).write(out / "point.json")

    return body
