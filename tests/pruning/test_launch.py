"""Scoring in two processes: they share out the batches, one of them writes, and plans are those of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from saap_edge.errors import SaapError
from saap_edge.pruning.score import KINDS, VIEWS, load_scores, score_model
from saap_edge.pruning.shares import Share
from tests.conftest import TEXT, tiny_model, write_folder
from tests.test_cli import call

SETTINGS: dict[str, Any] = {
    "score": {"samples": 9, "batches": 3, "window": 32, "precision": "float32"},
    "prune": {"ratio": 0.3, "method": "kfac"}, "recover": {"tokens": 0},
}  # fmt: skip


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    folder = write_folder(tiny_model("llama"), tmp_path / "dense")
    for name in ("calibration", "heldout", "test"):
        (tmp_path / f"{name}.txt").write_text(TEXT * 3)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(SETTINGS))
    return ["score", str(tmp_path / "recipe.yaml"), "--model", str(folder), "--data", str(tmp_path)]


def launched(arguments: list[str], processes: int = 2) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "-m", "saap_edge"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*start, *arguments], capture_output=True, text=True, timeout=300, env=environment)


def test_two_processes_score_as_one(command, tmp_path, monkeypatch, capsys):
    result = launched([*command, "--out", str(tmp_path / "two"), "--json"])
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1, "the second is silent"
    assert call(monkeypatch, capsys, *command, "--out", tmp_path / "one")[0] == 0
    (two,), (one,) = ((tmp_path / name / "stages").iterdir() for name in ("two", "one"))
    assert two.name == one.name, "how many processes there are is no setting: the folder is found by either"
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    shared, alone = load_scores(two), load_scores(one)
    for layer, other in zip(shared.values, alone.values, strict=True):
        for kind in KINDS:
            assert layer[kind].shape == other[kind].shape and other[kind].shape[:2] == (len(VIEWS), 3)
            np.testing.assert_allclose(layer[kind], other[kind], rtol=1e-5, atol=1e-9)
            assert (other[kind] > 0).any(axis=(0, 2)).all(), "every batch has figures"
    for layer, other in zip(shared.fisher, alone.fisher, strict=True):
        for name, figures in layer.items():
            np.testing.assert_allclose(figures, other[name], rtol=1e-4)
    np.testing.assert_allclose(shared.influence, alone.influence, rtol=1e-5)
    plans = []
    for folder in (one, two):
        code, stdout, stderr = call(monkeypatch, capsys, "plan", folder, "--json")
        assert code == 0, stderr
        plans.append(json.loads((Path(json.loads(stdout)["stages"][-1]["folder"]) / "plan.json").read_text()))
    assert plans[0]["layers"] == plans[1]["layers"]


@pytest.mark.parametrize(("settings", "reason"), [
    ({"batches": 2}, "score.batches 2 cannot be shared out over 3 processes"),
    ({"running_fisher": True}, "score.running_fisher goes from one batch to the next"),
])  # fmt: skip
def test_what_cannot_be_shared_out_is_refused_by_all(command, tmp_path, monkeypatch, capsys, settings, reason):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(SETTINGS | {"score": SETTINGS["score"] | settings}))
    monkeypatch.setenv("WORLD_SIZE", "3")
    code, stdout, stderr = call(monkeypatch, capsys, *command, "--out", tmp_path / "out")
    assert code == 2 and not stdout and not (tmp_path / "out").exists()
    assert reason in stderr and stderr.count("\n") == 1


def test_a_broken_batch_of_any_process_is_told_by_all(monkeypatch):
    """The first process has batches 0 and 2; that batch 1 is broken it learns from the sum."""
    monkeypatch.setattr(Share, "summed", lambda self, array: np.where(np.arange(len(array)) == 1, np.nan, array))
    batches = [torch.randint(0, 300, (2, 16)) for _ in range(3)]
    with pytest.raises(SaapError, match="the loss on calibration batch 1 is nan"):
        score_model(tiny_model("llama"), batches, {}, share=Share(0, 2))
