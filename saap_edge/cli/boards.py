"""Boards: list, show, probe, check."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from saap_edge import api
from saap_edge.cli.base import JsonOption, KvOption, UbatchOption, app, bar, console

__all__: list[str] = []

target_app = typer.Typer(
    help="Show the figures of a board, probe this machine, or check a target file.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(target_app, name="target")
TargetArgument = Annotated[str, typer.Argument(help="Name (see `saap-edge targets`) or YAML file")]


@app.command()
def targets(as_json: JsonOption = False) -> None:
    """List the known boards, with the figures that decide their speed; ~ marks an assumption."""
    from saap_edge.targets import list_targets, load_target

    boards = [load_target(name) for name in list_targets()]
    if as_json:
        print(json.dumps([board.model_dump(mode="json") for board in boards]))
        return
    table = Table(title="boards: `saap-edge target show NAME` prints the sources")
    for column in ("name", "board", "isa"):
        table.add_column(column, overflow="fold")
    for column in ("threads", "RAM GiB", "paper GB/s", "copy GB/s", "load W"):
        table.add_column(column, justify="right")
    for board in boards:
        known = board.bandwidth_gb_s
        memory = " ".join(f"{size / 1024:.3g}" for size in board.ram_mib)
        figures = (_told(known.theoretical), _told(known.copy_measured), _told(board.power_w.load))
        table.add_row(board.name, board.title, " ".join(board.isa), str(board.threads), memory, *figures)
    console.print(table)


def _told(figure: Any) -> str:
    return "" if figure is None else f"{'~' if figure.assumed else ''}{figure.value:g}"


@target_app.command("show")
def target_show(name: TargetArgument) -> None:
    """Print a board's YAML file: every figure with its source."""
    from saap_edge.targets import dump_yaml, load_target

    print(dump_yaml(load_target(name)), end="")


@target_app.command("probe")
def target_probe() -> None:
    """Measure this machine and print it as a target file: `saap-edge target probe > myboard.yaml`.

    It measures the bandwidth of copying and reading, by one thread and by all; how fast the kernels of llama.cpp (F16,
    Q8_0, Q4_0) and ONNX Runtime (int4, int8) read and multiply; and temperature, clock and throttling before and after.
    This takes about half a minute. End other programs first.
    """
    from saap_edge.targets import dump_yaml

    print(dump_yaml(_probed()), end="")


def _probed() -> Any:
    from saap_edge.machine.sensors import sensors
    from saap_edge.probe.board import STEPS, implausible, probe_target

    load = sensors()["load_average"]
    if load is not None and load > 0.5:
        console.print(f"[yellow]other programs run here (load {load:.1f}): the figures will be too low[/]")
    with bar("probe", STEPS) as advance:
        target = probe_target(lambda what: advance(1, what))
    _warn(implausible(target))
    return target


def _warn(lines: list[str]) -> None:
    for line in lines:
        console.print(f"[yellow]implausible:[/] {escape(line)}", soft_wrap=True)


@target_app.command("check")
def target_check(name: TargetArgument, as_json: JsonOption = False) -> None:
    """Check a target file. On the board that it describes, measure again and compare.

    Exit codes: 0 valid, 1 a figure is implausible or more than 20 percent from what is measured here, 2 the file is
    malformed.
    """
    from saap_edge.probe.board import differences, implausible, unstated
    from saap_edge.targets import load_target, matches_this_machine

    target = load_target(name)
    warnings, here = implausible(target), matches_this_machine(target)
    _warn(warnings)
    gaps = unstated(target)
    for gap in gaps:
        console.print(f"not stated: {escape(gap)}", soft_wrap=True)
    rows = differences(target, _probed()) if here else []
    table = Table(title=f"{target.name}: stated, and measured here now")
    for column in ("figure", "stated", "measured", "measured / stated"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row["figure"], f"{row['stated']:g}", f"{row['measured']:g}", f"{row['ratio']:.2f}")
    if rows:
        console.print(table)
    elif not here:
        console.print(f"{escape(target.name)} is valid; this machine is another one, so nothing was measured")
    off = [row["figure"] for row in rows if not row["agrees"]]
    for figure in off:
        console.print(f"[yellow]differs:[/] {figure} is more than 20 % from what is stated")
    if as_json:
        print(
            json.dumps(
                {"target": target.name, "implausible": warnings, "unstated": gaps, "here": here, "compared": rows}
            )
        )
    sys.exit(1 if warnings or off else 0)


@app.command()
def predict(
    artifact: Annotated[
        Path, typer.Argument(help="A .gguf, an ONNX or OpenVINO folder, a bundle, or a folder with manifest.json")
    ],
    *,
    target: Annotated[str, typer.Option("--target", help="Board: a name (see `saap-edge targets`) or a YAML file")],
    format: Annotated[str | None, typer.Option("--format", help="Which artifact, if the folder has several")] = None,
    prompt: Annotated[int | None, typer.Option("--prompt", min=1, help="Tokens of the prompt (default 128)")] = None,
    context: Annotated[
        int | None, typer.Option("--context", min=1, help="Tokens in the KV cache while decoding (default 512)")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads (default: those of the board)")
    ] = None,
    ram: Annotated[
        int | None, typer.Option("--ram", min=1, help="Memory of the board in MiB (default: all sizes it is sold with)")
    ] = None,
    kv: KvOption = None,
    ubatch: UbatchOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict the speed and memory of an artifact on a board that is not at hand, each with an interval.

    \b
        saap-edge predict model-q4_0.gguf --target rpi5 --context 2048
        saap-edge predict model-q4_0.gguf --target rpi5 --context 8192 --kv q8_0
        saap-edge predict out --format onnx-int4 --target rk3588 --ram 4096

    The prediction rests on the bytes that a token reads and on the board's bandwidth and arithmetic. No runtime is
    loaded, and nothing is measured. docs/prediction.md says how far off predictions are.
    """
    from saap_edge.report.prediction import render_prediction
    from saap_edge.targets import load_target

    board = load_target(target)
    document = api.predict_document(
        artifact,
        board,
        format=format,
        prompt_tokens=prompt,
        context=context,
        threads=threads,
        ram_mib=ram,
        kv=kv,
        ubatch=ubatch,
    )
    for part in render_prediction(document, board.title):
        console.print(part, soft_wrap=isinstance(part, str))
    if as_json:
        print(json.dumps(document))
