"""llama.cpp's own llama-bench in place of our engine: a build of llama.cpp that has no Python binding.

It measures without our loop: prefill and decoding are timed as wholes, tokens are random, no token is chosen, and every
round is a process of its own, which loads the file and warms up before it is timed (docs/measuring.md compares both).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from saap_edge.engines.gguf_cost import gguf_cost
from saap_edge.engines.gguf_header import read_header
from saap_edge.engines.gguf_shape import read_shape
from saap_edge.engines.options import AS_IT_IS, EngineOptions, kv_bytes, kv_refusal
from saap_edge.engines.worker import TIMEOUT, cause_of_death
from saap_edge.errors import SaapError
from saap_edge.machine.adb import Phone
from saap_edge.machine.waiting import without_ours

__all__ = ["LlamaBench", "parse_rows"]

SECONDS = 60.0  # until it has told its options
OPTIONS = ("--n-prompt", "--n-gen", "--n-depth", "--output")
# The CPU alone, and flash attention, as our engine has them; "1" is what old and new versions take.
FIXED = ("-ngl", "0", "-fa", "1", "-r", "1", "-o", "json")


class LlamaBench:
    """A GGUF file in a llama-bench, here or on a phone. It has the methods of `Worker` that a benchmark calls.

    `loaded` is what the file says, and from the first round on what the program says of its build.
    """

    def __init__(
        self, path: Path, threads: int, program: Path, options: EngineOptions = AS_IT_IS, phone: Phone | None = None
    ) -> None:
        """Raises SaapError when `path` is no GGUF file, cannot have such a cache, or the phone has no room for it.

        Nothing runs before `time`.
        """
        header, kv = read_header(path), options.kv or "f16"
        cost = gguf_cost(path, None)
        if refusal := kv_refusal(kv, cost.head_dims):
            raise SaapError(f"{path}: {refusal}")
        self._threads, self._phone = threads, phone
        self._file, self._program = str(header.files[0]), str(program)
        if phone:
            self._file, *_ = [phone.push(file) for file in header.files]
            self._program = phone.push_program(program)
        self._asked = ["-ctk", kv, "-ctv", kv, *(("-ub", str(options.ubatch)) if options.ubatch else ())]
        self._cpus: set[int] = set()
        self.loaded: dict[str, Any] = {
            "seconds": None, "vocab_size": read_shape(header).vocab_size, "kv_type": kv,
            "kv_bytes_per_token": kv_bytes(cost.kv_elements, kv),
            "runtime": {"program": str(program), "own_loop": False},
        }  # fmt: skip

    @staticmethod
    def check(place: str | Path, phone: Phone | None = None) -> Path:
        """The program's absolute path. Raises SaapError where it does not answer as llama-bench does."""
        path = Path(place).expanduser().absolute()
        if not path.is_file() or not (phone or os.access(path, os.X_OK)):
            raise SaapError(f"no program at '{place}': give the path of llama.cpp's llama-bench")
        program = phone.push_program(path) if phone else str(path)
        _check_help(str(path), _run([program, "--help"], SECONDS, phone=phone))
        return path

    def time(self, tokens: list[int], decode_tokens: int) -> dict[str, Any]:
        """Time a prompt of as many tokens, and decoding behind it, in a new process.

        Returns {"ttft_s": seconds of the prompt, "decode_s": [the mean of a step, as often as there are steps],
        "whole": True, since single steps were not timed}. Raises SaapError when the program fails or tells otherwise.
        """
        count = len(tokens)
        tests = ["-p", str(count), "-n", str(decode_tokens), "-d", f"0,{count}"]
        command = [self._program, "-m", self._file, "-t", str(self._threads), *FIXED, *self._asked, *tests]
        rows = parse_rows(_run(command, TIMEOUT, self._cpus, self._phone), self._program)
        prefill = _nanoseconds(rows, self._program, n_prompt=count, n_gen=0, n_depth=0)
        decoding = _nanoseconds(rows, self._program, n_prompt=0, n_gen=decode_tokens, n_depth=count)
        self.loaded["runtime"] |= _told(rows[0])
        steps = [decoding / 1e9 / decode_tokens] * decode_tokens
        return {"ttft_s": prefill / 1e9, "decode_s": steps, "whole": True}

    def memory(self) -> dict[str, int | None]:
        """Nothing is known of a process that has ended."""
        return {"peak": None, "now": None, "pss": None}

    def pin(self, cpus: set[int]) -> None:
        """Keep the threads of the next processes on these CPUs."""
        self._cpus = cpus

    def close(self) -> None:
        """Nothing is open between rounds."""

    def __enter__(self) -> LlamaBench:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def parse_rows(text: str, program: str) -> list[dict[str, Any]]:
    """The rows of llama-bench's JSON. Raises SaapError where it is none."""
    try:
        rows = json.loads(text)
    except ValueError:
        rows = None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise SaapError(f"'{program}' printed no rows of llama-bench's JSON: is it llama.cpp's own llama-bench?")
    return rows


