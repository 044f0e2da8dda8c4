"""Running an engine in a child process, so that the parent survives if the engine dies."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from saap_edge.engines.environment import child_command
from saap_edge.engines.options import AS_IT_IS, EngineOptions, check_options
from saap_edge.engines.registry import engine_named
from saap_edge.engines.shortage import advice, is_shortage
from saap_edge.errors import SaapError
from saap_edge.machine.waiting import without_ours

__all__ = ["EngineDied", "Worker", "cause_of_death", "child_environment"]

TIMEOUT = 1800.0  # seconds for one request: a large model on a slow board may take that long


class EngineDied(SaapError):
    """The child ended in the middle of a request. `code` is its exit code, or minus the signal that killed it."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Worker:
    """A child process with one artifact loaded. Use it as a context manager.

    `loaded` is how the child describes the artifact: seconds, vocab_size, kv_bytes_per_token, and the engine's own
    description. `python` is the interpreter of another environment to run in (environment.py). Raises SaapError when
    the engine has not what `options` ask for, and when the artifact cannot be loaded or kills the child.
    """

    def __init__(
        self, engine: str, path: Path, threads: int, context: int, options: EngineOptions = AS_IT_IS,
        python: Path | None = None,
    ) -> None:  # fmt: skip
        check_options(engine, options)
        self.engine, self.path = engine, Path(path)
        record = engine_named(engine)
        told = {
            "entry": record.entry_of(engine), "module": record.module_of(engine), "package": record.package,
            "options": options.given(),
        }  # fmt: skip
        own = child_environment(ours=python is None) | {"OMP_NUM_THREADS": str(threads)}
        environment = record.environment(self.path) | own
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self._process = subprocess.Popen(
            child_command(python), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, env=environment
        )  # fmt: skip
        _goes_first(self._process.pid)
        try:
            self.loaded = self._ask("load", engine=engine, path=str(path), threads=threads, context=context, **told)
        except BaseException:
            self.close()
            raise

    def logits(self, tokens: list[int], mode: str) -> np.ndarray:
        """Logits of every token, float32 [len(tokens), vocab]; `mode` is "prefill", "steps" or "mixed" (`Server`)."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "logits.npy"
            self._ask("logits", tokens=tokens, mode=mode, out=str(out))
            logits: np.ndarray = np.load(out, allow_pickle=False)
        return logits

    def generate(self, tokens: list[int], count: int) -> list[int]:
        """`count` greedy token ids after `tokens`."""
        ids: list[int] = self._ask("generate", tokens=tokens, count=count)
        return ids

    def time(self, tokens: list[int], decode_tokens: int) -> dict[str, Any]:
        """Time a prompt and greedy steps after it, in seconds.

        Returns {"ttft_s": until the first token is chosen, "ttft_cpu_s": CPU time of that, all threads, "decode_s":
        [each step], "decode_cpu_s": [CPU time of each step], "decode_at": [beginning, end] of the steps by
        time.monotonic}.
        """
        timing: dict[str, Any] = self._ask("time", tokens=tokens, decode_tokens=decode_tokens)
        return timing

    def fill(self, tokens: list[int]) -> None:
        """Begin a sequence with `tokens`."""
        self._ask("fill", tokens=tokens)

    def time_steps(self, token: int, decode_tokens: int) -> dict[str, list[float]]:
        """Time greedy steps after the filled tokens, from `token` on, and forget the steps.

        Returns {"decode_s": [seconds of each step], "decode_cpu_s": [CPU seconds of each, all threads]}.
        """
        steps: dict[str, list[float]] = self._ask("time_steps", token=token, decode_tokens=decode_tokens)
        return steps

    def score(self, requests: list[tuple[list[int], int]]) -> list[tuple[list[float], list[bool]]]:
        """For each `(tokens, start)`: log-probabilities in nats of `tokens[start:]`, and whether each is the likeliest.

        `start` is at least 1; the last token is not run, so `tokens` may be one longer than the context.
        """
        answers: list[tuple[list[float], list[bool]]] = self._ask("score", requests=requests)
        return answers

    def nll(self, windows: list[list[int]]) -> tuple[float, int]:
        """(total negative log-likelihood in nats, number of predicted tokens). The first token of a window is not
        predicted."""
        total = 0.0
        for window in windows:
            [(values, _)] = self.score([(window, 1)])
            total -= sum(values)
        return total, sum(len(window) - 1 for window in windows)

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids by the tokenizer of llama.cpp or onnxruntime-genai."""
        ids: list[int] = self._ask("tokenize", text=text, add_special=add_special, parse_special=parse_special)
        return ids

    def ends(self) -> list[int]:
        """Token ids at which llama.cpp ends a text."""
        ids: list[int] = self._ask("ends")
        return ids

    def chat(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], count: int) -> dict[str, Any]:
        """The greedy answer of the runtime's chat entry point, which ends at the latest after `count` tokens.

        The worker's engine must be one whose name ends in CHAT. Returns {"text", "ended": by itself, "tokens": how
        many, "ids": the first AGREED of them} (engines/chat.py).
        """
        answer: dict[str, Any] = self._ask("chat", messages=messages, tools=tools, count=count)
        return answer

    def rendered(self, messages: list[dict[str, Any]]) -> list[int]:
        """Token ids of a chat by the file's own template; the worker's engine must be one whose name ends in DRAFT."""
        ids: list[int] = self._ask("rendered", messages=messages)
        return ids

    def speculate(self, tokens: list[int], count: int, gamma: int) -> dict[str, Any]:
        """`count` greedy tokens after `tokens` by the runtime's own loop, with `gamma` tokens of its draft a pass.

        The worker's engine must be one whose name ends in DRAFT. Returns {"ids", "prompt_s": until the first token,
        "decode_s": from then on, "decode_cpu_s": CPU time of that, "passes": how often the draft was asked}
        (engines/llama_draft.py).
        """
        found: dict[str, Any] = self._ask("speculate", tokens=tokens, count=count, gamma=gamma)
        return found

    def time_batch(self, tokens: list[int]) -> float:
        """Seconds of running `tokens` at once after the filled tokens, with logits of all. They are forgotten."""
        return float(self._ask("time_batch", tokens=tokens))

    def begin(self, documents: list[dict[str, Any]], ends: list[int], banned: list[int], least: float) -> None:
        """Take documents in hand, which `proceed` writes (engines/llama_writer.py)."""
        self._ask("begin", documents=documents, ends=ends, banned=banned, least=least)

    def proceed(self, steps: int) -> dict[str, Any]:
        """Write on, so many tokens of every document in hand; what is done."""
        news: dict[str, Any] = self._ask("proceed", steps=steps)
        return news

    def pin(self, cpus: set[int]) -> None:
        """Keep all threads of the child on these CPUs, if the system allows it."""
        with contextlib.suppress(OSError):  # a child that is dead: the next request says so
            for thread in os.listdir(f"/proc/{self._process.pid}/task"):
                with contextlib.suppress(OSError):  # one that has ended meanwhile, or a system that forbids it
                    os.sched_setaffinity(int(thread), cpus)

    def memory(self) -> dict[str, int | None]:
        """Memory of the child in bytes, as `Server.memory`: {"peak", "now", "pss", "held"}."""
        memory: dict[str, int | None] = self._ask("memory")
        return memory

    def close(self) -> None:
        """End the child; safe to call twice."""
        if self._process.stdin and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._stderr.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, what: str, **arguments: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            self._died(what)
        line = self._answer(what)
        if not line:
            self._died(what)
        answer = json.loads(line)
        if "error" in answer:
            raise SaapError(f"{self.engine}, '{self.path.name}': {answer['error']}")
        return answer["ok"]

    def _answer(self, what: str) -> bytes:
        assert self._process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(TIMEOUT):
                self._process.kill()
                raise SaapError(f"{self.engine}, '{self.path.name}': no answer to '{what}' in {TIMEOUT:.0f} s")
        return self._process.stdout.readline()

    def _died(self, what: str) -> None:
        code = self._process.wait()
        self._stderr.seek(0)
        cause = cause_of_death(code, self._stderr.read())
        hint = f". {advice(self.path)}" if code == -signal.SIGKILL or is_shortage(cause) else ""
        raise EngineDied(f"{self.engine} died in '{what}' of '{self.path}' with {cause}{hint}", code)


def _goes_first(process: int) -> None:
    """Where memory is short, the kernel kills the child before the process that can say what to do about it."""
    with contextlib.suppress(OSError):  # a system without it, or a child that has ended already
        Path(f"/proc/{process}/oom_score_adj").write_text("1000")


def cause_of_death(code: int, stderr: bytes) -> str:
    """How a child ended, and its last line on stderr.

    >>> cause_of_death(-9, b""), cause_of_death(3, b"loading\\nbad magic\\n")
    ('SIGKILL (out of memory?)', 'exit code 3: bad magic')
    """
    lines = stderr.decode(errors="replace").strip().splitlines()
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"{name}{hint}" + (f": {lines[-1][:200]}" if lines else "")


def child_environment(ours: bool = True) -> dict[str, str]:
    """The environment of a child: it finds this package, and starts no debugger when it aborts.

    Without `ours`, for another interpreter, nothing is added to its path: beside this package may lie other versions
    of its packages.
    """
    root = str(Path(__file__).parents[2]) if ours else None
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    found = without_ours(os.environ) | {"GGML_NO_BACKTRACE": "1"}
    return found | {"PYTHONPATH": path} if path else found
