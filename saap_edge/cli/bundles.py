"""Bundles for a board, and checking what was made."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from saap_edge import api
from saap_edge.cli.base import (
    JsonOption,
    KvOption,
    TargetOption,
    ToConsole,
    UbatchOption,
    app,
    bar,
    console,
    finish,
    prepare,
    quiet_libraries,
)
from saap_edge.errors import EXIT_OK

__all__: list[str] = []


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of the export stage, or a bundle (a folder or a .tar.zst)")], *,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Load every artifact in its runtime and compare its answers with torch.

    On the folder of the export stage, this also exports the dense model, for comparison. On a bundle it needs no torch:
    it checks every file's sha256, the tokenizer, and that the artifact answers here as it did where the bundle was
    made.

    Exit codes: 0 ok, 1 an artifact answers differently, 2 bad input or a damaged file.
    """
    if (folder / "stage.json").is_file():
        prepare()
    found = api.verify(folder, progress=ToConsole())
    if isinstance(found, api.Run):
        finish(found, as_json)
    from saap_edge.report.terminal import render_check

    for line in render_check(found.as_dict()):
        console.print(line, soft_wrap=True)
    if as_json:
        print(json.dumps(found.as_dict()))
    sys.exit(found.exit_code)


@app.command("prepare")
def prepare_for_board(
    folder: Annotated[Path, typer.Argument(help="An ONNX bundle: its folder, unpacked, on the board")], *,
    out: Annotated[Path, typer.Option("--out", help="Folder to write: the same bundle, for this board only")],
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Write an ONNX bundle again, on its board, with the weights as the board's kernels read them.

    ONNX Runtime packs the matrices of int4 and int8 each time it loads them, into memory of its own. Of a prepared
    bundle it maps them from the file: a small part of the memory is held, and decoding is faster. It takes two to three
    times the disk, and is refused on another processor and by another version of ONNX Runtime.

    \b
        tar --zstd -xf model.tar.zst
        saap-edge prepare model --out prepared
        prepared/run.sh "Once upon a time"
    """
    from saap_edge.bundle.prepare import prepare_bundle
    from saap_edge.bundle.schema import read_bundle

    with bar(f"preparing {out}", None):
        made = prepare_bundle(folder, out)
    size, before = (sum(file.bytes for file in each.files) for each in (made, read_bundle(folder)))
    console.print(
        f"[bold]prepared[/] {escape(str(out))}: {size / 2**20:.0f} MiB, of {before / 2**20:.0f}", soft_wrap=True
    )
    if as_json:
        print(json.dumps({"exit_code": EXIT_OK, "bundle": str(out), "bytes": size, "bytes_before": before}))


@app.command()
def bundle(
    folder: Annotated[Path, typer.Argument(help="The --out folder of a run, or the folder of its export stage")], *,
    format: Annotated[str | None, typer.Option("--format", help="Which artifact (default: the board's GGUF)")] = None,
    target: TargetOption = None, kv: KvOption = None, ubatch: UbatchOption = None,
    out: Annotated[Path, typer.Option("--out", help="Folder or .tar.zst file to write")], as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Pack one verified artifact with all that a board needs: tokenizer, licence, checksums, expected answers, run.sh.

    \b
        saap-edge bundle out --format gguf-q4_0 --target rpi5 --out model.tar.zst
        saap-edge verify model.tar.zst                           on the board
    """
    quiet_libraries()
    from saap_edge.bundle.write import write_bundle
    from saap_edge.engines.options import EngineOptions

    with bar(f"bundling into {out}", None):
        made = write_bundle(folder, out, format, target, EngineOptions(kv=kv, ubatch=ubatch))
    licence = made.base_licence.name or ", ".join(made.base_licence.files) or "unknown: the base model states none"
    console.print(f"[bold]bundle[/]   {escape(str(out))}", soft_wrap=True)
    console.print(f"  {made.role} {made.format} for {escape(made.board.title)}, {made.board.threads} threads")
    console.print(f"  licence of the base model: {escape(licence)}", soft_wrap=True)
    if as_json:
        print(json.dumps({"exit_code": EXIT_OK, "bundle": str(out), **made.model_dump(mode="json")}))
