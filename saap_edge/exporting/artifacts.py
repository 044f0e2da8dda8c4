"""The export stage: every format of a model, with a manifest that says what each file is and where it came from."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from saap_edge.cache import file_hash
from saap_edge.engines.gguf_header import read_header
from saap_edge.engines.gguf_shape import read_shape
from saap_edge.engines.onnx_folder import onnx_context
from saap_edge.engines.onnx_header import read_graph
from saap_edge.errors import SaapError

__all__ = [
    "Artifact",
    "Manifest",
    "context_of",
    "engine_of",
    "export_artifacts",
    "read_manifest",
    "vocab_size_of",
    "write_artifact",
]


class Artifact(BaseModel):
    """One file or folder a device can run. `path` is relative to the manifest; `details` is the exporter's summary."""

    model_config = ConfigDict(extra="forbid")

    format: str
    path: str
    bytes: int
    sha256: str
    projection_bytes: int
    details: dict[str, Any]


class Manifest(BaseModel):
    """All artifacts of one model.

    `tuned`: the block format whose codes were trained, None where there are none; `group`: inputs that share a scale in
    blocks that were not tuned (model/blocks.py); `layers` are [heads, kv heads, FFN width]; `parameters` those of the
    model (None: not counted). Lineage `model` is the hash of the dense model's folder, dense and pruned alike.
    """

    model_config = ConfigDict(extra="forbid")

    version: int = 1
    role: str
    tuned: str | None
    group: int
    layers: list[tuple[int, int, int]]
    parameters: int | None = None
    lineage: dict[str, str]
    artifacts: list[Artifact]


def engine_of(artifact_format: str) -> str:
    """The engine that runs a format: "llama.cpp", "onnxruntime" or, for its exporter's graphs, "optimum"."""
    if artifact_format == "onnx-optimum":
        return "optimum"
    return "llama.cpp" if artifact_format.startswith("gguf") else "onnxruntime"


def context_of(path: Path) -> int:
    """Longest sequence, in tokens, of a GGUF file or an ONNX folder. Raises SaapError when it does not say."""
    if path.suffix == ".gguf":
        return read_shape(read_header(path)).context
    context = onnx_context(path, read_graph(path / "model.onnx"))
    if context is None:
        raise SaapError(f"'{path}' does not say how long its context is: export the model again")
    return context


def vocab_size_of(path: Path) -> int | None:
    """Logits a token gives, of a GGUF file or an ONNX folder; None where a graph does not say."""
    if path.suffix == ".gguf":
        return read_shape(read_header(path)).vocab_size
    return read_graph(path / "model.onnx").vocab_size


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
            size, digest = _measure(path)
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


def _measure(path: Path) -> tuple[int, str]:
    """Bytes and sha256 of a file; of a folder, the sum and the hash over its files' names and hashes."""
    if path.is_file():
        return path.stat().st_size, file_hash(path)
    files = sorted(item for item in path.rglob("*") if item.is_file())
    listing = "".join(f"{item.relative_to(path)}\0{file_hash(item)}\n" for item in files)
    return sum(item.stat().st_size for item in files), hashlib.sha256(listing.encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read manifest.json and check that every artifact still is what it says.

    Raises SaapError when it is missing, malformed, or an artifact's sha256 differs.
    """
    path = folder / "manifest.json"
    try:
        manifest = Manifest.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise SaapError(f"'{path}' is not a manifest: {str(error).splitlines()[0]}") from None
    for artifact in manifest.artifacts:
        target = folder / artifact.path
        if not target.exists() or _measure(target)[1] != artifact.sha256:
            raise SaapError(f"'{target}' is missing or was changed since export (its sha256 differs): export again")
    return manifest
