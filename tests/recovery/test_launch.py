"""Several processes: they share out the batch, one of them writes, and the result is that of one process."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from tests.conftest import TEXT, tiny_model, write_folder
from tests.test_cli import call

SETTINGS = {
    "score": {"samples": 8, "batches": 4, "window": 32},
    "recover": {"tokens": 1024, "weights": 0.5, "batch": 4, "rank": 4, "top": 32, "precision": "float32"},
}  # fmt: skip

SHARDED = {"adapter": "lora", "rank": 8, "weights_learning_rate": 1e-2, "top": None, "checkpointing": True}


@pytest.fixture
def command(tmp_path):
    """Arguments of `saap-edge` that tune a pruned folder (here: another seed) with a dense teacher."""
    folders = [write_folder(tiny_model("llama", seed=seed), tmp_path / str(seed)) for seed in (0, 1)]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(SETTINGS))
    for name in ("calibration", "heldout", "test"):
        (tmp_path / f"{name}.txt").write_text(TEXT * 3)
    options = {"--teacher": folders[0], "--recipe": tmp_path / "recipe.yaml", "--data": tmp_path}
    return ["recover", folders[1], *(part for pair in options.items() for part in pair)]


@pytest.mark.parametrize("options", [{}, SHARDED], ids=["copied", "sharded"])
def test_two_processes_do_as_one(options, command, tmp_path, monkeypatch, capsys):
    """`accelerate launch --cpu` starts one process unless MPI is there: torchrun, which it uses on GPUs, starts two."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "saap_edge"]
    recipe = SETTINGS | {"recover": SETTINGS["recover"] | options}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arguments = [*map(str, command), "--out", str(tmp_path / "two"), "--json", *(["--shard"] if options else [])]
    result = subprocess.run(
        [*launch, *arguments], capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1 and result.stderr.count("held-out text") == 1  # the second is silent
    assert call(monkeypatch, capsys, *command, "--out", tmp_path / "one")[0] == 0
    (two,), (one,) = ((tmp_path / name / "stages").iterdir() for name in ("two", "one"))
    assert two.name == one.name and json.loads(result.stdout)["stages"][0]["folder"] == str(two)
    files = [{str(path.relative_to(stage)) for path in stage.rglob("*")} for stage in (one, two)]
    assert files[0] == files[1]
    both = [json.loads((stage / "recover.json").read_text()) for stage in (one, two)]
    for phase, tolerance in (("weights", 1e-5), ("blocks", 1e-4)):  # single codes may round otherwise
        alone, shared = (document["phases"][phase] for document in both)
        assert shared["tokens"] == alone["tokens"] and shared["best_step"] == alone["best_step"] > 0
        assert dict(shared["history"]) == pytest.approx(dict(alone["history"]), rel=tolerance)
        assert alone["start"] - alone["best"] > 10 * tolerance * alone["start"]
    weights = [load_file(stage / "model" / "model.safetensors") for stage in (one, two)]
    assert all(value.allclose(weights[1][name], atol=1e-5) for name, value in weights[0].items())


def test_a_killed_launch_goes_on_in_one_process(command, tmp_path, monkeypatch, capsys):
    """The checkpoint of two processes that shard is taken up by one, which ends where one alone does."""
    recipe = SETTINGS | {"recover": SETTINGS["recover"] | SHARDED}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arguments = [*map(str, command), "--tokens", "8192"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "saap_edge"]
    with subprocess.Popen(
        [*launch, *arguments, "--shard", "--out", str(tmp_path / "two")],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as started:  # fmt: skip
        until = time.monotonic() + 240
        while not list((tmp_path / "two").rglob("checkpoint-*/trainer_state.json")):
            assert started.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        launcher = psutil.Process(started.pid)
        everyone = [*launcher.children(recursive=True), launcher]  # its workers have sessions of their own
        for process in everyone:
            process.kill()
        psutil.wait_procs(everyone[:-1], timeout=30)
    for name in ("two", "one"):
        code, stdout, stderr = call(monkeypatch, capsys, *arguments, "--out", tmp_path / name, "--json")
        assert code == 0 and not json.loads(stdout)["stages"][0]["cached"], stderr
    both = [
        json.loads(next((tmp_path / name / "stages").glob("recover-*/recover.json")).read_text())
        for name in ("two", "one")
    ]
    taken_up, alone = (document["phases"]["weights"] for document in both)
    assert taken_up["tokens"] == alone["tokens"] and taken_up["best"] == pytest.approx(alone["best"], rel=1e-3)
    assert dict(taken_up["history"]) == pytest.approx(dict(alone["history"]), rel=1e-3)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_a_launch_cannot_do_is_refused_by_all(command, rank, tmp_path, monkeypatch, capsys):
    """Before anything is written, and before one process waits for another: the first says why."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", str(rank))
    from saap_edge import cli

    monkeypatch.setattr(cli.console, "quiet", False)  # is put back, too
    out, three = tmp_path / "out", tmp_path / "three.yaml"
    three.write_text(yaml.safe_dump({"score": SETTINGS["score"], "recover": {"batch": 3}}))
    for arguments, reason in (
        (command, "error: recover.batch 4 cannot be shared out over 3 processes\n"),
        ([*command, "--shard", "--recipe", three], "error: adapter: all (auto takes it up to 200 million weights)"),
        (["compile", "--model", command[1]], "error: a launch of processes is for `saap-edge score` and `recover`"),
    ):
        code, stdout, stderr = call(monkeypatch, capsys, *arguments, "--out", out)
        assert code == 2 and not stdout and not out.exists()
        assert stderr.startswith(reason) and stderr.count("\n") == 1 if rank == 0 else not stderr
