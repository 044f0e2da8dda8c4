"""What all commands share: the app, the console, options, the bar, and what people are told of stages."""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from saap_edge.cache import is_helper
from saap_edge.errors import SaapError
from saap_edge.machine.quiet import quiet_libraries
from saap_edge.progress import Advance, Bars, Progress

__all__ = [
    "BudgetOption", "DataOption", "EffortOption", "FolderArgument", "JsonOption", "KvOption", "MethodOption",
    "ModelOption", "OutOption", "PlanOption", "RatioOption", "RecipeArgument", "TargetOption", "ToConsole",
    "TokensOption", "UbatchOption", "app", "bar", "bars", "console", "finish", "prepare", "quiet_libraries",
    "stage_line",
]  # fmt: skip

HELP = """Edge deployment compiler.

Give it a causal LM, a target board and a budget. It prunes, recovers and quantises the model, writes GGUF and ONNX that
stock llama.cpp and ONNX Runtime run, measures them, and returns an exit code that CI can trust.

    saap-edge compile --ratio 0.3 --out out                  the bundled model, this machine
    saap-edge compile --model ./TinyLlama --target rpi5 --ratio 0.3 --out out
    saap-edge compile --model ./TinyLlama --data self --out out        the model writes its own calibration text
    saap-edge compile recipe.yaml --out out
    saap-edge sweep sweep.yaml --out out                     many recipes; what they share is made once

compile runs the stages score, bank, plan, prune, recover, export, verify, bench, gate and report. Each stage is also a
command: it reads the folder of the stage before it and prints the name of its own. Finished stages are not repeated.

Exit codes: 0 ok, 1 a budget limit or verification failed, 2 bad input, 3 inconclusive.
"""


class _Interrupted(SaapError):
    exit_code = 130  # 128 and the number of the signal, as shells have it


class _Commands(TyperGroup):
    """Says what ended a command where Typer would say nothing: Ctrl-C, or a reader of stdout that has gone. Typer would
    exit with 1 for the latter, which here means that a limit failed."""

    def invoke(self, ctx: Any) -> Any:
        try:
            try:
                return super().invoke(ctx)
            finally:
                if sys.stdout:
                    sys.stdout.flush()  # here, because as Python ends it is too late to report an error
        except KeyboardInterrupt:
            raise _Interrupted("interrupted; finished stages are kept, run the same command to go on") from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise SaapError("the program that reads stdout ended before all was written") from None


app = typer.Typer(
    cls=_Commands,
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

# People read stderr, machines read stdout: with --json, stdout holds one JSON document and nothing else.
console = Console(stderr=True, highlight=False)
if not console.is_terminal:
    console = Console(stderr=True, highlight=False, width=120)  # logs have no width of their own: 80 breaks the tables
bars = Bars(console)
bar = bars.bar

ModelOption = Annotated[
    str | None, typer.Option("--model", help="Hugging Face folder, .gguf file or hub name (default: the bundled model)")
]
TargetOption = Annotated[
    str | None, typer.Option("--target", help="Board: a name (see `saap-edge targets`) or a YAML file")
]
RatioOption = Annotated[
    float | None, typer.Option("--ratio", help="Share of the parameters in attention and FFN to remove, 0 to 1")
]
MethodOption = Annotated[
    str | None, typer.Option("--method", help="How the plan is made: auto, search, kfac, saap, uniform or a baseline")
]
EffortOption = Annotated[
    str | None, typer.Option("--effort", help="How many plans are built, tried and judged: quick, normal or thorough")
]
TokensOption = Annotated[
    int | None,
    typer.Option("--tokens", help="Tokens that recovery trains on; 0 trains nothing and only looks for codes"),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Folder with calibration.txt, heldout.txt and test.txt; self: the model writes its own calibration text; "
        "half: it writes half of it",
    ),
]
BudgetOption = Annotated[Path | None, typer.Option("--budget", help="YAML file with the limits that the gate judges")]
PlanOption = Annotated[Path | None, typer.Option("--plan", help="plan.json to use, instead of searching for a plan")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder to write; it is made if needed")]
KvOption = Annotated[
    str | None,
    typer.Option("--kv", help="Type of the KV cache in llama.cpp: f16, q8_0 or q4_0 (default: the runtime's own)"),
]
UbatchOption = Annotated[
    int | None,
    typer.Option(
        "--ubatch", min=1, help="Tokens of a prompt computed at once (default: llama.cpp 512, ONNX Runtime 128)"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout")]
RecipeArgument = Annotated[Path | None, typer.Argument(help="Recipe (YAML); options override its fields")]
FolderArgument = Annotated[Path, typer.Argument(help="Folder of the stage before, as that stage printed it")]


class ToConsole(Progress):
    """Prints progress for people, on stderr."""

    def __init__(self, tables: bool = True) -> None:
        self._tables = tables  # whether a stage's tables follow its line

    def bar(self, what: str, total: float | None) -> AbstractContextManager[Advance]:
        return bars.bar(what, total)

    def note(self, text: str) -> None:
        console.print(f"[yellow]note:[/] {escape(text)}", soft_wrap=True)

    def say(self, text: str) -> None:
        console.print(escape(text), soft_wrap=True)

    def ahead(self, lines: list[str]) -> None:
        for line in lines:
            warned = line.startswith("note: ")
            console.print(f"[yellow]note:[/] {escape(line[6:])}" if warned else escape(line), soft_wrap=True)

    def stage(self, result: Any) -> None:
        if is_helper():  # the first process prints it; here the folder may not exist yet
            return
        stage_line(result)
        if self._tables:
            from saap_edge.report.terminal import render_stage

            for part in render_stage(result.name, result.folder):
                console.print(part)


def finish(run: Any, as_json: bool) -> NoReturn:
    """Print where the files of a run are, and exit with its exit code."""
    if all(result.cached for result in run.stages):
        console.print("nothing to do: every stage was already there")
    for what, path in run.links.items():
        console.print(f"{what:8} {escape(str(path))}", soft_wrap=True)
    if as_json and not is_helper():
        print(json.dumps(run.as_dict()))
    sys.exit(run.exit_code)


def prepare() -> None:
    """Call this before a command loads libraries. It silences them, and all processes of a launch but the first."""
    quiet_libraries()
    console.quiet = is_helper()  # errors included


def stage_line(result: Any) -> None:
    """Print a line for a stage: how long it took, and where its folder is."""
    note = "already done" if result.cached else f"{result.seconds:.1f} s"
    console.print(f"[bold]{result.name:8}[/] {note:>12}  {escape(str(result.folder))}", soft_wrap=True)
