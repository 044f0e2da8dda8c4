"""Finding what a layout is made of, and folders that are whole or not there."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest

from saap_edge import cli
from saap_edge.errors import SaapError
from saap_edge.layouts import write as writing
from saap_edge.layouts.document import LAYOUT_FILE, Written
from saap_edge.layouts.registry import LAYOUTS, OWN, Layout
from saap_edge.layouts.write import write_layout
from saap_edge.registry import Registry
from tests.bundle.conftest import tiny_run
from tests.conftest import tiny_model, write_folder
from tests.test_cli import call


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Its own, because a package's fixtures that another folder imports stay until the session ends."""
    return tiny_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def layouts(monkeypatch):
    """A registry that a test may add to."""
    registry = Registry("layout", "saap_edge.tests.layouts", own=OWN)
    monkeypatch.setattr(writing, "LAYOUTS", registry)
    return registry


def takes_the_model(given, out):
    (out / "got.json").write_text(json.dumps([given.format, given.path == given.model, given.model.name]))
    return ["read this"]


def fails(given, out):
    (out / "half").write_text("half")
    raise SaapError("no")


def test_by_the_command(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "ollama"
    arguments = ("export", run, "--for", "ollama", "--out", out)
    code, printed, told = call(monkeypatch, capsys, *arguments, "--json")
    document = json.loads(printed)
    assert code == 0 and document["format"] == "gguf-q4_0" and document["out"] == str(out)
    names = {path.name for path in out.iterdir()}
    assert names == {"Modelfile", "model-q4_0.gguf", "LICENSE", LAYOUT_FILE}
    assert {file["path"]: file["bytes"] for file in document["files"]} == {
        name: (out / name).stat().st_size for name in names - {LAYOUT_FILE}
    }
    assert "ollama create NAME" in told and 'LICENSE "apache-2.0"' in (out / "Modelfile").read_text()
    assert call(monkeypatch, capsys, *arguments)[0] == 0, "what it wrote itself is replaced"
    (out / "mine.txt").write_text("mine")
    code, _, told = call(monkeypatch, capsys, *arguments)
    assert code == 2 and "mine.txt" in told and (out / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--for", "olama", "--out", "x"), "unknown layout 'olama', did you mean 'ollama'?"),
        (("--for", "ollama"), "say with --out where"),
        (("--out", "x"), "go with --for"),
        (("--format", "gguf-q4_0"), "go with --for"),
        (("--for", "ollama", "--out", "x", "--format", "onnx-int4"), "the layout 'ollama' takes gguf-q4_0"),
        (("--for", "ollama", "--out", "x", "--format", "gguf-q8_0"), "has gguf-q4_0, onnx-int4"),
        (("--for", "ollama", "--out", "x", "--packages", "y"), "needs no packages"),
    ],
)
def test_bad_input(run, tmp_path, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    code, _, told = call(monkeypatch, capsys, "export", run, *arguments)
    assert code == 2 and reason in " ".join(told.split()) and not list(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("executorch") is not None, reason="ExecuTorch is installed here")
def test_a_runtime_that_is_not_installed(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, told = call(monkeypatch, capsys, "export", run, "--for", "executorch", "--out", "phone")
    assert code == 2 and "pip install 'saap-edge[executorch]'" in " ".join(told.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["file", "others", "link"])
def test_what_is_in_the_way(run, tmp_path, there):
    out = tmp_path / "out"
    if there == "file":
        out.write_text("mine")
    elif there == "others":
        (out / "deep").mkdir(parents=True)
        (out / "deep" / "mine").write_text("mine")
    else:
        (tmp_path / "elsewhere").mkdir()
        out.symlink_to("elsewhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SaapError, match=r"in the way|something else"):
        write_layout(run, "ollama", out)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_writer_that_fails_leaves_nothing(run, layouts, tmp_path):
    layouts.register(Layout("fails", "nobody", "nothing", f"{__name__}:fails", ("gguf-q4_0",)))
    with pytest.raises(SaapError, match="no"):
        write_layout(run, "fails", tmp_path / "new" / "out")
    assert not list(tmp_path.iterdir())
    write_layout(run, "ollama", tmp_path / "out")
    before = {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()}
    with pytest.raises(SaapError, match="no"):
        write_layout(run, "fails", tmp_path / "out")
    assert {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()} == before
    assert os.listdir(tmp_path) == ["out"]


def test_a_layout_of_the_model(run, layouts, tmp_path):
    record = Layout("model", "me", "it", f"{__name__}:takes_the_model", ("small", "large"), takes_model=True)
    layouts.register(record)
    written = write_layout(run, "model", tmp_path / "out")
    assert written.notes == ["read this"] and written.format == "small"
    assert json.loads((tmp_path / "out" / "got.json").read_text()) == ["small", True, "model"]
    assert Written.read(tmp_path / "out" / LAYOUT_FILE) == written
    assert write_layout(run, "model", tmp_path / "out", "large").format == "large"
    with pytest.raises(SaapError, match="takes small, large"):
        write_layout(run, "model", tmp_path / "out", "gguf-q4_0")


def test_a_run_that_is_not_there(tmp_path):
    with pytest.raises(SaapError):
        write_layout(tmp_path, "ollama", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("family", "told"), [
    ("lfm2", r"with short convolutions \(LFM2\)"), ("gemma4_text", "Gemma 4: .* caches of two sizes or none"),
])  # fmt: skip
def test_what_keeps_no_such_states_or_caches_is_refused(family, told, run, tmp_path, monkeypatch):
    model = write_folder(tiny_model(family, num_attention_heads=4, num_key_value_heads=2), tmp_path / family)
    found = writing._given
    monkeypatch.setattr(writing, "_given", lambda *given: replace(found(*given), model=model, base=model))
    for name in ("gpt4all", "transformers.js", "browser", "executorch"):
        with pytest.raises(SaapError, match=rf"'{name}' holds no (model )?{told}"):
            write_layout(run, name, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    write_layout(run, "ollama", tmp_path / "out")


def test_every_layout_can_be_loaded():
    for layout in LAYOUTS.values():
        assert callable(layout.write()) and layout.formats and layout.about and layout.writes


def test_help_names_them(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["saap-edge", "export", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    printed = capsys.readouterr().out
    assert all(layout.name in printed for layout in OWN)
