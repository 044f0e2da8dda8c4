"""A phone through adb, Android's debug bridge: files go to a folder of their own there, programs run in its shell.

Never run on a phone: tested against a stand-in of adb that runs the commands here (docs/measuring.md).
"""

from __future__ import annotations

import re
import secrets
import shlex
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from saap_edge.errors import SaapError

__all__ = ["FOLDER", "Phone"]

FOLDER = "/data/local/tmp"  # the one place where adb's shell may write and run programs
SHORT = 60.0  # seconds for a question
LONG = 1800.0  # and for sending a file
SLACK = 2**24  # bytes that stay free
MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64"}  # of ELF headers (e_machine), as uname has them
ALSO = {"aarch64": ("armv7l",), "armv8l": ("armv7l",), "x86_64": ("i686",)}  # what a processor may run besides

_FACTS = {
    "maker": "getprop ro.product.manufacturer", "model": "getprop ro.product.model",
    "soc_maker": "getprop ro.soc.manufacturer", "soc": "getprop ro.soc.model",
    "android": "getprop ro.build.version.release", "architecture": "uname -m", "kernel": "uname -r", "cores": "nproc",
    "memory": "grep MemTotal /proc/meminfo", "load": "cat /proc/loadavg",
    "governor": "cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
}  # fmt: skip
_CLOCKS = "cat /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"


