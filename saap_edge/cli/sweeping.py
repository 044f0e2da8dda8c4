"""Many recipes at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from saap_edge import api
from saap_edge.cli.base import JsonOption, OutOption, ToConsole, app, console, prepare

__all__: list[str] = []


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="Sweep file (YAML): base, axes, recipes, exclude")], *,
    out: OutOption,
    threads: Annotated[
        int | None, typer.Option("--threads", help="CPUs of a stage, at most (default: stages of a name share all)")
    ] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", help="Ray cluster that runs the stages: HOST:PORT, ray://HOST:PORT or auto")
    ] = None,
    board: Annotated[
        str | None, typer.Option("--board", help="With --ray: the board that measures (default: each recipe's target)")
    ] = None,
    carry: Annotated[
        bool, typer.Option("--carry", help="With --ray: send stage folders to the nodes even where they see OUT")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is to be done")] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Compile many recipes: all combinations of models, boards, ratios, formats. What several share is made once.

    \b
        saap-edge sweep sweep.yaml --out out --dry-run       the stages, how many are shared, time and memory
        saap-edge sweep sweep.yaml --out out
        saap-edge sweep sweep.yaml --out out --ray head:6379   on a cluster; boards are resources, as board:rpi5

    \b
        # sweep.yaml
        base: {model: ./TinyLlama}              or the path of a recipe
        axes:
          prune.ratio: [0.2, 0.35, 0.5]         every combination of the axes' values is a recipe
          target: [rpi5, rk3588]
        exclude:
          - {prune.ratio: 0.5, target: rk3588}
        recipes:
          - {prune.ratio: 0.35, recover.tokens: 1000000, name: long}

    Stages run side by side as far as CPUs and memory allow, and measurements one at a time with nothing beside them.
    Each is a process of its own: one that fails ends only what rests on it. OUT/runs has a folder for every recipe,
    OUT/sweep.json all figures. The same command again goes on where it was stopped, or finds nothing to do
    (docs/sweep.md).

    Exit codes, the first that holds: 2 bad input or a stage failed, 1 a limit or verification failed, 3 a limit is
    undecided, 0 ok.
    """
    prepare()
    from saap_edge.report.sweep import render_sweep

    found = api.sweep(
        file, out=out, threads=threads, ray=ray, board=board, carry=carry, dry_run=dry_run,
        progress=ToConsole(tables=False),
    )  # fmt: skip
    if all(stage.became == "there" for stage in found.stages):
        console.print("nothing to do: every stage was already there")
    if not dry_run:
        for part in render_sweep(found):
            console.print(part)
        console.print(f"sweep    {escape(str(out / 'sweep.json'))}, and a folder for every recipe in "
                      f"{escape(str(out / 'runs'))}", soft_wrap=True)  # fmt: skip
    if as_json:
        print(json.dumps(found.as_dict()))
    sys.exit(found.exit_code)
