"""What to train in recovery's first phase, and how fast: adapters and learning rates with the same tokens.

    OMP_NUM_THREADS=1 python benchmarks/recovery_ways.py --dense MODEL.gguf --pruned RUN/stages/prune-…/model \
        --ways lora:1e-3 all:3e-4 --tokens 65536 --work WORK --out benchmarks/results/recovery-ways-NAME.json

A way is an adapter of `recover.adapter` and a learning rate, and what is changed beside them: `all:3e-4,window=512`,
`all:3e-4,distillation=0.5`, `batch`, `seed`, `first=6` to train from the seventh layer on, or `text=FILE` to learn from
another text. All learn from the first windows of the bundled calibration text, in the order of the seed, with the dense
model's 256 likeliest tokens of every position as the teacher, which are written once. Divergence from the dense model
and perplexity are those of the full-precision weights on the bundled held-out text, before training and at the best of
its evaluations. Rows are kept in WORK as they are made: a run that was stopped goes on. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
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
from saap_edge.recovery.heldout import Heldout, with_answers
from saap_edge.recovery.run import ADAPTERS
from saap_edge.recovery.settings import RecoverSettings
from saap_edge.recovery.teacher import CachedTeacher, cached_teacher
from saap_edge.recovery.train import Training, train
from saap_edge.sources import resolve_model

WINDOW, TOP = 256, 256
RANK = RecoverSettings().rank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", required=True, help="the teacher: GGUF file, Hugging Face folder or hub name")
    parser.add_argument("--pruned", type=Path, required=True, help="Hugging Face folder of the pruned model")
    parser.add_argument("--ways", nargs="+", default=["lora:1e-3", "all:3e-4"], metavar="WAY")
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--work", type=Path, required=True, help="folder of rows and checkpoints; kept")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows = [row(read_way(way), args) for way in args.ways]
    result = {
        "benchmark": "recovery_ways", "dense": Path(args.dense).name, "tokens": args.tokens,
        "heldout_windows": HELDOUT_WINDOWS, "heldout_window": WINDOW, "teacher_top": TOP,
        "bfloat16": uses_bfloat16(args.precision), "threads": torch.get_num_threads(), "rows": rows,
    }  # fmt: skip
    publish(result, args.out)


@dataclass(frozen=True)
class Way:
    """How to train. `text`: a file to learn from, or None for the bundled calibration text."""

    adapter: str
    rate: float
    distillation: float = 1.0
    batch: int = 2
    window: int = WINDOW
    seed: int = 0
    first: int = 0
    text: Path | None = None


KINDS: dict[str, Callable[[str], Any]] = {
    "distillation": float, "batch": int, "window": int, "seed": int, "first": int, "text": Path
}  # fmt: skip


def read_way(written: str) -> Way:
    """A way as the command line has it: ADAPTER:RATE[,NAME=VALUE ...]."""
    first, *options = written.split(",")
    adapter, _, rate = first.partition(":")
    pairs = (option.partition("=") for option in options)
    return Way(adapter, float(rate), **{name: KINDS[name](value) for name, _, value in pairs})


def row(way: Way, args: argparse.Namespace) -> dict[str, Any]:
    """One training, or what it gave when it ran before."""
    options = {name: value for name, value in asdict(way).items() if name not in ("adapter", "rate")}
    changed = {name: value for name, value in options.items() if value != Way.__dataclass_fields__[name].default}
    told = {name: value.name if isinstance(value, Path) else value for name, value in changed.items()}
    label = "-".join([way.adapter, f"{way.rate:g}", *(f"{name}-{value}" for name, value in told.items())])
    done = args.work / f"{label}-{args.tokens}.json"
    if not done.is_file():
        given = {"adapter": way.adapter, "learning_rate": way.rate} | told
        done.write_text(json.dumps(given | trained(way, args, args.work / done.stem)), encoding="utf-8")
    made: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
    print(made, flush=True)
    return made


def trained(way: Way, args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train the pruned model and say what that gave."""
    dense = resolve_model(args.dense)
    tokenizer, own = load_tokenizer(dense), way.text or bundled_text("calibration")
    training = text_windows(tokenizer, own.read_text(encoding="utf-8"), way.window, -(-args.tokens // way.window))
    judged = text_windows(tokenizer, bundled_text("heldout").read_text(encoding="utf-8"), WINDOW, HELDOUT_WINDOWS)
    asked = Heldout(judged, precision=args.precision)
    heldout = with_answers(asked, lambda: load_model(dense), args.work / "heldout.safetensors")
    teacher = cached(dense, training, args.work / f"teacher-{way.text.stem if way.text else 'text'}-{way.window}")
    torch.manual_seed(way.seed)
    model = load_model(args.pruned).requires_grad_(False)
    change_projections(model, spec_of(model).family, lambda linear: ADAPTERS[way.adapter](linear, RANK), way.first)
    settings = Training(
        args.tokens, way.batch, way.rate, way.distillation, seed=way.seed, bfloat16=uses_bfloat16(args.precision)
    )
    before, started = heldout.measure(model), time.process_time()
    found = train(model, teacher, training, heldout, settings, work)
    cpu, after = round(time.process_time() - started), heldout.measure(model)
    shutil.rmtree(work)  # checkpoints of all weights are large
    return {
        "windows": len(training), "best_step": found.best_step, "steps": found.steps,
        "divergence": [before.divergence, after.divergence],
        "perplexity": [before.perplexity.value, after.perplexity.value],
        "history": found.history, "cpu_seconds": cpu,
    }  # fmt: skip


def cached(dense: Path, windows: torch.Tensor, stem: Path) -> CachedTeacher:
    """The teacher's answers to these windows, written where they are missing."""
    path = stem.with_name(f"{stem.name}-{len(windows)}.safetensors")
    return cached_teacher(lambda: load_model(dense), windows, TOP, path)


if __name__ == "__main__":
    main()
