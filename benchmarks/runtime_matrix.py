"""Which runtimes run our files: dense, uniform and per-layer models as GGUF, ONNX and Hugging Face folders.

    python benchmarks/runtime_matrix.py --work WORK --out benchmarks/results/runtime-matrix.json \
        --pages docs/runtimes.md

Prunes the bundled model twice by a quarter: to the same shape in every layer (`--method uniform`) and to a shape of
its own in each. Writes each of the three models as GGUF (float32, Q4_0), as ONNX folders (float32, int4), as an
OpenVINO folder (int8), as ExecuTorch's .pte (float32) and as a Hugging Face folder. Every runtime then adds 32 tokens
to a prompt, greedily, in an environment of its own with pinned packages (matrix_runtimes.py), by a program that a user
of that runtime might write (the folder `matrix`), and gives its logits of the prompt where it can.

A cell "works" where the runtime's tokens are the reference's: those of torch for float32 files, those of llama-cpp-
python and of ONNX Runtime for Q4_0 and int4, whose arithmetic is their runtime's. It "differs" where they are not,
and says from which token on; it "fails" with the runtime's message. "error" is the RMS of the difference of logits
over the RMS of the reference's, centred.

WORK keeps environments, files and cells; a run that was stopped goes on, and `--again NAME` runs a runtime anew. A
package that cannot be had is a row that says so. Downloads about 2.5 GB; llama.cpp of another year is built from
source (about 7 minutes). Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from matrix_runtimes import RUNTIMES, Runtime, installed
from result import fill, publish
from rich.console import Console

import saap_edge as se
from saap_edge.machine.facts import machine_facts
from saap_edge.model.tokenizer import load_tokenizer
from saap_edge.recipe import bundled_model

MODELS = ("dense", "uniform", "per layer")
FILES = {
    "gguf": ("gguf-f32", "gguf-q4_0"), "onnx": ("onnx-fp32", "onnx-int4"), "openvino": ("openvino-int8",),
    "pte": ("xnnpack-fp32",), "hf": ("hf",),
}  # fmt: skip
WRITTEN = ("gguf-f32", "gguf-q4_0", "onnx-fp32", "onnx-int4", "openvino-int8")  # by a run; others: `export --for`
REFERENCE = {"gguf-q4_0": "llama-cpp-python", "onnx-int4": "ONNX Runtime"}  # of others: torch, by transformers
PROMPT, NEW, RATIO = "The river flows through the old town and", 32, 0.25
# Words of the line that says why something failed, the more telling first.
TELLING = (
    "wrong shape", "shape mismatch", "not support", "unsupported", "unknown", "cannot", "is not a", "error",
)  # fmt: skip
console = Console(width=120, stderr=True)


@dataclass
class Cell:
    """One runtime with one file.

    Attributes:
        outcome: "works", "differs", "fails" or "not tried".
        agreed: how many of the first tokens are the reference's.
        error: of the prompt's logits; None where the runtime gives none.
        message: what it said, where it failed.
        text: what it answered, where it gives no tokens.
    """

    runtime: str
    version: str
    model: str
    file: str
    outcome: str
    change: str = ""
    agreed: int | None = None
    error: float | None = None
    message: str = ""
    command: str = ""
    tokens: list[int] = field(default_factory=list)
    text: str | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of environments, files and cells; kept")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="runtimes that are run; others keep their cells")
    parser.add_argument("--again", nargs="+", default=[], metavar="NAME", help="runtimes that are run anew")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pages", type=Path, nargs="*", default=[], help="pages whose tables are to be these")
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    folders = {model: made(model, args.work) for model in MODELS}
    kept = args.work / "cells.json"
    cells = [Cell(**row) for row in json.loads(kept.read_text())] if kept.exists() else []
    cells = [cell for cell in cells if cell.runtime not in args.again]
    for runtime in RUNTIMES:
        if args.only is None or runtime.name in args.only:
            run_all(runtime, folders, cells, args.work)
            kept.write_text(json.dumps([asdict(cell) for cell in cells]), encoding="utf-8")
    order = [runtime.name for runtime in RUNTIMES]
    cells.sort(key=lambda cell: order.index(cell.runtime))
    result = {"machine": machine_facts(), "prompt": PROMPT, "ratio": RATIO, "cells": [asdict(cell) for cell in cells]}
    for page in args.pages:
        fill(page, "runtime matrix", table(cells))
        fill(page, "runtime failures", failures(cells))
    console.print("\n".join([*table(cells), "", *failures(cells)]), markup=False, soft_wrap=True)
    publish(result, args.out)


def made(model: str, work: Path) -> Path:
    """The folder with the model's files, made where it is missing."""
    out = work / model.replace(" ", "-")
    if (out / "files.json").exists():
        return out
    recipe: dict[str, Any] = {
        "model": str(bundled_model()), "export": {"formats": list(WRITTEN)}, "recover": {"tokens": 0},
    }  # fmt: skip
    console.print(f"making the {model} model")
    if model == "dense":
        run = se.recover(bundled_model(), recipe=recipe, tokens=0, out=out)
    else:
        run = se.bank(se.score(recipe=recipe, out=out))
        run = se.plan(run, ratio=RATIO, method="uniform" if model == "uniform" else "kfac", effort="quick")
        run = se.recover(se.prune(run))
    run = se.verify(se.export(run))
    paths = {name: str(path) for name, path in run.files.items()} | {"hf": str(run.model)}
    (out / "files.json").write_text(json.dumps(paths, indent=1), encoding="utf-8")
    return out


