"""Instructions that decoding a token executes: a figure that neither the clock nor other processes disturb.

A counter counts a whole process. Two processes differ only in how many tokens they decode, so that the difference
belongs to these tokens. They run with one thread, because waiting threads spin for a random number of instructions.
`perf stat` counts where the machine has counters (most virtual machines have none, GitHub's runners among them). Else
valgrind counts; its emulated CPU is 50 times slower and does not know AVX-512.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from saap_edge.engines.environment import child_command
from saap_edge.engines.registry import engine_named
from saap_edge.engines.worker import TIMEOUT, child_environment
from saap_edge.measuring.conditions import BenchConditions, Subject

__all__ = ["find_counter", "instructions_per_token"]

_TOKENS = 4  # more tokens in the second process: few suffice, because all take the same


def instructions_per_token(subject: Subject, conditions: BenchConditions) -> float | None:
    """Instructions of decoding a token, at the depth of the conditions; None where no counter works."""
    counter, python = find_counter(), subject.build.python
    if counter is None or subject.build.program:
        return None
    command, ours = child_command(python), python is None
    few, more = (count(counter, command, _requests(subject, conditions, tokens), ours) for tokens in (1, 1 + _TOKENS))
    return None if few is None or more is None else (more - few) / _TOKENS


@cache
def find_counter() -> str | None:
    """The counter that works here, "perf" before "valgrind"; None where neither does."""
    return next((name for name in ("perf", "valgrind") if count(name, ["true"], "")), None)


def count(counter: str, command: Sequence[str], text: str, ours: bool = True) -> int | None:
    """Instructions of a process that gets `text` on stdin; None where it fails, or they are not counted.

    `ours` as in `child_environment`.
    """
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
                env=child_environment(ours) | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            )  # fmt: skip
            told = out.read_text(encoding="utf-8")
        except (OSError, subprocess.TimeoutExpired):
            return None
    found = re.search(r"^(\d+),.*instructions:u|I\s+refs:\s+([\d,]+)", told, re.MULTILINE)
    if found is None or done.returncode or '"error"' in done.stdout:
        return None
    return int((found[1] or found[2]).replace(",", ""))


def _requests(subject: Subject, conditions: BenchConditions, decode_tokens: int) -> str:
    """Requests to the engine's child: load, read a prompt, decode."""
    prompt_tokens, record = conditions.prompt_tokens, engine_named(subject.engine)
    room = {
        "engine": subject.engine, "path": str(subject.path), "threads": 1, "context": prompt_tokens + 1 + _TOKENS,
        "options": conditions.options.given(),
        "entry": record.entry, "module": record.module,  # else the child imports every engine to find them
    }  # fmt: skip
    run = {"tokens": [0] * prompt_tokens, "decode_tokens": decode_tokens}
    return "".join(json.dumps(each) + "\n" for each in ({"do": "load", **room}, {"do": "time", **run}))
