"""A process that does nothing but run one engine: `python -m saap_edge.engines.child`.

It speaks JSON lines: a request {"do": name, ...} on stdin, an answer {"ok": ...} or {"error": text} on stdout. The
engine has a process of its own because a faulty artifact can abort the process that loads it, and because memory can
be measured only of a whole process.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from saap_edge.engines.base import Engine
from saap_edge.engines.registry import VOCABULARY, engine_named
from saap_edge.errors import SaapError
from saap_edge.machine.pages import collapse
from saap_edge.registry import resolve

__all__ = ["VOCABULARY", "Server", "held_bytes", "kilobytes", "log_probabilities", "main"]

PIECE = 512  # tokens of a prompt at a time: llama.cpp's own default


def engine_class(name: str, entry: str | None = None) -> Any:
    """The class of the engine of that name, or the class that `entry` names."""
    return resolve(entry or engine_named(name).entry_of(name))


def load_engine(
    name: str, path: str, threads: int, context: int, entry: str | None = None, options: Mapping[str, Any] | None = None
) -> Engine:
    """An engine of that name, or of the class that `entry` names. A name that ends in VOCABULARY gives its tokenizer
    only."""
    made = engine_class(name, entry)
    vocabulary = name.endswith(VOCABULARY)
    engine: Engine = made(Path(path)) if vocabulary else made(Path(path), threads, context, **(options or {}))
    return engine


class Server:
    """Answers requests. Every public method is a request."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._filled = 0

    @property
    def engine(self) -> Engine:
        """The loaded engine. Raises SaapError where none is."""
        if self._engine is None:
            raise SaapError("no artifact is loaded")
        return self._engine

    def load(
        self, engine: str, path: str, threads: int, context: int, entry: str | None = None, module: str | None = None,
        package: str | None = None, options: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Load an artifact, put what that filled into huge pages, and describe it; `seconds` leaves out the import of
        the runtime.

        `entry`, `module` and `package` are those of the engine's record, for an engine that only the asking process
        knows; `options` are `EngineOptions.given`. `runtime` says which build of it runs.
        """
        module = module or engine_named(engine).module
        __import__(module)
        getattr(engine_class(engine, entry), "import_runtime", bool)()
        start = time.perf_counter()
        try:
            self._engine = load_engine(engine, path, threads, context, entry, options)
        except AttributeError as error:
            raise SaapError(f"this version of {package or module} lacks what saap-edge calls: {error}") from None
        huge = collapse()
        seconds = time.perf_counter() - start
        described: dict[str, Any] = getattr(self._engine, "describe", dict)()
        return {
            "seconds": seconds,
            "huge_pages_bytes": huge,
            "vocab_size": self._engine.vocab_size,
            "kv_bytes_per_token": self._engine.kv_bytes_per_token(),
            "runtime": _runtime(module, package) | {"build": getattr(self._engine, "build", lambda: None)()},
            **described,
        }

    def logits(self, tokens: list[int], mode: str, out: str) -> None:
        """Write the logits of every position, float32 [len(tokens), vocab], to the .npy file `out`.

        `mode` says how tokens are run: "prefill" all at once, "steps" one by one, "mixed" half at once, half in steps.
        """
        self.engine.reset()
        whole = {"prefill": len(tokens), "steps": 0, "mixed": len(tokens) // 2}[mode]
        parts = [self.engine.forward(tokens[:whole], all_logits=True).copy()] if whole else []
        parts += [self.engine.forward([token]).copy() for token in tokens[whole:]]
        np.save(out, np.concatenate(parts))

    def generate(self, tokens: list[int], count: int) -> list[int]:
        """The greedy continuation of `tokens`: `count` token ids."""
        self.engine.reset()
        ids: list[int] = []
        logits = self.engine.forward(tokens)
        while len(ids) < count:
            ids.append(int(logits[-1].argmax()))
            if len(ids) < count:
                logits = self.engine.forward(ids[-1:])
        return ids

    def time(self, tokens: list[int], decode_tokens: int) -> dict[str, Any]:
        """Time prefill until the first token is chosen, and each of `decode_tokens` greedy steps after it, in seconds.

        `ttft_cpu_s` is the CPU time of the first, all threads together.
        `decode_at` is the beginning and the end of these steps by time.monotonic, the clock that all processes share.
        """
        self.engine.reset()
        start, cpu = time.perf_counter(), time.process_time()
        token = int(self.engine.forward(tokens)[-1].argmax())
        cpu = time.process_time() - cpu
        first, began = time.perf_counter(), time.monotonic()
        steps = self._steps(token, decode_tokens)
        return {"ttft_s": first - start, "ttft_cpu_s": cpu, **steps, "decode_at": [began, time.monotonic()]}

    def fill(self, tokens: list[int]) -> None:
        """Begin a sequence with `tokens`. They are run PIECE at a time, as servers do, so that memory stays small."""
        self.engine.reset()
        for start in range(0, len(tokens), PIECE):
            self.engine.forward(tokens[start : start + PIECE])
        self._filled = len(tokens)

    def time_steps(self, token: int, decode_tokens: int) -> dict[str, list[float]]:
        """Time each of `decode_tokens` greedy steps after the filled tokens, from `token` on, and forget the steps."""
        steps = self._steps(token, decode_tokens)
        self.engine.truncate(self._filled)
        return steps

    def time_batch(self, tokens: list[int]) -> float:
        """Seconds of running `tokens` at once after the filled tokens, with logits of all. They are forgotten."""
        begin = time.perf_counter()
        self.engine.forward(tokens, all_logits=True)
        seconds = time.perf_counter() - begin
        self.engine.truncate(self._filled)
        return seconds

    def _steps(self, token: int, count: int) -> dict[str, list[float]]:
        """Seconds of every step, on the clock and of CPU time (all threads together)."""
        seconds, cpu = [], []
        for _ in range(count):
            begin, cpu_begin = time.perf_counter(), time.process_time()
            token = int(self.engine.forward([token])[-1].argmax())
            seconds.append(time.perf_counter() - begin)
            cpu.append(time.process_time() - cpu_begin)
        return {"decode_s": seconds, "decode_cpu_s": cpu}

    def score(self, requests: list[tuple[list[int], int]]) -> list[tuple[list[float], list[bool]]]:
        """For each `(tokens, start)`: log-probabilities in nats of `tokens[start:]`, and whether each is the likeliest.

        Tokens that a request shares with the one before it (a question with several choices) are not run again. Only
        these values leave the process, because logits of whole vocabularies take megabytes a request.
        """
        self.engine.reset()
        held: list[int] = []
        answers = []
        for tokens, start in requests:
            if not 0 <= tokens[-1] < self.engine.vocab_size:  # the last is not run; the engine checks the others
                raise ValueError(f"token ids must be in 0 to {self.engine.vocab_size - 1}")
            # Logits are needed from the last context token on, so that this token always has to be run.
            shared = min(_common(held, tokens), start - 1)
            self.engine.truncate(shared)
            if shared < start - 1:
                self.engine.forward(tokens[shared : start - 1])
            logits = self.engine.forward(tokens[start - 1 : -1], all_logits=True)
            held = tokens[:-1]
            values, greedy = log_probabilities(logits, tokens[start:])
            answers.append((values.tolist(), greedy.tolist()))
        return answers

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids by the runtime's own tokenizer. ONNX Runtime has none."""
        ids: list[int] = getattr(self.engine, "tokenize")(text, add_special, parse_special)  # noqa: B009
        return ids

    def ends(self) -> list[int]:
        """Token ids at which the runtime ends a text. Only llama.cpp knows them."""
        ids: list[int] = getattr(self.engine, "ends")()  # noqa: B009
        return ids

    def chat(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], count: int) -> dict[str, Any]:
        """The greedy answer of the runtime's own chat entry point (engines/chat.py)."""
        answer: dict[str, Any] = getattr(self.engine, "chat")(messages, tools, count)  # noqa: B009
        return answer

    def rendered(self, messages: list[dict[str, Any]]) -> list[int]:
        """Token ids of a chat by the file's own template (engines/llama_draft.py)."""
        ids: list[int] = getattr(self.engine, "rendered")(messages)  # noqa: B009
        return ids

    def speculate(self, tokens: list[int], count: int, gamma: int) -> dict[str, Any]:
        """Greedy tokens by the runtime's own loop, with or without a draft (engines/llama_draft.py)."""
        found: dict[str, Any] = getattr(self.engine, "speculate")(tokens, count, gamma)  # noqa: B009
        return found

    def begin(self, documents: list[dict[str, Any]], ends: list[int], banned: list[int], least: float) -> None:
        """Take documents in hand, which `proceed` writes (engines/llama_writer.py)."""
        getattr(self.engine, "begin")(documents, ends, banned, least)  # noqa: B009

    def proceed(self, steps: int) -> dict[str, Any]:
        """Write on, so many tokens of every document in hand; what is done."""
        news: dict[str, Any] = getattr(self.engine, "proceed")(steps)  # noqa: B009
        return news

    def memory(self) -> dict[str, int | None]:
        """Bytes of memory of the whole process: resident, the highest and now; proportional (PSS) and held, now.

        PSS counts a page that n processes map as 1/n; it is None where the kernel does not state it (before 4.14). Held
        is what the kernel cannot drop and read again.
        """
        found = kilobytes("status", "VmHWM|VmRSS") | kilobytes("smaps_rollup", "Pss")
        return {"peak": found["VmHWM"], "now": found["VmRSS"], "pss": found.get("Pss"), "held": held_bytes()}


