"""Which cores rounds run on: against trees of files as kernels write them, and on real processes."""

import os
import random
from pathlib import Path

import pytest

from saap_edge.engines.worker import Worker
from saap_edge.exporting.gguf import write_gguf
from saap_edge.measuring.conditions import Subject
from saap_edge.measuring.contexts import _rounds
from saap_edge.measuring.cores import draw_cores, fastest_cores, share_cores
from saap_edge.measuring.measure import BenchConditions, Harness
from tests.conftest import tiny_model, write_folder

cpus_to_choose_from = pytest.mark.skipif(
    len(fastest_cores(1)) < 2, reason="this process has no two cores of one kind to choose from"
)


def system(monkeypatch, root: Path, speeds: dict[int, int], siblings: dict[int, str], name: str) -> Path:
    """A machine with these CPUs, all of them allowed."""
    for cpu in speeds:
        folder = root / f"cpu{cpu}"
        (folder / "topology").mkdir(parents=True)
        (folder / "topology" / "thread_siblings_list").write_text(f"{siblings[cpu]}\n")
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{speeds[cpu]}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(speeds), raising=False)
    return root


def test_only_big_cores_of_a_board(monkeypatch, tmp_path):
    """RK3588: four A55 and four A76."""
    speeds = {cpu: 414 if cpu < 4 else 1024 - cpu for cpu in range(8)}
    root = system(monkeypatch, tmp_path, speeds, {cpu: str(cpu) for cpu in range(8)}, "cpu_capacity")
    assert fastest_cores(2, root) == [[4], [5], [6], [7]]
    assert fastest_cores(4, root) == []  # all of them, and nothing to draw
    assert fastest_cores(6, root) == []  # some of the small ones too: which, the system decides


def test_one_thread_a_core(monkeypatch, tmp_path):
    """A laptop: four cores of two hardware threads, one of them favoured."""
    speeds = {cpu: 4_200_000 if cpu in (0, 4) else 4_000_000 for cpu in range(8)}
    pairs = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}
    root = system(monkeypatch, tmp_path, speeds, pairs, "cpufreq/cpuinfo_max_freq")
    assert fastest_cores(4, root) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert fastest_cores(5, root) == []
    dice = random.Random(0)
    for drawn in (draw_cores(fastest_cores(3, root), 3, dice) for _ in range(50)):
        assert len({cpu % 4 for cpu in drawn}) == 3


def test_only_the_faster_cores_of_a_hybrid(monkeypatch, tmp_path):
    """By their highest clock, where the kernel tells no capacity."""
    speeds = {0: 4_700_000, 1: 4_700_000, 2: 3_500_000, 3: 3_500_000}
    root = system(monkeypatch, tmp_path, speeds, {cpu: str(cpu) for cpu in speeds}, "cpufreq/cpuinfo_max_freq")
    assert fastest_cores(1, root) == [[0], [1]]


def test_one_core_of_two_threads(monkeypatch, tmp_path):
    root = system(monkeypatch, tmp_path, {0: 1, 1: 1}, {0: "0-1", 1: "0-1"}, "cpu_capacity")
    assert fastest_cores(1, root) == [[0, 1]] and fastest_cores(2, root) == []


def test_a_system_that_tells_nothing(monkeypatch, tmp_path):
    """Every CPU counts as a core; where a process cannot choose, there is nothing to draw."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 3}, raising=False)
    assert fastest_cores(2, tmp_path) == [[0], [2], [3]]
    monkeypatch.delattr(os, "sched_getaffinity")
    assert fastest_cores(1, tmp_path) == []


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cores")
    path = folder / "model.gguf"
    sizes = write_gguf(write_folder(tiny_model("llama"), folder / "model"), path, "f16")
    return [
        Subject(name, "dense", "llama.cpp", "gguf-f16", path, sizes["projection_bytes"], sizes["file_bytes"])
        for name in ("old", "new")
    ]


@pytest.fixture(scope="module")
def harness(subjects):
    with Harness(subjects, [("old", "new")], BenchConditions(1, 8, 4, 3)) as opened:
        yield opened


@cpus_to_choose_from
def test_both_sides_of_a_round_run_on_the_same_core(harness):
    """All threads of both processes; and not on the same one every time."""
    seen = set()
    for _ in range(20):
        harness.run(1)
        seen.add(the_core_of(harness._workers.values()))
    assert len(seen) >= 2
    assert harness.document()["conditions"]["cores"] == fastest_cores(1)


@cpus_to_choose_from
def test_so_do_both_at_every_context(subjects, monkeypatch):
    seen = []

    def watched(workers, *arguments):
        share_cores(workers, *arguments)
        seen.append(the_core_of(workers))

    monkeypatch.setattr("saap_edge.measuring.contexts.share_cores", watched)
    _rounds(subjects, 16, BenchConditions(1, 8, 2, 15), lambda steps: None)
    assert len(seen) == 16 and len(set(seen)) >= 2


def test_every_thread_is_moved(subjects):
    cpu = max(os.sched_getaffinity(0))
    with Worker("llama.cpp", subjects[0].path, 2, 16) as worker:
        worker.time([1, 2, 3, 4], 2)  # the runtime's threads begin with the first step
        assert len(os.listdir(f"/proc/{worker._process.pid}/task")) > 1
        worker.pin({cpu})
        assert the_core_of([worker]) == cpu


def the_core_of(workers) -> int:
    """The only one that all threads of all of them may run on."""
    threads = [int(name) for worker in workers for name in os.listdir(f"/proc/{worker._process.pid}/task")]
    assert len(threads) >= 2
    [allowed] = {frozenset(os.sched_getaffinity(thread)) for thread in threads}
    [core] = allowed
    return core


def test_a_dead_child_is_not_the_pins_business(subjects):
    with Worker("llama.cpp", subjects[0].path, 1, 16) as worker:
        worker._process.kill()
        worker._process.wait()
        worker.pin({0})
