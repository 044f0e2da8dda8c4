"""What `compile` says before it begins, beside what it then takes: seconds and peak memory of every stage.

    python benchmarks/estimate.py --out benchmarks/results/estimate.json
    python benchmarks/estimate.py --model FOLDER --method kfac --tokens 0 --until plan --out RESULT.json
    OMP_NUM_THREADS=1 python benchmarks/estimate.py --cpu --shape smollm2-135m --method kfac --until plan

With --cpu, for a machine that has other things to do: seconds are those of the CPU, of this process and its children,
and one thread does all.

Memory is the sum of resident memory of this process and its children, looked at ten times a second: pages that two of
them share count twice. Rates are taken anew before every stage, to see what else the machine had to do. Prints one JSON
line at the end.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from result import publish, save

from saap_edge.api import recipe_of
from saap_edge.chain.chains import COMPILE, ORDER
from saap_edge.chain.context import open_context
from saap_edge.chain.estimate import estimate_stages, measure_rates
from saap_edge.chain.run import run_stages
from saap_edge.cli.base import console, quiet_libraries
from saap_edge.machine.facts import machine_facts
from saap_edge.model.spec import ModelSpec
from saap_edge.progress import Bars

MIB = 2**20


class Peak:
    """The highest resident memory of this process and its children since `take` was last called."""

    def __init__(self) -> None:
        self._ended, self._highest, self._command = threading.Event(), 0, psutil.Process().cmdline()
        threading.Thread(target=self._look, daemon=True).start()

    def take(self) -> int:
        highest, self._highest = self._highest, 0
        return highest

    def _look(self) -> None:
        own = psutil.Process()
        while not self._ended.wait(0.1):
            total = 0
            for process in (own, *own.children(recursive=True)):
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    if process == own or process.cmdline() != self._command:  # else a fork that is about to be a child
                        total += process.memory_info().rss
            self._highest = max(self._highest, total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Hugging Face folder (default: the bundled model)")
    parser.add_argument("--shape", help="a random model of a known shape instead (benchmarks/shapes.py)")
    parser.add_argument("--recipe", type=Path, help="recipe YAML")
    parser.add_argument("--method", help="as of saap-edge compile")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--tokens", type=int, help="as of saap-edge compile")
    parser.add_argument("--until", choices=ORDER, default=ORDER[-1], help="the last stage to run")
    parser.add_argument("--cpu", action="store_true", help="compare CPU time, with one thread")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as work:
        model = options.model
        if options.shape:
            from shapes import SHAPES, dense_model, write_model

            model = str(write_model(dense_model(SHAPES[options.shape]), Path(work) / options.shape))
        recipe = recipe_of(
            options.recipe, model=model, ratio=options.ratio, method=options.method, tokens=options.tokens
        )
        if options.cpu:
            torch.set_num_threads(1)
            recipe = recipe.model_copy(update={"bench": recipe.bench.model_copy(update={"threads": 1})})
        names = ORDER[: ORDER.index(options.until) + 1]
        result = compare(
            recipe, names, Path(work) / "out", time.process_time if options.cpu else time.perf_counter, options.out
        )
    publish(result, options.out)


def compare(
    recipe: Any, names: tuple[str, ...], out: Path, clock: Callable[[], float], file: Path | None
) -> dict[str, Any]:
    """Run the stages; every one's estimate and what it took, by a clock."""
    job = open_context(recipe, None, Bars(console).bar)
    first, peak, rows = measure_rates(clock), Peak(), []
    if first is None:
        raise SystemExit("there is a GPU: nothing is estimated for it")
    result = {
        "model": job.model_name, "shape": shape_of(job.spec),
        "recipe": recipe.model_dump(mode="json", include={"score", "prune", "recover", "export", "bench"}),
        "seconds_of": "cpu" if clock is time.process_time else "wall",
        "torch_threads": torch.get_num_threads(), "gflops": round(first.flops / 1e9, 1),
        "gbytes": round(first.bytes / 1e9, 1), "machine": machine_facts(), "stages": rows,
    }  # fmt: skip
    estimates, now = estimate_stages(names, job.spec, recipe, first), first

    def done(stage: Any) -> None:
        nonlocal now, spent
        seconds, spent = (_spent() - spent, _spent()) if clock is time.process_time else (stage.seconds, 0.0)
        highest, estimate = peak.take(), estimates.get(stage.name)
        if estimate is not None:
            row = {
                "stage": stage.name, "predicted_s": round(estimate.seconds, 1), "seconds": round(seconds, 1),
                "ratio": round(seconds / estimate.seconds, 2), "gflops_before": round(now.flops / 1e9, 1),
                "predicted_mib": round(estimate.bytes / MIB), "peak_mib": round(highest / MIB),
                "memory_ratio": round(highest / estimate.bytes, 2),
            }  # fmt: skip
            rows.append(row)
            console.print(row)
            save(result, file)
        measure_rates.cache_clear()
        now, spent = measure_rates(clock) or first, _spent()

    spent = _spent()
    run_stages(job, COMPILE, names, out=out, done=done)
    return result


def shape_of(spec: ModelSpec) -> dict[str, Any]:
    """What of a model its estimates depend on."""
    first = spec.layers[0]
    return {
        "hidden": spec.hidden, "head_dim": spec.head_dim, "vocab_size": spec.vocab_size, "tied": spec.tied,
        "layers": len(spec.layers), "widths": [first.heads, first.kv_heads, first.ffn],
    }  # fmt: skip


def _spent() -> float:
    """CPU seconds of this process and of children that have ended."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