def _nanoseconds(rows: Sequence[dict[str, Any]], program: str, **test: int) -> float:
    """The time of a test. Raises SaapError where no row is of that test, or it has no time."""
    for row in rows:
        if all(row.get(name) == value for name, value in test.items()):
            samples = row.get("samples_ns")
            if isinstance(samples, list) and samples and all(isinstance(each, int) and each > 0 for each in samples):
                return float(samples[0])
    asked = ", ".join(f"{name} {value}" for name, value in test.items())
    raise SaapError(f"'{program}' printed no time of {asked}: this version of llama-bench is not known here")


def _told(row: dict[str, Any]) -> dict[str, Any]:
    """What a row says of the build, as a document keeps it."""
    commit, number = row.get("build_commit"), row.get("build_number")
    told = [f"{name}: {row[name]}" for name in ("backends", "cpu_info", "gpu_info") if row.get(name)]
    versions = {"llama-bench": f"{number} ({commit})"} if commit or number else {}
    return {"versions": versions, "build": ", ".join(told) or None}


def _check_help(program: str, text: str) -> None:
    missing = [option for option in OPTIONS if option not in text]
    if len(missing) == len(OPTIONS):
        raise SaapError(f"'{program}' does not answer as llama-bench does: give the path of llama.cpp's llama-bench")
    if missing:
        raise SaapError(f"'{program}' has no {missing[0]}: take a llama-bench of April 2025 or newer")


def _run(command: list[str], seconds: float, cpus: set[int] | None = None, phone: Phone | None = None) -> str:
    """What a program prints on stdout, here or on a phone. Raises SaapError in one line when it fails."""
    if phone:
        told = phone.program(command, seconds)
        if told.returncode:
            cause = cause_of_death(told.returncode, _cause(told.stderr.encode()))
            raise SaapError(f"'{command[0]}' on '{phone.serial}' ended with {cause}: is it llama.cpp for Android?")
        return told.stdout
    pinned: Callable[[], None] | None = (lambda: os.sched_setaffinity(0, cpus)) if cpus else None
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=seconds, stdin=subprocess.DEVNULL, preexec_fn=pinned,
            env=without_ours(os.environ) | {"GGML_NO_BACKTRACE": "1"},
        )  # fmt: skip
    except OSError as error:
        raise SaapError(f"'{command[0]}' does not run here: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise SaapError(f"'{command[0]}' gave no answer in {seconds:.0f} s") from None
    if done.returncode:
        raise SaapError(f"'{command[0]}' ended with {cause_of_death(done.returncode, _cause(done.stderr))}")
    return done.stdout.decode(errors="replace")


def _cause(stderr: bytes) -> bytes:
    """The line that names an error, where one does: usage may follow it."""
    lines = [line for line in stderr.splitlines() if b"error" in line.lower()]
    return lines[0] if lines else stderr
