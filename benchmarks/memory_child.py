"""A process that runs one GGUF file in llama.cpp, mapped or read, for memory.py and kv.py. It prints one JSON line.

python benchmarks/memory_child.py FILE mapped|read|collapsed|auto THREADS CONTEXT PROMPT STEPS [--kv TYPE] [--ubatch N]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import llama_cpp

from saap_edge.engines.child import held_bytes, kilobytes
from saap_edge.engines.llama_cpp import LlamaCppEngine
from saap_edge.engines.options import KV_TYPES, UBATCH
from saap_edge.machine.pages import collapse


class Mapped(LlamaCppEngine):
    mapped = True


class Read(LlamaCppEngine):
    mapped = False


WAYS = {"mapped": Mapped, "read": Read, "collapsed": Read, "auto": LlamaCppEngine}
COLLAPSED = ("collapsed", "auto")  # as an engine's process does it


def resident() -> dict[str, int]:
    """Bytes: the highest and the present resident memory, proportional memory, and what the kernel cannot drop."""
    found = kilobytes("status", "VmHWM|VmRSS") | kilobytes("smaps_rollup", "Pss")
    return {"peak": found["VmHWM"], "now": found["VmRSS"], "pss": found.get("Pss", 0), "anonymous": held_bytes() or 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("way", choices=WAYS)
    for name in ("threads", "context", "prompt", "steps"):
        parser.add_argument(name, type=int)
    parser.add_argument("--kv", default="f16", choices=KV_TYPES)
    parser.add_argument("--ubatch", type=int, default=UBATCH)
    args = parser.parse_args()
    llama_cpp.llama_backend_init()
    base = resident()
    begin = time.perf_counter()
    engine = WAYS[args.way](args.file, args.threads, args.context, args.kv, args.ubatch)
    if args.way in COLLAPSED:
        collapse()
    loaded = time.perf_counter() - begin
    engine.forward(list(range(5, 5 + args.prompt)))
    cpu = time.process_time()
    for token in range(args.steps):
        engine.forward([100 + token])
    cpu = time.process_time() - cpu
    after = resident()
    print(json.dumps({
        "base": base["now"], "peak": after["peak"] - base["now"], "anonymous": after["anonymous"] - base["anonymous"],
        "pss": after["pss"] - base["pss"],
        "kv": args.context * engine.kv_bytes_per_token(), "load_s": loaded, "decode_cpu_s": cpu / args.steps,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
