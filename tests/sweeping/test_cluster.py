"""Sweeps on a real Ray cluster of this machine, whose nodes die in the middle. `make test-cluster` runs them."""

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from saap_edge.cache import read_stage
from saap_edge.files import file_hash
from tests.sweeping.support import ended, start, tiny_base, working_on, write_sweep

pytest.importorskip("ray", reason="ray is not installed here: make test-cluster has it")
from ray.cluster_utils import Cluster

# A dead node is noticed in seconds, not in half a minute.
NOTICED = {"health_check_period_ms": 500, "health_check_timeout_ms": 1500, "health_check_failure_threshold": 3}
RATIOS = [0.2, 0.4]
CLIENTS = 21_001  # of ray:// addresses


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def base(folder):
    return tiny_base(folder)


@pytest.fixture(scope="module")
def file(folder, base):
    return write_sweep(folder, {"base": base, "axes": {"prune.ratio": RATIOS}})


@pytest.fixture(scope="module")
def cluster():
    """A head with a board, and one more node; each has one CPU."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    found = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "resources": {"board:host": 1},
            "_system_config": NOTICED,
            "ray_client_server_port": CLIENTS,
        },
    )
    found.add_node(num_cpus=1)
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def serial(folder, file):
    """What the same sweep makes without a cluster, by one process after the other: contents of its results."""
    out = folder / "serial"
    code, document, said = ended(start(file, "--out", out, "--threads", 1, "--json"))
    assert code == 0, said
    return contents(out, document)


def contents(out, document):
    """Hashes of every plan, recovered model and artifact, by recipe and file."""
    found = {}
    for recipe in document["recipes"]:
        for stage, pattern in (("plan", "plan.json"), ("recover", "model/*.safetensors"), ("export", "gguf/*.gguf")):
            for path in (out / "stages" / recipe["stages"][stage]).glob(pattern):
                found[recipe["name"], stage, path.name] = content_hash(path)
    assert len(found) == 4 * len(document["recipes"])  # the model, and its codes
    return found


def content_hash(path):
    """Of safetensors the header counts as JSON: they write its entries in an order that is drawn by lot."""
    if path.suffix != ".safetensors":
        return file_hash(path)
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return hashlib.sha256(json.dumps(json.loads(data[8:end]), sort_keys=True).encode() + data[end:]).hexdigest()


def whole(out, document):
    """Nothing is half-written: every folder has its record, and no temporary one is left."""
    stages = out / "stages"
    assert {path.name for path in stages.iterdir()} == {stage["key"] for stage in document["stages"]}
    assert all(read_stage(path)["stage"] == path.name.partition("-")[0] for path in stages.iterdir())
    return True


@pytest.mark.parametrize(("client", "way"), [
    (False, ()), (False, ("--carry",)), (True, ("--carry",)),
], ids=["shared", "carried", "client"])  # fmt: skip
def test_the_same_results_as_without_a_cluster(cluster, folder, file, serial, client, way):
    address = f"ray://127.0.0.1:{CLIENTS}" if client else cluster.address
    out = folder / f"ray{len(way)}{client}"
    code, document, said = ended(start(file, "--out", out, "--ray", address, *way, "--json"))
    assert code == 0, said
    assert contents(out, document) == serial and whole(out, document)
    assert {stage["became"] for stage in document["stages"]} == {"made"}
    heads = {stage["node"] for stage in document["stages"] if stage["stage"] == "bench"}
    assert len(heads) == 1, "only one node has the board"
    assert len({stage["node"] for stage in document["stages"]}) == 2, "both nodes work"
    assert (out / "runs" / document["recipes"][0]["name"] / "report.json").is_file()
    assert str(folder / "model") == read_stage(out / "stages" / document["stages"][0]["key"])["recipe"]["model"]
    code, document, said = ended(start(file, "--out", out, "--ray", address, *way, "--json"))
    assert code == 0 and {stage["became"] for stage in document["stages"]} == {"there"} and "nothing to do" in said


@pytest.mark.parametrize("way", [(), ("--carry",)], ids=["shared", "carried"])
def test_a_node_dies_in_the_middle(cluster, folder, file, serial, way):
    """kill -9 of the node that trains: its task runs elsewhere, and what was finished is not made again."""
    out = folder / f"killed{len(way)}"
    process = start(file, "--out", out, "--ray", cluster.address, *way, "--json")
    wait_for(lambda: len(list((out / "stages").glob("prune-*"))) == 2, process)
    kept = {path.name: path.stat().st_ino for path in (out / "stages").glob("[a-z]*-*")}
    victim = cluster.list_all_nodes()[-1]
    os.kill(victim.all_processes["raylet"][0].process.pid, signal.SIGKILL)
    code, document, said = ended(process, 400)
    cluster.remove_node(victim, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    assert code == 0, said
    assert "was lost: its stages run again elsewhere" in said
    assert contents(out, document) == serial and whole(out, document)
    assert {name: (out / "stages" / name).stat().st_ino for name in kept} == kept


def wait_for(ready, process, seconds=240):
    limit = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None and time.monotonic() < limit, process.communicate()[1]
        time.sleep(0.05)


def test_a_board_that_is_lost(cluster, folder, base):
    """The one node that can measure dies before it has: a line says so, and the rest is made and kept."""
    node = cluster.add_node(num_cpus=1, resources={"board:rpi5": 1})
    cluster.wait_for_nodes()
    document = {"base": base | {"target": "rpi5"}, "axes": {"prune.ratio": [0.3]}}
    out, lost = folder / "lost", write_sweep(folder, document, "lost.yaml")
    process = start(lost, "--out", out, "--ray", cluster.address, "--json")
    working_on(out, "score", process, 240)
    cluster.remove_node(node, allow_graceful=False)
    code, document, _ = ended(process, 400)
    states = {stage["stage"]: stage for stage in document["stages"]}
    assert code == 2 and states["bench"]["became"] == "failed" and states["verify"]["became"] == "made"
    assert states["bench"]["reason"] == "no node is left that has board:rpi5 for it"
    assert states["gate"]["became"] == "not run"
    code, document, _ = ended(start(lost, "--out", out, "--ray", cluster.address, "--board", "host", "--json"))
    assert code == 0 and document["recipes"][0]["artifacts"][0]["predicted_decode_tok_s"]


@pytest.fixture
def small_disk(tmp_path):
    """A disk that holds one carried stage, and no two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_disk_that_is_full(cluster, folder, base, small_disk):
    """The node that measures has no space: its stages say so, and the rest is made, kept, and not made again."""
    node = cluster.add_node(num_cpus=1, resources={"board:rpi5": 1}, env_vars={"TMPDIR": str(small_disk)})
    cluster.wait_for_nodes()
    document = {"base": base | {"target": "rpi5"}, "axes": {"prune.ratio": [0.3]}}
    out, file = folder / "full", write_sweep(folder, document, "full.yaml")
    code, document, said = ended(start(file, "--out", out, "--ray", cluster.address, "--carry", "--json"))
    cluster.remove_node(node, allow_graceful=False)
    failed = {stage["key"]: stage["reason"] for stage in document["stages"] if stage["became"] == "failed"}
    assert code == 2 and failed and "Traceback" not in said
    for reason in failed.values():
        assert "has no space left on the disk of" in reason and str(small_disk) in reason and "\n" not in reason
    made = [stage["key"] for stage in document["stages"] if stage["became"] == "made"]
    assert {path.name for path in (out / "stages").iterdir()} == set(made)
    kept = {key: (out / "stages" / key).stat().st_ino for key in made}
    arguments = ("--out", out, "--ray", cluster.address, "--carry", "--board", "host", "--json")
    code, document, _ = ended(start(file, *arguments))
    assert code == 0 and {key: (out / "stages" / key).stat().st_ino for key in kept} == kept


