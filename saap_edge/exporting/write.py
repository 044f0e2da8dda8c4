"""The export stage: every format of a model, with a manifest that says what each file is and where it came from."""

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
    """Write every format of the model in `folder` under `out` and manifest.json beside them.

    `role` is "dense" or "pruned"; `lineage` maps what it was made from to hashes; `group` is that of the ONNX files
    where the folder was not tuned in another (GGUF's own blocks of 32 hold no coarser scales than they must); `imatrix`
    is the model's importance matrix, for the types that llama.cpp makes. Raises SaapError when the model cannot go to a
    runtime.
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
    """The artifacts of one export. What others are made of is written once: first where it is asked for itself."""

    def __init__(self, folder: Path, out: Path, scratch: Path, group: int, imatrix: Path | None) -> None:
        self.folder, self.out = folder, out
        self._scratch, self._asked = scratch, set[str]()
        self.export = Export(group, imatrix, self._source)

    def ordered(self, records: list[Format]) -> list[Format]:
        """First the format that llama.cpp's own are made of, whether or not one of these is asked for."""
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
    """Write one artifact of a format that is not llama.cpp's own, and return its exporter's summary.

    Raises SaapError as the exporters; no part of the artifact is left then.
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
