"""Many recipes at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from saap_edge.api.recipes import recipe_of
from saap_edge.errors import SaapError
from saap_edge.progress import Listener, progress_of

if TYPE_CHECKING:
    from saap_edge.documents.sweep import Sweep

__all__ = ["sweep"]


def sweep(
    file: str | Path, *, out: str | Path, threads: int | None = None, ray: str | None = None, board: str | None = None,
    carry: bool = False, dry_run: bool = False, progress: Listener = None,
) -> Sweep:  # fmt: skip
    """Compile all recipes of a sweep file, in one graph of stages: one that several recipes share is made once.

    Args:
        file: sweep.yaml (docs/sweep.md): a base recipe, axes of values, further recipes, excluded combinations.
        out: folder to write: stages, runs/NAME of every recipe, sweep.json. What is there is not made again.
        threads: CPUs of a stage, at most; where absent, stages of one name share the machine's.
        ray: address of a Ray cluster (HOST:PORT, ray://HOST:PORT or auto) that runs the stages; None: this machine.
        board: with `ray`, name of the board that measures; None: each recipe's target.
        carry: with `ray`, send stage folders through its object store even where its nodes see `out`.
        dry_run: only say what is to be done; nothing is written.
        progress: a `Progress`, or a function that is called with (what, done, total).

    Stages run in processes of their own, as many at a time as CPUs and memory hold, measurements alone. Orders,
    families and metrics that only this program registered are not known there. Returns the sweep document. A stage that
    fails is in it, with those that rest on it; all others are made.

    Raises SaapError before anything is written: for faults of the file, all of them with file and line, for what a
    recipe's own run would refuse, and for a cluster that cannot be reached or has no node with the board.

    Examples:
        >>> found = se.sweep("sweep.yaml", out="swept")
        >>> [(recipe.name, recipe.exit_code) for recipe in found.recipes]
        [('ratio=0.2', 0), ('ratio=0.3', 0)]
        >>> [stage.recipes for stage in found.stages if stage.stage == "score"]
        [['ratio=0.2', 'ratio=0.3']]
        >>> {stage.became for stage in se.sweep("sweep.yaml", out="swept").stages}
        {'there'}
    """
    listener = progress_of(progress)
    if threads is not None and threads < 1:
        raise SaapError(f"--threads {threads}: a stage needs one at least")
    if ray is None and (board or carry):
        raise SaapError("--board and --carry go with --ray")
    from saap_edge.sweeping.document import load_sweep

    entries, notes = load_sweep(Path(file))
    for note in notes:
        listener.note(note)
    anchored = [replace(entry, recipe=recipe_of(entry.recipe)) for entry in entries]
    with listener.bar("loading libraries", None):
        from saap_edge.sweeping.machines import this_machine
        from saap_edge.sweeping.run import run_sweep
    if ray is None:
        return run_sweep(anchored, Path(out), this_machine(Path(out)), listener, threads=threads, dry=dry_run)
    from saap_edge.sweeping.cluster import cluster

    with cluster(ray, Path(out), listener, board=board, carry=carry) as machines:
        return run_sweep(anchored, Path(out), machines, listener, threads=threads, dry=dry_run)
