"""Where memory is short: a model runs just above its predicted need, and just below it people are told what to do."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from saap_edge.bundle.write import write_bundle
from saap_edge.engines.worker import Worker
from saap_edge.exporting.write import export_artifacts
from saap_edge.prediction.cost import artifact_cost
from saap_edge.prediction.predict import Estimate, predict
from saap_edge.targets import load_target
from tests.bundle.conftest import write_stage
from tests.conftest import tiny_model, write_folder

MIB = 2**20
CGROUPS = Path("/sys/fs/cgroup")
PROMPT, DECODE = 256, 8
LIMITS = ("memory.max", "memory.limit_in_bytes")  # of version 2 and of version 1
# All that the measuring process needs is imported first: what it takes afterwards is little, and the group holds the
# engine's process. Whoever enters a group is charged only for what he takes from then on.
INSIDE = """
import os, sys
from pathlib import Path
from saap_edge import cli
import saap_edge.bundle.archive, saap_edge.measuring.bundles, saap_edge.report.bench, psutil, numpy
if sys.argv[1]:
    Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
sys.argv = ["saap-edge", *sys.argv[2:]]
cli.main()
"""
# The same work with no room for more than so many bytes of data. It prints why it failed, or what it needed.
ALLOCATING = """
import re, resource, sys
from pathlib import Path
from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError
limit = int(sys.argv[2]) or resource.RLIM_INFINITY
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    with Worker("llama.cpp", Path(sys.argv[1]), 1, 264) as worker:
        worker.time([5] * 256, 8)
        status = Path(f"/proc/{worker._process.pid}/status").read_text()
    print(1024 * int(re.search(r"VmData:\\s+(\\d+)", status)[1]))
except SaapError as error:
    print(error)
    sys.exit(2)
"""


@dataclass(frozen=True)
class Group:
    """How a process gets under a limit: a folder that it enters, or a command before its own."""

    folder: str = ""
    command: tuple[str, ...] = ()


def delegated() -> Iterator[Path]:
    """Groups in which tests may make groups: that of SAAP_EDGE_TEST_GROUP, or this process's own if whoever manages it
    has marked it as given away (as systemd does with Delegate=yes). Others belong to their manager.
    """
    if "SAAP_EDGE_TEST_GROUP" in os.environ:
        yield Path(os.environ["SAAP_EDGE_TEST_GROUP"])
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, group = line.split(":", 2)
        own = CGROUPS / names / group.lstrip("/")
        if names in ("", "memory") and own.is_dir():
            marks = {name: os.getxattr(own, name) for name in os.listxattr(own) if name.endswith(".delegate")}
            if b"1" in marks.values():
                yield own


def make_group(parent: Path, limit: int) -> Path | None:
    """A group of so many bytes inside another; None where that cannot be."""
    folder = parent / f"saap-edge-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        return None
    there = [name for name in LIMITS if (folder / name).is_file()]
    try:
        (folder / there[0]).write_text(str(limit))
        if (folder / "memory.swap.max").is_file():
            (folder / "memory.swap.max").write_text("0")
    except (OSError, IndexError):  # no group at all, or one without memory
        folder.rmdir()
        return None
    return folder


@contextmanager
def limited(limit: int) -> Iterator[Group]:
    """A group of so many bytes. Skips where none can be made."""
    scope = ("systemd-run", "--scope", "-q", "-p", f"MemoryMax={limit}", "-p", "MemorySwapMax=0")
    scopes = [scope, (scope[0], "--user", *scope[1:])] if shutil.which(scope[0]) else []
    folder = next(filter(None, (make_group(parent, limit) for parent in delegated())), None)
    if folder:
        try:
            yield Group(str(folder))
        finally:
            folder.rmdir()
        return
    working = [each for each in scopes if not subprocess.run([*each, "true"], capture_output=True).returncode]
    if not working:
        pytest.skip("no control group was given to these tests: SAAP_EDGE_TEST_GROUP may name one, and systemd-run "
                    "makes none here")  # fmt: skip
    yield Group(command=working[0])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 24 million parameters in Q4_0: read into memory and repacked, so that nothing of it can be dropped."""
    root = tmp_path_factory.mktemp("group")
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8}
    model = tiny_model("llama", num_key_value_heads=4, head_dim=64, max_position_embeddings=512, **shape)
    base = write_folder(model, root / "model")
    dense, verify = root / "stages" / "dense-01", root / "stages" / "verify-02"
    dense.mkdir(parents=True)
    verify.mkdir()
    export_artifacts(base, dense, ("gguf-q4_0",), "dense", {"model": "aa"}, lambda _: None)
    parity = {"format": "gguf-q4_0", "role": "dense", "max_error": 0.007, "tolerance": 0.1, "passed": True}
    (verify / "verify.json").write_text(json.dumps([parity]))
    write_stage(dense, [], base)
    write_stage(verify, [dense.name], base)
    write_bundle(dense, root / "bundle", "gguf-q4_0")
    return root / "bundle"


