"""Seconds, memory and quality of compiling, of this build beside an earlier one, on the same machine.

    python benchmarks/compile_time.py --model MODEL.gguf --baseline 75a437c --work WORK --out RESULT.json

Both builds run score, bank, plan, prune and recover by their own commands, each stage of one build right after (or
before) the same stage of the other, so that both meet the same machine. WORK keeps what is done: a stopped run goes
on. `--threads 1` compares arithmetic; `--beside` runs a second process on one core meanwhile.

What counts is in `ratio`: the baseline's seconds over this build's. `cpu` is what the process used of all cores; it
does not grow when the machine is shared. `floor` are the seconds of each stage's unavoidable products of matrices, at
the rates that this machine reached for shapes of this model. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from result import publish

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("score", "bank", "plan", "prune", "recover")
PLANNING = STAGES[:4]
BUSY = "while True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="GGUF file or Hugging Face folder")
    parser.add_argument("--baseline", help="commit of the build to compare with")
    parser.add_argument("--only", choices=("this", "baseline"), help="run one of the two builds; the other later")
    parser.add_argument("--work", type=Path, required=True, help="folder of both runs; kept")
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--tokens", type=int, default=65536, help="of recovery")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE",
                        help="field of this build's recipe alone, as prune.effort=quick")  # fmt: skip
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--beside", action="store_true", help="one core is taken by another process")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    builds = {"this": ROOT} | ({"baseline": checkout(arguments.baseline, work)} if arguments.baseline else {})
    recipes = {name: recipe(arguments, work, name) for name in builds}
    for number, stage in enumerate(arguments.stages.split(",")):
        order = list(builds)[:: -1 if number % 2 else 1]
        for name in order:
            done = work / f"{name}-{stage}.json"
            if arguments.only in (None, name) and not done.is_file():
                found = timed(stage, name, builds[name], recipes[name], work, arguments)
                done.write_text(json.dumps(found), encoding="utf-8")
                print(f"{name} {stage}: {found}", flush=True)
    times = {
        name: {stage: read(path) for stage in STAGES if (path := work / f"{name}-{stage}.json").is_file()}
        for name in builds
    }
    publish(result(arguments, work, times), arguments.out)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def checkout(commit: str, work: Path) -> Path:
    """The sources of a commit, without touching this checkout."""
    folder = work / f"build-{commit}"
    if not folder.is_dir():
        folder.mkdir()
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def recipe(arguments: argparse.Namespace, work: Path, name: str) -> Path:
    """The recipe of one build."""
    fields: dict[str, Any] = {
        "model": str(plain_folder(arguments.model, work)),
        "prune": {"method": arguments.method, "ratio": arguments.ratio},
        "recover": {"tokens": arguments.tokens},
    }
    if name == "this":
        for setting in arguments.set:
            (section, field), value = setting.partition("=")[0].split("."), setting.partition("=")[2]
            fields.setdefault(section, {})[field] = yaml.safe_load(value)
    path = work / f"{name}.json"
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path


def plain_folder(model: Path, work: Path) -> Path:
    """The model as a Hugging Face folder of one weights file, which every build reads."""
    from saap_edge.model.folder import load_model, save_model
    from saap_edge.sources import resolve_model

    folder = work / "dense"
    if not folder.is_dir():
        source, partial = resolve_model(str(model)), work / "dense.partial"
        partial.mkdir(exist_ok=True)
        save_model(load_model(source), source, partial)
        partial.rename(folder)
    return folder


def stage_folder(out: Path, stage: str) -> Path | None:
    return max(out.glob(f"stages/{stage}-*"), key=lambda path: path.stat().st_mtime, default=None)


def timed(
    stage: str, name: str, build: Path, recipe: Path, work: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Run one stage in a process of its own: wall clock and CPU seconds, peak RSS in MiB."""
    out = work / name
    before = STAGES[STAGES.index(stage) - 1]
    given = [str(recipe), "--out", str(out)] if stage == "score" else [str(stage_folder(out, before))]
    environment = os.environ | {"PYTHONPATH": str(build), "OMP_NUM_THREADS": str(arguments.threads)}
    beside = subprocess.Popen([sys.executable, "-c", BUSY]) if arguments.beside else None
    started = time.perf_counter()
    try:
        with (work / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "saap_edge", stage, *given], env=environment, cwd=build, stdout=log, stderr=log
            )
            _, status, used = os.wait4(process.pid, 0)
    finally:
        if beside:
            beside.kill()
    if status:
        raise SystemExit(f"{name}: {stage} failed; the end of {work / f'{name}.log'} says why")
    return {
        "wall": round(time.perf_counter() - started, 1),
        "cpu": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": round(used.ru_maxrss / 1024),
        "threads": arguments.threads,
        "beside": arguments.beside,
    }


