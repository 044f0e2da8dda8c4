"""Memory of recovering a model with Llama-3.2-1B's shape, phase by phase, against weights + adapters + activations.

    python benchmarks/recovery_memory.py --out benchmarks/results/recovery-memory.json
    python benchmarks/recovery_memory.py --layers 2 --vocabulary 8192     # a try, in a minute

A random model (benchmarks/scale.py) learns from itself for a few steps a phase; every arm runs in a fresh process.
Peaks are VmHWM, set to zero when a phase starts, less the process's memory after a recovery of a tiny model, which
loads all libraries: pages of mapped files count. The bound of a phase is the sum of

  weights      float32 bytes of the models held: the student, and the teacher where it is in memory. While blocks are
               trained the student holds its codes, scales and offsets instead, beside what is not in blocks. While one
               becomes the other (weights that are pages of one file go together), and when what ships is measured,
               a whole model beside the blocks.
  adapters     5 x their bytes: values, gradients, Adam's two moments, and the values to go back to.
  activations  bytes of unique storages that autograd saves over one forward of the decoder (as benchmarks/scale.py
               counts them; with checkpointing one hidden state a layer, plus the larger of one layer's saved bytes and
               the logits), plus the logits held at a time, of student and teacher. While codes are chosen: calibration
               states, the Gram matrices of one layer, and two more of the widest, which its factors take.
  one weight   what the arithmetic of a single projection takes, the largest: its values and its gradient are made again
               whenever they are needed, and dropped.

What the process has freed does not count: glibc would keep blocks below 32 MiB for later use, so it is told to give
back those of 64 KiB and more (MALLOC_MMAP_THRESHOLD_). --default-malloc leaves it as it is.

The whole is the largest peak of all phases, against the largest bound. Needs 10 GB of disk, 14 GB of memory and an hour
of one core; ends with one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from result import publish, save
from rich.table import Table
from scale import BYTES, child, config_of, console, gib, memory, peaks, run, saved_bytes, write_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from saap_edge.machine.facts import machine_facts
from saap_edge.model import head
from saap_edge.model.adapters import LoraLinear, change_projections
from saap_edge.model.blocks import BLOCK, BLOCK_FORMATS
from saap_edge.model.folder import load_model, spec_of
from saap_edge.recovery import run as stage
from saap_edge.recovery.settings import RecoverSettings
from saap_edge.recovery.start import in_blocks

HELDOUT, TOP, TINY = 2, 64, 256
ARMS: dict[str, dict[str, Any]] = {
    "teacher in memory": {},
    "teacher in memory, checkpointing": {"checkpointing": True},
    "teacher on disk": {"top": TOP},
    "teacher on disk, checkpointing": {"top": TOP, "checkpointing": True},
    "teacher on disk, bfloat16": {"top": TOP, "precision": "bfloat16"},
    "teacher on disk, bfloat16, checkpointing": {"top": TOP, "precision": "bfloat16", "checkpointing": True},
}
# Functions of the stage by which its time divides into phases; what is between them is "rest".
PHASES = {
    "_teacher": "teacher", "_train_weights": "weights", "save_model": "save", "in_blocks": "codes", "train": "blocks",
    "judged": "judge",
}  # fmt: skip


# Measurements, each in a child process.


class Watch:
    """Peaks by phase: one phase is always running."""

    def __init__(self, base: dict[str, int]) -> None:
        self.base, self.found, self.seconds, self.running = base, {}, {}, ""
        self.context = contextlib.ExitStack()

    def go(self, phase: str) -> str:
        """Start a phase, end the one that was running, and return its name."""
        before, self.running = self.running, phase
        self.context.close()
        if phase:
            self.context.enter_context(self._phase(phase))
        return before

    @contextlib.contextmanager
    def _phase(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        with peaks(self.base) as found:
            yield
        known = self.found.setdefault(phase, dict.fromkeys(found, 0))
        known.update({name: max(size, known[name]) for name, size in found.items()})
        self.seconds[phase] = self.seconds.get(phase, 0) + time.perf_counter() - start

    def wrap(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            inner = self.running == "weights"  # training is a function of its own there
            before = self.go("weights" if inner else phase)
            try:
                return function(*arguments, **keywords)
            finally:
                self.go(before)

        return wrapped


def settings_of(job: dict) -> RecoverSettings:
    tokens = 2 * job["steps"] * job["batch"] * job["window"]  # two phases share them
    return RecoverSettings(
        tokens=tokens,
        weights=0.5,
        adapter="lora",
        rank=16,
        batch=job["batch"],
        start=job["start"],
        through=job["through"],
        **({"precision": "float32"} | job["arm"]),
    )


def windows_of(job: dict, vocabulary: int) -> stage.Texts:
    torch.manual_seed(1)

    def random(count: int, window: int) -> torch.Tensor:
        return torch.randint(0, vocabulary, (count, window))

    window, training = job["window"], job["steps"] * job["batch"]
    return stage.Texts(random(job["samples"], 256), random(training, window), random(HELDOUT, window))


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A word for every id: what is saved has the tokenizer of the folder that it came from."""
    words = Tokenizer(models.WordLevel({str(number): number for number in range(vocabulary)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0").save_pretrained(folder)


def child_recover(job: dict, base: dict[str, int]) -> dict:
    """Peaks of the stage as it is, phase by phase."""
    folder, work, settings = Path(job["folder"]), Path(job["work"]), settings_of(job)
    tiny = folder.with_name("tiny")
    stage.recover(
        tiny, tiny, windows_of(job, TINY), settings, group=BLOCK, seed=0, out=work / "tiny", work=work / "tiny-work"
    )
    base |= memory()
    watch = Watch(base)
    vocabulary = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    for name, phase in PHASES.items():
        setattr(stage, name, watch.wrap(getattr(stage, name), phase))
    texts = windows_of(job, vocabulary)
    watch.go("rest")
    try:
        result = stage.recover(
            folder, folder, texts, settings, group=BLOCK, seed=0, out=work / "out", work=work / "work"
        )
    finally:
        watch.go("")
    return {"phases": watch.found, "seconds": watch.seconds, "kept": result["kept"]}


def child_count(job: dict, base: dict[str, int]) -> dict:
    """Bytes of weights, adapters and activations, of the student in both of its forms."""
    settings, model = settings_of(job), load_model(job["folder"])
    family, format = spec_of(model).family, BLOCK_FORMATS[settings.format]
    batch = windows_of(job, model.config.vocab_size).training[: job["batch"]]
    result: dict[str, Any] = {"weights": _bytes(model.parameters()), "largest": _largest(model, family)}

    def form(student: Any) -> dict[str, int]:
        adapters = _bytes(value for value in student.parameters() if value.requires_grad)
        held = _bytes([*student.parameters(), *(buffer for buffer in student.buffers())]) - adapters
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bfloat16"):
            saved, layer = saved_bytes(student, batch)
        return {"held": held, "adapters": adapters, "saved": saved, "layer": layer}

    model.requires_grad_(False)
    change_projections(model, family, lambda linear: LoraLinear(linear, settings.rank))
    result["lora"] = form(model)
    change_projections(model, family, lambda lora: lora.merge())
    result["blocks"] = form(in_blocks(model, family, format, rank=settings.rank, through=settings.through))
    return result


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _largest(model: Any, family: Any) -> int:
    weights = [
        layer.get_submodule(name).weight for layer in model.model.layers for _, name in family.projections(layer)
    ]
    return max(map(torch.Tensor.numel, weights))


def measured(job: dict) -> dict:
    environment = os.environ | ({} if job["default_malloc"] else {"MALLOC_MMAP_THRESHOLD_": "65536"})
    with tempfile.TemporaryDirectory(prefix="saap-edge-recovery-", dir=Path(job["folder"]).parent) as work:
        return run(job | {"work": work}, __file__, environment)


# Bounds.


def bounds_of(job: dict, count: dict, config: Any) -> dict[str, dict[str, int]]:
    """What a phase may hold, in parts; bytes."""
    arm, hidden, vocabulary = job["arm"], config.hidden_size, config.vocab_size
    width = BYTES[arm.get("precision", "float32")]
    rows = min(head.LOGITS // vocabulary, job["batch"] * (job["window"] - 1))
    teacher = 0 if "top" in arm else count["weights"]
    logits = rows * vocabulary * (12 + (4 if width == 2 else 0) + (8 if teacher else 0))
    scored = job["window"] * vocabulary * 12 * max(1, min(HELDOUT, 2**25 // (job["window"] * vocabulary)))
    states = job["samples"] * 256 * hidden * 4 if job["start"] != "nearest" else 0

    def training(form: dict[str, int]) -> dict[str, int]:
        saved = form["saved"] + logits
        if arm.get("checkpointing"):
            one_state = job["batch"] * job["window"] * hidden * 4
            saved = config.num_hidden_layers * one_state + max(form["layer"], logits)
        return {"weights": form["held"] + teacher, "adapters": 5 * form["adapters"], "activations": max(saved, scored)}

    blocks, weights = count["blocks"], count["weights"]
    tuned = blocks["held"] - vocabulary * hidden * 4
    gram = 3 * config.intermediate_size**2 * 4 + 4 * hidden**2 * 4 if states else 0
    one = {
        "weights": 2 * 4,
        "codes": 8 * 4,
        "blocks": 6 * 4,
        "judge": 8 * 4,
        "rest": 8 * 4,
    }  # float32 copies; float64 counts twice
    parts = {
        "teacher": {"weights": weights, "activations": 0 if teacher else scored},
        "weights": training(count["lora"]),
        "save": {"weights": weights + teacher},
        "codes": {
            "weights": weights + tuned + teacher,
            "adapters": blocks["adapters"],
            "activations": 3 * states + gram,
        },
        "blocks": training(blocks),
        "judge": {"weights": weights + tuned, "activations": scored},
        "rest": {"weights": weights + teacher + blocks["held"], "activations": scored},
    }
    return {name: part | {"one weight": one.get(name, 0) * count["largest"]} for name, part in parts.items()}


def row_of(name: str, job: dict, count: dict, measured: dict, config: Any) -> dict:
    """Judged figures of an arm."""
    bounds = bounds_of(job, count, config)
    phases = {
        phase: {
            **found, "parts": bounds[phase], "bound": sum(bounds[phase].values()),
            "met": found["peak"] <= sum(bounds[phase].values()), "seconds": round(measured["seconds"][phase], 1),
        }
        for phase, found in measured["phases"].items()
    }  # fmt: skip
    peak, bound = (max(phase[figure] for phase in phases.values()) for figure in ("peak", "bound"))
    return {
        "arm": name, "settings": job["arm"], "phases": phases, "peak": peak, "bound": bound, "met": peak <= bound,
        "base_rss": measured["base_rss"], "kept": measured["kept"],
    }  # fmt: skip


def show(row: dict) -> None:
    table = Table(title=f"{row['arm']}: peak memory, GiB, less the libraries'")
    for column in (
        "phase", "peak", "bound", "met", "weights", "adapters", "activations", "one weight", "own", "mapped", "s",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for name, phase in row["phases"].items():
        parts = (gib(phase["parts"].get(part, 0)) for part in ("weights", "adapters", "activations", "one weight"))
        table.add_row(
            name, gib(phase["peak"]), gib(phase["bound"]), "yes" if phase["met"] else "no", *parts, gib(phase["own"]),
            gib(phase["mapped"]), f"{phase['seconds']:.0f}",
        )  # fmt: skip
    table.add_row("whole", gib(row["peak"]), gib(row["bound"]), "yes" if row["met"] else "no")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--batch", type=int, default=2, help="windows a step (default 2)")
    parser.add_argument("--window", type=int, default=128, help="tokens of training and held-out windows (default 128)")
    parser.add_argument("--steps", type=int, default=2, help="a phase (default 2)")
    parser.add_argument("--start", default="nearest", choices=["nearest", "weighted", "gptq"], help="(default nearest)")
    parser.add_argument("--samples", type=int, default=64, help="calibration windows of 256 tokens (default 64)")
    parser.add_argument("--through", action="store_true")
    parser.add_argument("--dtype", default="float32", choices=list(BYTES), help="of the file (default float32)")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--default-malloc", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="save the JSON document here too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(json.loads(args.child), {"count": child_count, "recover": child_recover})
        return

    config, rows, counts = config_of(args.layers, args.vocabulary), [], {}
    names = ("batch", "window", "steps", "start", "samples", "through", "threads", "default_malloc")
    job = {name: getattr(args, name) for name in names}
    with tempfile.TemporaryDirectory(prefix="saap-edge-scale-") as name:
        folder = Path(name) / "model"
        write_model(folder, config, args.dtype)
        write_tokenizer(folder, config.vocab_size)
        tiny = config_of(1, TINY)
        tiny.hidden_size, tiny.intermediate_size, tiny.num_attention_heads, tiny.num_key_value_heads = 64, 128, 1, 1
        write_model(folder.with_name("tiny"), tiny, args.dtype)
        write_tokenizer(folder.with_name("tiny"), TINY)
        for arm in args.arms:
            job |= {"folder": str(folder), "arm": ARMS[arm]}
            precision = ARMS[arm].get("precision")
            with console.status(arm):
                if precision not in counts:
                    counts[precision] = measured(job | {"what": "count"})
                rows.append(row_of(arm, job, counts[precision], measured(job | {"what": "recover"}), config))
            show(rows[-1])
            result = {
                "benchmark": "recovery_memory",
                "shape": {"layers": args.layers, "vocabulary": args.vocabulary, "hidden": config.hidden_size},
                "machine": machine_facts(), "torch": torch.__version__, "file": args.dtype,
                "conditions": {name: job[name] for name in names}, "counts": list(counts.values()), "rows": rows,
            }  # fmt: skip
            save(result, args.out)  # after every arm: all take an hour
    publish(result, args.out)


if __name__ == "__main__":
    main()
