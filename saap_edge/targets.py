"""Boards as YAML files: what a board is, every figure with its source."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from saap_edge.errors import SaapError
from saap_edge.machine.facts import cpu_flags, cpu_name, device_tree
from saap_edge.yaml_lines import load_yaml_model

__all__ = [
    "HOST", "Bandwidth", "Core", "Figure", "Kernel", "Power", "Target", "dump_yaml", "figures", "list_targets",
    "load_target", "matches", "matches_this_machine", "this_machine",
]  # fmt: skip

HOST = "host"
# Instruction sets that decide which kernels the runtimes take, and what the kernel of the system calls some of them.
_FLAGS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "asimdhp", "asimddp", "i8mm",
    "bf16", "sve", "sve2",
)  # fmt: skip
_NAMES = {"asimd": "neon", "asimdhp": "fp16", "asimddp": "dotprod"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Figure(_Strict):
    """A number and where it comes from."""

    value: float = Field(gt=0, description="the number, in the unit of its place")
    source: str = Field(min_length=8, description="where it comes from")
    note: str | None = Field(default=None, description="what a reader must know of it")
    assumed: bool = Field(default=False, description="it is an assumption or an estimate")


class Core(_Strict):
    """Cores of one kind."""

    kind: str = Field(min_length=1, description="their name")
    count: int = Field(ge=1, description="how many there are")
    clock_ghz: Figure | None = Field(default=None, description="highest clock, GHz")
    simd_bits: Figure | None = Field(
        default=None, description="bits of vector arithmetic that one of them starts a cycle, pipes times width"
    )


class Bandwidth(_Strict):
    """Memory bandwidth in GB/s (10^9 bytes)."""

    theoretical: Figure | None = Field(default=None, description="on paper, GB/s")
    copy_measured: Figure | None = Field(default=None, description="copying by one thread, read plus written, GB/s")
    read_measured: Figure | None = Field(default=None, description="reading by one thread, GB/s")
    read_all_threads: Figure | None = Field(default=None, description="reading with all threads, GB/s")
    effective_decode: Figure | None = Field(default=None, description="seen while decoding, GB/s")


class Power(_Strict):
    """Power at the wall in W."""

    idle: Figure | None = Field(default=None, description="when nothing runs, W")
    load: Figure | None = Field(default=None, description="when all cores compute, W")


class Kernel(_Strict):
    """Speeds of one format's kernel that a probe measured, with the target's threads."""

    gemv_gb_s: Figure = Field(description="weights that a product of a matrix and a vector reads, GB/s")
    gemm_gmac_s: Figure = Field(description="multiply-adds of a product with 64 columns, 10^9 a second")


class Why(_Strict):
    """Reasons for what is preferred."""

    threads: str | None = Field(default=None, description="for the number of threads")
    quantisation: str | None = Field(default=None, description="for the quantisation")
    grid: str | None = Field(default=None, description="for the grid")


class Target(_Strict):
    """A board (saap-edge's own engines run on the CPU, whatever `accelerator` says)."""

    name: str = Field(min_length=1, description="as --target takes it")
    title: str = Field(description="for people")
    cpu: str = Field(description="model of the CPU; what the system must call it where `recognise` is empty")
    recognise: list[str] = Field(
        default_factory=list,
        description="words of the CPU's model or the device tree's \"compatible\", any of which tells the board",
    )
    accelerator: str | None = Field(default=None, description="what computes instead of the CPU")
    cores: list[Core] = Field(min_length=1, description="its cores by kind")
    isa: list[str] = Field(default_factory=list, description="instruction sets that decide which kernels are taken")
    ram_mib: list[int] = Field(min_length=1, description="sizes of memory that it is sold with, MiB")
    system_ram_mib: Figure | None = Field(default=None, description="memory that the system itself takes, MiB")
    bandwidth_gb_s: Bandwidth = Field(default=Bandwidth(), description="memory bandwidth, GB/s")
    kernels: dict[str, Kernel] = Field(default_factory=dict, description='probed kernels by format, as "gguf-q4_0"')
    power_w: Power = Field(default=Power(), description="power at the wall, W")
    threads: int = Field(ge=1, description="threads that decode fastest")
    quantisation: dict[str, str] = Field(
        default_factory=lambda: {"gguf": "q4_0", "onnx": "int4"}, description="preferred one of each runtime"
    )
    grid: int = Field(default=32, ge=32, multiple_of=32, description="widths are multiples of this")
    why: Why = Field(default=Why(), description="reasons for what is preferred")
    conditions: str | None = Field(default=None, description="of the probe")
    source: str = Field(description="where cores, instruction sets and sizes of memory come from")

    @model_validator(mode="after")
    def _possible(self) -> Target:
        if self.threads > 2 * self.core_count:
            raise ValueError(f"threads: {self.threads} are more than twice the {self.core_count} cores")
        if self.system_ram_mib and self.system_ram_mib.value >= min(self.ram_mib):
            raise ValueError(f"system_ram_mib: the system takes more than the smallest of ram_mib, {min(self.ram_mib)}")
        return self

    @property
    def core_count(self) -> int:
        """Number of cores of all kinds."""
        return sum(core.count for core in self.cores)

    @property
    def identity(self) -> dict[str, Any]:
        """What results depend on, as JSON. Memory is left out: its total may grow while a virtual machine runs."""
        return self.model_dump(mode="json", exclude={"ram_mib"})

    @property
    def decode_bandwidth(self) -> float:
        """Bytes a second that decoding reads: seen while decoding where known, else measured, else on paper.

        Raises SaapError when the target states no bandwidth.
        """
        known = self.bandwidth_gb_s
        for figure in (
            known.effective_decode, known.read_all_threads, known.read_measured, known.copy_measured, known.theoretical,
        ):  # fmt: skip
            if figure is not None:
                return figure.value * 1e9
        raise SaapError(f"target '{self.name}' states no memory bandwidth: measure it with `saap-edge target probe`")


def _folder() -> Path:
    """The folder of the YAML files: in the package where it was installed from a wheel, beside it in a checkout."""
    packaged = Path(__file__).parent / "_targets"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "targets"


def list_targets() -> list[str]:
    """Names of the boards that come with saap-edge."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_target(name: str) -> Target:
    """A board by name, or from a YAML file.

    `host` is always this machine: the shipped file if that describes it, otherwise what the system tells without
    measuring. Raises SaapError for an unknown name or a malformed file (with line and field).

    >>> board = load_target("rpi5")
    >>> board.core_count, board.threads, board.quantisation["gguf"]
    (4, 4, 'q4_0')
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
    """Whether this machine is that board."""
    return matches(target, {"cpu": cpu_name(), "board": device_tree(), "cores": os.cpu_count()})


def matches(target: Target, machine: Mapping[str, Any]) -> bool:
    """Whether a machine, as `machine_facts` describes it, is that board.

    `recognise` decides where the target has it, otherwise CPU model and number of cores.

    >>> pi = {"cpu": "Cortex-A76", "board": "Raspberry Pi 5 Model B Rev 1.0, brcm,bcm2712", "cores": 4}
    >>> matches(load_target("rpi5"), pi), matches(load_target("rk3588"), pi)
    (True, False)
    """
    if target.recognise:
        names = f"{machine['cpu']}, {machine.get('board') or ''}"
        return any(word in names for word in target.recognise)
    return bool(target.cpu == machine["cpu"] and target.core_count == machine["cores"])


def this_machine() -> Target:
    """This machine as the system describes it; nothing is timed."""
    cores, flags = os.cpu_count() or 1, cpu_flags()
    told = "read from the running system"
    return Target(
        name=HOST,
        title="This machine",
        cpu=cpu_name(),
        cores=[Core(kind="cpu", count=cores, clock_ghz=_clock(told), simd_bits=_simd_bits(flags))],
        isa=[_NAMES.get(flag, flag) for flag in _FLAGS if flag in flags],
        ram_mib=[psutil.virtual_memory().total // 2**20],
        threads=psutil.cpu_count(logical=False) or cores,
        source=told,
    )


def _clock(source: str) -> Figure | None:
    """The highest clock that the kernel states, else the current one, GHz."""
    found = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    megahertz = (found.max or found.current) if found else 0
    return Figure(value=round(megahertz / 1000, 2), source=source) if megahertz else None


def _simd_bits(flags: set[str]) -> Figure:
    """Bits of vector arithmetic a cycle, assumed: two pipes of the widest vectors, as most cores have."""
    width = 512 if "avx512f" in flags else 256 if "avx2" in flags else 128
    return Figure(value=2 * width, source=f"assumed, two {width}-bit pipes", assumed=True)


def figures(target: Target) -> Iterator[tuple[str, Figure]]:
    """Every figure of a target with its place, as "bandwidth_gb_s.theoretical"."""
    yield from _figures(target, "")


def _figures(part: object, place: str) -> Iterator[tuple[str, Figure]]:
    if isinstance(part, Figure):
        yield place, part
    elif isinstance(part, BaseModel):
        for name, value in part:
            yield from _figures(value, f"{place}.{name}".lstrip("."))
    elif isinstance(part, dict):
        for name, value in part.items():
            yield from _figures(value, f"{place}.{name}")
    elif isinstance(part, list):
        for index, value in enumerate(part):
            yield from _figures(value, f"{place}.{index}")


def dump_yaml(target: Target) -> str:
    """The target as the text of its YAML file."""
    return yaml.safe_dump(_lean(target.model_dump(mode="json")), sort_keys=False, width=120, allow_unicode=True)


def _lean(part: Any) -> Any:
    """Without what is empty or says nothing."""
    if isinstance(part, dict):
        lean = {name: _lean(value) for name, value in part.items() if value is not None and value is not False}
        return {name: value for name, value in lean.items() if value not in ({}, [])}
    return [_lean(item) for item in part] if isinstance(part, list) else part
