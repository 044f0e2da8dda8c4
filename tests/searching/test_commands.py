"""`frontier --over` and `fit --over` by the command line on a tiny model: what is found, kept, resumed and refused."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from saap_edge.exporting.gguf import write_gguf
from saap_edge.model.folder import load_model
from saap_edge.model.perplexity import text_windows
from saap_edge.model.tokenizer import load_tokenizer
from tests.conftest import tiny_model, write_folder
from tests.searching.support import ROOT
from tests.test_cli import saap, write_recipe  # noqa: F401 (a fixture)

QUICK = {
    "score": {"samples": 8, "batches": 4, "window": 32}, "prune": {"method": "saap"}, "recover": {"tokens": 0},
    "bench": {"threads": 1, "prompt_tokens": 8, "decode_tokens": 4, "rounds": 3, "perplexity_windows": 1},
    "export": {"formats": ["gguf-f16", "gguf-q8_0"]},
}  # fmt: skip
OVER = ("--over", "ratio=0,0.3", "--over", "format")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A recipe, an --out that all tests share, the model's folder, and MiB of the dense file in Q8_0."""
    folder = tmp_path_factory.mktemp("search")
    model = write_folder(tiny_model("llama"), folder / "dense")
    size = write_gguf(model, folder / "dense.gguf", "q8_0")["file_bytes"] / 2**20
    return write_recipe(folder, model, **QUICK), folder / "out", model, size


@pytest.fixture
def searched(saap, place, monkeypatch):  # noqa: F811
    monkeypatch.setattr("saap_edge.measuring.measure.LOADS", 2)  # timings are not what is tested

    def call(command, *options, out=None):
        code, stdout, stderr = saap(command, "--recipe", place[0], *options, "--out", out or place[1], "--json")
        assert "Traceback" not in stderr
        return code, json.loads(stdout) if stdout else None, stderr

    return call


def budget(folder, limits):
    (folder / "budget.yaml").write_text(yaml.safe_dump({"limits": limits}))
    return "--budget", folder / "budget.yaml"


def test_the_front_of_a_whole_space(searched, place):
    code, document, stderr = searched("frontier", *OVER, "--trials", "4", "--rival", "none")
    assert code == 0, stderr
    stages = [path.name.rpartition("-")[0] for path in (place[1] / "stages").iterdir()]
    assert [stages.count(name) for name in ("score", "plan", "recover", "heldout")] == [1, 1, 1, 4], "shared once"
    tried = document["search"]["tried"]
    losses = {(row["ratio"], row["format"]): (row["heldout_perplexity"], row["file_bytes"]) for row in tried}
    assert len(losses) == 4 == document["search"]["points"] and "4 of 4 models were tried" in stderr
    front = {
        key for key, one in losses.items()
        if not any(other != one and other[0] <= one[0] and other[1] <= one[1] for other in losses.values())
    }  # fmt: skip
    measured = {(point["ratio"], point["format"]) for point in document["points"]}
    assert measured == front | {(0, "gguf-f16"), (0, "gguf-q8_0")}, "what was found, beside the dense model"
    assert {path.name for path in place[1].glob("frontier.*")} == {"frontier.json", "frontier.html", "frontier.png"}
    made = set((place[1] / "stages").iterdir())
    code, again, stderr = searched("frontier", *OVER, "--trials", "4", "--rival", "none")
    assert code == 0 and set((place[1] / "stages").iterdir()) == made and again["search"] == document["search"]


def test_held_out_perplexity_is_that_of_torch(place):
    recipe, out, model, _ = place
    rows = json.loads((out / "frontier.json").read_text())["search"]["tried"]
    [row] = [row for row in rows if row["ratio"] == 0 and row["format"] == "gguf-f16"]
    text = yaml.safe_load(recipe.read_text())["data"]["heldout"]
    windows = text_windows(load_tokenizer(model), Path(text).read_text(), 32)[:40]
    with torch.no_grad():
        logits = load_model(model)(windows).logits[:, :-1].float()
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    assert math.log(row["heldout_perplexity"]) == pytest.approx(float(nll), rel=1e-3)


def test_speed_and_memory_of_another_board(searched, place, tmp_path):
    code, document, stderr = searched(
        "frontier", "--over", "ratio=0,0.3", "--format", "gguf-q8_0", "--gain", "speed", "--gain", "memory", "--target",
        "rpi5", "--rival", "none", "--study", tmp_path / "study",
    )  # fmt: skip
    assert code == 0, stderr
    dense, pruned = sorted(document["search"]["tried"], key=lambda row: row["ratio"])
    assert dense["speed"] < pruned["speed"] and dense["memory"] > pruned["memory"]
    told = {point["ratio"]: point["predicted_decode_tok_s"]["value"] for point in document["points"]}
    assert told[0] == pytest.approx(dense["speed"], rel=1e-6)
    assert document["search"]["gains"] == ["speed", "memory"]


