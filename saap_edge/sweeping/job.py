"""One stage as a job for another process: what it has to know, as JSON, and doing it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saap_edge.cache import library_versions, run_stage, stage_folder
from saap_edge.chain.chains import COMPILE, WRITING
from saap_edge.chain.code import code_hash
from saap_edge.chain.context import reopen_context
from saap_edge.errors import SaapError
from saap_edge.progress import Bar
from saap_edge.recipe import Recipe
from saap_edge.sweeping.graph import Graph, Node
from saap_edge.targets import Target

__all__ = ["do_job", "identity", "job_of"]

_RULES = {rule.name: rule for rule in (*WRITING, *COMPILE)}


def job_of(graph: Graph, node: Node) -> dict[str, Any]:
    """The job of a stage, as JSON. Its recipe stands in it twice: `record` is for the stage's record, `recipe` is what
    a machine without these folders may put its own paths into."""
    context = graph.members[node.recipe].context
    recipe = context.recipe.model_dump(mode="json")
    return {
        "stage": node.stage, "key": node.key, "again": node.again, "cpus": node.cpus, "inputs": node.inputs,
        "root": str(graph.root), "recipe": recipe, "record": recipe, "warnings": list(context.warnings),
        "target": context.target.model_dump(mode="json"), "machine": dict(context.machine),
        "hashes": context.outside(_RULES[node.stage].stage(context).reads),
    }  # fmt: skip


def identity() -> dict[str, str]:
    """What decides a stage's hash besides its inputs: versions of libraries, and the code of all stages."""
    codes = "".join(code_hash(rule.body.__module__) for rule in _RULES.values())
    return library_versions() | {"code of saap-edge": hashlib.sha256(codes.encode()).hexdigest()[:8]}


def do_job(job: Mapping[str, Any], bar: Bar) -> float:
    """Make the stage of a job; returns the seconds that it took.

    Raises whatever the stage refuses, and SaapError where this machine's libraries or code would make another result
    than the one that is asked for.
    """
    import torch

    torch.set_num_threads(job["cpus"])
    context = reopen_context(
        Recipe.model_validate(job["recipe"]), bar, target=Target.model_validate(job["target"]), machine=job["machine"],
        warnings=tuple(job["warnings"]), hashes=job["hashes"],
    )  # fmt: skip
    stage, root = _RULES[job["stage"]].stage(context), Path(job["root"])
    folders, outside = {name: root / key for name, key in job["inputs"].items()}, context.outside(stage.reads)
    if stage_folder(stage, folders, outside, root).name != job["key"]:
        raise SaapError(
            f"the saap-edge of this machine, or a library of it, has another version than that which began the sweep: "
            f"it would make another {job['stage']} stage"
        )
    with bar(job["stage"], None):
        return run_stage(stage, folders, outside, root, job["record"], job["again"]).seconds
