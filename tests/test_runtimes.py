"""`make test-runtimes`: every cell of docs/runtimes.md is run again, and has to be what the page says.

A runtime whose package cannot be had is skipped with the installer's word. Environments are kept in the folder that
RUNTIMES_WORK names.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
WORK = os.environ.get("RUNTIMES_WORK")
TOLD = json.loads((FOLDER / "results" / "runtime-matrix.json").read_text(encoding="utf-8"))["cells"]
NAMES = list(dict.fromkeys(cell["runtime"] for cell in TOLD))
with_runtimes = pytest.mark.skipif(WORK is None, reason="make test-runtimes")
sys.path.insert(0, str(FOLDER))


@pytest.fixture(scope="module")
def matrix() -> Any:
    """The benchmark, its models, and the cells that are run here: at first those that others are compared with."""
    import runtime_matrix

    work = Path(str(WORK)).resolve()
    work.mkdir(parents=True, exist_ok=True)
    folders: dict[str, Path] = {model: runtime_matrix.made(model, work) for model in runtime_matrix.MODELS}
    cells: list[Any] = []
    for runtime in runtime_matrix.RUNTIMES:
        if runtime.name in {"transformers", *runtime_matrix.REFERENCE.values()}:
            runtime_matrix.run_all(runtime, folders, cells, work)
    return runtime_matrix, work, folders, cells


@with_runtimes
@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_right(matrix: Any, name: str) -> None:
    """Quantised files may differ by a near tie on another processor: there it counts that they run."""
    benchmark, work, folders, cells = matrix
    runtime = next(runtime for runtime in benchmark.RUNTIMES if runtime.name == name)
    benchmark.run_all(runtime, folders, cells, work)
    found = {(cell.model, cell.file): asdict(cell) for cell in cells if cell.runtime == name}
    told = {(cell["model"], cell["file"]): cell for cell in TOLD if cell["runtime"] == name}
    assert found.keys() == told.keys()
    reasons = {cell["message"] for cell in found.values() if cell["outcome"] == "not tried"}
    if reasons:
        pytest.skip(f"{name}: {reasons.pop()}")
    for key, cell in found.items():
        exact = key[1] in ("gguf-f32", "onnx-fp32", "xnnpack-fp32", "hf")
        assert outcome(cell, exact) == outcome(told[key], exact), (key, cell["message"])
        assert cell["message"] == told[key]["message"]


def outcome(cell: dict[str, Any], exact: bool) -> str:
    return "works" if cell["outcome"] == "differs" and not exact else str(cell["outcome"])


def test_every_runtime_has_its_row() -> None:
    from matrix_runtimes import RUNTIMES

    assert [runtime.name for runtime in RUNTIMES] == NAMES
    page = (FOLDER.parent / "docs" / "runtimes.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in page for name in NAMES)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("TypeError: shape mismatch\n  0: <E>::bt\n  1: core::error\n  at ./a.c:2", "TypeError: shape mismatch"),
        ("llama: tensor 'q' has wrong shape\nERROR: failed\nException: no model", "llama: tensor 'q' has wrong shape"),
        ("\x1b[31mRuntimeError: no file '/at/work/dense/m.gguf'\x1b[0m", "RuntimeError: no file 'm.gguf'"),
        ("[08:11:59] :220: These Op Not Support: ONNX::X\nConverted Failed!", "These Op Not Support: ONNX::X"),
        ("", "ended with 7"),
    ],
)  # fmt: skip
def test_the_sentence_that_matters(said: str, message: str) -> None:
    import subprocess

    from runtime_matrix import last_words

    done = subprocess.CompletedProcess([], 7, stdout="", stderr=said)
    assert last_words(done, Path("/at/work")) == message
