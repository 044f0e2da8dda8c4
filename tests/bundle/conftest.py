"""A finished run, as far as a bundle looks at it, without the stages that would take long."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from saap_edge.bundle.schema import BUNDLE_FILE
from saap_edge.bundle.write import write_bundle
from saap_edge.evaluation.verify import verify_folder
from saap_edge.exporting.write import export_artifacts
from saap_edge.files import file_hash
from saap_edge.model.folder import build_pruned
from tests.conftest import TEXT, WIDTHS, randomise_projections, tiny_model, write_folder

FORMATS = ("gguf-q4_0", "onnx-int4")
FRONT_MATTER = "---\nlicense: apache-2.0\ntags: [tiny]\n---\n# A model\n"


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Two threads of a runtime spin while they wait for each other, which on a busy machine takes minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 1)
        yield


def write_stage(folder: Path, inputs: list[str], base: Path) -> None:
    name, _, key = folder.name.partition("-")
    record = {
        "stage": name, "hash": key, "inputs": {path.partition("-")[0]: path for path in inputs},
        "recipe": {"model": str(base), "target": "rpi5"},
    }  # fmt: skip
    (folder / "stage.json").write_text(json.dumps(record))


def write_run(out: Path, base: Path, pruned: Path, formats: tuple[str, ...] = FORMATS) -> Path:
    """recover, export and verify of `pruned`, and the link people look for."""
    recover, export, verify = (out / "stages" / name for name in ("recover-01", "export-02", "verify-03"))
    for folder in (recover, export, verify):
        folder.mkdir(parents=True)
    shutil.copytree(pruned, recover / "model")
    export_artifacts(recover / "model", export, formats, "pruned", {"recover": recover.name}, lambda _: None)
    parities = verify_folder(export, recover / "model", TEXT, 1, lambda: None)
    (verify / "verify.json").write_text(json.dumps([parity.as_dict() for parity in parities]))
    write_stage(recover, [], base)
    write_stage(export, [recover.name], base)
    write_stage(verify, [export.name, recover.name], base)
    (out / "gguf").symlink_to("stages/export-02/gguf")
    return out


def tiny_run(root: Path) -> Path:
    """The --out folder of a run of a tiny Llama whose layers all have different widths."""
    dense = tiny_model("llama")
    base = write_folder(dense, root / "base")
    (base / "README.md").write_text(FRONT_MATTER)
    (base / "LICENSE").write_text("Apache License, version 2.0\n")
    pruned = write_folder(randomise_projections(build_pruned(dense, WIDTHS)), root / "pruned")
    return write_run(root / "out", base, pruned)


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="package")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of every format. Not to be changed: take `copy`."""
    root = tmp_path_factory.mktemp("made")
    for name in FORMATS:
        write_bundle(run, root / name, name)
    return {name: root / name for name in FORMATS}


@pytest.fixture(params=FORMATS)
def copy(request: pytest.FixtureRequest, made: dict[str, Path], tmp_path: Path) -> Path:
    """A bundle of each format that a test may damage."""
    return Path(shutil.copytree(made[request.param], tmp_path / "bundle"))


def amend(folder: Path, **changes: object) -> None:
    """Change bundle.json's fields, and make its list true again: damage that no checksum shows."""
    document = json.loads((folder / BUNDLE_FILE).read_text()) | changes
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != BUNDLE_FILE)
    document["files"] = [
        {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": file_hash(path)}
        for path in paths
    ]
    (folder / BUNDLE_FILE).write_text(json.dumps(document))
