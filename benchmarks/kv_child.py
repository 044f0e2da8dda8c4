"""A process that runs one text through a GGUF file with every type of KV cache, for kv.py. It prints one JSON line.

python benchmarks/kv_child.py FILE THREADS CONTEXT WINDOWS TEXT
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np

from saap_edge.engines.llama_cpp import LlamaCppEngine
from saap_edge.engines.options import KV_TYPES

PIECE = 256  # tokens at a time: logits of whole windows would take hundreds of MiB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    for name in ("threads", "context", "windows"):
        parser.add_argument(name, type=int)
    parser.add_argument("text", type=Path)
    args = parser.parse_args()
    engines = {kv: LlamaCppEngine(args.file, args.threads, args.context, kv) for kv in KV_TYPES}
    text = args.text.read_text(encoding="utf-8")[: 8 * args.windows * args.context]
    tokens = engines["f16"].tokenize(text, False, False)
    nll, kl, count = dict.fromkeys(KV_TYPES, 0.0), dict.fromkeys(KV_TYPES, 0.0), 0
    for window in range(args.windows):
        own = tokens[window * args.context : (window + 1) * args.context]
        assert len(own) == args.context, "the text is too short"
        for engine in engines.values():
            engine.reset()
        for start in range(0, args.context - 1, PIECE):
            piece = own[start : start + PIECE][: args.context - 1 - start]
            wanted = own[start + 1 : start + 1 + len(piece)]
            exact = None
            for kv, engine in engines.items():
                found = logarithms(engine.forward(piece, all_logits=True))
                exact = found if exact is None else exact
                nll[kv] -= float(found[np.arange(len(wanted)), wanted].sum(dtype=np.float64))
                kl[kv] += float((np.exp(exact) * (exact - found)).sum(dtype=np.float64))
            count += len(piece)
    print(json.dumps({
        kv: {"perplexity": round(math.exp(nll[kv] / count), 4), "kl": round(kl[kv] / count, 6), "tokens": count}
        for kv in KV_TYPES
    }))  # fmt: skip


def logarithms(logits: np.ndarray) -> np.ndarray:
    """Log-softmax of [n, vocab], in nats."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


if __name__ == "__main__":
    main()