def held_bytes() -> int | None:
    """Memory of this process that the kernel cannot drop: anonymous and shared pages, and locked pages of files.

    None where the kernel does not tell them apart (before 4.5).
    """
    found = kilobytes("status", "RssAnon|RssShmem|RssFile|VmLck")
    if "RssAnon" not in found:
        return None
    return found["RssAnon"] + found["RssShmem"] + min(found.get("VmLck", 0), found["RssFile"])


def _runtime(module: str, package: str | None) -> dict[str, Any]:
    """Which build of a runtime this process has: versions, and from where it was imported."""
    versions = {}
    for name in filter(None, (package, "numpy")):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # installed under another name, as onnxruntime's other builds
            versions[name] = str(getattr(sys.modules.get(module), "__version__", "unknown"))
    place = getattr(sys.modules[module], "__file__", None)
    return {
        "program": sys.executable, "python": platform.python_version(), "versions": versions,
        "module": str(Path(place).parent) if place else None,
    }  # fmt: skip


def log_probabilities(logits: np.ndarray, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Log-softmax of `logits` [n, vocab] at `tokens` [n], in nats, float64 [n]; and whether each has the largest logit.

    >>> values, likeliest = log_probabilities(np.log(np.array([[0.25, 0.75], [0.5, 0.5]])), [1, 1])
    >>> np.exp(values).round(6).tolist(), likeliest.tolist()
    ([0.75, 0.5], [True, False])
    """
    peak = logits.max(axis=1)
    chosen = logits[np.arange(len(tokens)), tokens]
    norm = np.log(np.exp(logits - peak[:, None]).sum(axis=1, dtype=np.float64))
    return (chosen - peak).astype(np.float64) - norm, logits.argmax(axis=1) == tokens


def kilobytes(name: str, keys: str) -> dict[str, int]:
    """The lines `key: n kB` of a file in /proc/self, in bytes; empty where there is no such file."""
    path = Path("/proc/self") / name
    lines = path.read_text() if path.is_file() else ""
    return {key: int(value) * 1024 for key, value in re.findall(rf"^({keys}):\s+(\d+) kB", lines, re.MULTILINE)}


def _common(first: list[int], second: list[int]) -> int:
    """Length of the common beginning."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def main() -> None:
    """Serve until stdin ends. What libraries print goes to stderr, so that stdout holds answers only."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    server = Server()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": getattr(server, request.pop("do"))(**request)}
        except (SaapError, ValueError, ImportError, OSError, RuntimeError) as error:
            answer = {"error": " ".join(str(error).split()) or type(error).__name__}
        channel.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