def result(arguments: argparse.Namespace, work: Path, times: dict[str, dict[str, Any]]) -> dict[str, Any]:
    quality = {name: documents(work / name) for name in times}
    return {
        "benchmark": "compile_time", "model": arguments.model.name, "baseline": arguments.baseline,
        "prune": {"method": arguments.method, "ratio": arguments.ratio}, "recover_tokens": arguments.tokens,
        "set": arguments.set, "times": times, "quality": quality,
        "ratio": {clock: ratios(times, clock) for clock in ("wall", "cpu")},
        "floor": floor(plain_folder(arguments.model, work), arguments),
    }  # fmt: skip


def floor(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of what no build can leave out, by stage, in the arithmetic that this machine is quickest in.

    Scoring runs every window forward and backward; the bank runs it once and takes second moments; the plan mends and
    judges itself and the uniform plan in the first look; pruning mends once and judges three models; recovery runs
    the teacher once and the student forward and backward to its inputs.
    """
    import torch

    from saap_edge.chain.texts import HELDOUT_WINDOWS
    from saap_edge.model.arithmetic import uses_bfloat16
    from saap_edge.model.checkpoint import read_spec
    from saap_edge.pruning.settings import LOOK
    from saap_edge.recipe import Recipe

    torch.set_num_threads(arguments.threads)
    spec, recipe = read_spec(folder), Recipe()
    clock = time.process_time if arguments.threads == 1 else time.perf_counter  # the first does not see neighbours
    shape = (spec.hidden, spec.layers[0].ffn)
    rates = {name: rate(getattr(torch, name), *shape, clock) for name in ("float32", "bfloat16")}
    fast = "bfloat16" if uses_bfloat16("auto") else "float32"
    layers, head = 2 * spec.layer_parameters(), 2 * spec.vocab_size * spec.hidden
    read, mended, held, look = (
        count * recipe.score.window for count in (recipe.score.samples, recipe.prune.samples, HELDOUT_WINDOWS, LOOK)
    )
    widths = [width for layer in spec.layers for width in (layer.heads * spec.head_dim, layer.ffn)]
    gram = sum(2 * width * width for width in widths)  # of a token
    kept = (1 - arguments.ratio) ** 2 * (gram + sum(2 * width * spec.hidden for width in widths))
    work = {  # operations in `fast`, and in float32
        "score": (read * (3 * layers + 2 * head), 0),
        "bank": (read * layers, read * gram),
        "plan": (3 * (2 * look * layers + look * head), 2 * look * kept),
        "prune": ((2 * mended + 3 * held) * layers + 3 * held * head, mended * kept),
        "recover": (arguments.tokens * (3 * layers + 3 * head), 0),
    }
    seconds = {stage: round(quick / rates[fast] + slow / rates["float32"], 1) for stage, (quick, slow) in work.items()}
    return {"seconds": seconds, "gflops": {name: round(value / 1e9) for name, value in rates.items()}, "in": fast}


def rate(dtype: Any, hidden: int, ffn: int, clock: Callable[[], float]) -> float:
    """Operations a second of a projection of this model, the best of some rounds."""
    import torch

    rows, weight = torch.randn(2048, hidden, dtype=dtype), torch.randn(ffn, hidden, dtype=dtype)
    best = float("inf")
    for _ in range(20):
        started = clock()
        torch.nn.functional.linear(rows, weight)
        best = min(best, clock() - started)
    return 2 * 2048 * hidden * ffn / best


def documents(out: Path) -> dict[str, Any]:
    """What the stages say of quality, and of the plans that were judged."""
    found: dict[str, Any] = {}
    for stage, field in (("plan", "candidates"), ("prune", "heldout_perplexity"), ("recover", "after")):
        folder = stage_folder(out, stage)
        document = read(folder / f"{stage}.json") if folder else {}
        if field in document:
            found[stage] = document[field]
    return found


def ratios(times: dict[str, dict[str, Any]], clock: str) -> dict[str, float]:
    """The baseline's seconds over this build's, by stage and for all stages that lead to a pruned model."""
    this, other = times.get("this", {}), times.get("baseline", {})
    both = [stage for stage in STAGES if stage in this and stage in other]
    found = {stage: round(other[stage][clock] / this[stage][clock], 2) for stage in both}
    if set(PLANNING) <= set(both):
        total = [sum(build[stage][clock] for stage in PLANNING) for build in (other, this)]
        found["score to prune"] = round(total[0] / total[1], 2)
    return found


if __name__ == "__main__":
    main()
