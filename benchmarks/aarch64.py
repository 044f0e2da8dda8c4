"""Does an ARM64 processor answer as this one does? Bundles, checked under emulation (qemu-user).

    benchmarks/aarch64.sh FOLDER                                      an ARM64 Python with the runtimes, once
    python benchmarks/aarch64.py BUNDLE... --folder FOLDER --out benchmarks/results/aarch64.json

Every bundle goes through the very check of `saap-edge verify` there: checksums, tokenizer, logits against those that
were recorded on this machine. And both processors continue the recorded prompt greedily: the tokens must be the same,
up to where two were so near to each other that `verify` would let either pass (`tie`: how far the chosen was ahead, in
RMS of the logits). Emulation says nothing about speed. Ends with one JSON line; exit code 1 if any differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = 64
CPU = "cortex-a76"  # of a Raspberry Pi 5 and an RK3588
ROOT = Path(__file__).parents[1]


class Inside:
    """Worker's face on an engine in this very process: emulation cannot start a second emulated one by itself."""

    def __init__(self, engine: str, path: Path, threads: int, context: int) -> None:
        from saap_edge.engines.child import Server

        self.engine, self._server = engine, Server()
        self.loaded = self._server.load(engine, str(path), threads, max(context, 2 * TOKENS))

    def __enter__(self) -> Inside:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def logits(self, tokens: list[int], mode: str) -> np.ndarray:
        out = Path(f"/tmp/saap-edge-aarch64-{os.getpid()}.npy")
        self._server.logits(tokens, mode, str(out))
        logits: np.ndarray = np.load(out)
        out.unlink()
        return logits

    def generate(self, tokens: list[int], count: int) -> list[int]:
        return self._server.generate(tokens, count)

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        return self._server.tokenize(text, add_special, parse_special)


def answer(path: Path) -> dict[str, Any]:
    """The bundle's check and its greedy continuation, on the processor that runs this."""
    from saap_edge.artifacts import engine_of
    from saap_edge.bundle import check

    check.Worker = Inside  # type: ignore[misc, assignment]
    found = check.check_bundle(path)
    assert found.bundle, found.problems
    bundle = found.bundle
    worker = Inside(engine_of(bundle.format), path / bundle.model, 1, 2 * TOKENS)
    prompt = bundle.answers.tokens[: bundle.answers.prompt_tokens]
    tokens = worker.generate(prompt, TOKENS)
    logits = worker.logits(prompt + tokens[:-1], "mixed")[len(prompt) - 1 :]
    second, first = np.partition(logits, -2, axis=1)[:, -2:].T
    spread = np.sqrt(np.square(logits - logits.mean(axis=1, keepdims=True)).mean(axis=1))
    told = {name: found.as_dict()[name] for name in ("format", "role", "problems", "differences", "error", "tolerance")}
    return told | {
        "machine": os.uname().machine,
        "tokens": tokens,
        "ahead": ((first - second) / spread).round(5).tolist(),
    }


def run(command: list[str], path: Path, python_path: list[Path]) -> dict[str, Any]:
    """`answer` in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, python_path)), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, __file__, "--inside", str(path)], capture_output=True, text=True, env=environment
    )
    if result.returncode:
        raise SystemExit(f"{command[0]} failed on {path}:\n{result.stderr[-2000:]}")
    document: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return document


def compare(here: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    """One row: what the check said there, and where the continuations part, if they do."""
    parts = next(
        (i for i, pair in enumerate(zip(here["tokens"], there["tokens"], strict=True)) if len({*pair}) > 1), None
    )
    return {
        "role": there["role"], "format": there["format"], "machine": there["machine"], "problems": there["problems"],
        "differences": there["differences"], "error": there["error"], "tolerance": there["tolerance"],
        "tokens": TOKENS, "same": TOKENS if parts is None else parts,
        "tie": None if parts is None else min(here["ahead"][parts], there["ahead"][parts]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="*", help="bundle folders")
    parser.add_argument("--folder", type=Path, help="what benchmarks/aarch64.sh made")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(answer(arguments.inside)))
        return
    from result import publish

    from saap_edge.bundle.check import TIE

    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if not emulator or not arguments.folder or not arguments.bundles:
        parser.error("needs bundles, --folder, and qemu-aarch64-static (Debian: qemu-user-static)")
    root = arguments.folder / "rootfs"
    python = [emulator, "-cpu", CPU, "-L", str(root), str((root / "usr/bin/python3").resolve())]
    rows = []
    for path in arguments.bundles:
        there = run(python, path, [ROOT, arguments.folder / "site"])
        row = compare(run([sys.executable], path, [ROOT]), there)
        rows.append(row)
        told = f"{row['role']} {row['format']}: {row['same']} of {TOKENS} tokens, error {row['error']:.2g}"
        print(told, file=sys.stderr)
    version = subprocess.run([emulator, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    publish({"benchmark": "aarch64", "emulator": version, "cpu": CPU, "rows": rows}, arguments.out)
    sys.exit(any(row["problems"] or row["differences"] or (row["tie"] or 0) > TIE * row["tolerance"] for row in rows))


if __name__ == "__main__":
    main()
