"""Documents: their schemas, and many of them as one history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from saap_edge import api
from saap_edge.cli.base import JsonOption, app, console, prepare

__all__: list[str] = []


@app.command()
def schema(
    name: Annotated[
        str | None,
        typer.Argument(
            help="bench, draft, gate, history, manifest, plan, report, sweep or verify (default: list them)"
        ),
    ] = None,
) -> None:
    """Print the JSON schema of a document: every field with its unit.

    \b
        saap-edge schema                       the documents
        saap-edge schema bench > bench.schema.json

    docs/documents.md says who writes and reads each, and what becomes of older versions. Exit codes: 0 ok, 2 bad input.
    """
    if name is None:
        for document, what in api.DOCUMENTS.items():
            print(f"{document:8}  {what}")
    else:
        print(json.dumps(api.schema(name), indent=1))


@app.command()
def history(
    places: Annotated[list[str], typer.Argument(help="report.json or bench.json, or a folder of such; LABEL=PATH")],
    out: Annotated[Path, typer.Option("--out", help="Page to write")] = Path("history.html"),
    as_json: JsonOption = False,
) -> None:
    """Draw speed ratios, memory, quality and verdicts of many runs as one page.

    \b
        saap-edge history runs/ --out history.html         every report.json and bench.json below runs/
        saap-edge history v1=old/bench.json v2=new/bench.json

    A run is called by its folder or file, or by LABEL. Runs are in the order of their time where all of them tell it,
    else as they were given. A gate.json beside a bench.json is its verdict. The page has filters by model, board and
    artifact, and opens without network. What differs from the run before, as a runtime's version, stands beside each.

    Exit codes: 0 ok, 2 bad input.
    """
    prepare()
    from saap_edge.report.history import render_history

    found = api.history(places, out=out)
    for part in render_history(found):
        console.print(part)
    console.print(f"history {escape(str(out))}", soft_wrap=True)
    if as_json:
        print(json.dumps(found.as_dict()))
