"""What to train in recovery's first phase, and how fast: adapters and learning rates with the same tokens.

    OMP_NUM_THREADS=1 python benchmarks/recovery_ways.py --dense MODEL.gguf --pruned RUN/stages/prune-…/model \
        --ways lora:1e-3 all:3e-4 --tokens 65536 --work WORK --out benchmarks/results/recovery-ways-NAME.json

A way is an adapter of `recover.adapter` and a learning rate. All learn from the same windows of the bundled calibration
text in the same order, with the dense model's 256 likeliest tokens of every position as the teacher, which are written
once. Perplexity is that of the full-precision weights on the bundled held-out text, before training and at the
best and last of eight evaluations. Rows are kept in WORK as they are made: a run that was stopped goes on. Ends with
one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from result import publish

from saap_edge.chain.texts import HELDOUT_WINDOWS
from saap_edge.model.adapters import change_projections
from saap_edge.model.arithmetic import uses_bfloat16
from saap_edge.model.folder import load_model, spec_of
from saap_edge.model.perplexity import text_windows
from saap_edge.model.tokenizer import load_tokenizer
from saap_edge.recipe import bundled_text
from saap_edge.recovery.run import ADAPTERS
from saap_edge.recovery.settings import RecoverSettings
from saap_edge.recovery.teacher import CachedTeacher, write_cache
from saap_edge.recovery.train import Training, train
from saap_edge.sources import resolve_model

WINDOW, TOP = 256, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", required=True, help="the teacher: GGUF file, Hugging Face folder or hub name")
    parser.add_argument("--pruned", type=Path, required=True, help="Hugging Face folder of the pruned model")
    parser.add_argument("--ways", nargs="+", default=["lora:1e-3", "all:3e-4"], metavar="ADAPTER:RATE")
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--work", type=Path, required=True, help="folder of rows and checkpoints; kept")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    dense = resolve_model(args.dense)
    training, heldout = (
        text_windows(load_tokenizer(dense), bundled_text(name).read_text(encoding="utf-8"), WINDOW, limit)
        for name, limit in (("calibration", -(-args.tokens // WINDOW)), ("heldout", HELDOUT_WINDOWS))
    )
    teacher = cached(dense, training, args.work)
    rows = [row(way, teacher, training, heldout, args) for way in args.ways]
    result = {
        "benchmark": "recovery_ways", "dense": Path(args.dense).name, "tokens": args.tokens, "window": WINDOW,
        "heldout_windows": len(heldout), "teacher_top": TOP, "bfloat16": uses_bfloat16(args.precision),
        "threads": torch.get_num_threads(), "rows": rows,
    }  # fmt: skip
    publish(result, args.out)


def cached(dense: Path, windows: torch.Tensor, work: Path) -> CachedTeacher:
    """The teacher's answers to these windows, written where they are missing."""
    path = work / f"teacher-{len(windows)}.safetensors"
    if not path.is_file():
        write_cache(load_model(dense), windows, TOP, path)
    return CachedTeacher(path)


def row(
    way: str, teacher: CachedTeacher, training: torch.Tensor, heldout: torch.Tensor, args: argparse.Namespace
) -> dict[str, Any]:
    """One training, or what it gave when it ran before."""
    done = args.work / f"{way.replace(':', '-')}-{args.tokens}.json"
    if not done.is_file():
        adapter, _, rate = way.partition(":")
        settings = RecoverSettings()
        torch.manual_seed(0)
        model = load_model(args.pruned).requires_grad_(False)
        family = spec_of(model).family
        change_projections(model, family, lambda linear: ADAPTERS[adapter](linear, settings.rank))
        started = time.process_time()
        found = train(
            model, teacher, training, heldout,
            Training(args.tokens, settings.batch, float(rate), 1.0, bfloat16=uses_bfloat16(args.precision)),
            args.work / done.stem,
        )  # fmt: skip
        losses = {"before": found.start, "best": found.best, "last": found.history[-1][1]}
        given = {"adapter": adapter, "learning_rate": float(rate), "best_step": found.best_step, "steps": found.steps}
        given |= {name: round(math.exp(loss), 3) for name, loss in losses.items()}
        done.write_text(json.dumps(given | {"cpu_seconds": round(time.process_time() - started)}), encoding="utf-8")
    made: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
    print(made, flush=True)
    return made


if __name__ == "__main__":
    main()
