"""A process that runs one model in somebody else's runtime, for runtimes.py; `Contestant` is its other end.

    python benchmarks/contestant.py genai FOLDER THREADS CONTEXT

It answers a JSON request a line on stdin by one on stdout, as saap_edge's own child does, and imports nothing but the
runtime and numpy, so that another environment's interpreter can run it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

if os.environ.get("SAAP_EDGE_TELEMETRY") != "1":  # as saap_edge does, which may not be there
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

Step = Callable[[list[int]], int]  # appends tokens to the sequence and returns the greedy next one


class Contestant:
    """A child with one model loaded, as saap_edge's Worker is one. Use it as a context manager."""

    def __init__(self, kind: str, path: Path, threads: int, context: int, python: str = sys.executable) -> None:
        self._process = subprocess.Popen(
            [python, __file__, kind, str(path), str(threads), str(context)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        self.loaded = self._ask("describe")

    def time(self, tokens: list[int], decode_tokens: int) -> dict[str, Any]:
        """{"ttft_s": seconds, "decode_s": [seconds of each step]}."""
        return self._ask("time", tokens=tokens, decode_tokens=decode_tokens)

    def nll(self, tokens: list[int]) -> float:
        """Nats a predicted token of a window, all but the first predicted."""
        value: float = self._ask("nll", tokens=tokens)
        return value

    def memory(self) -> dict[str, int]:
        return self._ask("memory")

    def __enter__(self) -> Contestant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, what: str, **arguments: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self._process.args))} died with exit code {self._process.wait()}")
        return json.loads(line)


# Each loads a folder and returns what starts a sequence, and the runtime's version.


def genai(path: Path, threads: int, context: int) -> tuple[Callable[[], Step], str]:
    """onnxruntime-genai's own loop."""
    import onnxruntime_genai as og

    config = og.Config(str(path))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)

    def start() -> Step:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=context, do_sample=False)
        generator = og.Generator(model, params)
        prompts = [True]

        def step(tokens: list[int]) -> int:
            if prompts:  # afterwards it appends what it has chosen itself
                prompts.pop()
                generator.append_tokens(np.array(tokens, dtype=np.int32))
            generator.generate_next_token()
            return int(generator.get_next_tokens()[0])

        return step

    return start, og.__version__


def session(path: Path, threads: int, context: int) -> tuple[Callable[[], Step], str]:
    """A plain InferenceSession with shared KV buffers, for dense graphs of saap-edge and genai's builder alike."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    run = ort.InferenceSession(str(path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    binding = run.io_binding()
    facts = json.loads((path / "genai_config.json").read_text())["model"]
    heads, width = facts["decoder"]["num_key_value_heads"], facts["decoder"]["head_size"]
    arrays = {}  # bound by address: they must live as long as the session

    def bind(name: str, array: np.ndarray) -> None:
        arrays[name] = array
        binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    for value in run.get_inputs():
        if value.name.startswith("past_key_values."):
            buffer = np.zeros((1, heads, context, width), dtype=np.float32)
            bind(value.name, buffer)
            present = value.name.replace("past_key_values", "present")
            binding.bind_output(present, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)

    def forward(tokens: list[int], length: int) -> np.ndarray:
        logits = np.empty((1, len(tokens), facts["vocab_size"]), dtype=np.float32)
        bind("input_ids", np.array([tokens], dtype=np.int64))
        bind("attention_mask", np.ones((1, length), dtype=np.int64))
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        run.run_with_iobinding(binding)
        return logits[0]

    def start() -> Step:
        length = 0

        def step(tokens: list[int]) -> int:
            nonlocal length
            length += len(tokens)
            return int(forward(tokens, length)[-1].argmax())

        step.forward = forward  # all logits, for perplexity
        return step

    return start, ort.__version__


def torch(path: Path, threads: int, context: int) -> tuple[Callable[[], Step], str]:
    """transformers in float32."""
    import torch as runtime
    from transformers import AutoModelForCausalLM

    runtime.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(path).float().eval()
    return _hugging_face(model), runtime.__version__


def optimum(path: Path, threads: int, context: int) -> tuple[Callable[[], Step], str]:
    """A folder that optimum-onnx exported in float32, through its own class."""
    import importlib.metadata

    import onnxruntime as ort
    import torch as runtime
    from optimum.onnxruntime import ORTModelForCausalLM

    runtime.set_num_threads(threads)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    model = ORTModelForCausalLM.from_pretrained(path, session_options=options)
    return _hugging_face(model), importlib.metadata.version("optimum-onnx")


def _hugging_face(model: Any) -> Callable[[], Step]:
    import torch as runtime

    def start() -> Step:
        past, length = None, 0

        @runtime.inference_mode()
        def step(tokens: list[int]) -> int:
            nonlocal past, length
            length += len(tokens)
            mask = runtime.ones(1, length, dtype=runtime.int64)
            out = model(input_ids=runtime.tensor([tokens]), attention_mask=mask, past_key_values=past, use_cache=True)
            past = out.past_key_values
            return int(out.logits[0, -1].argmax())

        return step

    return start


RUNTIMES = {"genai": genai, "session": session, "torch": torch, "optimum": optimum}


def measure(start: Callable[[], Step], tokens: list[int], decode_tokens: int) -> dict[str, Any]:
    begin = time.perf_counter()
    step = start()
    token = step(tokens)
    first, steps = time.perf_counter(), []
    for _ in range(decode_tokens):
        then = time.perf_counter()
        token = step([token])
        steps.append(time.perf_counter() - then)
    return {"ttft_s": first - begin, "decode_s": steps}


def nll(start: Callable[[], Step], tokens: list[int]) -> float:
    """Nats a predicted token of a window; session only."""
    logits = start().forward(tokens[:-1], len(tokens) - 1).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(logits)), tokens[1:]]
    return float((np.log(np.exp(logits).sum(axis=1)) - chosen).mean())


def main() -> None:
    """Serve until stdin ends. Whatever a library prints goes to stderr, so that the channel stays clean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", choices=RUNTIMES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("threads", type=int)
    parser.add_argument("context", type=int, help="tokens that prompt and answer have at most")
    args = parser.parse_args()
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    start, version = RUNTIMES[args.runtime](args.folder, args.threads, args.context)
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        if what == "time":
            answer: Any = measure(start, **request)
        elif what == "nll":
            answer = nll(start, **request)
        elif what == "memory":
            status = Path("/proc/self/status").read_text()
            answer = {"peak": int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024}
        else:
            answer = {"version": version}
        channel.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
