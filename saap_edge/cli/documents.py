"""Schemas of the documents."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from saap_edge import api
from saap_edge.cli.base import app

__all__: list[str] = []


@app.command()
def schema(
    name: Annotated[
        str | None,
        typer.Argument(help="bench, draft, gate, manifest, plan, report, sweep or verify (default: list them)"),
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