def measured(bundle: Path, group: Group) -> subprocess.CompletedProcess[str]:
    options = ["--threads", "1", "--prompt", str(PROMPT), "--decode", str(DECODE), "--rounds", "3", "--json"]
    return subprocess.run(
        [*group.command, sys.executable, "-c", INSIDE, group.folder, "bench", str(bundle), *options],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def need(bundle: Path) -> dict[str, float]:
    """MiB of a process that runs the bundle's artifact with nothing beside it, as the harness tells them."""
    with Worker("llama.cpp", bundle / "model-q4_0.gguf", 1, PROMPT + DECODE) as worker:
        worker.time([5] * PROMPT, DECODE)
        return {name: value / MIB for name, value in worker.memory().items() if value}


def predicted(bundle: Path) -> Estimate:
    cost = artifact_cost(bundle / "model-q4_0.gguf")
    found = predict(cost, load_target("rpi5"), PROMPT, PROMPT + DECODE).ram_mib
    assert found
    return found


def test_the_need_is_foreseen(bundle, need):
    size = (bundle / "model-q4_0.gguf").stat().st_size / MIB
    assert size < need["held"] < need["peak"] < predicted(bundle).high
    assert need["held"] < need["pss"] <= need["now"], "what is shared counts in part, and pages of files can be dropped"


def test_a_group_just_above_the_predicted_need_and_one_just_below(bundle, need):
    with limited(round(predicted(bundle).high * MIB)) as group:
        done = measured(bundle, group)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["artifacts"][0]["metrics"]
    assert abs(metrics["held_mib"]["median"] - need["held"]) < 0.1 * need["held"]
    limit = 0.9 * need["held"]
    with limited(round(limit * MIB)) as group:
        done = measured(bundle, group)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(
        r"error: llama\.cpp died in '\w+' of '.*' with SIGKILL \(out of memory\?\)\. The artifact has", last
    )
    assert abs(float(re.search(r"of (\d+) MiB are free here", last)[1]) - limit) < 1 and "Take fewer bits" in last


def test_allocations_that_fail(bundle):
    """`ulimit -d` is no limit of memory: it counts what was asked for, used or not. But every way in which it makes the
    runtime fail, an error as the model is loaded, one as its context is opened, an abort, says what to do."""
    path, told = bundle / "model-q4_0.gguf", []

    def run(limit: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", ALLOCATING, str(path), str(limit)]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})

    needed = int(run(0).stdout)
    assert run(round(1.2 * needed)).returncode == 0
    for share in (0.9, 0.8, 0.7, 0.6):
        done = run(round(share * needed))
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert "Take fewer bits" in done.stdout and f"has {path.stat().st_size / MIB:.1f} MiB" in done.stdout, (
            done.stdout
        )
        told.append(done.stdout)
    assert any("llama.cpp cannot load it" in text for text in told), told
