"""Measuring and judging."""

from __future__ import annotations

from saap_edge.cli.base import BudgetOption, FolderArgument, JsonOption, TargetOption, app, run_after

__all__: list[str] = []


@app.command()
def bench(folder: FolderArgument, *, as_json: JsonOption = False) -> None:
    """Measure dense against pruned in alternating runs."""
    run_after(folder, "bench", as_json)


@app.command()
def gate(
    folder: FolderArgument, *, budget: BudgetOption = None, target: TargetOption = None, as_json: JsonOption = False
) -> None:
    """Judge measurements against a budget: exit 0 pass, 1 fail, 3 inconclusive."""
    run_after(folder, "gate", as_json, budget=budget, target=target)
