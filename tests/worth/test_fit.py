"""Frontier and fit by the command line on a tiny model, and what a fit predicts against what is written."""

import json

import pytest
import yaml

from saap_edge.errors import SaapError
from saap_edge.exporting.gguf import write_gguf
from saap_edge.exporting.write import export_artifacts
from saap_edge.gating import METRICS, Budget, Kind
from saap_edge.model.checkpoint import read_spec
from saap_edge.worth import judgeable
from saap_edge.worth.fit import cost_at, outcome_of
from tests.conftest import tiny_model, write_folder
from tests.test_cli import saap, write_recipe  # noqa: F401 (a fixture)

QUICK = {
    "prune": {"ratio": 0.3, "method": "saap"}, "recover": {"tokens": 0},
    "bench": {"threads": 1, "prompt_tokens": 8, "decode_tokens": 4, "rounds": 3, "perplexity_windows": 1},
    "export": {"formats": ["gguf-q8_0"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A recipe, an --out that all tests share (what one has compiled, the next finds), and MiB of the dense file."""
    folder = tmp_path_factory.mktemp("fit")
    model = write_folder(tiny_model("llama"), folder / "dense")
    size = write_gguf(model, folder / "dense.gguf", "q8_0")["file_bytes"] / 2**20
    return write_recipe(folder, model, **QUICK), folder / "out", size


def fitted(saap, place, tmp_path, limits, *options):  # noqa: F811
    recipe, out, _ = place
    (tmp_path / "budget.yaml").write_text(yaml.safe_dump({"limits": limits}))
    arguments = ("fit", "--recipe", recipe, "--budget", tmp_path / "budget.yaml", "--out", out, "--json", *options)
    return saap(*arguments)


def test_a_budget_that_the_dense_model_meets(saap, place, tmp_path):  # noqa: F811
    code, stdout, stderr = fitted(saap, place, tmp_path, {"file_mib": {"max": 100}, "speedup_vs_dense": {"min": 0.01}})
    assert code == 0, stderr
    document = json.loads(stdout)
    assert document["found"] == {"ratio": 0, "format": "gguf-q8_0", "predicted": False} and "do not prune" in stderr
    assert [row["ratio"] for row in document["tries"]] == [0] and not (place[1] / "fit.yaml").exists()


def test_the_least_pruning_that_is_small_enough(saap, place, tmp_path):  # noqa: F811
    _, out, size = place
    code, stdout, stderr = fitted(saap, place, tmp_path, {"file_mib": {"max": size * 0.93}})
    assert code == 0, stderr
    document = json.loads(stdout)
    found, tries = document["found"]["ratio"], {row["ratio"]: row["outcome"] for row in document["tries"]}
    assert found > 0 and tries[found] == "meets" and tries[found - 5] == "more"
    fit = yaml.safe_load((out / "fit.yaml").read_text())
    assert fit["prune"]["ratio"] == found / 100 and fit["export"]["formats"] == ["gguf-q8_0"]
    assert fit["bench"]["max_rounds"] == 64, "noise is not taken for too little pruning"
    code, stdout, stderr = saap("compile", out / "fit.yaml", "--out", out, "--json")
    ran = [stage["stage"] for stage in json.loads(stdout)["stages"] if not stage["cached"]]
    assert code == 0 and ran == ["report"], stderr


def test_a_budget_that_nothing_meets(saap, place, tmp_path):  # noqa: F811
    limits = {"file_mib": {"max": place[2] * 0.93}, "perplexity_increase_pct": {"max": -90}}
    code, stdout, stderr = fitted(saap, place, tmp_path, limits)
    assert code == 1 and json.loads(stdout)["found"] is None and "no pruning of this model meets" in stderr


def test_another_board_rests_on_predictions(saap, place, tmp_path):  # noqa: F811
    limits = {"decode_tok_s": {"min": 1}, "peak_rss_mib": {"max": 8000}}
    code, stdout, stderr = fitted(saap, place, tmp_path, limits, "--target", "rpi5")
    document = json.loads(stdout)
    assert code == 3 and document["found"]["predicted"] and "measure on the board" in stderr
    assert all("predicted for Raspberry Pi 5" in verdict["reason"] for verdict in document["tries"][0]["verdicts"])


@pytest.mark.parametrize(("limits", "expected"), [
    ([], "no limits"), ([{"metric": "file_mib", "max": 1, "artifact": "onnx-int4"}], "a limit on onnx-int4, which is"),
    ([{"metric": "file_mib", "max": 1}, {"metric": "file_mib", "max": 1, "artifact": "onnx-int4"}], "not exported"),
    ([{"metric": "file_mb", "max": 1}], "did you mean 'file_mib'"),
    *(([{"metric": metric, "max": 1}], f"{metric} <= 1 can never be judged here: it compares with a baseline")
      for metric, kind in METRICS.items() if kind is Kind.CHANGE or "baseline" in metric),
])  # fmt: skip
def test_a_budget_without_sense(saap, place, tmp_path, limits, expected):  # noqa: F811
    code, stdout, stderr = fitted(saap, place, tmp_path, limits)
    assert code == 2 and expected in stderr and stderr.count("\n") == 1 and not stdout


@pytest.mark.parametrize(("target", "metric"), [
    ("rpi5", "itl_p95_ms"), ("rpi5", "load_ms"), ("rpi5", "energy_j_per_token"), ("orin-nano-gpu", "ttft_ms"),
    ("orin-nano-gpu", "predicted_ttft_ms"), ("orin-nano-gpu", "peak_rss_mib"),
])  # fmt: skip
def test_what_another_board_cannot_be_told_of_is_refused(saap, place, tmp_path, target, metric):  # noqa: F811
    """Neither measured here nor predicted: no try would ever decide it."""
    recipe, _, _ = place
    (tmp_path / "budget.yaml").write_text(yaml.safe_dump({"limits": {metric: {"max": 1}}}))
    options = ("--budget", tmp_path / "budget.yaml", "--target", target, "--out", tmp_path / "out")
    code, stdout, stderr = saap("fit", "--recipe", recipe, *options)
    assert code == 2 and f"{metric} <= 1 can never be judged here" in stderr and stderr.count("\n") == 1 and not stdout
    assert not list((tmp_path / "out").glob("stages/*"))


def test_what_this_machine_cannot_count_is_refused(monkeypatch):
    budget = Budget.model_validate({"limits": {"energy_j_per_token": {"max": 1}, "instructions_per_token": {"max": 1}}})
    for meter, counter, expected in ((None, "perf", "no meter"), ("rapl", None, "neither perf nor valgrind")):
        monkeypatch.setattr(judgeable, "find_meter", lambda meter=meter: meter)
        monkeypatch.setattr(judgeable, "find_counter", lambda counter=counter: counter)
        with pytest.raises(SaapError, match=expected):
            judgeable.check_board(budget, True, "here", ())
    monkeypatch.setattr(judgeable, "find_counter", lambda: "perf")
    judgeable.check_board(budget, True, "here", ())


def test_frontier(saap, place):  # noqa: F811
    recipe, out, _ = place
    arguments = ("frontier", "--recipe", recipe, "--ratio", "0.3", "--rival", "gguf-q4_0", "--out", out, "--json")
    code, stdout, stderr = saap(*arguments)
    assert code == 0, stderr
    document = json.loads(stdout)
    names = [point["name"] for point in document["points"]]
    assert names == ["dense gguf-q8_0", "dense gguf-q4_0", "pruned 30% gguf-q8_0"]
    for point in document["points"]:
        assert point["perplexity"] > 1 and point["speed"]["low"] <= point["speed"]["ratio"] <= point["speed"]["high"]
    dense, rival, pruned = document["points"]
    assert dense["ideal_speed"] == 1 < pruned["ideal_speed"] and rival["file_bytes"] < dense["file_bytes"]
    assert {path.name for path in out.glob("frontier.*")} == {"frontier.json", "frontier.html", "frontier.png"}
    code, _, stderr = saap(*arguments)
    assert code == 0 and all("already done" in line for line in stderr.splitlines() if "/stages/" in line)


def test_plain_torch_is_a_rival(saap, place, monkeypatch):  # noqa: F811
    monkeypatch.setattr("saap_edge.measuring.measure.LOADS", 2)  # torch takes seconds to start
    recipe, out, _ = place
    code, stdout, stderr = saap(
        "frontier", "--recipe", recipe, "--ratio", "0.3", "--rival", "torch-f32", "--out", out, "--json"
    )
    assert code == 0, stderr
    dense, rival, _ = json.loads(stdout)["points"]
    assert rival["name"] == "dense torch-f32" and rival["perplexity"] == pytest.approx(dense["perplexity"], rel=0.05)
    assert rival["file_bytes"] > 2 * dense["file_bytes"] and rival["speed"]["ratio"] > 0


@pytest.mark.parametrize("options", [("--ratio", "1.5"), ("--format", "gguf-q9"), ("--rival", "gguf-q9")])
def test_frontier_refuses(saap, place, tmp_path, options):  # noqa: F811
    code, _, stderr = saap("frontier", "--recipe", place[0], *options, "--out", tmp_path / "out")
    assert code == 2 and options[1] in stderr and "Traceback" not in stderr and stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tied", [True, False])
def test_costs_before_anything_is_written(tmp_path, tied):
    """Of the dense model they are nearly those of the files: names, norms and the tokenizer are what is left out."""
    model = tiny_model("llama", tied=tied, vocab_size=2048, hidden_size=256, intermediate_size=1024)
    folder, formats = write_folder(model, tmp_path / "m"), ("gguf-q4_0", "gguf-q8_0", "onnx-int4")
    manifest = export_artifacts(folder, tmp_path, formats, "dense", {}, lambda name: None)
    for artifact in manifest.artifacts:
        cost = cost_at(read_spec(folder), artifact.format, 32, 0)
        assert cost.projection_bytes == pytest.approx(artifact.projection_bytes, rel=0.03)
        assert cost.file_bytes == pytest.approx(artifact.bytes, rel=0.1)
        assert cost.parameters == pytest.approx(manifest.parameters, rel=0.01)
        half = cost_at(read_spec(folder), artifact.format, 32, 0.5)
        assert half.kv_bytes_per_token == cost.kv_bytes_per_token / 2


def test_outcomes():
    def verdict(metric, word):
        return {"metric": metric, "verdict": word}

    speed, quality = verdict("decode_tok_s", "fail"), verdict("perplexity", "fail")
    good = verdict("file_mib", "pass")
    cases = {"meets": [good], "more": [good, speed], "less": [quality, good], "both": [speed, quality]}
    assert all(outcome_of(verdicts) == expected for expected, verdicts in cases.items())
    assert outcome_of([verdict("decode_tok_s", "inconclusive")]) == "more"
