"""Is pruning worth it, and how much of it: the frontier, and the least pruning that meets a budget."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from saap_edge import api
from saap_edge.cli.base import (
    DataOption,
    JsonOption,
    MethodOption,
    ModelOption,
    OutOption,
    TargetOption,
    ToConsole,
    TokensOption,
    app,
    console,
    prepare,
)  # fmt: skip

__all__: list[str] = []

RecipeOption = Annotated[Path | None, typer.Option("--recipe", help="Recipe (YAML); options override its fields")]
FormatOption = Annotated[
    list[str] | None,
    typer.Option("--format", help="Format to write, of the dense and the pruned model; may be repeated"),
]
OverOption = Annotated[
    list[str] | None,
    typer.Option(
        "--over",
        help="Search over fields of the recipe: names with commas, or NAME=V1,V2 with its values; may be repeated",
    ),
]
TrialsOption = Annotated[
    int | None, typer.Option("--trials", help="With --over: models that the study tries in all (default: 20)")
]
StudyOption = Annotated[
    Path | None,
    typer.Option("--study", help="With --over: the study's file, which may be shared (default: OUT/study.journal)"),
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="With --over: seed of the search (default: 0)")]


@app.command()
def frontier(
    *, model: ModelOption = None, target: TargetOption = None, recipe: RecipeOption = None,
    ratio: Annotated[
        list[float] | None, typer.Option("--ratio", help="Share to remove; may be repeated (default: 0.2, 0.35, 0.5)")
    ] = None,
    format: FormatOption = None,
    rival: Annotated[
        list[str] | None,
        typer.Option("--rival", help="Format of the dense model alone; may be repeated; 'none' for none"),
    ] = None,
    method: MethodOption = None, tokens: TokensOption = None, data: DataOption = None, over: OverOption = None,
    gain: Annotated[
        list[str] | None,
        typer.Option(
            "--gain", help="With --over: sought beside quality: bytes (default), memory or speed; may be repeated"
        ),
    ] = None,
    trials: TrialsOption = None, study: StudyOption = None, seed: SeedOption = None, out: OutOption,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Show whether pruning is worth it: quality, speed and bytes of dense and pruned files, and the Pareto front.

    \b
        saap-edge frontier --model ./TinyLlama --target rpi5 --out out
        saap-edge frontier --model ./TinyLlama --ratio 0.3 --format gguf-q4_0 --rival gguf-q3_k_m --out out
        saap-edge frontier --over ratio,format,effort --gain bytes --trials 20 --out out

    Every artifact's perplexity is measured, and its speed beside one anchor: the dense model in the board's
    quantisation. The shared anchor makes separate measurements comparable. If the target is another board, its speed is
    predicted, in a column of its own. Writes frontier.json, frontier.html and frontier.png into --out. Stages that
    `saap-edge compile` has finished there are not repeated, and a killed run goes on.

    With --over, not every combination is made: Optuna chooses --trials of them, by held-out text and what is to be
    gained, and the front of those is measured (docs/search.md).
    """
    prepare()
    from saap_edge.report.frontier import render_frontier

    wanted = tuple(name for name in (rival or api.RIVALS) if name != "none")
    found = api.frontier(
        model, recipe=recipe, target=target, ratios=ratio, formats=format, rivals=wanted, method=method, tokens=tokens,
        data=data, over=over, gains=gain, trials=trials, study=study, seed=seed, out=out,
        progress=ToConsole(tables=False),
    )  # fmt: skip
    for part in render_frontier(found.document):
        console.print(part)
    for path in found.files:
        console.print(f"frontier {escape(str(path))}", soft_wrap=True)
    if as_json:
        print(json.dumps({"exit_code": 0, **found.document}))


@app.command()
def fit(
    *, model: ModelOption = None, target: TargetOption = None, recipe: RecipeOption = None,
    budget: Annotated[Path, typer.Option("--budget", help="YAML file with the limits to meet")],
    format: FormatOption = None, method: MethodOption = None, tokens: TokensOption = None, data: DataOption = None,
    over: OverOption = None, trials: TrialsOption = None, study: StudyOption = None, seed: SeedOption = None,
    out: OutOption, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Find the least pruning that meets a budget.

    \b
        saap-edge fit --model ./TinyLlama --target rpi5 --budget budgets.yaml --out out
        saap-edge fit --model ./TinyLlama --budget budgets.yaml --over ratio,format,effort --trials 20 --out out

    The search starts at the ratio whose predicted speed and size meet the limits. It then compiles whole models, one
    ratio after another in steps of 5 %, and the gate judges each, until the least ratio that meets all limits is known,
    or that there is none. Scores are made once. Writes fit.json, and fit.yaml: a recipe for `saap-edge compile`.

    With --over it finds the model of least perplexity on held-out text among those that meet the budget: Optuna chooses
    --trials of all combinations, and leaves what predictions rule out (docs/search.md).

    Exit codes: 0 found, 1 no ratio meets the budget, 2 bad input, 3 found, but a limit rests on a prediction or on
    noise.
    """
    prepare()
    from saap_edge.report.frontier import render_fit

    found = api.fit(
        model, budget=budget, recipe=recipe, target=target, formats=format, method=method, tokens=tokens, data=data,
        over=over, trials=trials, study=study, seed=seed, out=out, progress=ToConsole(tables=False),
    )  # fmt: skip
    for part in render_fit(found.document):
        console.print(part)
    if as_json:
        print(json.dumps(found.document))
    sys.exit(found.exit_code)
