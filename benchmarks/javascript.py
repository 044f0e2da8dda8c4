"""Decoding with an embedding of standard operators, beside GatherBlockQuantized, in ONNX Runtime.

    OMP_NUM_THREADS=1 python benchmarks/javascript.py --out benchmarks/results/javascript.json

`export --for transformers.js` writes int8 and int4 with an embedding of Gather, Cast, Sub and Mul, because the build of
onnxruntime-web that transformers.js takes in browsers lacks GatherBlockQuantized on the CPU. The bundled model in
onnx-int4, or --model, is decoded with both graphs by turns in random order, on one thread. `ratio` is the rewritten
graph's speed over the exported one's in CPU seconds, with its interval. The tokens must be equal. About a minute. Ends
with one JSON line.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path

import onnx
from result import publish

from saap_edge.engines.onnxruntime import OnnxRuntimeEngine, ort
from saap_edge.exporting.write import write_artifact
from saap_edge.layouts.onnx_graph import standard_embedding
from saap_edge.measuring.statistics import paired_ratio
from saap_edge.recipe import bundled_model

PROMPT, TOKENS = 16, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=bundled_model(), help="Hugging Face folder")
    parser.add_argument("--format", default="onnx-int4")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        exported, standard = Path(scratch) / "exported", Path(scratch) / "standard"
        write_artifact(args.model, exported, args.format)
        shutil.copytree(exported, standard)
        graph = onnx.load(str(standard / "model.onnx"), load_external_data=False)
        standard_embedding(graph.graph)
        (standard / "model.onnx").write_bytes(graph.SerializeToString())
        engines = [OnnxRuntimeEngine(folder, 1, PROMPT + TOKENS) for folder in (exported, standard)]
        seconds: list[list[float]] = [[], []]
        answers: list[list[int]] = [[], []]
        for number in range(args.rounds + 2):
            for index in random.Random(number).sample((0, 1), 2):
                spent, answers[index] = decoded(engines[index])
                if number >= 2:  # the first ones warm up
                    seconds[index].append(spent)
    if answers[0] != answers[1]:
        raise SystemExit("the two graphs give other tokens")
    ratio = paired_ratio(seconds[0], seconds[1])
    publish(
        {
            "benchmark": "javascript", "model": args.model.name, "format": args.format, "rounds": args.rounds,
            "tokens": TOKENS, "onnxruntime": ort.__version__, "ratio": ratio,
        },
        args.out,
    )  # fmt: skip


def decoded(engine: OnnxRuntimeEngine) -> tuple[float, list[int]]:
    """CPU seconds of decoding TOKENS tokens after a prompt, and the tokens."""
    engine.reset()
    new, answer = [int(engine.forward(list(range(5, 5 + PROMPT)))[-1].argmax())], list[int]()
    start = time.process_time()
    for _ in range(TOKENS - 1):
        answer += new
        new = [int(engine.forward(new)[-1].argmax())]
    return time.process_time() - start, answer


if __name__ == "__main__":
    main()
