"""12 recipes of the bundled model on two Ray nodes of this machine, beside one `compile` after another on its CPUs.

    make test-cluster                                                          its environment has Ray
    .venv-cluster/bin/python benchmarks/sweep.py --work WORK --out RESULT.json
    python benchmarks/sweep.py --work WORK --only kills --kills 3 --ratios 0.2 0.4 --tokens 2048

The same recipes run in three ways: `compile` of each in one folder (which finds what earlier ones made), `sweep` here,
and `sweep --ray` on two nodes with half of the CPUs each. `ray_overhead` is what the last takes more than the one
before it, as a share; its start of libraries on the nodes included. `--only` runs some of the parts.

Then a node is killed (kill -9 of its raylet) at `--kills` moments, drawn by lot over the time that the sweep takes
undisturbed, each in a sweep of its own. `equal` says that plans, recovered models, codes and files are those of the
serial run bit by bit, `whole` that no stage folder is half-written. All of it computes with one thread, so that bits
can be compared, but for `--threads`, which is for the serial run whose time counts. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from result import publish

from saap_edge.cache import read_stage
from saap_edge.files import file_hash
from saap_edge.machine.facts import cpu_name, versions

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("serial", "threads", "here", "ray", "kills")
# What is compared bit by bit: bench figures differ from run to run, and all that is made of them.
COMPARED = {
    "plan": "plan.json", "prune": "model/*.safetensors", "recover": "model/*.safetensors", "dense": "*/*",
    "export": "*/*",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.2, 0.25, 0.3, 0.4, 0.5])
    parser.add_argument("--tokens", type=int, default=16384, help="of recovery; every ratio is run without it, too")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the serial run whose time counts")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    file = sweep_file(arguments, work)
    result: dict[str, Any] = {
        "benchmark": "sweep", "cpu": cpu_name(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2),
        "ratios": arguments.ratios, "tokens": arguments.tokens, "versions": versions() | {"ray": ray_version()},
    }  # fmt: skip
    if "threads" in arguments.only:
        result["serial_all_threads"] = serial(file, work / "threads", arguments.threads)
    if {"serial", "kills", "ray"} & set(arguments.only):
        result["serial"] = serial(file, work / "serial", 1)
    if "here" in arguments.only:
        result["here"] = told(*swept(file, work / "here"), work / "here", work / "serial")
    if {"ray", "kills"} & set(arguments.only):
        result |= on_ray(file, work, arguments)
    if {"here", "ray"} <= result.keys():
        result["ray_overhead"] = round(result["ray"]["seconds"] / result["here"]["seconds"] - 1, 3)
    publish(result, arguments.out)


def ray_version() -> str:
    import ray

    return str(ray.__version__)


def sweep_file(arguments: argparse.Namespace, work: Path) -> Path:
    document = {
        "base": {
            "prune": {"method": "saap"}, "score": {"samples": 16}, "export": {"formats": ["gguf-q4_0"]},
            "bench": {"threads": 1, "rounds": 5, "perplexity_windows": 4},
        },
        "axes": {"prune.ratio": arguments.ratios, "recover.tokens": [0, arguments.tokens]},
    }  # fmt: skip
    (work / "sweep.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return work / "sweep.yaml"


def command(*words: Any, threads: int = 1) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "saap_edge", *map(str, words)], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    stdout, stderr = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(process.args[3:])}: exit {process.returncode}\n{stderr}")  # type: ignore[index]
    return json.loads(stdout)  # type: ignore[no-any-return]


def serial(file: Path, out: Path, threads: int) -> dict[str, Any]:
    """One `compile` after another, in one folder."""
    from saap_edge.sweeping.document import load_sweep

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    entries, _ = load_sweep(file)
    started, stages = time.perf_counter(), dict[str, dict[str, str]]()
    for entry in entries:
        recipe = out / f"{entry.name}.yaml"
        recipe.write_text(yaml.safe_dump(entry.recipe.model_dump(mode="json")), encoding="utf-8")
        run = finished(command("compile", recipe, "--out", out, "--json", threads=threads))
        stages[entry.name] = {each["stage"]: Path(each["folder"]).name for each in run["stages"]}
    seconds = time.perf_counter() - started
    (out / "names.json").write_text(json.dumps(stages), encoding="utf-8")
    return {"seconds": round(seconds, 1), "recipes": len(entries), "threads": threads}


def swept(file: Path, out: Path, *options: Any) -> tuple[dict[str, Any], float]:
    """A whole sweep: its document, and seconds from its start to its end."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    document = finished(command("sweep", file, "--out", out, "--threads", 1, "--json", *options))
    return document, time.perf_counter() - started


