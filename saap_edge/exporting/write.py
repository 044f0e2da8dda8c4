"""The export stage: every format of a model, with a manifest that says what each file is and where it came from."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saap_edge.artifacts import Artifact, Manifest, size_and_hash
from saap_edge.errors import SaapError

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
    from saap_edge.exporting.gguf import write_gguf
    from saap_edge.exporting.kquants import KQUANTS, check_importance, write_kquant
    from saap_edge.exporting.refusal import export_refusal
    from saap_edge.exporting.weights import ExportWeights
    from saap_edge.model.values import beyond_fp16

    weights = ExportWeights(folder)
    for name in formats:
        refusal = export_refusal(weights.spec, name)
        if refusal:
            raise SaapError(refusal)
        check_importance(name.removeprefix("gguf-"), imatrix)
    artifacts = []
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        # What llama.cpp's types are made from: written first where it is asked for itself.
        by_llama_cpp = any(name.removeprefix("gguf-") in KQUANTS for name in formats)
        floats = "f32" if by_llama_cpp and beyond_fp16(folder) else "f16"
        made_from = (out / "gguf" if f"gguf-{floats}" in formats else Path(scratch)) / f"model-{floats}.gguf"
        for name in sorted(formats, key=lambda name: name != f"gguf-{floats}"):
            kind, _, quantisation = name.partition("-")
            path = out / "gguf" / f"model-{quantisation}.gguf" if kind == "gguf" else out / "onnx" / quantisation
            path.parent.mkdir(exist_ok=True)
            if quantisation in KQUANTS:
                if not made_from.exists():
                    write_gguf(folder, made_from, floats)
                summary = write_kquant(folder, made_from, path, quantisation, imatrix)
            else:
                summary = write_artifact(folder, path, name, group)
            size, digest = size_and_hash(path)
            artifacts.append(
                Artifact(
                    format=name, path=str(path.relative_to(out)), bytes=size, sha256=digest,
                    projection_bytes=summary["projection_bytes"], details=summary,
                )
            )  # fmt: skip
            progress(name)
    layers = [(shape.heads, shape.kv_heads, shape.ffn) for shape in weights.spec.layers]
    tuned = weights.tuned.name if weights.tuned else None
    manifest = Manifest(
        role=role, tuned=tuned, group=group, layers=layers, parameters=weights.parameters, lineage=lineage,
        artifacts=artifacts,
    )  # fmt: skip
    (out / "manifest.json").write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return manifest


def write_artifact(folder: Path, path: Path, artifact_format: str, group: int = 32) -> dict[str, Any]:
    """Write one artifact of a format that is not llama.cpp's own, and return its exporter's summary.

    Raises SaapError as the exporters; no part of the artifact is left then.
    """
    there = path.exists()
    try:
        return _write(folder, path, artifact_format, group)
    except BaseException:
        if path.is_dir() and not there:
            shutil.rmtree(path, ignore_errors=True)
        raise


def _write(folder: Path, path: Path, artifact_format: str, group: int) -> dict[str, Any]:
    from saap_edge.exporting.gguf import write_gguf
    from saap_edge.exporting.onnx import write_onnx
    from saap_edge.exporting.optimum import write_optimum

    kind, _, quantisation = artifact_format.partition("-")
    if kind == "gguf":
        return write_gguf(folder, path, quantisation)
    if quantisation == "optimum":
        return write_optimum(folder, path)
    return write_onnx(folder, path, quantisation, group)
