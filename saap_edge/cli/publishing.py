"""The model card of a run, and its repository on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from saap_edge import api
from saap_edge.cli.base import JsonOption, ToConsole, app, bar, console, prepare
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


@app.command()
def push(
    folder: RunArgument, *,
    repo: Annotated[str, typer.Option("--repo", help="OWNER/NAME on the hub; it is made where it is not there")],
    private: Annotated[bool, typer.Option("--private", help="Make it private")] = False,
    format: FormatsOption = None, no_model: NoModelOption = False, license: LicenseOption = None,
    base_model: BaseOption = None, evaluation: EvaluationOption = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="You see to what the base model's licence demands (a dry run tells)")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Send nothing: only tell what would be sent")] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Publish a finished run on the Hugging Face hub, laid out as runtimes look for it, in one commit.

    The repository gets the Hugging Face folder, GGUF files that llama.cpp's -hf, LM Studio and Ollama find by their
    tag, a Modelfile for each, ONNX for transformers.js and onnxruntime-genai, plan.json, report.json and the card. A
    second push replaces what the first one wrote, and leaves files of others alone.

    Nothing is sent without a token (`hf auth login`, or HF_TOKEN) or with --dry-run.

    The licence is the base model's. Where that states none, --license names it. Where it demands more than a command
    can do (Gemma, Llama and others), a dry run tells what, and --yes says that you see to it.

    \b
        saap-edge push out --repo me/SmolLM2-135M-pruned --dry-run
        saap-edge push out --repo me/SmolLM2-135M-pruned --private
        saap-edge push out --repo me/SmolLM2-135M-pruned-GGUF --no-model --format gguf-q4_0 --format gguf-q8_0

    Exit codes: 0 ok, 2 bad input, or the hub refuses.
    """
    prepare()
    made = api.push(
        folder, repo, private=private, formats=format or (), with_model=not no_model, license=license,
        base_model=base_model, evaluations=evaluation or (), agreed=yes, dry_run=dry_run, progress=ToConsole(),
    )  # fmt: skip
    sent = made.sent
    for file in made.files:
        console.print(f"  {file.bytes:>15,}  {escape(file.path)}", soft_wrap=True)
    console.print(f"[bold]push[/]     {escape(made.repo)}: {len(made.files)} files, {made.bytes / 2**20:.1f} MiB")
    console.print(f"  licence: {escape(made.licence)}", soft_wrap=True)
    for note in made.notes:
        console.print(f"  [yellow]note:[/] {escape(note)}", soft_wrap=True)
    if sent is None:
        console.print("  nothing was sent")
    else:
        what = f"commit {sent.commit[:12]}" if sent.changed else "nothing changed"
        console.print(f"  {escape(sent.url)}, {'private' if sent.private else 'public'}, {what}", soft_wrap=True)
    if as_json:
        print(json.dumps({"exit_code": EXIT_OK, **made.as_dict()}))
