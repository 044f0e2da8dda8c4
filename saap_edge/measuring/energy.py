"""Energy in joules, where the board has a meter. A thread of the measuring process reads it, never the measured one.

A figure is of the whole board or package, idle power included. The first of these meters that answers is used: a power
monitor on the board's input (INA chips, as on Jetson boards), the CPU's own counters (RAPL; Linux lets only root read
them), a Raspberry Pi 5's power management chip (which leaves out devices on its 5 V pins).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from saap_edge.machine.sensors import ROOT, read_number, read_text, vcgencmd

__all__ = ["Meter", "Source", "find_meter", "joules_between"]


@dataclass(frozen=True)
class Source:
    """A source of figures.

    Attributes:
        name: its name, for the document.
        read: returns the joules counted so far, or with `is_power` the watts now; None where it fails.
        is_power: it measures watts.
        seconds: time between samples.
    """

    name: str
    read: Callable[[], float | None]
    is_power: bool
    seconds: float = 0.05


def find_meter(root: Path = ROOT) -> Meter | None:
    """The meter of this board, not yet started; None where the board has none that this process may read."""
    for source in _sources(root):
        if source.read() is not None:
            return Meter(source)
    return None


class Meter:
    """Samples a source. Use it as a context manager; `joules` then gives the energy of any time since."""

    def __init__(self, source: Source) -> None:
        self.name, self._source = source.name, source
        self._samples: list[tuple[float, float]] = []
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Meter:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def joules(self, start: float, end: float) -> float | None:
        """Joules between two times of `time.monotonic`, interpolated; None outside the sampled time."""
        self._sample()
        return joules_between(list(self._samples), self._source.is_power, start, end)

    def _run(self) -> None:
        while not self._stop.wait(self._source.seconds):
            self._sample()

    def _sample(self) -> None:
        with self._lock:
            before = time.monotonic()
            value = self._source.read()
            if value is not None:
                self._samples.append(((before + time.monotonic()) / 2, value))


def joules_between(samples: Sequence[tuple[float, float]], is_power: bool, start: float, end: float) -> float | None:
    """Joules from `start` to `end`, interpolated between samples; None outside the sampled time.

    Samples are (seconds, watts) with `is_power`, else (seconds, joules counted so far).

    >>> joules_between([(0, 4), (1, 4), (3, 8)], is_power=True, start=0, end=3)
    16.0
    >>> joules_between([(0, 100), (2, 110)], is_power=False, start=0.5, end=1)
    2.5
    """
    if len(samples) < 2 or start < samples[0][0] or end > samples[-1][0]:
        return None
    times, total = np.array(samples).T
    if is_power:
        pieces = np.diff(times) * (total[1:] + total[:-1]) / 2
        total = np.concatenate([[0.0], np.cumsum(pieces)])
    first, last = np.interp([start, end], times, total)
    return float(last - first)


def _sources(root: Path) -> Iterator[Source]:
    yield from _hwmon(root)
    yield from _jetson(root)
    yield from _rapl(root)
    if vcgencmd(root, "pmic_read_adc"):
        # Starting a program takes time from what is measured, so that it is done seldom.
        yield Source("pmic", lambda: _rails(vcgencmd(root, "pmic_read_adc") or ""), True, 0.5)


def _hwmon(root: Path) -> Iterator[Source]:
    """INA chips through hwmon. Drivers give microwatts, or millivolts and milliamperes."""
    chips = [chip for chip in sorted(root.glob("sys/class/hwmon/hwmon*")) if re.match(r"ina\d", _label(chip / "name"))]
    for chip in chips:
        for current in sorted(chip.glob("curr[0-9]_input")):
            volts = chip / current.name.replace("curr", "in")
            label = _label(volts.with_name(volts.name.replace("input", "label")))
            if _feeds_all(label):
                yield Source(f"{_label(chip / 'name')} {label}", partial(_product, volts, current), True)
    watts = [chip / "power1_input" for chip in chips if (chip / "power1_input").exists()]
    if len(watts) == 1:  # of several, it is unknown which one feeds the others
        yield Source(_label(watts[0].with_name("name")), partial(_scaled, watts[0], 1e-6), True)


def _jetson(root: Path) -> Iterator[Source]:
    """The same chips through NVIDIA's older driver, which gives milliwatts."""
    for rail in sorted(root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*")):
        if _feeds_all(_label(rail)):
            power = rail.with_name(f"in_power{rail.name.removeprefix('rail_name_')}_input")
            yield Source(f"ina3221x {_label(rail)}", partial(_scaled, power, 1e-3), True)


def _feeds_all(label: str) -> bool:
    """Whether a rail feeds all others, as VDD_IN and POM_5V_IN do."""
    return bool(re.search(r"(^|_)IN$", label))


def _rapl(root: Path) -> Iterator[Source]:
    """RAPL: the whole platform where the CPU counts that, else all packages together."""
    domains = {path: _label(path / "name") for path in sorted(root.glob("sys/class/powercap/intel-rapl:*"))}
    chosen = [path for path, name in domains.items() if name == "psys"]
    chosen = chosen or [path for path, name in domains.items() if name.startswith("package")]
    if chosen:
        yield Source(f"rapl {', '.join(domains[path] for path in chosen)}", _Counters(chosen), False)


class _Counters:
    """Joules of several RAPL domains since the first call. A counter wraps to 0 after max_energy_range_uj."""

    def __init__(self, domains: Sequence[Path]) -> None:
        self._domains, self._last, self._total = domains, dict[Path, float](), 0.0

    def __call__(self) -> float | None:
        for domain in self._domains:
            count, size = read_number(domain / "energy_uj"), read_number(domain / "max_energy_range_uj")
            if count is None or size is None:
                return None
            self._total += (count - self._last.get(domain, count)) % (size + 1)
            self._last[domain] = count
        return self._total / 1e6


def _rails(text: str) -> float | None:
    """Watts of all rails together, from the output of `vcgencmd pmic_read_adc`."""
    amperes = dict(re.findall(r"(\w+)_A current\(\d+\)=([\d.]+)A", text))
    volts = dict(re.findall(r"(\w+)_V volt\(\d+\)=([\d.]+)V", text))
    watts = [float(amperes[name]) * float(volts[name]) for name in amperes if name in volts]
    return sum(watts) if watts else None


def _label(path: Path) -> str:
    return read_text(path) or ""


def _scaled(path: Path, factor: float) -> float | None:
    value = read_number(path)
    return None if value is None else value * factor


def _product(millivolts: Path, milliamperes: Path) -> float | None:
    volts, amperes = _scaled(millivolts, 1e-3), _scaled(milliamperes, 1e-3)
    return None if volts is None or amperes is None else volts * amperes
