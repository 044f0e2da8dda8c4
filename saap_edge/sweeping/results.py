"""The sweep document: what became of every recipe and stage, with the figures of what was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from saap_edge.cache import read_stage
from saap_edge.documents.bench import Bench, Pair
from saap_edge.documents.gate import Gate
from saap_edge.documents.plan import load_plan
from saap_edge.documents.sweep import Sweep, SweepArtifact, SweepRecipe, SweepStage
from saap_edge.errors import EXIT_FAILED, EXIT_INCONCLUSIVE, EXIT_INPUT, EXIT_OK
from saap_edge.prediction.predict import predict_benched
from saap_edge.sweeping.graph import Graph, Member, Node
from saap_edge.sweeping.watch import State

__all__ = ["ORDER", "sweep_document"]

ORDER = (EXIT_INPUT, EXIT_FAILED, EXIT_INCONCLUSIVE, EXIT_OK)  # of several exit codes the first counts


def sweep_document(
    graph: Graph, states: Mapping[str, State], seconds: float | None = None, notes: list[str] | None = None
) -> Sweep:
    """The document of a sweep. `states` are those of its stages by key, `seconds` what it took."""
    recipes = [_recipe(graph, member, states) for member in graph.members.values()]
    codes = {recipe.exit_code for recipe in recipes} | {state.code for state in states.values()}
    stages = [_stage(graph, node, states[node.key]) for node in graph.nodes.values()]
    return Sweep(
        exit_code=next((code for code in ORDER if code in codes), EXIT_OK), recipes=recipes, stages=stages,
        seconds=seconds, notes=notes or [],
    )  # fmt: skip


def _stage(graph: Graph, node: Node, state: State) -> SweepStage:
    known = node.estimate.seconds or None
    took = read_stage(graph.root / node.key).get("seconds") if state.became == "there" else state.seconds
    return SweepStage(
        key=node.key, stage=node.stage, recipes=list(node.users), became=state.became, seconds=took,
        estimated_seconds=None if known is None else round(known, 2), estimated_bytes=round(node.estimate.bytes),
        cpus=node.cpus, node=state.node, reason=state.error,
    )  # fmt: skip


def _recipe(graph: Graph, member: Member, states: Mapping[str, State]) -> SweepRecipe:
    context, own = member.context, {name: states[key] for name, key in member.keys.items()}
    made = {name for name, state in own.items() if state.became in ("there", "made")}
    folders = {name: graph.root / member.keys[name] for name in made}
    failed = next(((name, state) for name, state in own.items() if state.became == "failed"), None)
    judged = Gate.read(folders["gate"] / "gate.json") if "gate" in folders else None
    code = failed[1].code if failed else judged.exit_code if judged and len(made) == len(own) else None
    why = f"{failed[0]}: {failed[1].error}" if failed else None
    return SweepRecipe(
        name=member.name, values=dict(member.values), model=context.model_name, target=context.target.name,
        exit_code=code, verdict=judged.verdict if judged else None, reason=why,
        removed=load_plan(folders["plan"]).achieved_ratio if "plan" in folders else None,
        stages=dict(member.keys), **_measured(context, folders),
    )  # fmt: skip


def _measured(context: Any, folders: Mapping[str, Path]) -> dict[str, Any]:
    """The figures of a recipe's bench document; nothing where it was not measured."""
    if "bench" not in folders:
        return {}
    bench = Bench.read(folders["bench"] / "bench.json")
    return {
        "machine": bench.machine.cpu, "on_target": context.on_target,
        "artifacts": [_artifact(context, bench, pair) for pair in bench.pairs()],
    }  # fmt: skip


def _artifact(context: Any, bench: Bench, pair: Pair) -> SweepArtifact:
    """A pruned artifact beside the dense one."""
    dense, figures = pair.base.metrics.perplexity, pair.candidate.metrics
    there = None if context.on_target else predict_benched(pair.candidate, bench.conditions, context.target)
    increase = 100 * (figures.perplexity / dense - 1) if dense and figures.perplexity else None
    told = {"predicted_decode_tok_s": there and there.decode_tok_s and asdict(there.decode_tok_s)}
    return SweepArtifact.model_validate({
        "format": pair.candidate.format, "file_bytes": figures.file_bytes,
        "decode_tok_s": figures.decode_tok_s and figures.decode_tok_s.median,
        "speedup": pair.ratios.decode_tok_s.as_dict(), "perplexity": figures.perplexity,
        "perplexity_increase_pct": increase, **told,
    })  # fmt: skip
