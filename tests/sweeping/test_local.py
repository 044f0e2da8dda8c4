"""Sweeps on this machine by the command line, beside what `compile` makes of the same recipes."""

import json
import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import yaml

import saap_edge as se
from saap_edge.bundle.find import find_source
from saap_edge.cache import read_stage
from saap_edge.documents.sweep import Sweep
from saap_edge.sweeping.document import load_sweep
from tests.documents.schema_check import faults
from tests.sweeping.support import ended, start, tiny_base, working_on, write_sweep

GATED = {"limits": [{"metric": "file_mib", "max": 100}]}
MISSED = {"limits": [{"metric": "file_mib", "max": 1e-6}]}
OPEN = {"limits": [{"metric": "decode_tok_s", "min": 1}]}  # of a board that is not here
STAGES = 11  # of a recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def base(folder):
    return tiny_base(folder)


@pytest.fixture(scope="module")
def file(folder, base):
    """Four recipes of two plans, one of them with a limit that is missed."""
    axes = {"prune.ratio": [0.2, 0.4], "budget": [GATED, MISSED]}
    return write_sweep(folder, {"base": base, "axes": axes, "exclude": [{"prune.ratio": 0.4, "budget": GATED}]})


@pytest.fixture(scope="module")
def swept(folder, file):
    """(folder, exit code, document, what was said)."""
    out = folder / "out"
    return out, *ended(start(file, "--out", out, "--json"))


def test_shared_stages_are_made_once(swept):
    """Three recipes of two plans: of those with one plan all but gate and report are the same."""
    out, code, document, _ = swept
    assert code == 1 == document["exit_code"], "a limit is missed"
    assert {stage["became"] for stage in document["stages"]} == {"made"}
    count = {name: 2 for name in ("plan", "prune", "recover", "export", "verify", "bench")}
    count |= {"score": 1, "bank": 1, "dense": 1, "gate": 3, "report": 3}
    made = [path.name.partition("-")[0] for path in (out / "stages").iterdir()]
    assert {name: made.count(name) for name in set(made)} == count
    assert [stage["recipes"] for stage in document["stages"] if stage["stage"] == "score"] == [
        [recipe["name"] for recipe in document["recipes"]]
    ]
    assert [recipe["verdict"] for recipe in document["recipes"]] == ["pass", "fail", "fail"]


def test_the_document_is_what_its_schema_says(swept):
    out, _, document, _ = swept
    schema = se.schema("sweep")
    assert faults(document, schema, schema) == []
    assert Sweep.read(out / "sweep.json").as_dict() == document == json.loads((out / "sweep.json").read_text())


def test_compile_finds_what_the_sweep_made(swept, file):
    """The stages are those of each recipe's own run, by hash; its bench document has the figures of the table."""
    out, _, document, _ = swept
    entries, _ = load_sweep(file)
    for entry, row in zip(entries, document["recipes"], strict=True):
        run = se.compile(recipe=entry.recipe, out=out / "runs" / row["name"])
        assert all(stage.cached for stage in run.stages)
        assert {name: path.name for name, path in run.folders.items()} == row["stages"]
        [pair] = run.bench.pairs()
        [artifact] = row["artifacts"]
        assert artifact["perplexity"] == pair.candidate.metrics.perplexity
        assert artifact["decode_tok_s"] == pair.candidate.metrics.decode_tok_s.median
        assert artifact["speedup"]["ratio"] == pair.ratios.decode_tok_s.ratio
        assert artifact["file_bytes"] == run.files["gguf-q8_0"].stat().st_size
        assert row["removed"] == run.plan.achieved_ratio and row["exit_code"] == run.exit_code


def test_every_recipe_has_its_folder(swept):
    out, _, document, _ = swept
    for row in document["recipes"]:
        folder = out / "runs" / row["name"]
        assert json.loads((folder / "report.json").read_text())["verdict"] == row["verdict"]
        assert (folder / "gguf").is_dir() and (folder / "plan.json").is_file()
        assert (folder / "stages").resolve() == (out / "stages").resolve()
        assert yaml.safe_load((folder / "recipe.yaml").read_text())["prune"]["ratio"] in (0.2, 0.4)


