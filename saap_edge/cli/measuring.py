"""Measuring and judging."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from saap_edge.cli.base import (
    BudgetOption,
    JsonOption,
    TargetOption,
    app,
    bar,
    console,
    read_recipe,
    run_after,
)
from saap_edge.errors import SaapError

__all__: list[str] = []


@app.command()
def bench(
    path: Annotated[Path, typer.Argument(help="A bundle (folder or .tar.zst), or the folder of the verify stage")], *,
    against: Annotated[
        Path | None, typer.Option("--against", help="Bundle of the same model to measure it against")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads (default: those of the bundle's board)")
    ] = None,
    prompt: Annotated[int | None, typer.Option("--prompt", min=1, help="Tokens of the prompt (default 64)")] = None,
    decode: Annotated[int | None, typer.Option("--decode", min=1, help="Tokens decoded a round (default 32)")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=3, help="Rounds that count (default 7)")] = None,
    contexts: Annotated[
        str | None, typer.Option("--contexts", help="Measure decoding at these depths too, as 128,512,2048")
    ] = None,
    budget: Annotated[
        Path | None, typer.Option("--budget", help="Limits of the gate, to add rounds while one is undecided")
    ] = None,
    max_rounds: Annotated[
        int | None, typer.Option("--max-rounds", min=3, help="Rounds at most, with --budget (default: --rounds)")
    ] = None,
    target: TargetOption = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Measure on this board by ssh: user@board, or a name of ~/.ssh/config")
    ] = None,
    ssh_config: Annotated[
        Path | None, typer.Option("--ssh-config", help="ssh's configuration file instead of ~/.ssh/config")
    ] = None,
    remote_python: Annotated[
        str | None, typer.Option("--remote-python", help="Python there (default ~/.cache/saap-edge/venv's, or python3)")
    ] = None,
    remote_dir: Annotated[
        str | None, typer.Option("--remote-dir", help="Folder there for files and runs (default ~/.cache/saap-edge)")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the bundle's files there for the next time")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="bench.json to write")] = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Measure speed and memory: of a bundle, of one against another, or dense against pruned in a run.

    \b
        saap-edge bench model.tar.zst                             on a board: needs no torch
        saap-edge bench new.tar.zst --against main.tar.zst --out bench.json
        saap-edge bench new.tar.zst --against main.tar.zst --budget budgets.yaml --max-rounds 28 --out bench.json
        saap-edge bench model.tar.zst --contexts 128,512,2048     decode speed as the context grows
        saap-edge bench model.tar.zst --host pi@raspberrypi       there, over ssh: docs/boards.md
        saap-edge bench out/stages/verify-HASH                    the next stage of a run; its recipe has the settings

    What is compared takes turns, each in a process of its own, after a warm-up that lasts until speeds are stable. The
    figures with their intervals, noise, and the machine's state are in bench.json, which `saap-edge gate` judges;
    docs/measuring.md defines them. With --budget and --max-rounds, rounds are added while noise leaves a limit open;
    the intervals are wider for it, so that looking again does not make errors likelier (docs/gate.md). Exit codes: 0
    ok, 2 bad input.
    """
    given = {
        "threads": threads, "prompt_tokens": prompt, "decode_tokens": decode, "rounds": rounds,
        "contexts": _contexts(contexts) if contexts else None,
    }  # fmt: skip
    options = {name: value for name, value in given.items() if value is not None}
    there = {"config": ssh_config, "python": remote_python, "folder": remote_dir, "keep": keep or None}
    there = {name: value for name, value in there.items() if value is not None}
    if there and host is None:
        raise SaapError("--ssh-config, --remote-python, --remote-dir and --keep go with --host")
    if (path / "stage.json").is_file():
        if options or against or out or budget or max_rounds or target or host:
            raise SaapError(f"'{path}' is a stage of a run: its recipe says how to measure (options are for bundles)")
        run_after(path, "bench", as_json)
    if not path.is_file() and not (path / "bundle.json").is_file():
        raise SaapError(f"'{path}' is neither a bundle nor a stage folder (as OUT/stages/NAME-HASH)")
    options |= _looks(budget, max_rounds, rounds or 7, target)
    measure = partial(_on_board, host, there) if host is not None else _here
    _bench_bundles([path, against] if against else [path], options, out, as_json, measure)


def _looks(budget: Path | None, max_rounds: int | None, rounds: int, target: str | None) -> dict[str, Any]:
    """Options for rounds that are added while a limit is undecided. Raises SaapError for what does not go together."""
    from saap_edge.gating import Budget
    from saap_edge.targets import load_target
    from saap_edge.yaml_lines import load_yaml_model

    if budget is None:
        if max_rounds is not None:
            raise SaapError("--max-rounds goes with --budget: its limits say when to stop")
        return {}
    if max_rounds is not None and max_rounds < rounds:
        raise SaapError(f"--max-rounds {max_rounds} is less than --rounds {rounds}")
    looks = {"budget": load_yaml_model(budget, Budget), "target": load_target(target) if target else None}
    return looks | ({} if max_rounds is None else {"max_rounds": max_rounds})


