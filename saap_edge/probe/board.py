"""Measuring this machine: memory bandwidth, and the speed of the runtimes' own kernels."""

from __future__ import annotations

import datetime
import importlib.util
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError
from saap_edge.machine.sensors import sensors
from saap_edge.probe.gguf_model import BLOCKS, VOCABULARY, write_probe_model
from saap_edge.probe.onnx_model import CODES, measure_onnx_kernel
from saap_edge.targets import Bandwidth, Figure, Kernel, Target, figures, this_machine

__all__ = ["STEPS", "differences", "implausible", "measure_bandwidth", "measure_kernel", "probe_target", "unstated"]

STEPS = 2 + len(BLOCKS) + len(CODES)  # how often `probe_target` calls `progress`
SIZE = 128 * 2**20  # bytes of a probe model: more than the caches of a board
PROMPT, DECODE, ROUNDS = 64, 16, 5
TOLERANCE = 0.2  # share of a stated figure: smaller differences come from other programs or another day


def probe_target(progress: Callable[[str], None] = lambda _: None) -> Target:
    """Measure bandwidth, and the kernels of the installed runtimes, and return this machine as a target.

    It takes about half a minute, more on a slow board. `progress` is called STEPS times with what was measured. Raises
    SaapError when a runtime dies, or memory is short.
    """
    machine, before = this_machine(), sensors()
    source = f"measured by `saap-edge target probe` on {datetime.date.today()}"

    def figure(value: float, note: str | None = None) -> Figure:
        return Figure(value=round(value, 2), source=source, note=note)

    room = psutil.virtual_memory().available
    size = min(256, room // 2**20 // 6)
    if size < 8:
        raise SaapError(f"only {room // 2**20} MiB of memory are free: a probe needs 50, end other programs first")
    copy, read = measure_bandwidth(size)
    progress("bandwidth, one thread")
    together = read_bandwidth(machine.threads, size)
    progress(f"bandwidth, {machine.threads} threads")
    bandwidth = Bandwidth(
        copy_measured=figure(copy, "one thread, bytes read plus bytes written"),
        read_measured=figure(read, "one thread, largest of float32"),
        read_all_threads=figure(max(together, read), f"{machine.threads} threads, largest of float32"),
    )
    kernels = {}
    for kind, runtime, names, measure in (
        ("gguf", "llama_cpp", BLOCKS, measure_kernel), ("onnx", "onnxruntime", CODES, measure_onnx_kernel),
    ):  # fmt: skip
        for name in names:
            if importlib.util.find_spec(runtime):
                reading, macs = measure(name, machine.threads, min(SIZE, room // 4), ROUNDS)
                kernels[f"{kind}-{name}"] = Kernel(gemv_gb_s=figure(reading), gemm_gmac_s=figure(macs))
            progress(f"{runtime} {name}")
    found = {"bandwidth_gb_s": bandwidth, "kernels": kernels, "source": source}
    return machine.model_copy(update=found | {"conditions": _conditions(before, sensors())})


def measure_bandwidth(mebibytes: int = 256, rounds: int = 7) -> tuple[float, float]:
    """GB/s that one thread (copies, reads): the best of `rounds` over arrays of `mebibytes`, larger than any cache."""
    source = np.ones(mebibytes * 2**18, dtype=np.float32)
    target = np.zeros_like(source)
    copies, reads = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        np.copyto(target, source)
        copies.append(2 * source.nbytes / (time.perf_counter() - start))
        start = time.perf_counter()
        source.max()
        reads.append(source.nbytes / (time.perf_counter() - start))
    return max(copies) / 1e9, max(reads) / 1e9


def read_bandwidth(threads: int, mebibytes: int = 256, rounds: int = 7) -> float:
    """GB/s that `threads` threads read together: the best of `rounds`."""
    pieces = np.array_split(np.ones(mebibytes * 2**18, dtype=np.float32), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            start = time.perf_counter()
            list(pool.map(np.max, pieces))  # numpy releases the interpreter's lock while it reads
            best = max(best, mebibytes * 2**20 / (time.perf_counter() - start))
    return best / 1e9


def measure_kernel(quantisation: str, threads: int, size: int = SIZE, rounds: int = ROUNDS) -> tuple[float, float]:
    """Speed of llama.cpp's kernels: (GB/s of weights that decoding reads, 10^9 multiply-adds a second of prefill).

    A model of that quantisation and of about `size` bytes runs in a child process, with the repacking, threads and
    barriers of a real one. The figure is the best round's, because other programs only slow it down; of a round, the
    median step counts.
    """
    with tempfile.TemporaryDirectory(prefix="saap-edge-probe-") as folder:
        model = write_probe_model(Path(folder) / f"{quantisation}.gguf", quantisation, size)
        prompt = [int(token) for token in np.random.default_rng(0).integers(0, VOCABULARY, PROMPT)]
        with Worker("llama.cpp", model.path, threads, PROMPT + DECODE) as worker:
            timings = [worker.time(prompt, DECODE) for _ in range(1 + rounds)][1:]  # the first warms up
    step = min(float(np.median(timing["decode_s"])) for timing in timings)
    prefill = min(timing["ttft_s"] for timing in timings)
    return model.bytes / step / 1e9, PROMPT * model.prompt_weights / prefill / 1e9


def _conditions(before: dict[str, Any], after: dict[str, Any]) -> str:
    """In words: governor, and temperature, throttling, load and clock before and after, as far as they are known."""
    words = {"temperature_c": "°C", "throttled": "throttled", "load_average": "load", "mhz": "MHz"}
    parts = [f"governor {before['governor']}"] if before.get("governor") else []
    for name, word in words.items():
        if before.get(name) is not None:
            parts.append(f"{word} {before[name]} => {after.get(name)}")
    return ", ".join(parts) or "the system tells nothing of its governor, heat or load"


def implausible(target: Target) -> list[str]:
    """Contradictions between the figures of a target, a line each, for people to check. Missing figures: `unstated`.

    >>> from saap_edge.targets import load_target
    >>> implausible(load_target("rpi5"))
    []
    >>> implausible(load_target("rpi5").model_copy(update={"threads": 8}))
    ['threads 8 are more than the 4 cores']
    """
    known, found = target.bandwidth_gb_s, []
    measured = {
        "copy_measured": known.copy_measured, "read_measured": known.read_measured,
        "read_all_threads": known.read_all_threads, "effective_decode": known.effective_decode,
    }  # fmt: skip
    for name, figure in measured.items():
        if figure and known.theoretical and figure.value > known.theoretical.value:
            found.append(f"bandwidth_gb_s.{name} {figure.value} is above theoretical {known.theoretical.value}")
    together = known.read_all_threads or known.theoretical
    for name, kernel in target.kernels.items():
        if together and kernel.gemv_gb_s.value > 1.5 * together.value:
            found.append(
                f"kernels.{name}.gemv_gb_s {kernel.gemv_gb_s.value} is far above what memory gives, {together.value}: "
                "a cache held the probe's model"
            )
    if target.power_w.idle and target.power_w.load and target.power_w.idle.value > target.power_w.load.value:
        found.append(f"power_w.idle {target.power_w.idle.value} is above load {target.power_w.load.value}")
    found += [
        f"cores.{index}.clock_ghz {core.clock_ghz.value} is no clock of a CPU in GHz"
        for index, core in enumerate(target.cores)
        if core.clock_ghz and not 0.1 <= core.clock_ghz.value <= 7
    ]
    if target.threads > target.core_count and not target.accelerator:
        found.append(f"threads {target.threads} are more than the {target.core_count} cores")
    return found


def unstated(target: Target) -> list[str]:
    """Figures that a target lacks, and what is impossible without them, a line each."""
    if target.bandwidth_gb_s == Bandwidth():
        return ["bandwidth_gb_s: neither plans by latency nor predictions are possible (saap-edge target probe, there)"]
    return []


def differences(stated: Target, measured: Target) -> list[dict[str, Any]]:
    """Compare the bandwidths and kernels that both targets have.

    Returns rows {"figure", "stated", "measured", "ratio": measured over stated, "agrees"}. Only figures that were
    measured in the same way are compared, so not those on paper or seen while decoding.
    """
    known = {name: figure.value for name, figure in figures(measured) if name.startswith(("bandwidth", "kernels"))}
    rows = []
    for name, figure in figures(stated):
        if name in known:
            ratio = known[name] / figure.value
            rows.append({
                "figure": name, "stated": figure.value, "measured": known[name], "ratio": round(ratio, 3),
                "agrees": 1 / (1 + TOLERANCE) <= ratio <= 1 + TOLERANCE,
            })  # fmt: skip
    return rows
