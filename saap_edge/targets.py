"""Boards as YAML files: what a board is, every figure with its source; and a probe of this machine."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path

import numpy as np
import psutil
import yaml
from pydantic import BaseModel, ConfigDict, Field

from saap_edge.bench.machine import cpu_flags, cpu_name
from saap_edge.errors import SaapError
from saap_edge.yaml_lines import load_yaml_model

__all__ = [
    "Figure", "Target", "dump_yaml", "list_targets", "load_target", "matches_this_machine", "measure_bandwidth",
    "probe_target", "this_machine",
]  # fmt: skip

HOST = "host"
# Instruction sets that decide which kernels the runtimes take.
_FLAGS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "neon", "asimd", "asimdhp", "asimddp",
    "i8mm",
    "bf16", "sve", "sve2",
)  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Figure(_Strict):
    """A number and where it comes from."""

    value: float = Field(gt=0)
    source: str = Field(min_length=8)
    note: str | None = None


class Bandwidth(_Strict):
    """Memory bandwidth in GB/s (10^9 bytes): on paper, measured by copying or reading, seen while decoding."""

    theoretical: Figure | None = None
    copy_measured: Figure | None = None
    read_measured: Figure | None = None
    effective_decode: Figure | None = None


class Power(_Strict):
    """Power at the wall in W."""

    idle: Figure | None = None
    load: Figure | None = None


class Target(_Strict):
    """A board."""

    name: str = Field(min_length=1)
    title: str
    cpu: str
    cores: int = Field(ge=1)
    clock_ghz: Figure | None = None
    isa: list[str] = Field(default_factory=list)
    ram_mib: list[int] = Field(min_length=1)
    bandwidth_gb_s: Bandwidth = Bandwidth()
    power_w: Power = Power()
    threads: int = Field(ge=1)
    quantisation: dict[str, str] = Field(default_factory=lambda: {"gguf": "q4_0", "onnx": "int4"})
    grid: int = Field(default=32, ge=32, multiple_of=32)
    source: str

    @property
    def decode_bandwidth(self) -> float:
        """Bytes a second that decoding reads: seen while decoding where known, else measured, else on paper.

        Raises SaapError when the target states none.
        """
        known = self.bandwidth_gb_s
        for figure in (known.effective_decode, known.read_measured, known.copy_measured, known.theoretical):
            if figure is not None:
                return figure.value * 1e9
        raise SaapError(f"target '{self.name}' states no memory bandwidth: measure it with `saap-edge target probe`")


def _folder() -> Path:
    """Inside an installed wheel the files lie in the package, in a checkout beside it."""
    packaged = Path(__file__).parent / "_targets"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "targets"


def list_targets() -> list[str]:
    """Names of the boards that come with saap-edge."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_target(name: str) -> Target:
    """A board by name, or from a YAML file.

    `host` is always this machine: the shipped file where it describes this one, otherwise what the system tells
    without measuring. Raises SaapError for an unknown name or a malformed file (with line and field).
    """
    path = _folder() / f"{name}.yaml"
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise SaapError(f"no target file '{name}'")
    elif name not in list_targets():
        raise SaapError(f"unknown target '{name}' (known: {', '.join(list_targets())}; or give a YAML file)")
    target = load_yaml_model(path, Target)
    return this_machine() if name == HOST and not matches_this_machine(target) else target


def matches_this_machine(target: Target) -> bool:
    """The target's CPU model and core count are this machine's."""
    return target.cpu == cpu_name() and target.cores == os.cpu_count()


def this_machine() -> Target:
    """This machine as the system describes it; nothing is timed."""
    cores = os.cpu_count() or 1
    return Target(
        name=HOST,
        title="This machine",
        cpu=cpu_name(),
        cores=cores,
        isa=[flag for flag in _FLAGS if flag in cpu_flags()],
        ram_mib=[psutil.virtual_memory().total // 2**20],
        threads=psutil.cpu_count(logical=False) or cores,
        source="read from the running system",
    )


def probe_target() -> Target:
    """This machine with its memory bandwidth measured, which takes a few seconds."""
    source = f"measured by `saap-edge target probe` on {datetime.date.today()}"
    copy, read = measure_bandwidth()
    bandwidth = Bandwidth(
        copy_measured=Figure(value=round(copy, 2), source=source, note="one thread, bytes read plus bytes written"),
        read_measured=Figure(value=round(read, 2), source=source, note="one thread, largest of float32"),
    )
    return this_machine().model_copy(update={"bandwidth_gb_s": bandwidth, "source": source})


def measure_bandwidth(mebibytes: int = 256, rounds: int = 7) -> tuple[float, float]:
    """(copy, read) GB/s of one thread, the best of `rounds` over arrays that no cache holds."""
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


def dump_yaml(target: Target) -> str:
    """The target as the text of its YAML file."""
    document = target.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump({k: v for k, v in document.items() if v not in ({}, [])}, sort_keys=False, width=120)
