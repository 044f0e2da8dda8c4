"""Facts of the machine that belong beside every measurement."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from saap_edge.machine.limits import allowed

__all__ = ["cpu_flags", "cpu_name", "device_tree", "machine_facts", "versions"]

_RUNTIMES = ("saap-edge", "llama-cpp-python", "onnxruntime", "openvino", "numpy")


def machine_facts() -> dict[str, Any]:
    """The machine's CPU, board, cores, limits of this process (limits.py), memory in bytes, frequency governor, load of
    the last minute, architecture, system and Python. What the system does not state is None."""
    import psutil  # which not every environment has that an engine's child runs in

    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "cpu": cpu_name(),
        "board": device_tree(),
        "cores": os.cpu_count() or 1,
        "limits": allowed(),
        "memory_bytes": psutil.virtual_memory().total,
        "governor": governor.read_text().strip() if governor.is_file() else None,
        "load_average": round(os.getloadavg()[0], 2),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Versions of saap-edge, the runtimes and numpy; packages that are not installed are left out."""
    found = {}
    for name in _RUNTIMES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The CPU's model as the kernel names it; on boards without such a name, the board's model."""
    for key in ("model name", "Model"):
        for line in _cpuinfo():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_tree() -> str | None:
    """The board's names in its device tree; None where there is no device tree, as on most x86 machines.

    A Raspberry Pi 5 gives "Raspberry Pi 5 Model B Rev 1.0, raspberrypi,5-model-b, brcm,bcm2712".
    """
    names: list[str] = []
    for name in ("model", "compatible"):
        path = Path("/proc/device-tree", name)
        names += path.read_text(encoding="utf-8", errors="replace").split("\0") if path.is_file() else []
    return ", ".join(filter(None, names)) or None


def cpu_flags() -> set[str]:
    """Instruction set flags of the first CPU."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