class Phone:
    """A device that `adb devices` lists by `serial`. Inside `with`, it has a folder for what is pushed."""

    def __init__(self, serial: str) -> None:
        """Raises SaapError where there is no adb."""
        self.serial, self.folder = serial, f"{FOLDER}/saap-edge-{secrets.token_hex(4)}"
        program = shutil.which("adb")
        if program is None:
            raise SaapError("--adb needs adb on the PATH: install Android's platform tools (package adb)")
        self._adb, self._there = program, dict[Path, str]()

    def __enter__(self) -> Phone:
        """Raises SaapError where the device is not connected, or does not let us in."""
        listed = self._run([self._adb, "devices"], SHORT).stdout.splitlines()[1:]
        states = dict(line.split(maxsplit=1) for line in listed if len(line.split()) > 1)
        state = states.get(self.serial)
        if state is None:
            known = ", ".join(states) or "none: connect it, and switch USB debugging on"
            raise SaapError(f"adb knows no device '{self.serial}' (it knows {known})")
        if not state.startswith("device"):
            what = "allow this computer on its screen" if state.startswith("unauthorized") else "connect it again"
            raise SaapError(f"the device '{self.serial}' is {state.split()[0]}: {what}")
        self.shell(["mkdir", "-p", self.folder])
        return self

    def __exit__(self, *_: object) -> None:
        """End what still runs there, and remove the folder."""
        gone = f"kill $(cat {self.folder}/pid) 2>/dev/null; rm -rf {self.folder}"
        with suppress(SaapError):
            self._run([self._adb, "-s", self.serial, "shell", gone], SHORT)

    def push(self, path: Path) -> str:
        """The place of a file on the phone, where it is sent to once; files of one folder stay side by side.

        Raises SaapError when the phone has no room for it.
        """
        if path not in self._there:
            parents = list(dict.fromkeys([*(other.parent for other in self._there), path.parent]))
            place, size = f"{self.folder}/{parents.index(path.parent)}", path.stat().st_size
            free = self._free()
            if free is not None and size + SLACK > free:
                raise SaapError(
                    f"'{self.serial}' has no space: '{path.name}' takes {size / 2**20:.0f} MiB, and {free / 2**20:.0f} "
                    f"MiB are free in {FOLDER}"
                )
            self.shell(["mkdir", "-p", place])
            done = self._run([self._adb, "-s", self.serial, "push", str(path), f"{place}/{path.name}"], LONG)
            if done.returncode:
                raise SaapError(f"'{path.name}' cannot be sent to '{self.serial}': {_last(done)}")
            self._there[path] = f"{place}/{path.name}"
        return self._there[path]

    def push_program(self, path: Path) -> str:
        """The same for a program, with the libraries (.so) beside it. Raises SaapError for another processor's."""
        if path in self._there:
            return self._there[path]
        made, here = _machine(path), self.shell(["uname", "-m"]).strip()
        if made is not None and made not in (here, *ALSO.get(here, ())):
            raise SaapError(
                f"'{path}' is a program for {made}, and '{self.serial}' is {here}: take llama.cpp for Android"
            )
        place = self.push(path)
        for library in sorted(path.parent.glob("*.so*")):
            self.push(library)
        self.shell(["chmod", "755", place])
        return place

    def program(self, command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
        """Run a program that was pushed; it is ended with the phone's folder."""
        folder = command[0].rpartition("/")[0]
        words = f"echo $$ > {self.folder}/pid; LD_LIBRARY_PATH={folder} exec {shlex.join(command)}"
        return self._run([self._adb, "-s", self.serial, "shell", words], seconds)

    def shell(self, command: list[str]) -> str:
        """What a command prints there. Raises SaapError where it fails."""
        done = self._run([self._adb, "-s", self.serial, "shell", shlex.join(command)], SHORT)
        if done.returncode:
            raise SaapError(f"'{command[0]}' failed on '{self.serial}': {_last(done)}")
        return done.stdout

    @property
    def cores(self) -> int:
        """CPUs of the phone."""
        return int(self.facts()["cores"])

    def facts(self) -> dict[str, Any]:
        """The phone as `machine_facts` describes this machine. What it does not tell is None."""
        asked = "; ".join(f'echo "{name}=$({command} 2>/dev/null)"' for name, command in _FACTS.items())
        told = dict(line.partition("=")[::2] for line in self._text(asked).splitlines() if "=" in line)
        memory, load = re.search(r"(\d+) kB", told.get("memory", "")), told.get("load", "").split()
        chip = " ".join(filter(None, (told.get("soc_maker"), told.get("soc"))))
        return {
            "cpu": chip or told.get("architecture") or "unknown", "cores": int(told.get("cores") or 1),
            "board": " ".join(filter(None, (told.get("maker"), told.get("model")))) or None,
            "memory_bytes": int(memory[1]) * 1024 if memory else None, "governor": told.get("governor") or None,
            "load_average": float(load[0]) if load else None, "architecture": told.get("architecture") or None,
            "system": f"Android {told.get('android') or '?'}, Linux {told.get('kernel') or '?'}", "host": self.serial,
        }  # fmt: skip

    def sensors(self) -> dict[str, Any]:
        """The phone's state, as `machine.sensors` has it. `throttled` is Android's thermal status, 0 to 6."""
        clocks = [int(word) for word in self._text(f"{_CLOCKS} 2>/dev/null").split() if word.isdigit()]
        heat = self._text("dumpsys thermalservice 2>/dev/null")
        status = re.search(r"Thermal Status: (\d+)", heat)
        current = heat.partition("Current temperatures from HAL")[2].partition("Current cooling")[0]
        degrees = [float(value) for value in re.findall(r"mValue=(-?[\d.]+), mType=0\b", current)]
        return {
            "mhz": max(clocks) / 1000 if clocks else None, "temperature_c": max(degrees, default=None),
            "throttled": int(status[1]) if status else None,
        }  # fmt: skip

    def _free(self) -> int | None:
        """Free bytes; None where they are not told."""
        lines = self._text(f"df -k {FOLDER} 2>/dev/null").splitlines()
        found = lines[-1].split() if len(lines) > 1 else []
        return int(found[3]) * 1024 if len(found) > 3 and found[3].isdigit() else None

    def _text(self, words: str) -> str:
        return self._run([self._adb, "-s", self.serial, "shell", words], SHORT).stdout

    def _run(self, command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=seconds, stdin=subprocess.DEVNULL
            )
        except OSError as error:
            raise SaapError(f"'{command[0]}' does not run: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise SaapError(f"'{self.serial}' gave no answer in {seconds:.0f} s") from None


def _machine(path: Path) -> str | None:
    """The processor that an ELF program is for; None for another file."""
    with path.open("rb") as file:
        head = file.read(20)
    known = head[:4] == b"\x7fELF"
    return MACHINES.get(int.from_bytes(head[18:20], "little"), "another processor") if known else None


def _last(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a program printed."""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1][:200] if lines else f"exit code {done.returncode}, without a word"
