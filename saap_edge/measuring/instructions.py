"""Instructions that decoding a token executes: a figure that no clock and no neighbour disturbs.

A counter counts a whole process; of two that differ only in how many tokens they decode, the difference is the tokens'.
One thread: others spin while they wait, as often as the clock will have it. `perf stat` counts where the machine has
counters for us (virtual machines mostly have none, GitHub's runners among them); elsewhere valgrind, whose emulated CPU
takes 50 times as long and does not know AVX-512.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from saap_edge.engines.worker import TIMEOUT, child_environment
from saap_edge.measuring.conditions import BenchConditions, Subject

__all__ = ["find_counter", "instructions_per_token"]

_TOKENS = 4  # decoded more in the second process: all alike, so few do


def instructions_per_token(subject: Subject, conditions: BenchConditions) -> float | None:
    """Of decoding, at the depth of the conditions; None where nothing here counts."""
    counter = find_counter()
    if counter is None:
        return None
    few, more = (
        count(counter, _CHILD, _requests(subject, conditions.prompt_tokens, tokens)) for tokens in (1, 1 + _TOKENS)
    )
    return None if few is None or more is None else (more - few) / _TOKENS


@cache
def find_counter() -> str | None:
    """ "perf" or "valgrind", the first that counts here; None where neither does."""
    return next((name for name in ("perf", "valgrind") if count(name, ["true"], "")), None)


def count(counter: str, command: Sequence[str], text: str) -> int | None:
    """Instructions of a process that gets `text` on stdin; None where it fails, or is not counted."""
    program = shutil.which(counter)
    if program is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "counted")
        arguments = {
            "perf": ["stat", "-x", ",", "-e", "instructions:u", "-o", str(out), "--"],
            "valgrind": ["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", f"--log-file={out}"],
        }[counter]
        try:
            done = subprocess.run(
                [program, *arguments, *command], input=text, text=True, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, timeout=TIMEOUT,
                env=child_environment() | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            )  # fmt: skip
            told = out.read_text(encoding="utf-8")
        except (OSError, subprocess.TimeoutExpired):
            return None
    found = re.search(r"^(\d+),.*instructions:u|I\s+refs:\s+([\d,]+)", told, re.MULTILINE)
    if found is None or done.returncode or '"error"' in done.stdout:
        return None
    return int((found[1] or found[2]).replace(",", ""))


_CHILD = (sys.executable, "-m", "saap_edge.engines.child")


def _requests(subject: Subject, prompt_tokens: int, decode_tokens: int) -> str:
    """Load, read a prompt, decode; for the child that runs an engine."""
    room = {"engine": subject.engine, "path": str(subject.path), "threads": 1, "context": prompt_tokens + 1 + _TOKENS}
    run = {"tokens": [0] * prompt_tokens, "decode_tokens": decode_tokens}
    return "".join(json.dumps(each) + "\n" for each in ({"do": "load", **room}, {"do": "time", **run}))