def run_all(runtime: Runtime, folders: dict[str, Path], cells: list[Cell], work: Path) -> None:
    """Run what of a runtime has no cell yet."""
    wanted = [(model, file) for kind in runtime.reads for file in FILES[kind] for model in MODELS]
    there = {(cell.model, cell.file) for cell in cells if cell.runtime == runtime.name}
    wanted = [each for each in wanted if each not in there]
    if not wanted:
        return
    try:
        run = installed(runtime, work, console.print)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        packages, told = " ".join(runtime.packages), {"message": str(error), "change": runtime.change}
        command = f"pip install {packages}"
        cells += [Cell(runtime.name, packages, *each, "not tried", command=command, **told) for each in wanted]
        return
    for model, file in wanted:
        cell = run_cell(runtime, run, model, file, folders[model], work)
        cells.append(judged(cell, cells, work))
        console.print(f"{runtime.name}, {model}, {file}: {cell.outcome} {cell.message}", markup=False)


def run_cell(runtime: Runtime, command: list[str], model: str, file: str, folder: Path, work: Path) -> Cell:
    files = json.loads((folder / "files.json").read_text())
    cell = Cell(runtime.name, " ".join(runtime.packages), model, file, "works", runtime.change)
    asked = {"path": files.get(file), "text": PROMPT, "ids": ids_of(PROMPT), "new": NEW}
    if runtime.change:
        out = work / f"for-{runtime.layout}" / f"{folder.name}-{file}"
        done = laid_out(runtime, command, Path(files["gguf-f32"]).parent.parent, file, out)
        if done.returncode:
            cell.command = f"saap-edge {runtime.change} --format {file}"
            cell.outcome, cell.message = "fails", last_words(done, work)
            return cell
        inside = sorted(out.glob("*.gguf"))  # a layout of one file
        asked["path"] = str(inside[0] if inside else out)
    logits = logits_of(work, cell)
    logits.unlink(missing_ok=True)
    cell.command = f"{Path(command[0]).name} {runtime.program} {model} {file}"
    try:
        done = subprocess.run(
            [*command, json.dumps(asked | {"logits": str(logits)})], capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        cell.outcome, cell.message = "fails", "no answer in five minutes"
        return cell
    if done.returncode:
        cell.outcome, cell.message = "fails", last_words(done, work)
        return cell
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    cell.version = answer["version"]
    cell.tokens, cell.text = answer.get("tokens", []), answer.get("text")
    return cell


def laid_out(
    runtime: Runtime, command: list[str], stage: Path, file: str, out: Path
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """`saap-edge export --for`, in the runtime's environment where that sees ours."""
    python = command[0] if runtime.beside else sys.executable
    given = [str(stage), "--for", runtime.layout, "--format", file, "--out", str(out)]
    there = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        [python, "-m", "saap_edge", "export", *given], capture_output=True, text=True, timeout=900, env=there
    )  # fmt: skip


def judged(cell: Cell, cells: list[Cell], work: Path) -> Cell:
    """The cell, compared with its reference."""
    name = REFERENCE.get(cell.file, "transformers")
    file = cell.file if cell.file in REFERENCE else "hf"
    if cell.outcome != "works" or (cell.runtime, cell.file) == (name, file):
        return cell
    found = [other for other in cells if (other.runtime, other.model, other.file) == (name, cell.model, file)]
    if not found or not found[0].tokens:
        raise SystemExit(f"run {name} first: it is the reference for {cell.file}")
    if cell.text is not None:  # the same text may be other tokens, where they are joined anew
        whole = load_tokenizer(bundled_model()).decode(found[0].tokens)
        same = cell.text.strip() == whole.strip()
        cell.tokens = found[0].tokens if same else ids_of(cell.text)
    pairs = list(zip(cell.tokens, found[0].tokens, strict=False))
    cell.agreed = next((n for n, (ours, theirs) in enumerate(pairs) if ours != theirs), len(pairs))
    cell.outcome = "works" if cell.agreed == NEW else "differs"
    mine, theirs = logits_of(work, cell), logits_of(work, found[0])
    if mine.exists() and theirs.exists():
        truth = np.load(theirs)
        truth = truth - truth.mean(axis=-1, keepdims=True)
        other = np.load(mine)
        other = other - other.mean(axis=-1, keepdims=True)
        cell.error = float(np.sqrt(((other - truth) ** 2).mean() / (truth**2).mean()))
    return cell


def ids_of(text: str) -> list[int]:
    return list(load_tokenizer(bundled_model()).encode(text, add_special_tokens=False))


def logits_of(work: Path, cell: Cell) -> Path:
    name = f"{cell.runtime} {cell.model} {cell.file}.npy"
    (work / "logits").mkdir(exist_ok=True)
    return work / "logits" / name.replace("/", "-")


def last_words(done: subprocess.CompletedProcess[str], work: Path) -> str:
    """The sentence that matters of what a runtime said, without folders of this machine and lines of a backtrace."""
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).strip() for line in (done.stderr + "\n" + done.stdout).splitlines()]
    lines = [line for line in lines if line and not re.match(r"\d+: |at |File |\[transformers\]", line)]
    found = (line for word in TELLING for line in reversed(lines) if word in line.lower())
    said = next(found, lines[-1] if lines else f"ended with {done.returncode}")
    said = re.sub(r"^(\[[\d:]+\] :\d+: |\S+Z +ERROR \S+: )", "", said)  # time and place in the source
    said = re.sub(re.escape(str(work)) + r"/([^\s'\"]*/)?", "", said).replace(str(Path.home()), "~")
    return shorten(said, 200, placeholder=" ...")