def test_nothing_runs_beside_a_measurement(swept):
    """By when each stage's last file was written, and how long it took. Its record may be written again."""
    out, _, document, _ = swept
    spans = {}
    for stage in document["stages"]:
        made = out / "stages" / stage["key"]
        end = max(path.stat().st_mtime for path in made.rglob("*") if path.is_file() and path.name != "stage.json")
        spans[stage["key"]] = (end - read_stage(made)["seconds"], end)
    measured = sorted(spans[key] for key in spans if key.startswith("bench-"))
    assert len(measured) == 2 and all(end <= begin for (_, end), (begin, _) in pairwise(measured))
    for key, (begin, end) in spans.items():
        if not key.startswith("bench-"):
            assert all(end <= start + 0.02 or begin >= stop - 0.02 for start, stop in measured), key


def test_recipes_that_share_an_export_have_boards_of_their_own(folder, base):
    """A bundle from a run's folder is for the board of that recipe."""
    boards = ["rpi4", "rpi5"]
    document = {"base": base | {"recover": {"tokens": 0}}, "axes": {"target": boards}}
    out, file = folder / "boards", write_sweep(folder, document, "boards.yaml")
    code, document, said = ended(start(file, "--out", out, "--json"))
    assert code == 0, said
    assert len({recipe["stages"]["export"] for recipe in document["recipes"]}) == 1
    assert [recipe["artifacts"][0]["predicted_decode_tok_s"] is None for recipe in document["recipes"]] == [False] * 2
    found = [
        find_source(out / "runs" / recipe["name"], "gguf-q8_0", None).target.name for recipe in document["recipes"]
    ]
    assert found == boards


def test_a_second_sweep_does_nothing(swept, file):
    out, _, first, _ = swept
    before = {path: path.stat().st_mtime_ns for path in (out / "stages").rglob("*")}
    code, document, said = ended(start(file, "--out", out, "--json"))
    assert code == 1 and "nothing to do: every stage was already there" in said
    assert {stage["became"] for stage in document["stages"]} == {"there"}
    assert document["recipes"] == first["recipes"]
    assert {path: path.stat().st_mtime_ns for path in (out / "stages").rglob("*")} == before


def test_what_is_to_be_done_is_told_and_nothing_is_written(folder, file, swept):
    code, document, said = ended(start(file, "--out", folder / "dry", "--dry-run", "--json"))
    assert code == 0 and not (folder / "dry").exists()
    assert {stage["became"] for stage in document["stages"]} == {"to do"}
    assert f"3 recipes need {3 * STAGES} stages; as some are shared, that is {len(document['stages'])}," in said
    keys = {stage["key"] for stage in swept[2]["stages"]}
    assert {stage["key"] for stage in document["stages"]} == keys


def test_a_killed_process_loses_only_what_rests_on_it(folder, base, swept):
    """One plan's process is killed from outside, the rest goes on; the same command again makes what is missing."""
    document = {"base": base | {"target": "rpi5", "budget": OPEN}, "axes": {"prune.ratio": [0.25, 0.35]}}
    file = write_sweep(folder, document, "killed.yaml")
    out = folder / "killed"
    process = start(file, "--out", out, "--json")
    key, number = working_on(out, "plan", process)
    os.kill(number, signal.SIGKILL)
    code, document, said = ended(process)
    assert code == 2 == document["exit_code"] and f"{key} failed: its process was ended from outside (SIGKILL)" in said
    states = {stage["key"]: stage for stage in document["stages"]}
    assert states[key]["became"] == "failed" and "SIGKILL" in states[key]["reason"]
    lost = [row for row in document["recipes"] if row["stages"]["plan"] == key]
    assert [row["exit_code"] for row in document["recipes"] if row not in lost] == [3]
    assert len(lost) == 1 and lost[0]["exit_code"] == 2 and lost[0]["reason"].startswith("plan: its process")
    assert {stage["became"] for stage in document["stages"] if stage["recipes"] == [lost[0]["name"]]} == {
        "failed", "not run",
    }  # fmt: skip
    assert not (out / "runs" / lost[0]["name"] / "report.json").exists()
    assert not list((out / "stages").glob(".*"))
    code, document, _ = ended(start(file, "--out", out, "--json"))
    assert code == 3 and {row["exit_code"] for row in document["recipes"]} == {3}


