"""CPU seconds of one training step of recovery, in float32 and in bfloat16: student, adapters and teacher.

    OMP_NUM_THREADS=1 python benchmarks/training_step.py --model MODEL.gguf --out RESULT.json

The step is that of the first phase with its defaults: two windows of 256 random tokens, adapters of rank 32 (LoRA, or
with `--adapter spp` those that multiply), distillation from the model itself. The best of some steps, in turns. Ends
with one JSON line.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from result import publish

from saap_edge.model.adapters import change_projections
from saap_edge.model.arithmetic import products
from saap_edge.model.attention import short_attention
from saap_edge.model.folder import load_model, spec_of
from saap_edge.recovery.run import ADAPTERS
from saap_edge.recovery.settings import RecoverSettings
from saap_edge.recovery.teacher import DenseTeacher
from saap_edge.recovery.train import _Student
from saap_edge.sources import resolve_model

WINDOW = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="GGUF file or Hugging Face folder")
    parser.add_argument("--adapter", choices=tuple(ADAPTERS), default="lora", help="as recover.adapter")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder, settings = resolve_model(str(arguments.model)), RecoverSettings()
    model = trained(folder, arguments.adapter, settings.rank)
    students = {
        precision: _Student(
            model, DenseTeacher(load_model(folder).requires_grad_(False), halved=precision == "bfloat16"), 1.0
        ).train()
        for precision in ("float32", "bfloat16")
    }
    ids = torch.randint(0, model.config.vocab_size, (settings.batch, WINDOW))
    best: dict[str, float] = {}
    for _ in range(arguments.steps):
        for precision, student in students.items():
            started = time.process_time()
            with products(precision), short_attention(model):  # type: ignore[arg-type]
                loss = student(ids, torch.arange(len(ids)))["loss"]
            loss.backward()
            student.zero_grad()
            best[precision] = min(best.get(precision, float("inf")), time.process_time() - started)
    result = {
        "benchmark": "training_step", "model": arguments.model.name, "adapter": arguments.adapter,
        "threads": torch.get_num_threads(), "tokens": ids.numel(),
        "seconds": {name: round(value, 2) for name, value in best.items()},
        "times_as_fast": round(best["float32"] / best["bfloat16"], 2),
    }  # fmt: skip
    publish(result, arguments.out)


def trained(folder: Path, adapter: str, rank: int) -> Any:
    """The model with adapters on all projections, and nothing else to train."""
    model = load_model(folder).requires_grad_(False)
    change_projections(model, spec_of(model).family, lambda linear: ADAPTERS[adapter](linear, rank))
    return model


if __name__ == "__main__":
    main()