def _contexts(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise SaapError(f"--contexts '{text}': give numbers of tokens, as 128,512,2048")
    return found


def _on_board(host: str, there: dict[str, Any], paths: list[Path], options: dict[str, Any]) -> dict[str, Any]:
    from saap_edge.remote.installation import Board, bench_on_board

    for name in ("budget", "target"):
        if options.get(name) is not None:
            options[name] = options[name].model_dump(mode="json")
    return bench_on_board(
        paths, Board(host, **there), options, bar, lambda text: console.print(escape(text), soft_wrap=True)
    )


def _here(paths: list[Path], options: dict[str, Any]) -> dict[str, Any]:
    from saap_edge.gating.rerun import asked_by
    from saap_edge.measuring.bundles import bench_bundles

    budget, target = options.pop("budget", None), options.pop("target", None)
    return bench_bundles(paths, bar, **options, **asked_by(budget, target))


def _bench_bundles(
    paths: list[Path], options: dict[str, Any], out: Path | None, as_json: bool,
    measure: Callable[[list[Path], dict[str, Any]], dict[str, Any]],
) -> None:  # fmt: skip
    from saap_edge.files import save_document
    from saap_edge.report.bench import render_bench

    if out and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise SaapError(f"--out '{out}': give a file in a folder that exists")
    with bar("bench", None):
        document = measure(paths, options)
    for part in render_bench(document):
        console.print(part)
    if out:
        save_document(document, out)
        console.print(f"[bold]bench[/]    {escape(str(out))}", soft_wrap=True)
    if as_json:
        print(json.dumps(document))


@app.command()
def gate(
    path: Annotated[Path, typer.Argument(help="report.json, bench.json, a run's --out folder, or a stage folder")], *,
    budget: BudgetOption = None, target: TargetOption = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="report.json or bench.json of another run, for changes in percent")
    ] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="JUnit XML file to write")] = None,
    summary: Annotated[
        Path | None,
        typer.Option("--summary", envvar="GITHUB_STEP_SUMMARY", help="Markdown file to append a table to"),
    ] = None,
    annotations: Annotated[
        bool, typer.Option("--annotations", envvar="GITHUB_ACTIONS", help="GitHub annotations, on stderr")
    ] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Judge measurements against a budget: exit 0 pass, 1 fail, 3 inconclusive.

    \b
        saap-edge gate out --budget budgets.yaml
        saap-edge gate bench.json --budget budgets.yaml --target rpi5 --junit gate.xml
        saap-edge gate out/report.json --budget budgets.yaml --baseline main.json

    A budget is a list of limits:

    \b
        limits:
          - {metric: decode_tok_s, min: 8}                    on the target only
          - {metric: decode_vs_baseline, min: 0.95}           measured side by side, holds on a shared runner
          - {metric: file_mib_change_pct, max: 1}             counted, against --baseline
          - {metric: predicted_decode_tok_s, min: 8}          from the target's figures

    A limit passes when the whole interval of its figure is inside, fails when it is all outside, and is inconclusive
    where it straddles or where the figure is not there or was not measured on the target. docs/gate.md has all metrics.

    The target is --target, else the one in report.json. On the folder of the bench stage, as OUT/stages/bench-HASH, it
    is the stage of the chain: its verdicts are kept, and limits not given here are the recipe's.
    """
    if (path / "stage.json").is_file():
        if baseline is not None:
            raise SaapError(f"--baseline goes with a report: give '{path}/bench.json' or report.json, not the folder")
        document = _gate_stage(path, budget, target)
    else:
        document = _gate_file(path, budget, target, baseline)
    _tell(document, budget, junit, summary, annotations)
    if as_json:
        print(json.dumps(document))
    sys.exit(document["exit_code"])


def _gate_file(path: Path, budget: Path | None, target: str | None, baseline: Path | None) -> dict[str, Any]:
    from saap_edge.gating import Budget
    from saap_edge.gating.document import gate_document
    from saap_edge.gating.read import read_measured
    from saap_edge.targets import load_target
    from saap_edge.yaml_lines import load_yaml_model

    if budget is None:
        raise SaapError("nothing to judge by: give --budget (a YAML file with limits)")
    limits = load_yaml_model(budget, Budget)
    if not limits.limits:
        raise SaapError(f"'{budget}' has no limits: nothing to judge by")
    measured = read_measured(path)
    board = load_target(target) if target else measured.target
    return gate_document(measured, limits, board, read_measured(baseline) if baseline else None)


def _gate_stage(folder: Path, budget: Path | None, target: str | None) -> dict[str, Any]:
    """As the chain does it, and without what only the chain needs (torch)."""
    from saap_edge.cache import ancestors, read_stage, run_stage
    from saap_edge.chain.stages.gate import gate_stage
    from saap_edge.targets import load_target

    recipe = read_recipe(None, base=read_stage(folder)["recipe"], budget=budget, target=target)
    folders, board = ancestors(folder), load_target(recipe.target)
    if "bench" not in folders:
        raise SaapError(f"gate works on the folder of bench or a later stage, and '{folder}' is none")
    if not recipe.budget.limits:
        raise SaapError("nothing to judge by: neither --budget nor the run's recipe has limits")

    stage = gate_stage(recipe.budget, board)
    made = run_stage(stage, folders, {}, folders["bench"].parent, recipe.model_dump(mode="json")).folder
    console.print(f"[bold]gate[/]  {escape(str(made))}", soft_wrap=True)
    document: dict[str, Any] = json.loads((made / "gate.json").read_text(encoding="utf-8"))
    return document


def _tell(
    gate: dict[str, Any], budget: Path | None, junit: Path | None, summary: Path | None, annotations: bool | None
) -> None:
    """The verdicts, for people and for the CI system."""
    from saap_edge.report.github import render_annotations, render_markdown
    from saap_edge.report.junit import render_junit
    from saap_edge.report.terminal import render_gate
    from saap_edge.yaml_lines import item_lines

    for part in render_gate(gate):
        console.print(part)
    if junit:
        junit.write_text(render_junit(gate, datetime.datetime.now(datetime.UTC)), encoding="utf-8")
    if summary:
        with summary.open("a", encoding="utf-8") as file:
            file.write(render_markdown(gate))
    if annotations:
        for command in render_annotations(gate, budget, item_lines(budget, "limits") if budget else []):
            print(command, file=sys.stderr)  # the runner reads both streams, and stdout is for --json
