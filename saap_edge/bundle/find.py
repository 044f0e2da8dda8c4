"""Finding the parts of a bundle in a finished run: one artifact, its model folder, licence and parity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from saap_edge.artifacts import Artifact, Manifest, read_manifest
from saap_edge.bundle.schema import Licence
from saap_edge.cache import ancestors, read_stage
from saap_edge.documents.verify import Parity, Verify
from saap_edge.errors import SaapError
from saap_edge.formats import FORMATS, KINDS
from saap_edge.sources import LICENCES, resolve_model
from saap_edge.targets import Target, load_target

__all__ = [
    "Source", "base_licence", "find_artifact", "find_model", "find_source", "front_matter", "licence_files",
]  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One verified artifact, and what its bundle is made from.

    Attributes:
        folder: the export folder that `artifact` and `manifest` are of.
        artifact: its entry in the manifest.
        manifest: manifest.json of the export.
        lineage: hashes and stage folders that it was made from, by name.
        model: folder with its tokenizer.
        base: folder of the dense model.
        target: the board that the bundle is for.
        error, tolerance: what the verify stage found.
    """

    folder: Path
    artifact: Artifact
    manifest: Manifest
    lineage: dict[str, str]
    model: Path
    base: Path
    target: Target
    error: float
    tolerance: float


def find_source(path: Path, artifact_format: str | None, target: str | None) -> Source:
    """Find the artifact of a format in a run's --out folder, or in the folder of its export stage or of a later one.

    `artifact_format` defaults to the target's preferred GGUF format, `target` to the recipe's. Raises SaapError when
    there is no export or no such format, or the artifact was changed or never verified.
    """
    export = _find_export(path)
    board = load_target(target or export.recipe["target"])
    artifact_format = artifact_format or f"gguf-{board.quantisation['gguf']}"
    known = FORMATS.get(artifact_format)
    if known is not None and known.launch is None:
        raise SaapError(f"--format {artifact_format}: {known.no_bundle}")
    return _source(export, path, (artifact_format,), board)


def find_artifact(path: Path, formats: tuple[str, ...]) -> Source:
    """Find an artifact as `find_source` does: of the first of `formats` that the export has. Raises SaapError so."""
    export = _find_export(path)
    return _source(export, path, formats, load_target(export.recipe["target"]))


def find_model(path: Path) -> tuple[Path, Path]:
    """The Hugging Face folders of the exported model and of the dense one, found as in `find_source`.

    Raises SaapError when there is no export.
    """
    export = _find_export(path)
    return export.model, export.base


@dataclass(frozen=True)
class _Export:
    """An export: its folder, stage.json, the recipe of its run, the folders of all stages before, and the two models
    of the run."""

    folder: Path
    record: dict[str, Any]
    recipe: dict[str, Any]
    found: dict[str, Path]
    base: Path

    @property
    def model(self) -> Path:
        return self.found["recover"] / "model" if self.record["stage"] == "export" else self.base


def _find_export(path: Path) -> _Export:
    found = ancestors(_stage_folder(path))
    folder = found.get("export") or found.get("dense")
    if folder is None:
        raise SaapError(f"'{path}' has no export: run `saap-edge export` first")
    record = read_stage(folder)
    recipe = _recipe(path, record)
    return _Export(folder, record, recipe, found, resolve_model(recipe["model"]))


def _recipe(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The recipe that a run's folder is of; of a stage's folder, the one in its record. Recipes of a sweep for several
    boards may share an export, but not a report."""
    report = path / "report.json"
    found: dict[str, Any] = (read_stage(report.resolve().parent) if report.is_symlink() else record)["recipe"]
    return found


def _source(export: _Export, path: Path, formats: tuple[str, ...], board: Target) -> Source:
    manifest = read_manifest(export.folder)
    artifacts = {artifact.format: artifact for artifact in manifest.artifacts}
    artifact_format = next((name for name in formats if name in artifacts), None)
    if artifact_format is None:
        asked = f"--format {formats[0]}" if len(formats) == 1 else f"this takes {', '.join(formats)}"
        raise SaapError(f"{asked}: '{path}' has {', '.join(artifacts)}")
    parity = _parity(export.folder, export.record["stage"], manifest.role, artifact_format)
    lineage = manifest.lineage | {name: stage.name for name, stage in ancestors(export.folder).items()}
    return Source(
        export.folder, artifacts[artifact_format], manifest, lineage, export.model, export.base, board,
        parity.max_error, parity.tolerance,
    )  # fmt: skip


def _stage_folder(path: Path) -> Path:
    """A stage's folder as it is; for a run's --out folder, the export that its links point at."""
    for name, kind in KINDS.items():
        if kind.usual and (path / name).is_symlink():
            return (path / name).resolve().parent
    return path


def _parity(folder: Path, stage: str, role: str, artifact_format: str) -> Parity:
    """The artifact's entry in the verify stage that read this export folder. Raises SaapError when there is none."""
    for record in folder.parent.glob("verify-*/stage.json"):
        if read_stage(record.parent)["inputs"].get(stage) == folder.name:
            for parity in Verify.read(record.parent / "verify.json").artifacts:
                if parity.role == role and parity.format == artifact_format and parity.passed:
                    return parity
    raise SaapError(f"'{folder}' was never verified: run `saap-edge verify` on the export's folder first")


def licence_files(folder: Path) -> list[Path]:
    """Files of a model folder that state its licence."""
    return sorted({path for pattern in LICENCES for path in folder.glob(pattern) if path.is_file()})


def base_licence(folder: Path) -> Licence:
    """What a model folder says of its licence: README.md's front matter (`license`, or `license_name` where that is
    "other"), and the licence files."""
    return Licence(
        name=_licence_name(front_matter(folder / "README.md")), files=[path.name for path in licence_files(folder)]
    )


def front_matter(readme: Path) -> dict[str, Any]:
    """The YAML at the head of a README.md; empty where there is none, or it is damaged."""
    if not readme.is_file():
        return {}
    head, *rest = readme.read_text(encoding="utf-8", errors="replace").split("\n---", 1)
    if not head.startswith("---") or not rest:
        return {}
    try:
        document = yaml.safe_load(head.removeprefix("---"))
    except yaml.YAMLError:
        return {}
    return document if isinstance(document, dict) else {}


def _licence_name(fields: dict[str, Any]) -> str | None:
    name = fields.get("license_name") if fields.get("license") == "other" else fields.get("license")
    return ", ".join(map(str, name)) if isinstance(name, list) else str(name) if name else None
