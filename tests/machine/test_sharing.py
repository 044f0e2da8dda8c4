"""Free CPUs, from files as kernels write them, and how ONNX Runtime's threads wait."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from saap_edge.engines import onnxruntime
from saap_edge.engines.onnxruntime import FREE, SPINNING, spinning
from saap_edge.engines.worker import Worker
from saap_edge.exporting.onnx import write_onnx
from saap_edge.machine import sharing
from saap_edge.machine.sharing import free_cpus, shared
from tests.conftest import tiny_model, write_folder

# user nice system idle iowait irq softirq steal guest guest_nice
FIRST = "100 0 50 1000 20 0 0 0 0 0"
BEFORE = f"cpu  1 2 3 4 5 6 7 8 0 0\ncpu0 {FIRST}\ncpu1 {FIRST}\ncpu2 0 0 0 0 0 0 0 0 0 0\n"


def line(name: str, user: int, idle: int, waiting: int, steal: int) -> str:
    return f"{name} {100 + user} 0 50 {1000 + idle} {20 + waiting} 0 0 {steal} 0 0\n"


@pytest.mark.parametrize(
    ("first", "second", "limit", "free"),
    [
        ((0, 20, 0, 0), (0, 15, 5, 0), 2, 2.0),  # waiting for a disk is idle
        ((20, 0, 0, 0), (2, 18, 0, 0), 2, 0.9),
        ((0, 10, 0, 10), (0, 20, 0, 0), 2, 1.5),  # a neighbour of the virtual machine has half of one
        ((0, 20, 0, 0), (0, 20, 0, 0), 0.5, 0.5),  # a quota
    ],
)
def test_free_cpus(first, second, limit, free, tmp_path, monkeypatch):
    """cpu2 is idle, but not for this process."""
    stat = tmp_path / "stat"
    stat.write_text(BEFORE)
    after = line("cpu0", *first) + line("cpu1", *second) + "cpu2 0 0 0 20 0 0 0 0 0 0\nintr 5 6\n"
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(sharing, "allowed", lambda: {"cpus": limit, "memory_bytes": None})
    monkeypatch.setattr(sharing.time, "sleep", lambda seconds: stat.write_text(after))
    assert free_cpus(stat) == pytest.approx(free)


def test_a_system_that_tells_nothing(tmp_path):
    assert free_cpus(tmp_path / "stat", 0.0) is None and not shared(64, None)


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="no /proc")
def test_a_busy_cpu_is_seen():
    """This process's own thread is a user like others, while it lasts."""
    done = threading.Event()

    def burn():
        while not done.is_set():
            sum(range(1000))

    thread = threading.Thread(target=burn)
    thread.start()
    try:
        found = free_cpus(seconds=1.0)
    finally:
        done.set()
        thread.join()
    assert found is not None and 0 <= found < len(os.sched_getaffinity(0)) - 0.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("sharing")
    write_onnx(write_folder(tiny_model("llama"), root / "model"), root / "onnx", "fp32")
    return root / "onnx"


@pytest.mark.parametrize(
    ("free", "said", "expected"),
    [("1.9", None, True), ("1.0", None, False), (None, None, True), ("1.0", "1", True), ("2", "0", False)],
)
def test_how_a_child_waits(free, said, expected, folder, monkeypatch):
    """As the parent found it, unless the user says otherwise; the session's options say the same."""
    told = {} if free is None else {FREE: free}
    monkeypatch.setattr(onnxruntime, "environment", lambda: told)
    monkeypatch.delenv(FREE, raising=False)
    monkeypatch.delenv(SPINNING, raising=False)
    if said:
        monkeypatch.setenv(SPINNING, said)
    with Worker("onnxruntime", folder, 2, 16) as worker:
        assert worker.loaded["spinning"] is expected
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert spinning(2) is expected
    options = onnxruntime.open_session(folder / "model.onnx", 2).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(expected))
