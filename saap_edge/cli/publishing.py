"""The model card of a run, and its repository on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from saap_edge import api
from saap_edge.cli.base import JsonOption, app, bar, console, prepare
from saap_edge.errors import EXIT_OK

__all__: list[str] = []

RunArgument = Annotated[Path, typer.Argument(help="The --out folder of a finished run")]
FormatsOption = Annotated[
    list[str] | None, typer.Option("--format", help="Only this artifact; may be repeated (default: all)")
]
NoModelOption = Annotated[bool, typer.Option("--no-model", help="Without the Hugging Face folder: only the artifacts")]
LicenseOption = Annotated[
    str | None, typer.Option("--license", help="The hub's name of the licence, where the base model states none")
]
BaseOption = Annotated[
    str | None, typer.Option("--base-model", help="OWNER/NAME of the base model, where the run does not know it")
]
EvaluationOption = Annotated[
    list[Path] | None,
    typer.Option("--evaluation", help="What `saap-edge evaluate EXPORT --task T --json` printed; may be repeated"),
]


@app.command()
def card(
    folder: RunArgument, *,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write (default: README.md in the run's folder)")
    ] = None,
    repo: Annotated[str | None, typer.Option("--repo", help="OWNER/NAME that the card's lines name")] = None,
    format: FormatsOption = None, no_model: NoModelOption = False, license: LicenseOption = None,
    base_model: BaseOption = None, evaluation: EvaluationOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Write the model card of a finished run: README.md as the Hugging Face hub wants it.

    At its head is what the hub reads: licence, base model, language, tags, and figures that were measured. Then: which
    files there are, how each runtime takes them, speed ratios with intervals, memory, perplexity, what was removed
    (with a picture beside the card), the recipe, versions, and what the base model's licence asks for.

    Nothing is assumed: where the base model states no licence, the card says so, and --license names it.

    \b
        saap-edge card out                                          out/README.md and out/widths.png
        saap-edge card out --repo me/SmolLM2-135M-pruned --out card/README.md
        saap-edge evaluate out/stages/export-HASH --task piqa.jsonl --json > piqa.json
        saap-edge card out --repo me/small --evaluation piqa.json   with zero-shot figures

    Exit codes: 0 ok, 2 bad input.
    """
    prepare()
    with bar("card", None):
        made = api.card(
            folder, out=out, repo=repo, formats=format or (), with_model=not no_model, license=license,
            base_model=base_model, evaluations=evaluation or (),
        )  # fmt: skip
    console.print(f"[bold]card[/]     {escape(str(made.path))}", soft_wrap=True)
    console.print(f"  licence: {escape(str(made.metadata.get('license', 'unknown')))}", soft_wrap=True)
    for note in made.notes:
        console.print(f"  [yellow]note:[/] {escape(note)}", soft_wrap=True)
    if as_json:
        document = {"exit_code": EXIT_OK, "card": str(made.path), "picture": str(made.picture), "notes": made.notes}
        print(json.dumps({**document, "metadata": made.metadata}))
