"""Measuring and judging."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from saap_edge import api
from saap_edge.cli.base import (
    BudgetOption,
    JsonOption,
    KvOption,
    TargetOption,
    ToConsole,
    UbatchOption,
    app,
    console,
    finish,
    prepare,
)
from saap_edge.errors import SaapError

if TYPE_CHECKING:
    from saap_edge.documents.bench import Bench
    from saap_edge.documents.gate import Gate

__all__: list[str] = []


@app.command()
def bench(
    path: Annotated[Path, typer.Argument(help="A bundle (folder or .tar.zst), or the folder of the verify stage")], *,
    against: Annotated[
        Path | None, typer.Option("--against", help="Bundle of the same model to measure beside it")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads (default: those of the bundle's board)")
    ] = None,
    prompt: Annotated[int | None, typer.Option("--prompt", min=1, help="Tokens of the prompt (default 64)")] = None,
    decode: Annotated[int | None, typer.Option("--decode", min=1, help="Tokens decoded a round (default 32)")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=3, help="Rounds after the warm-up (default 7)")] = None,
    contexts: Annotated[
        str | None, typer.Option("--contexts", help="Also measure decoding behind this many tokens, as 128,512,2048")
    ] = None,
    kv: KvOption = None, ubatch: UbatchOption = None,
    budget: Annotated[
        Path | None, typer.Option("--budget", help="Limits of the gate: rounds are added while one is undecided")
    ] = None,
    max_rounds: Annotated[
        int | None, typer.Option("--max-rounds", min=3, help="Rounds at most; only with --budget (default: --rounds)")
    ] = None,
    target: TargetOption = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="Decode without a pause for so long: does the board slow down as it gets hot?"),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option("--python", help="Run it in this Python environment, which has another build of the runtime"),
    ] = None,
    against_python: Annotated[
        str | None, typer.Option("--against-python", help="Run the bundle of --against in this Python environment")
    ] = None,
    llama_bench: Annotated[
        str | None, typer.Option("--llama-bench", help="Run it in this llama-bench of llama.cpp, without our loop")
    ] = None,
    against_llama_bench: Annotated[
        str | None, typer.Option("--against-llama-bench", help="Run the bundle of --against in this llama-bench")
    ] = None,
    adb: Annotated[
        str | None,
        typer.Option("--adb", help="Run --llama-bench (built for Android) on the phone with this serial, through adb"),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option("--host", help="Measure on this board over SSH: user@board, or a name in ~/.ssh/config"),
    ] = None,
    ssh_config: Annotated[
        Path | None, typer.Option("--ssh-config", help="Configuration file of ssh, instead of ~/.ssh/config")
    ] = None,
    remote_python: Annotated[
        str | None,
        typer.Option("--remote-python", help="Python on the board (default: ~/.cache/saap-edge/venv's, or python3)"),
    ] = None,
    remote_dir: Annotated[
        str | None,
        typer.Option("--remote-dir", help="Folder on the board for files and runs (default ~/.cache/saap-edge)"),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the bundle's files on the board for the next time")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="bench.json to write")] = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Measure speed and memory: of a bundle, of one bundle beside another, or of dense beside pruned in a run.

    \b
        saap-edge bench model.tar.zst                             on a board: needs no torch
        saap-edge bench new.tar.zst --against main.tar.zst --out bench.json
        saap-edge bench new.tar.zst --against main.tar.zst --budget budgets.yaml --max-rounds 28 --out bench.json
        saap-edge bench model.tar.zst --contexts 128,512,2048     decode speed as the context grows
        saap-edge bench model.tar.zst --minutes 30                does the board keep its speed as it gets hot?
        saap-edge bench model.tar.zst --python ~/new --against model.tar.zst      a new build of the runtime beside this
        saap-edge bench model.tar.zst --llama-bench new/llama-bench --against model.tar.zst \\
            --against-llama-bench old/llama-bench                 two builds of llama.cpp
        saap-edge bench model.tar.zst --kv q8_0                   keys and values in 8 bits, in llama.cpp
        saap-edge bench model.tar.zst --adb SERIAL --llama-bench android/llama-bench      on a phone
        saap-edge bench model.tar.zst --host pi@raspberrypi       on that board, over SSH
        saap-edge bench out/stages/verify-HASH                    the next stage of a run; its recipe has the settings

    The artifacts take turns, each in a process of its own, after a warm-up that lasts until their speeds are stable.
    The result, bench.json, has every figure with its interval, the noise, and the state of the machine;
    docs/measuring.md defines the figures, and `saap-edge gate` judges them. With --budget and --max-rounds, rounds are
    added while noise leaves a limit open. The intervals are wider for it, so that looking again does not make errors
    likelier (docs/gate.md). docs/boards.md says how a board is measured over SSH.

    --minutes 30 decodes without a pause, with clock, temperature and throttling beside the speed, and compares the last
    tenth of the time with the first: a limit on sustained_pct judges it.

    The same bundle on both sides, in two builds of its runtime, tells what an upgrade of the runtime costs: a limit on
    decode_vs_baseline judges it. --python takes the folder of an environment (python -m venv) that has the runtime,
    numpy and pydantic. With --host, these are paths on the board.

    Exit codes: 0 ok, 2 bad input.
    """
    options: dict[str, Any] = {
        "threads": threads, "prompt_tokens": prompt, "decode_tokens": decode, "rounds": rounds,
        "contexts": _contexts(contexts) if contexts else None, "kv": kv, "ubatch": ubatch,
        "budget": budget, "max_rounds": max_rounds, "target": target, "minutes": minutes, "python": python,
        "against_python": against_python, "llama_bench": llama_bench,
        "against_llama_bench": against_llama_bench, "adb": adb, "host": host, "ssh_config": ssh_config,
        "remote_python": remote_python, "remote_folder": remote_dir, "keep": keep,
    }  # fmt: skip
    if (path / "stage.json").is_file():
        if out:
            raise SaapError(f"'{path}' is a stage of a run: its recipe says how to measure (options are for bundles)")
        prepare()
        finish(api.bench_stage(path, against=against, progress=ToConsole(), **options), as_json)
    if out and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise SaapError(f"--out '{out}': give a file in a folder that exists")
    _tell_bench(api.bench(path, against, progress=ToConsole(), **options), out, as_json)


