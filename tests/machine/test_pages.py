"""Memory that a process filled goes into huge pages: what is in it stays, and the process becomes no larger."""

import subprocess
import sys
from pathlib import Path

import pytest

from saap_edge.engines.worker import Worker
from saap_edge.machine.pages import collapse
from tests.conftest import tiny_model, write_folder

HUGE = Path("/sys/kernel/mm/transparent_hugepage")
CHILD = """
import mmap, re, sys
from pathlib import Path
from saap_edge.machine.pages import collapse

def told(name, file="smaps_rollup"):
    return int(re.search(rf"^{name}:\\s+(\\d+) kB", Path("/proc/self", file).read_text(), re.MULTILINE)[1]) * 1024

size = 64 * 2**20
full, sparse = mmap.mmap(-1, size, mmap.MAP_PRIVATE), mmap.mmap(-1, size, mmap.MAP_PRIVATE)
full.write(bytes(range(256)) * (size // 256))
for place in range(0, size, 2**15):
    sparse[place] = 1
before, resident = told("AnonHugePages"), told("VmRSS", "status")
done = collapse()
if done == 0:
    sys.exit("none")
assert done >= size // 2 and told("AnonHugePages") - before >= done - 2**21, (done, told("AnonHugePages"), before)
assert told("VmRSS", "status") - resident < 2**22, "what is not filled stays as it is"
assert full[:] == bytes(range(256)) * (size // 256) and sum(sparse[::2**15]) == size // 2**15
"""


def test_what_is_filled_is_put_into_huge_pages():
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True)
    if done.stderr.strip() == "none":
        pytest.skip("the kernel has no huge pages, or none are left")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("size", "enabled"),
    [("2097152", "always madvise [never]"), ("2097152", None), (None, "[always]"), ("x", "[always]")],
)
def test_nothing_is_asked_of_a_kernel_that_has_none(tmp_path, size, enabled):
    for name, text in (("hpage_pmd_size", size), ("enabled", enabled)):
        if text is not None:
            (tmp_path / name).write_text(text)
    assert collapse(tmp_path) == 0


def test_a_worker_tells_what_it_put_there(tmp_path):
    from saap_edge.exporting.gguf import write_gguf

    folder = write_folder(tiny_model("llama"), tmp_path / "model")
    write_gguf(folder, tmp_path / "m.gguf", "q8_0")
    with Worker("llama.cpp", tmp_path / "m.gguf", 1, 64) as worker:
        assert worker.loaded["huge_pages_bytes"] % 2**21 == 0 and worker.loaded["huge_pages_bytes"] < 2**30
