"""Sweeps of a tiny model, and the command line in a process of its own, which can be ended from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from tests.conftest import TEXT, tiny_model, write_folder
from tests.test_cli import SMALL

ROOT = Path(__file__).parents[2]


def tiny_base(folder: Path, **changes) -> dict:
    """A recipe of a tiny model that asks for little work."""
    model = write_folder(tiny_model("llama"), folder / "model")
    text = folder / "text.txt"
    text.write_text(TEXT * 3)
    texts = dict.fromkeys(("calibration", "heldout", "test"), str(text))
    prune = {"method": "saap", "ratio": 0.3}
    return {"model": str(model), "data": texts, **SMALL, "prune": prune, "export": {"formats": ["gguf-q8_0"]}} | changes


def write_sweep(folder: Path, document: dict, name: str = "sweep.yaml") -> Path:
    (folder / name).write_text(yaml.safe_dump(document, sort_keys=False))
    return folder / name


def start(*arguments, **environment) -> subprocess.Popen:
    """`saap-edge sweep` as a user starts it, in a process group that Ctrl-C reaches, and that does not ignore it."""
    return subprocess.Popen(
        [sys.executable, "-m", "saap_edge", "sweep", *map(str, arguments)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def ended(process: subprocess.Popen, seconds: float = 300) -> tuple[int, dict | None, str]:
    """(exit code, JSON document on stdout, stderr)."""
    stdout, stderr = process.communicate(timeout=seconds)
    return process.returncode, json.loads(stdout) if stdout else None, stderr


def working_on(out: Path, stage: str, process: subprocess.Popen, seconds: float = 120) -> tuple[str, int]:
    """Wait until a stage of that name is being made: (its key, its process), as its temporary folder says."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit and process.poll() is None:
        for path in (out / "stages").glob(f".tmp-{stage}-*"):
            _, name, digest, number = path.name.split("-")
            return f"{name}-{digest}", int(number)
        time.sleep(0.002)
    raise AssertionError(f"no {stage} was begun: {process.communicate()[1] if process.poll() is not None else ''}")
