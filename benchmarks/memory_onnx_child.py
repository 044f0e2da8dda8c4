"""A process that runs one ONNX folder in ONNX Runtime, for memory_onnx.py and ubatch.py. It prints one JSON line.

python benchmarks/memory_onnx_child.py FOLDER WAY THREADS CONTEXT PROMPT STEPS [--ubatch N]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from sampling import sampling

from saap_edge.engines import onnxruntime as engines
from saap_edge.engines.child import kilobytes
from saap_edge.engines.options import PIECE
from saap_edge.machine.pages import collapse

DATA = "model.onnx.data"
WAYS = ("plain", "reuse", "no arena", "own allocator", "dropped", "collapsed", "prepacked", "write", "whole")


class Reusing(engines.ort.SessionOptions):  # type: ignore[misc]
    """Settings under which buffers are used again, as by default, whatever the engine wants."""

    enable_mem_reuse = property(lambda self: True, lambda self, wanted: None)


def options_of(way: str, folder: Path) -> Any:
    """Settings of a session: what a way is, beside which file it opens."""
    options = Reusing() if way in ("reuse", "whole") else engines.ort.SessionOptions()
    if way == "no arena":
        options.enable_cpu_mem_arena = False
    if way == "own allocator":
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    if way == "write":  # the weights, in the order in which this processor's kernels read them
        options.optimized_model_filepath = str(folder / "prepacked" / "model.onnx")
        for name, value in (
            ("optimized_model_external_initializers_file_name", DATA),
            ("optimized_model_external_initializers_min_size_in_bytes", "1024"),
            ("save_external_prepacked_constant_initializers", "1"),
        ):
            options.add_session_config_entry(f"session.{name}", value)
    return options


def drop_pages() -> None:
    """Give back the pages of the mapped weights: they are read again from the file where they are needed."""
    libc = ctypes.CDLL(None, use_errno=True)
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if line.endswith(DATA):
            first, last = (int(part, 16) for part in line.split(" ", 1)[0].split("-"))
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), 4)  # MADV_DONTNEED


def resident() -> dict[str, int]:
    """Bytes: the highest and the present resident memory, and what of it is not of files that can be dropped."""
    found = kilobytes("status", "VmHWM|VmRSS|RssAnon")
    return {"peak": found["VmHWM"], "now": found["VmRSS"], "anonymous": found["RssAnon"]}


@contextmanager
def highest_anonymous() -> Iterator[list[int]]:
    """In the list, the most that was not of files at any moment of the block, looked at every half millisecond."""
    highest = [0]

    def look() -> None:
        highest[0] = max(highest[0], resident()["anonymous"])

    with sampling(look, 0.0005):
        yield highest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("way", choices=WAYS)
    for name in ("threads", "context", "prompt", "steps"):
        parser.add_argument(name, type=int)
    parser.add_argument("--ubatch", type=int, default=PIECE)
    args = parser.parse_args()
    engines.ort.set_default_logger_severity(3)
    made: Any = engines.ort.SessionOptions
    settings = options_of(args.way, args.folder)
    engines.ort.SessionOptions = lambda: settings  # the engine sets threads and the rest on them
    base = resident()
    begin = time.perf_counter()
    where = args.folder / "prepacked" if args.way == "prepacked" else args.folder
    ubatch = args.context if args.way == "whole" else args.ubatch
    with highest_anonymous() as loading:
        engine = engines.OnnxRuntimeEngine(where, args.threads, args.context, ubatch)
    if args.way == "collapsed":
        collapse()
    loaded = time.perf_counter() - begin
    engines.ort.SessionOptions = made
    if args.way == "dropped":
        drop_pages()
    after_load = resident()
    engine.forward(list(range(5, 5 + args.prompt)))
    cpu = time.process_time()
    token, tokens = 100, []
    for _ in range(args.steps):
        token = int(np.argmax(engine.forward([token])[-1]))
        tokens.append(token)
    cpu = time.process_time() - cpu
    end = resident()
    print(json.dumps({
        "base": base["now"], "loaded": after_load["now"] - base["now"], "after": end["now"] - base["now"],
        "peak": end["peak"] - base["now"], "anonymous": end["anonymous"] - base["anonymous"],
        "loading": loading[0] - base["anonymous"],
        "kv": args.context * engine.kv_bytes_per_token(), "load_s": loaded, "decode_cpu_s": cpu / args.steps,
        "tokens": tokens,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
