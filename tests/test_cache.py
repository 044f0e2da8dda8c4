"""Stages: cached by content, whole or absent, resumable."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saap_edge import cache
from saap_edge.cache import Stage, ancestors, clean_leftovers, link, read_stage, run_stage
from saap_edge.chain.rule import Rule
from saap_edge.chain.run import run_stages
from saap_edge.errors import SaapError
from saap_edge.files import file_hash, folder_hash
from saap_edge.progress import no_bar
from saap_edge.recipe import Recipe


def stage(name="one", inputs=(), settings=None, text="x"):
    return Stage(name, inputs, ("data",), settings or {}, lambda folders, out: (out / "file").write_text(text) and None)


def run(tmp_path, step, folders=None, data="abc"):
    return run_stage(step, folders or {}, {"data": data}, tmp_path / "stages", {"model": "m"})


def test_second_run_does_nothing(tmp_path):
    first, second = run(tmp_path, stage()), run(tmp_path, stage())
    assert (first.cached, second.cached) == (False, True) and first.folder == second.folder
    assert read_stage(first.folder)["recipe"] == {"model": "m"}


def test_a_stage_that_is_used_again_has_the_recipe_of_that_run(tmp_path, monkeypatch):
    """`export` of a folder of `recover` writes the formats that the last `recover` was asked for."""
    base = run(tmp_path, stage())
    before = (base.folder / "stage.json").stat().st_ctime_ns
    run(tmp_path, stage())
    assert (base.folder / "stage.json").stat().st_ctime_ns == before, "the same recipe: nothing is written"
    other = {"model": "m", "export": {"formats": ["gguf-q8_0"]}}
    assert run_stage(stage(), {}, {"data": "abc"}, tmp_path / "stages", other).cached
    record = read_stage(base.folder)
    assert record["recipe"] == other and record["files"] and sorted(path.name for path in base.folder.iterdir()) == [
        "file", "stage.json",
    ]  # fmt: skip
    run(tmp_path, stage("next", ("one",)), {"one": base.folder})  # what it holds is unchanged

    def full(out: Path, text: str) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(cache, "write_whole", full)
    assert run(tmp_path, stage()).cached and read_stage(base.folder)["recipe"] == other


def test_any_input_changes_the_folder(tmp_path):
    base = run(tmp_path, stage())
    others = [
        run(tmp_path, stage(settings={"ratio": 0.4})), run(tmp_path, stage(), data="abd"), run(tmp_path, stage("two")),
    ]  # fmt: skip
    assert len({result.folder for result in [base, *others]}) == 4
    after = run(tmp_path, stage("next", ("one",)), {"one": base.folder})
    again = run(tmp_path, stage("next", ("one",)), {"one": others[0].folder})
    assert after.folder != again.folder
    assert ancestors(after.folder) == {"one": base.folder, "next": after.folder}


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("longer")])
def test_a_stage_whose_files_were_changed_is_not_worked_on(tmp_path, monkeypatch, hashed, change):
    if not hashed:
        monkeypatch.setattr(cache, "_HASHED", 0)
    base = run(tmp_path, stage())
    change(base.folder / "file")
    with pytest.raises(SaapError, match=r"file' is missing or was changed since one wrote it: remove the folder 'one-"):
        run(tmp_path, stage("next", ("one",)), {"one": base.folder})
    assert sorted(path.name for path in (tmp_path / "stages").iterdir()) == [base.folder.name]


def test_a_changed_byte_of_a_stage(tmp_path):
    base = run(tmp_path, stage())
    (base.folder / "file").write_text("y")
    with pytest.raises(SaapError, match="was changed since one wrote it"):
        run(tmp_path, stage("next", ("one",)), {"one": base.folder})


def test_a_failing_stage_leaves_nothing(tmp_path):
    def fail(folders, out):
        (out / "half").write_text("half")
        raise SaapError("broken")

    with pytest.raises(SaapError, match="broken"):
        run(tmp_path, Stage("bad", (), (), {}, fail))
    assert list((tmp_path / "stages").iterdir()) == []


FULL = """
import resource, sys
from pathlib import Path
from saap_edge.errors import SaapError
from saap_edge.cache import Stage, run_stage
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write beyond the limit is an error, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
def write(folders, out):
    (out / "small").write_bytes(b"x" * 500)
    (out / "big").write_bytes(b"x" * 5000)