def table(cells: list[Cell]) -> list[str]:
    """A row for each runtime and file, a column for each model; numbers are those of `failures`."""
    rows = ["| runtime | version | file | " + " | ".join(MODELS) + " |", "|---" * (3 + len(MODELS)) + "|"]
    numbers, told = numbered(cells), versions(cells)
    for name, file in dict.fromkeys((cell.runtime, cell.file) for cell in cells):
        found = {cell.model: cell for cell in cells if (cell.runtime, cell.file) == (name, file)}
        change = next(iter(found.values())).change
        row = [name, told[name], f"{file}, after `{change}`" if change else file]
        rows.append("| " + " | ".join([*row, *(said(found[model], numbers) for model in MODELS)]) + " |")
    return rows


def failures(cells: list[Cell]) -> list[str]:
    """What each runtime said where it failed, with what was run."""
    told, rows = versions(cells), ["| | runtime | version | what was run | message |", "|---" * 5 + "|"]
    for (name, message), number in numbered(cells).items():
        first = next(cell for cell in cells if (cell.runtime, cell.message) == (name, message))
        rows.append(f"| {number} | {name} | {told[name]} | `{first.command}` | {message.replace('|', '/')} |")
    return rows


def numbered(cells: list[Cell]) -> dict[tuple[str, str], int]:
    """A number for every message of a runtime."""
    found = dict.fromkeys((cell.runtime, cell.message) for cell in cells if cell.message)
    return {key: number for number, key in enumerate(found, 1)}


def versions(cells: list[Cell]) -> dict[str, str]:
    """What a runtime says it is; where none of its cells ran, its package."""
    found = {cell.runtime: cell.version.partition(" ")[0].rpartition("==")[2] for cell in cells}
    return found | {cell.runtime: cell.version for cell in cells if cell.tokens or cell.text is not None}


def said(cell: Cell, numbers: dict[tuple[str, str], int]) -> str:
    if cell.outcome == "works":
        return "works" if cell.error is None else f"works, {cell.error:.0e}"
    if cell.outcome == "differs":
        return f"differs from token {(cell.agreed or 0) + 1} on"
    return f"{cell.outcome} ({numbers[cell.runtime, cell.message]})"


if __name__ == "__main__":
    main()