def told(document: dict[str, Any], seconds: float, out: Path, reference: Path) -> dict[str, Any]:
    """What a sweep took, what it shared, and whether its results are those of the reference."""
    counts = Counter(stage["stage"] for stage in document["stages"])
    wanted = sum(len(recipe["stages"]) for recipe in document["recipes"])
    return {
        "seconds": round(seconds, 1), "stages_wanted": wanted, "stages_made": len(document["stages"]),
        "made": dict(counts), "stage_seconds": round(sum(stage["seconds"] for stage in document["stages"]), 1),
        "equal": contents(out, document) == reference_contents(reference) if reference.is_dir() else None,
        "whole": whole(out),
    }  # fmt: skip


def contents(out: Path, document: dict[str, Any]) -> dict[str, str]:
    return hashes(out, {recipe["name"]: recipe["stages"] for recipe in document["recipes"]})


def reference_contents(out: Path) -> dict[str, str]:
    return hashes(out, json.loads((out / "names.json").read_text(encoding="utf-8")))


def hashes(out: Path, recipes: dict[str, dict[str, str]]) -> dict[str, str]:
    """Hashes of plans, models, codes and files by recipe and path."""
    return {
        f"{name} {stage} {path.relative_to(out / 'stages' / keys[stage])}": content_hash(path)
        for name, keys in recipes.items()
        for stage, pattern in COMPARED.items()
        for path in sorted((out / "stages" / keys[stage]).glob(pattern))
        if path.is_file()
    }


def content_hash(path: Path) -> str:
    """Hash of a file. Of safetensors the header counts as JSON: its entries are written in an order drawn by lot."""
    if path.suffix != ".safetensors":
        return file_hash(path)
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    head = json.dumps(json.loads(data[8:end]), sort_keys=True).encode()
    return hashlib.sha256(head + data[end:]).hexdigest()


def whole(out: Path) -> bool:
    """Whether all folders are finished stages whose files are as their records say, and nothing else is there."""
    for folder in (out / "stages").iterdir():
        if folder.name.startswith("."):
            return False
        record = read_stage(folder)
        for name, (size, *digest) in record["files"].items():
            path = folder / name
            if path.stat().st_size != size or (digest and file_hash(path) != digest[0]):
                return False
    return True


def on_ray(file: Path, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The sweep on two nodes, undisturbed and with a node killed."""
    from ray.cluster_utils import Cluster

    half = max(1, (os.cpu_count() or 2) // 2)
    os.environ["PYTHONPATH"] = str(ROOT)
    quick = {"health_check_period_ms": 500, "health_check_timeout_ms": 1500, "health_check_failure_threshold": 3}
    head = {"num_cpus": half, "resources": {"board:host": 1}, "_system_config": quick}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    nodes.add_node(num_cpus=half)
    try:
        options = ("--ray", nodes.address)
        found: dict[str, Any] = {"ray": told(*swept(file, work / "ray", *options), work / "ray", work / "serial")}
        if "kills" in arguments.only:
            moments, lot = [], random.Random(arguments.seed)
            for number in range(arguments.kills):
                moments.append(killed(nodes, file, work, lot.uniform(0, found["ray"]["seconds"]), half))
                print(f"kill {number + 1}: {moments[-1]}", file=sys.stderr, flush=True)
            found["kills"] = moments
    finally:
        nodes.shutdown()
    return found


def killed(nodes: Any, file: Path, work: Path, moment: float, cpus: int) -> dict[str, Any]:
    """A sweep whose second node is killed after `moment` seconds; another node comes in its place."""
    out = work / "killed"
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    process = command("sweep", file, "--out", out, "--threads", 1, "--json", "--ray", nodes.address)
    time.sleep(moment)
    running = process.poll() is None
    victim = nodes.list_all_nodes()[-1]
    os.kill(victim.all_processes["raylet"][0].process.pid, signal.SIGKILL)
    made = {path.name: path.stat().st_ino for path in (out / "stages").glob("[a-z]*-*")}
    nodes.remove_node(victim, allow_graceful=False)
    nodes.add_node(num_cpus=cpus)
    document = finished(process)
    kept = all((out / "stages" / name).stat().st_ino == number for name, number in made.items())
    result = told(document, time.perf_counter() - started, out, work / "serial")
    return {"after": round(moment, 1), "running": running, "made_before": len(made), "kept": kept} | {
        name: result[name] for name in ("seconds", "equal", "whole")
    }


if __name__ == "__main__":
    main()
