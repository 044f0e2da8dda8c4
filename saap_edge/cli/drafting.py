"""A pruned model as draft of its parent."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from saap_edge import api
from saap_edge.cli.base import JsonOption, ToConsole, app, console, prepare
from saap_edge.errors import SaapError

__all__: list[str] = []


@app.command()
def draft(
    drafts: Annotated[
        list[Path], typer.Argument(help="Pruned models: .gguf files, runs' --out folders or export folders")
    ], *,
    target: Annotated[str, typer.Option("--target", help="Board: a name (see `saap-edge targets`) or a YAML file")],
    model: Annotated[
        Path | None, typer.Option("--model", help="The dense model's .gguf file (default: the first run's dense file)")
    ] = None,
    format: Annotated[str | None, typer.Option("--format", help="Which GGUF file, if a run has several")] = None,
    prompts: Annotated[
        int | None, typer.Option("--prompts", min=2, help="Prompts of each kind: text, chat, code (default: all 8)")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="Tokens of an answer at most")] = 48,
    longest: Annotated[
        int, typer.Option("--longest", min=1, max=32, help="Longest draft that is considered, in tokens")
    ] = 7,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads on the board (default: its own number)")
    ] = None,
    threads_here: Annotated[
        int | None, typer.Option("--threads-here", min=1, help="Threads here (default: as on the board, if there are)")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also decode here, with and without the draft, by turns")
    ] = False,
    rounds: Annotated[int, typer.Option("--rounds", min=3, help="With --measure: rounds that count")] = 7,
    out: Annotated[Path | None, typer.Option("--out", help="Write the document to this file, as draft.json")] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Find out whether a pruned model makes its dense parent faster as a draft (speculative decoding).

    The draft says a few tokens, the parent runs them at once and keeps those that it would have said itself. The text
    is the parent's own; only the speed changes, up or down.

    \b
        saap-edge draft out --target rpi5                              a run: its dense and its pruned file
        saap-edge draft small.gguf smaller.gguf --model dense.gguf --target rpi5
        saap-edge draft out --target host --measure --out draft.json   decode here, too

    Along the parent's own answers, it counts how many tokens each draft knew, predicts the speed-up on the board from
    that, the bytes a token and the board's figures, chooses how many tokens to draft, and says whether it pays. With
    --measure llama.cpp's own speculative decoding runs here beside the dense model alone, and a speed-up is given only
    if all answers are the same. docs/draft.md has the formula and what it assumes.

    Exit codes: 0 it pays or does not pay, 2 bad input, 3 undecided.
    """
    if out and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise SaapError(f"--out '{out}': give a file in a folder that exists")
    prepare()
    document = api.draft(
        drafts, target, model=model, format=format, prompts=prompts, tokens=tokens, longest=longest, threads=threads,
        threads_here=threads_here, measure=measure, rounds=rounds, progress=ToConsole(),
    )  # fmt: skip
    from saap_edge.report.draft import render_draft
    from saap_edge.targets import load_target

    for part in render_draft(document, load_target(target).title):
        console.print(part, soft_wrap=isinstance(part, str))
    if out:
        document.write(out)
        console.print(f"[bold]draft[/]    {escape(str(out))}", soft_wrap=True)
    if as_json:
        print(json.dumps(document.as_dict()))
    sys.exit(document.exit_code)