try:
    run_stage(Stage("big", (), (), {}, write), {}, {}, Path(sys.argv[1]), {})
except SaapError as error:
    print(error)
    sys.exit(2)
"""


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    result = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert "stage big: cannot write" in result.stdout and "File too large" in result.stdout
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys, time
from pathlib import Path
from saap_edge.cache import Stage, run_stage
def slow(folders, out):
    (out / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
run_stage(Stage("slow", (), (), {}, slow), {}, {}, Path(sys.argv[1]), {})
"""


def test_a_killed_run_shows_no_result_and_is_swept_up(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    clean_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1, "a live run's folder must stay"
    process.kill()
    process.wait()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("slow")]
    clean_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
    done = run_stage(Stage("slow", (), (), {}, lambda folders, out: None), {}, {}, tmp_path, {})
    assert not done.cached


def test_hashes_follow_content(tmp_path):
    (tmp_path / "a").write_text("1")
    before = folder_hash(tmp_path)
    os.utime(tmp_path / "a", (time.time(), time.time() + 100))
    assert folder_hash(tmp_path) == before
    (tmp_path / "a").write_text("2")
    assert folder_hash(tmp_path) != before
    with pytest.raises(SaapError, match="cannot read"):
        file_hash(tmp_path / "none")


def test_links_move_and_never_replace_a_real_file(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        link(tmp_path / name, tmp_path / "now")
        assert (tmp_path / "now").resolve() == (tmp_path / name).resolve()
    (tmp_path / "real").write_text("mine")
    with pytest.raises(SaapError, match="in the way"):
        link(tmp_path / "first", tmp_path / "real")


WHOLE = {"stage": "plan", "inputs": {}, "recipe": {}}
OTHER = [
    None, "{", "[]", "1", json.dumps({"stage": "x"}), *(json.dumps(WHOLE | change) for change in (
        {"stage": {}}, {"inputs": 3}, {"inputs": ["one"]}, {"inputs": {"score": None}},
        {"inputs": {"score": "../x"}}, {"recipe": []},
    )),
]  # fmt: skip


@pytest.mark.parametrize("content", OTHER)
def test_other_folders_are_not_stages(tmp_path, content):
    if content is not None:
        (tmp_path / "stage.json").write_text(content)
    with pytest.raises(SaapError, match="not a stage folder"):
        read_stage(tmp_path)


def test_records_that_go_in_a_circle(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stage.json").write_text(json.dumps(WHOLE | {"inputs": {"score": other}}))
    with pytest.raises(SaapError, match="which was made from it"):
        ancestors(tmp_path / "a")


def test_what_was_made_of_an_older_measurement_is_made_again(tmp_path):
    """Only the bench folder is deleted: gate and report follow its new figures; what it was made from stays."""

    class Figures:
        recipe, bar = Recipe(), staticmethod(no_bar)
        taken = 0

        def rule(self, name, inputs):
            return Rule(name, inputs, lambda context, folders, out: self.measure(name, folders, out))

        def measure(self, name, folders, out):
            self.taken += name == "bench"
            source = folders.get("bench")
            seen = json.loads((source / "gate.json").read_text())["taken"] if source else self.taken
            (out / "gate.json").write_text(json.dumps({"exit_code": 0, "taken": seen}))

        def outside(self, roles):
            return {}

    def measured():
        ahead = []
        names = ("export", "bench", "gate")
        outcome = run_stages(job, chain, names, out=tmp_path, before=lambda _, steps: ahead.extend(steps))
        assert [(step.stage.name, step.cached) for step in ahead] == [(r.name, r.cached) for r in outcome.results]
        seen = [json.loads((result.folder / "gate.json").read_text())["taken"] for result in outcome.results]
        return seen[1:], [result.cached for result in outcome.results]

    job = Figures()
    inputs = {"export": (), "bench": ("export",), "gate": ("bench",), "report": ("bench", "gate")}
    chain = tuple(job.rule(name, needed) for name, needed in inputs.items())
    assert measured() == ([1, 1], [False, False, False])
    assert measured() == ([1, 1], [True, True, True])
    shutil.rmtree(next((tmp_path / "stages").glob("bench-*")))
    assert measured() == ([2, 2], [True, False, False])
    assert measured() == ([2, 2], [True, True, True])
