"""A finished run of a tiny model, whose base model states what a test wants it to state."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import saap_edge as se
from tests.conftest import TEXT, tiny_model, write_folder
from tests.test_cli import SMALL

FORMATS = ("gguf-f16", "gguf-bf16", "gguf-q4_0", "onnx-fp32", "onnx-int4")
STATED = "---\nlicense: apache-2.0\nlanguage: [en]\n---\n# A model\n"
TEMPLATE = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}{{ '<|assistant|>' }}"


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Two threads of a runtime spin while they wait for each other, which on a busy machine takes minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 1)
        yield


def compiled(root: Path, formats: tuple[str, ...], method: str) -> Path:
    """The --out folder of a run in `root`, of the model in root/base."""
    base = write_folder(tiny_model("llama"), root / "base")
    (base / "chat_template.jinja").write_text(TEMPLATE)
    (base / "README.md").write_text(STATED)
    (base / "LICENSE").write_text("Apache License, version 2.0\n")
    (root / "text.txt").write_text(TEXT)
    texts = dict.fromkeys(("calibration", "heldout", "test"), str(root / "text.txt"))
    recipe = {"model": str(base), "data": texts, **SMALL, "export": {"formats": list(formats)}}
    recipe["prune"] = {"ratio": 0.3, "method": method}
    se.compile(recipe=recipe, out=root / "out")
    return root / "out"


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Widths per layer."""
    return compiled(tmp_path_factory.mktemp("run"), FORMATS, "saap")


@pytest.fixture
def states(run: Path) -> Iterator[Path]:
    """The base model's README.md, which a test may change."""
    readme = run.parent / "base" / "README.md"
    yield readme
    readme.write_text(STATED)


@pytest.fixture
def evaluation(run: Path, tmp_path: Path) -> Path:
    """What `saap-edge evaluate --json` prints of the run's export folder."""
    row = {"task": "piqa", "metric": "acc", "value": 0.625, "stderr": 0.034, "n": 200, "sha256": "0" * 12}
    document = {
        "schema": 1, "evaluated": str((run / "gguf").resolve().parent),
        "tasks": [{"artifact": "gguf-q4_0", **row}, {"artifact": "gguf-other", **row}],
    }  # fmt: skip
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(document))
    return path
