"""What the system knows of the board's state during a measurement: clock, governor, temperature, throttling, load."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "read_number", "read_text", "sensors", "vcgencmd"]

ROOT = Path("/")


def sensors(root: Path = ROOT) -> dict[str, Any]:
    """The state of the system now. A value is None where the system does not state it.

    Returns {"governor": of the first CPU, "mhz": highest clock of any CPU, "temperature_c": of the hottest zone,
    "throttled": a Raspberry Pi's flags ("0x50000"), or how often an x86 CPU was slowed down for heat since it started,
    "load_average": of the last minute}. `root` is the folder that holds sys and proc.
    """
    return {
        "governor": read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "mhz": _clock(root),
        "temperature_c": _temperature(root),
        "throttled": _throttled(root),
        "load_average": _load(root),
    }


def read_text(path: Path) -> str | None:
    """The text of a file of sysfs; None where it is missing, empty or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def read_number(path: Path) -> float | None:
    """The number in a file of sysfs; None as in `read_text`, and where it holds no number."""
    try:
        return float(read_text(path) or "")
    except ValueError:
        return None


def _largest(root: Path, pattern: str) -> float | None:
    return max((value for path in root.glob(pattern) if (value := read_number(path)) is not None), default=None)


def _clock(root: Path) -> float | None:
    clock = _largest(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")  # kHz
    if clock is not None:
        return round(clock / 1000, 1)
    clocks = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", read_text(root / "proc/cpuinfo") or "", re.MULTILINE)
    return max(map(float, clocks), default=None)


def _temperature(root: Path) -> float | None:
    hottest = _largest(root, "sys/class/thermal/thermal_zone*/temp")  # thousandths of a degree
    if hottest is not None:
        return round(hottest / 1000, 1)
    told = re.search(r"temp=([\d.]+)", vcgencmd(root, "measure_temp") or "")
    return float(told[1]) if told else None


def _throttled(root: Path) -> str | int | None:
    told = re.search(r"throttled=(0x[0-9a-fA-F]+)", vcgencmd(root, "get_throttled") or "")
    if told:
        return told[1]
    counters = root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count")
    counts = [count for path in counters if (count := read_number(path)) is not None]
    return int(sum(counts)) if counts else None


def _load(root: Path) -> float | None:
    first = (read_text(root / "proc/loadavg") or "").split()[:1]
    return float(first[0]) if first else None


def vcgencmd(root: Path, *arguments: str) -> str | None:
    """The answer of a Raspberry Pi's firmware to a vcgencmd command; None on other boards."""
    program = shutil.which("vcgencmd", path=None if root == ROOT else str(root / "usr/bin"))
    if program is None:
        return None
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=5, env=os.environ)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
