"""Commands on a GGUF file that others wrote, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import raw_model
from tests.gguf_input.foreign import write_foreign
from tests.test_cli import call, refused, write_recipe


@pytest.fixture
def saap(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda *arguments: call(monkeypatch, capsys, *arguments)


def passed(out: Path) -> list[bool]:
    verify = json.loads(next(out.glob("stages/verify-*/verify.json")).read_text())
    return [entry["passed"] for entry in verify["artifacts"]]


def test_compile_and_bundle(saap, tmp_path):
    path = write_foreign(raw_model("llama"), tmp_path / "tiny.gguf")
    formats = {"formats": ["gguf-q4_0", "onnx-int4"]}
    recipe = write_recipe(tmp_path, path, prune={"ratio": 0.3, "method": "kfac"}, recover={"tokens": 0}, export=formats)
    code, _, stderr = saap("compile", recipe, "--out", tmp_path / "out")
    assert code == 0, stderr
    assert passed(tmp_path / "out") == [True] * 4
    model = json.loads((tmp_path / "out" / "report.json").read_text())["model"]
    assert (model["name"], model["source"]["file"], model["source"]["types"]) == ("tiny.gguf", "tiny.gguf", {"F32": 22})
    code, _, stderr = saap("bundle", tmp_path / "out", "--format", "gguf-q4_0", "--out", tmp_path / "bundle")
    assert code == 0, stderr
    assert "apache-2.0" in (tmp_path / "bundle" / "bundle.json").read_text()


def test_recover_takes_a_file(saap, tmp_path):
    path = write_foreign(raw_model("llama"), tmp_path / "tiny.gguf")
    recipe = write_recipe(tmp_path, path, export={"formats": ["gguf-q4_0"]})
    code, _, stderr = saap("recover", path, "--recipe", recipe, "--out", tmp_path / "out")
    assert code == 0, stderr
    assert next((tmp_path / "out").glob("stages/recover-*/model/model.safetensors")).stat().st_size > 0


def test_a_damaged_file_is_refused_before_anything_is_written(saap, tmp_path):
    path = write_foreign(raw_model("llama"), tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:-1000])
    assert "is cut short" in refused(saap, tmp_path, "--model", path)
    assert not (tmp_path / "cache").exists()
