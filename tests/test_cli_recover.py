"""`saap-edge recover` on any Hugging Face folder: what goes on from it, what is refused, and a run that is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from saap_edge.cache import alone
from saap_edge.model.folder import build_pruned
from tests.conftest import TEXT, WIDTHS, randomise_projections, tiny_model, write_folder
from tests.test_cli import SMALL, call


@pytest.fixture
def saap(monkeypatch, capsys):
    return lambda *arguments: call(monkeypatch, capsys, *arguments)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folders "dense" and "pruned", texts, and a recipe."""
    root = tmp_path_factory.mktemp("folders")
    write_folder(tiny_model("llama"), root / "dense")
    write_folder(randomise_projections(build_pruned(tiny_model("llama"), WIDTHS)), root / "pruned")
    for name in ("calibration", "heldout", "test"):
        (root / f"{name}.txt").write_text(TEXT * 3)
    recipe = {**SMALL, "export": {"formats": ["gguf-q4_0", "onnx-int4"]}}
    recipe["recover"] = SMALL.get("recover", {}) | {"weights": 0.5}  # both phases
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return root


def command(root, folder, *options):
    return ["recover", root / folder, "--recipe", root / "recipe.yaml", "--data", root, *options]


@pytest.mark.parametrize("kind", ["dense", "pruned"])
def test_the_other_stages_go_on_from_it(saap, root, tmp_path, kind):
    teacher = ["--teacher", root / "dense"] if kind == "pruned" else []
    code, stdout, stderr = saap(*command(root, kind, *teacher, "--out", tmp_path / "out", "--json"))
    assert code == 0, stderr
    (tmp_path / "budget.yaml").write_text("limits: {file_mib: {max: 100}}")
    for name, options in (
        ("export", ()),
        ("verify", ()),
        ("bench", ()),
        ("gate", ("--budget", tmp_path / "budget.yaml")),
    ):
        folder = Path(json.loads(stdout)["stages"][-1]["folder"])
        code, stdout, stderr = saap(name, folder, *options, "--json")
        assert code in (0, 3), stderr
    stages = {path.name.partition("-")[0]: path for path in (tmp_path / "out" / "stages").iterdir()}
    assert sorted(stages) == ["bench", "dense", "export", "gate", "recover", "verify"]
    verify = json.loads((stages["verify"] / "verify.json").read_text())["artifacts"]
    assert len(verify) == 4 and all(entry["passed"] for entry in verify)
    code, stdout, stderr = saap("report", stages["gate"])
    assert code == 2 and stderr.count("\n") == 1 and "report works on the folder of" in stderr and not stdout


def test_bad_input_is_one_line(saap, root, tmp_path):
    small = write_folder(tiny_model("llama", vocab_size=352), tmp_path / "small")
    (tmp_path / "empty").mkdir()
    stage = tmp_path / "stage"
    stage.mkdir()
    (stage / "stage.json").write_text("{}")
    out = tmp_path / "deep" / "out"
    for arguments, reason in (
        (command(root, "dense"), "say with --out"),
        (command(root, "dense", "--teacher", small, "--out", out), "has 352 tokens, the model 320"),
        (command(root, "dense", "--teacher", root / "none", "--out", out), "no model folder"),
        (["recover", tmp_path / "empty"], "is not a stage folder"),
        (["recover", tmp_path / "none"], "is not a stage folder"),
        (["recover", tmp_path / "empty", "--out", out], "go with a model"),
        (["recover", stage, "--data", root], "go with a model"),
        (command(root, "dense", "--tokens", "-1", "--out", out), "--tokens"),
    ):
        code, stdout, stderr = saap(*arguments)
        assert code == 2 and not stdout and reason in stderr, stderr
        assert stderr.startswith("error: ") and stderr.count("\n") == 1
        assert not (tmp_path / "deep").exists()


def test_a_failure_in_the_middle_leaves_nothing(saap, root, tmp_path):
    shutil.copytree(root / "dense", tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"not safetensors at all")
    out = tmp_path / "deep" / "out"
    code, _, stderr = saap(*command(root, "dense", "--teacher", tmp_path / "damaged", "--out", out))
    assert code == 2 and "damaged or missing safetensors file" in stderr
    assert not (tmp_path / "deep").exists()


def test_a_killed_run_goes_on(saap, root, tmp_path):
    """SIGKILL in the middle of training the blocks; meanwhile nobody else may write its checkpoints."""
    arguments = command(root, "dense", "--tokens", "16384")
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "saap_edge", *map(str, arguments), "--out", str(out)],
        stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(out.glob("stages/.work-*/blocks/checkpoint-*/trainer_state.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)
    code, _, stderr = saap(*arguments, "--out", out)
    # On a busy machine a line before it says how long the stage may take.
    said = [line for line in stderr.splitlines() if not line.startswith("recover: about ")]
    assert code == 2 and len(said) == 1 and "another run works on the same stage" in said[0]
    process.kill()
    process.wait()
    assert not list(out.glob("stages/recover-*")) and list(out.glob("stages/.work-*/weights/finished.json"))
    finished = next(out.glob("stages/.work-*/weights/finished.json"))
    written = finished.stat().st_mtime_ns
    begun = {path.name for path in finished.parents[1].glob("blocks/checkpoint-*")}
    assert begun and written

    assert saap(*arguments, "--out", out)[0] == 0
    assert saap(*arguments, "--out", tmp_path / "whole")[0] == 0
    (stage,), (whole,) = ((folder / "stages").iterdir() for folder in (out, tmp_path / "whole"))
    assert stage.name == whole.name
    assert (stage / "recover.json").read_bytes() == (whole / "recover.json").read_bytes()
    codes, wanted = (load_file(folder / "model" / "codes.safetensors") for folder in (stage, whole))
    assert codes.keys() == wanted.keys() and all(torch.equal(codes[name], wanted[name]) for name in wanted)


def test_a_work_folder_is_for_one(tmp_path):
    """It can be had again afterwards, and is gone where nothing was put into it."""
    work = tmp_path / "work"
    for _ in range(2):
        with alone(work):
            assert work.is_dir()
        assert not work.exists()
    with alone(work):
        (work / "kept").touch()
    assert [path.name for path in work.iterdir()] == ["kept"]
