"""The export stage: writes a model in every format, with a manifest that says what each file is and what made it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from saap_edge.artifacts import Artifact, Manifest, size_and_hash
from saap_edge.errors import SaapError
from saap_edge.exporting.writers import Export
from saap_edge.formats import FORMATS, Format, format_of

__all__ = ["export_artifacts", "write_artifact"]


def export_artifacts(
    folder: Path,
    out: Path,
    formats: tuple[str, ...],
    role: str,
    lineage: dict[str, str],
    progress: Callable[[str], None],
    group: int = 32,
    imatrix: Path | None = None,
) -> Manifest:
    """Write the model in `folder` in every format under `out`, and manifest.json beside them.

    Args:
        role: "dense" or "pruned".
        lineage: what the model was made from -> hash.
        progress: called with the name of each format that was written.
        group: inputs that share a scale in ONNX files, unless the folder was tuned with another group. GGUF has 32.
        imatrix: the model's importance matrix, for the types that llama.cpp makes.

    Raises SaapError when a runtime cannot run the model.
    """
    from saap_edge.exporting.kquants import check_importance
    from saap_edge.exporting.refusal import export_refusal
    from saap_edge.exporting.weights import ExportWeights

    weights, records = ExportWeights(folder), [format_of(name) for name in formats]
    for record in records:
        refusal = export_refusal(weights.spec, record.name)
        if refusal:
            raise SaapError(refusal)
        check_importance(record, imatrix)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        making = _Making(folder, out, Path(scratch), group, imatrix)
        artifacts = [_artifact(making, record, progress) for record in making.ordered(records)]
    layers = [(shape.heads, shape.kv_heads, shape.ffn) for shape in weights.spec.layers]
    tuned = weights.tuned.name if weights.tuned else None
    manifest = Manifest(
        role=role, tuned=tuned, group=group, layers=layers, parameters=weights.parameters, lineage=lineage,
        artifacts=artifacts,
    )  # fmt: skip
    (out / "manifest.json").write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return manifest


class _Making:
    """The artifacts of one export. A file from which llama.cpp makes others is written once."""

    def __init__(self, folder: Path, out: Path, scratch: Path, group: int, imatrix: Path | None) -> None:
        self.folder, self.out = folder, out
        self._scratch, self._asked = scratch, set[str]()
        self.export = Export(group, imatrix, self._source)

    def ordered(self, records: list[Format]) -> list[Format]:
        """The records with formats first from which llama.cpp makes others, even if none of the others is wanted."""
        self._asked = {record.name for record in records}
        sources = {self._source_of(record) for record in records if record.made_from}
        sources = sources or {record.made_from[0] for record in FORMATS.values() if record.made_from}
        return sorted(records, key=lambda record: record.name not in sources)

    def _source_of(self, record: Format) -> str:
        usual, wide = record.made_from
        return wide if self._wide else usual

    @cached_property
    def _wide(self) -> bool:
        from saap_edge.model.values import beyond_fp16

        return bool(beyond_fp16(self.folder))

    def _source(self, record: Format) -> Path:
        source = format_of(self._source_of(record))
        root = self.out if source.name in self._asked else self._scratch
        path = root / source.path
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            source.writes()(self.folder, path, source, self.export)
        return path


def _artifact(making: _Making, record: Format, progress: Callable[[str], None]) -> Artifact:
    path = making.out / record.path
    path.parent.mkdir(parents=True, exist_ok=True)
    summary = _write(making.folder, path, record, making.export)
    size, digest = size_and_hash(path)
    progress(record.name)
    return Artifact(
        format=record.name, path=record.path, bytes=size, sha256=digest, projection_bytes=summary["projection_bytes"],
        details=summary,
    )  # fmt: skip


def write_artifact(folder: Path, path: Path, artifact_format: str, group: int = 32) -> dict[str, Any]:
    """Write one artifact of a format that llama.cpp does not make, and return its exporter's summary.

    Raises SaapError as the exporters; then no part of the artifact is left.
    """
    return _write(folder, path, format_of(artifact_format), Export(group))


def _write(folder: Path, path: Path, record: Format, export: Export) -> dict[str, Any]:
    there = path.exists()
    try:
        summary: dict[str, Any] = record.writes()(folder, path, record, export)
        return summary
    except BaseException:
        if path.is_dir() and not there:
            shutil.rmtree(path, ignore_errors=True)
        raise
