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
    file: str | Path, *, out: str | Path, threads: int | None = None, dry_run: bool = False, progress: Listener = None,
) -> Sweep:  # fmt: skip
    """Compile all recipes of a sweep file, in one graph of stages: one that several recipes share is made once.

    Args:
        file: sweep.yaml (docs/sweep.md): a base recipe, axes of values, further recipes, excluded combinations.
        out: folder to write: stages, runs/NAME of every recipe, sweep.json. What is there is not made again.
        threads: CPUs of a stage, at most; where absent, stages of one name share the machine's.
        dry_run: only say what is to be done; nothing is written.
        progress: a `Progress`, or a function that is called with (what, done, total).

    Stages run in processes of their own, as many at a time as CPUs and memory hold, measurements alone. Orders,
    families and metrics that only this program registered are not known there. Returns the sweep document. A stage that
    fails is in it, with those that rest on it; all others are made.

    Raises SaapError before anything is written: for faults of the file, all of them with file and line, and for what a
    recipe's own run would refuse.

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
    from saap_edge.sweep.document import load_sweep

    entries, notes = load_sweep(Path(file))
    for note in notes:
        listener.note(note)
    with listener.bar("loading libraries", None):
        from saap_edge.sweep.run import run_sweep, this_machine

        machines = this_machine(Path(out))
    anchored = [replace(entry, recipe=recipe_of(entry.recipe)) for entry in entries]
    return run_sweep(anchored, Path(out), machines, listener, threads=threads, dry=dry_run)