def test_what_a_stage_refuses_is_told_and_others_go_on(folder, base):
    """A text that is gone when the sweep has begun: the recipe that reads it fails, the other is made."""
    text = folder / "fragile.txt"
    text.write_text(Path(base["data"]["test"]).read_text() + "Another end.\n")  # another text, by its contents
    other = base["data"] | {"test": str(text)}
    document = {"base": base | {"recover": {"tokens": 0}}, "axes": {"data": [base["data"], other]}}
    out, file = folder / "fragile", write_sweep(folder, document, "fragile.yaml")
    process = start(file, "--out", out, "--json")
    working_on(out, "score", process)
    text.unlink()
    code, found, said = ended(process)
    assert code == 2 and "no text file" in said and "Traceback" not in said
    assert sorted(row["exit_code"] for row in found["recipes"]) == [0, 2]
    assert (out / "logs").exists() is False, "what was refused needs no log"


def test_ctrl_c_keeps_what_is_finished(folder, base):
    file = write_sweep(folder, {"base": base, "axes": {"prune.ratio": [0.45, 0.5]}}, "stopped.yaml")
    out = folder / "stopped"
    process = start(file, "--out", out)
    _, number = working_on(out, "recover", process)
    process.send_signal(signal.SIGINT)
    code, _, said = ended(process, 60)
    assert code == 130 and said.rstrip().endswith(
        "interrupted; finished stages are kept, run the same command to go on"
    )
    assert not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE
    assert not list((out / "stages").glob(".tmp-*")) and len(list((out / "stages").glob("plan-*"))) == 2
    code, found, _ = ended(start(file, "--out", out, "--json"))
    assert code == 0 and {stage["became"] for stage in found["stages"] if stage["stage"] == "plan"} == {"there"}


def test_no_process_outlives_a_killed_sweep(folder, base):
    file = write_sweep(folder, {"base": base | {"recover": {"tokens": 0}}, "axes": {"seed": [5]}}, "orphans.yaml")
    out = folder / "orphans"
    process = start(file, "--out", out)
    _, number = working_on(out, "plan", process)
    process.kill()
    process.communicate()
    limit = time.monotonic() + 20
    while psutil.pid_exists(number) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not psutil.pid_exists(number)
    assert ended(start(file, "--out", out, "--json"))[0] == 0
    assert not list((out / "stages").glob(".tmp-*"))


def test_two_sweeps_in_one_folder_are_refused(folder, base):
    file = write_sweep(folder, {"base": base, "axes": {"seed": [7]}}, "one.yaml")
    out = folder / "one"
    process = start(file, "--out", out)
    working_on(out, "score", process)
    code, _, said = ended(start(file, "--out", out))
    assert code == 2 and "another run works" in said.splitlines()[-1]
    assert ended(process)[0] == 0


@pytest.mark.parametrize(("document", "expected"), [
    ({"axes": {"prune.ratio": [0.2, 2], "target": ["rpi5", 3]}}, "s.yaml:1: prune.ratio: "),
    ({"axes": {"target": ["rpi55", "host"]}}, "recipe target=rpi55: unknown target 'rpi55'"),
    ({"axes": {"model": ["nowhere", "neither"]}}, "recipe model=neither: no model folder 'neither'"),
])  # fmt: skip
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, document, expected):
    (tmp_path / "s.yaml").write_text(json.dumps(document))
    code, _, said = ended(start(tmp_path / "s.yaml", "--out", tmp_path / "out"))
    lines = [line for line in said.splitlines() if not line.startswith("  ")]  # of progress
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and expected in lines[0]
    assert not (tmp_path / "out").exists()
