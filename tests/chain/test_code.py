"""The code that a stage reaches decides whether it is run again; other code does not."""

import shutil
from pathlib import Path

import pytest

from saap_edge.chain import code
from saap_edge.chain.chains import COMPILE, DENSE, TUNE, WRITING


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package, to be changed."""
    copy = tmp_path / "saap_edge"
    shutil.copytree(code.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "reference"))
    monkeypatch.setattr(code, "PACKAGE", copy)
    forget()
    yield copy
    forget()


def forget():
    code.code_hash.cache_clear()
    code._needed.cache_clear()


def hashes():
    forget()
    return {rule.name: code.code_hash(rule.body.__module__) for rule in (*WRITING, *COMPILE)}


def changed(package, file):
    """The stages that a change of that file makes again."""
    before = hashes()
    with (package / file).open("a", encoding="utf-8") as stream:
        stream.write("\n# another line\n")
    after = hashes()
    return {name for name in before if before[name] != after[name]}


ALL = {rule.name for rule in COMPILE}


@pytest.mark.parametrize(("file", "stages"), [
    ("report/html.py", {"report"}), ("report/template.html.j2", {"report"}), ("cli/chain.py", set()),
    ("pruning/score.py", {"score", "bank", "plan", "prune"}), ("pruning/search.py", {"plan", "prune"}),
    ("recovery/train.py", {"recover"}), ("gating/judge.py", {"bench", "gate"}),
    ("model/checkpoint.py", ALL - {"gate", "report"} | {"write"}),
    ("chain/stages/verify.py", {"verify"}), ("worth/fit.py", set()),
    ("engines/child.py", {"write", "dense", "export", "verify", "bench"}),
    ("families/granite.py", ALL - {"gate", "report"} | {"write"}), ("errors.py", ALL | {"write"}),
    ("writing/filters.py", {"write"}),
])  # fmt: skip
def test_a_change_makes_again_what_reaches_it(package, file, stages):
    assert changed(package, file) == stages


def test_every_stage_reaches_the_module_that_does_its_work():
    known = {
        "score": "pruning/score.py", "bank": "pruning/bank.py", "plan": "pruning/planner.py",
        "prune": "pruning/surgery.py", "recover": "recovery/quantiser.py", "dense": "exporting/gguf.py",
        "export": "exporting/onnx_decoder.py", "verify": "engines/llama_cpp.py", "bench": "measuring/measure.py",
        "gate": "gating/judge.py", "report": "report/template.html.j2", "densecheck": "engines/onnxruntime.py",
        "densebench": "engines/llama_cpp.py", "write": "engines/llama_writer.py",
    }  # fmt: skip
    for rule in (*WRITING, *COMPILE, *TUNE, *DENSE):
        files = {str(path.relative_to(code.PACKAGE)) for path in code.reached(rule.body.__module__)}
        assert known[rule.name] in files and str(Path("chain/stages")) not in files


def test_what_type_checkers_import_is_not_reached(package):
    (package / "one.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import saap_edge.errors\n"
    )
    (package / "two.py").write_text("def late():\n    from saap_edge.model import folder\n    return folder\n")
    (package / "three.py").write_text("CHILD = ['-m', 'saap_edge.engines.base']\n")
    names = {name: {str(path.relative_to(package)) for path in code.reached(f"saap_edge.{name}")}
             for name in ("one", "two", "three")}  # fmt: skip
    assert names["one"] == {"one.py"}
    assert {"model/folder.py", "model/checkpoint.py"} <= names["two"]
    assert {"three.py", "engines/base.py", "engines/__init__.py"} <= names["three"]
