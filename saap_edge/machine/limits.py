"""What a process may use of the machine: the CPUs and memory that affinity and control groups allow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saap_edge.machine.sensors import read_text

__all__ = ["allowed", "memory"]

_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 2**60  # version 1 writes "no limit" as a number near 2**63


def allowed() -> dict[str, Any]:
    """What this process may use: {"cpus": CPUs at once, a fraction under a quota; "memory_bytes": limit or None}."""
    cpus = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    quotas = [quota for folder in _folders("cpu") if (quota := _quota(folder)) is not None]
    limits = [limit for folder in _folders("memory") if (limit := _memory(folder)) is not None]
    return {"cpus": round(min([cpus, *quotas]), 3), "memory_bytes": min(limits, default=None)}


def _folders(controller: str) -> Iterator[Path]:
    """Folders of this process's control group and of those around it, whose limits hold, too."""
    for line in (read_text(Path("/proc/self/cgroup")) or "").splitlines():
        _, names, group = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        root = _CGROUPS / controller if names else _CGROUPS
        inside = root / group.lstrip("/")
        for folder in (inside, *inside.parents):
            if folder.is_relative_to(root):
                yield folder


def _quota(folder: Path) -> float | None:
    """CPUs that cpu.max (version 2) or cpu.cfs_* (version 1) allow; None: no limit."""
    parts = (read_text(folder / "cpu.max") or "").split() or [
        read_text(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")
    ]
    if len(parts) != 2 or not all(part.isdigit() for part in parts):  # "max", or -1, is no limit
        return None
    return int(parts[0]) / int(parts[1])


def _memory(folder: Path) -> int | None:
    """Bytes that memory.max (version 2) or memory.limit_in_bytes (version 1) allow; None: no limit."""
    text = read_text(folder / "memory.max") or read_text(folder / "memory.limit_in_bytes") or ""
    return int(text) if text.isdigit() and int(text) < _UNLIMITED else None


def memory() -> tuple[int, int]:
    """(most memory that this process can have, memory that is free now), bytes.

    The first is the limit of its control group; without one, RAM and swap together.
    """
    import psutil  # which not every environment has that an engine's child runs in

    ram, swap = psutil.virtual_memory(), psutil.swap_memory()
    limits = [(folder, limit) for folder in _folders("memory") if (limit := _memory(folder)) is not None]
    total = min((limit for _, limit in limits), default=ram.total + swap.total)
    return total, max(0, min([ram.available, *(limit - _used(folder) for folder, limit in limits)]))


def _used(folder: Path) -> int:
    """Bytes that a control group's processes hold, without cached pages of files that the kernel can drop."""
    text = read_text(folder / "memory.current") or read_text(folder / "memory.usage_in_bytes") or ""
    lines = (line.split() for line in (read_text(folder / "memory.stat") or "").splitlines())
    held = {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}
    return int(text) - held.get("total_inactive_file", held.get("inactive_file", 0)) if text.isdigit() else 0