def test_what_a_stage_refuses_is_told(cluster, folder, base):
    """A text that is gone when the sweep has begun."""
    text = folder / "fragile.txt"
    text.write_text(Path(base["data"]["test"]).read_text() + "Another end.\n")  # another text, by its contents
    document = {"base": base, "axes": {"data": [base["data"], base["data"] | {"test": str(text)}]}}
    out, file = folder / "fragile", write_sweep(folder, document, "fragile.yaml")
    process = start(file, "--out", out, "--ray", cluster.address, "--json")
    working_on(out, "score", process, 240)
    text.unlink()
    code, found, said = ended(process)
    assert code == 2 and "no text file" in said and "Traceback" not in said
    assert sorted(row["exit_code"] for row in found["recipes"]) == [0, 2]


def refused(process):
    """The one line that a refused sweep says, beside progress."""
    code, _, said = ended(process)
    [line] = [line for line in said.splitlines() if not line.startswith("  ")]
    assert code == 2 and line.startswith("error: ")
    return line


def test_a_board_that_no_node_has(cluster, tmp_path, base):
    (tmp_path / "s.yaml").write_text(json.dumps({"base": base, "axes": {"target": ["rk3588", "host"]}}))
    line = refused(start(tmp_path / "s.yaml", "--out", tmp_path / "out", "--ray", cluster.address))
    assert "recipe target=rk3588: no node of the cluster has the resource board:rk3588" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("address", "expected"), [
    ("127.0.0.1:1", "no cluster answers there (Connection refused)"), ("nowhere", "give HOST:6379"),
    ("ray://127.0.0.1:1", "no cluster answers there"),
])  # fmt: skip
def test_a_cluster_that_cannot_be_reached(file, tmp_path, address, expected):
    began = time.monotonic()
    assert expected in refused(start(file, "--out", tmp_path / "out", "--ray", address))
    assert time.monotonic() - began < 60 and not (tmp_path / "out").exists()


def test_options_that_need_a_cluster(file, tmp_path):
    assert "--board and --carry go with --ray" in refused(start(file, "--out", tmp_path / "out", "--carry"))