def _contexts(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise SaapError(f"--contexts '{text}': give numbers of tokens, as 128,512,2048")
    return found


def _tell_bench(document: Bench, out: Path | None, as_json: bool) -> None:
    from saap_edge.report.bench import render_bench

    for part in render_bench(document):
        console.print(part)
    if out:
        document.write(out)
        console.print(f"[bold]bench[/]    {escape(str(out))}", soft_wrap=True)
    if as_json:
        print(json.dumps(document.as_dict()))


@app.command()
def gate(
    path: Annotated[Path, typer.Argument(help="report.json, bench.json, a run's --out folder, or a stage folder")], *,
    budget: BudgetOption = None, target: TargetOption = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="report.json or bench.json of another run, for limits on changes")
    ] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="JUnit XML file to write")] = None,
    summary: Annotated[
        Path | None,
        typer.Option("--summary", envvar="GITHUB_STEP_SUMMARY", help="Markdown file to append a table to"),
    ] = None,
    annotations: Annotated[
        bool, typer.Option("--annotations", envvar="GITHUB_ACTIONS", help="Print annotations for GitHub on stderr")
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

    A limit passes if the whole interval of its figure is inside it, and fails if the whole interval is outside. It is
    inconclusive if the interval straddles the limit, or if the figure is missing or was not measured on the target.
    docs/gate.md has all metrics.

    The target is --target, else the one in report.json. On the folder of the bench stage (OUT/stages/bench-HASH) this
    is the gate stage of that run: the verdicts are kept, and without --budget the limits are those of the recipe.
    """
    document = api.gate(path, budget, target=target, baseline=baseline, progress=ToConsole(tables=False))
    _tell(document, budget, junit, summary, annotations)
    if as_json:
        print(json.dumps(document.as_dict()))
    sys.exit(document.exit_code)


def _tell(gate: Gate, budget: Path | None, junit: Path | None, summary: Path | None, annotations: bool | None) -> None:
    """Print and write the verdicts, for people and for the CI system."""
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