def test_the_best_model_that_keeps_a_budget(searched, saap, place, tmp_path):  # noqa: F811
    limits = budget(tmp_path, {"file_mib": {"max": place[3] * 0.93}})
    code, document, stderr = searched("fit", *OVER, *limits, "--trials", "9", "--study", tmp_path / "study")
    assert code == 0, stderr
    meets = [row for row in document["tries"] if row["outcome"] == "meets"]
    best = min(meets, key=lambda row: row["heldout_perplexity"])
    found = document["found"]
    assert (found["ratio"], found["format"]) == (best["ratio"], best["format"]) == (30, "gguf-q8_0")
    left = {row["point"]["format"]: row["reason"] for row in document["search"]["left"]}
    assert "file_mib" in left["gguf-f16"], "predictions rule it out"
    assert len(document["tries"]) + len(document["search"]["left"]) == 4 and "best of those" in stderr
    code, stdout, stderr = saap("compile", place[1] / "fit.yaml", "--out", place[1], "--json")
    ran = [stage["stage"] for stage in json.loads(stdout)["stages"] if not stage["cached"]]
    assert code == 0 and ran == ["report"], stderr

    limits = budget(tmp_path, {"file_mib": {"max": place[3] * 0.92}})
    code, document, stderr = searched("fit", *OVER, *limits, "--trials", "9", "--study", tmp_path / "study")
    assert code == 2 and document is None and "was made for another budget" in stderr and stderr.count("\n") == 1
    impossible = budget(tmp_path, {"file_mib": {"max": place[3] * 0.93}, "perplexity_increase_pct": {"max": -90}})
    code, document, stderr = searched("fit", *OVER, *impossible, "--study", tmp_path / "other")
    assert code == 1 and document["found"] is None and "none of them meets the budget" in stderr


def test_a_fit_on_another_board_rests_on_predictions(searched, tmp_path):
    limits = budget(tmp_path, {"decode_tok_s": {"min": 1}})
    options = ("--over", "ratio=0,0.3", "--format", "gguf-q8_0", "--target", "rpi5", "--study", tmp_path / "study")
    code, document, stderr = searched("fit", *options, *limits)
    assert code == 3 and document["found"]["ratio"] == 0 and document["found"]["predicted"], stderr
    assert "measure on the board" in stderr
    code, document, stderr = searched(
        "fit", *options[:-1], tmp_path / "b", *budget(tmp_path, {"decode_tok_s": {"min": 1e9}})
    )
    assert code == 1 and document["tries"] == [] and len(document["search"]["left"]) == 2, "nothing was made for it"


def test_a_killed_search_goes_on(searched, place, tmp_path):
    out = tmp_path / "out"
    options = ("--over", "ratio=0.3,0.4", "--format", "gguf-q8_0", "--trials", "1", "--rival", "none")
    process = subprocess.Popen(
        [sys.executable, "-m", "saap_edge", "frontier", "--recipe", place[0], *options, "--out", out], cwd=ROOT,
        stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
    )  # fmt: skip
    limit = time.monotonic() + 120
    while not list((out / "stages").glob("plan-*")):
        assert time.monotonic() < limit and process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.communicate()
    made = {path: path.stat().st_mtime_ns for path in (out / "stages").glob("[!.]*/*") if path.name != "stage.json"}
    assert (out / "study.journal").exists() and made
    code, document, stderr = searched("frontier", *options, out=out)
    assert code == 0 and len(document["search"]["tried"]) == 1 and document["search"]["running"] == 0, stderr
    assert all(path.stat().st_mtime_ns == then for path, then in made.items()), "nothing is made again"
    assert not list((out / "stages").glob(".tmp-*"))


@pytest.mark.parametrize(("command", "options", "expected"), [
    ("frontier", ("--over", "ratio", "--trials", "0"), "--trials 0"),
    ("frontier", ("--over", "ratio", "--gain", "colour"), "bytes, memory, speed"),
    ("frontier", ("--over", "ratio"), "2 formats: name format in --over"),
    ("frontier", ("--over", "colour"), "--over colour: no field"),
    ("frontier", ("--over", "format", "--ratio", "0.2", "--ratio", "0.3"), "name ratio in --over"),
    ("frontier", ("--trials", "3"), "--trials goes with --over"), ("frontier", ("--gain", "bytes"), "--gain goes with"),
    ("frontier", ("--over", "ratio,format", "--gain", "memory", "--target", "orin-nano-gpu"), "--gain memory cannot"),
    ("frontier", ("--over", "ratio,format", "--study", "/nowhere/study"), "no folder '/nowhere'"),
    ("fit", ("--seed", "3"), "--seed goes with --over"), ("fit", ("--over", "ratio,format"), "no limits"),
])  # fmt: skip
def test_refusals(searched, tmp_path, command, options, expected):
    limits = budget(tmp_path, []) if command == "fit" else ()
    code, document, stderr = searched(command, *options, *limits, out=tmp_path / "out")
    assert code == 2 and document is None and expected in stderr and stderr.count("\n") == 1
    assert not (tmp_path / "out" / "stages").exists()


def test_without_the_extra(searched, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, stderr = searched("frontier", *OVER, out=tmp_path / "out")
    assert code == 2 and "pip install 'saap-edge[search]'" in stderr and stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
