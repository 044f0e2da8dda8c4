"""A process that does nothing but run one engine: `python -m saap_edge.engines.child`.

It speaks JSON lines: a request {"do": name, ...} on stdin, an answer {"ok": ...} or {"error": text} on stdout. A
fresh or foreign artifact can abort the process that loads it, and memory is only honest in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from saap_edge.engines.base import Engine
from saap_edge.errors import SaapError

__all__ = ["Server", "main"]


def load_engine(name: str, path: str, threads: int, context: int) -> Engine:
    """Import only the runtime that is asked for."""
    if name == "llama.cpp":
        from saap_edge.engines.llama_cpp import LlamaCppEngine

        return LlamaCppEngine(Path(path), threads, context)
    from saap_edge.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(Path(path), threads, context)


class Server:
    """Answers requests; every public method is one."""

    def __init__(self) -> None:
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise SaapError("no artifact is loaded")
        return self._engine

    def load(self, engine: str, path: str, threads: int, context: int) -> dict[str, Any]:
        """Load an artifact; `seconds` does not count importing the runtime."""
        __import__("llama_cpp" if engine == "llama.cpp" else "onnxruntime")
        start = time.perf_counter()
        self._engine = load_engine(engine, path, threads, context)
        seconds = time.perf_counter() - start
        described: dict[str, Any] = getattr(self._engine, "describe", dict)()
        return {
            "seconds": seconds,
            "vocab_size": self._engine.vocab_size,
            "kv_bytes_per_token": self._engine.kv_bytes_per_token(),
            **described,
        }

    def logits(self, tokens: list[int], mode: str, out: str) -> None:
        """Logits of every position, float32 [len(tokens), vocab], to the .npy file `out`.

        `mode`: "prefill" all at once, "steps" one by one, "mixed" the first half at once and then steps.
        """
        self.engine.reset()
        whole = {"prefill": len(tokens), "steps": 0, "mixed": len(tokens) // 2}[mode]
        parts = [self.engine.forward(tokens[:whole], all_logits=True).copy()] if whole else []
        parts += [self.engine.forward([token]).copy() for token in tokens[whole:]]
        np.save(out, np.concatenate(parts))

    def generate(self, tokens: list[int], count: int) -> list[int]:
        """Greedy continuation, `count` ids."""
        self.engine.reset()
        ids: list[int] = []
        logits = self.engine.forward(tokens)
        while len(ids) < count:
            ids.append(int(logits[-1].argmax()))
            if len(ids) < count:
                logits = self.engine.forward(ids[-1:])
        return ids

    def time(self, tokens: list[int], decode_tokens: int) -> dict[str, Any]:
        """Seconds of prefill until the first token is chosen, and of each of `decode_tokens` greedy steps after it."""
        self.engine.reset()
        start = time.perf_counter()
        token = int(self.engine.forward(tokens)[-1].argmax())
        first = time.perf_counter()
        steps = []
        for _ in range(decode_tokens):
            begin = time.perf_counter()
            token = int(self.engine.forward([token])[-1].argmax())
            steps.append(time.perf_counter() - begin)
        return {"ttft_s": first - start, "decode_s": steps}

    def nll(self, windows: list[list[int]]) -> dict[str, Any]:
        """Negative log-likelihood in nats over `windows`, the first token of each being context only."""
        total, count = 0.0, 0
        for window in windows:
            self.engine.reset()
            logits = self.engine.forward(window, all_logits=True)[:-1].astype(np.float64)
            peak = logits.max(axis=1, keepdims=True)
            norm = np.log(np.exp(logits - peak).sum(axis=1)) + peak[:, 0]
            total += float((norm - logits[np.arange(len(window) - 1), window[1:]]).sum())
            count += len(window) - 1
        return {"nll": total, "tokens": count}

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids by the runtime's own tokenizer; llama.cpp only."""
        ids: list[int] = getattr(self.engine, "tokenize")(text, add_special, parse_special)  # noqa: B009
        return ids

    def memory(self) -> dict[str, int]:
        """Bytes of resident memory, now and at its highest, of the whole process."""
        status = Path("/proc/self/status").read_text()
        found = {
            key: int(value) * 1024 for key, value in re.findall(r"^(VmHWM|VmRSS):\s+(\d+) kB", status, re.MULTILINE)
        }
        return {"peak": found["VmHWM"], "now": found["VmRSS"]}


def main() -> None:
    """Serve until stdin ends. Whatever a library prints goes to stderr, so that the channel stays clean."""
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
