"""Exported artifacts: the manifest beside them, the engine that runs them, and what their headers say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from saap_edge.documents.base import Document, Part
from saap_edge.engines.registry import engine_at, engine_named
from saap_edge.errors import SaapError
from saap_edge.files import file_hash
from saap_edge.formats import described, format_of

__all__ = [
    "Artifact", "Manifest", "code_of_others", "context_of", "engine_of", "read_manifest", "size_and_hash",
    "slow_ones", "vocab_size_of",
]  # fmt: skip


class Artifact(Part):
    """One file or folder a device can run."""

    model_config = ConfigDict(extra="forbid")

    format: str = Field(description='format, as "gguf-q4_0"')
    path: str = Field(description="file or folder, relative to the manifest")
    bytes: int = Field(description="its size, bytes")
    sha256: str = Field(description="of the file, or over a folder's names and hashes")
    projection_bytes: int = Field(description="weights that decoding a token reads, bytes")
    details: dict[str, Any] = Field(description="the exporter's summary")


class Manifest(Document):
    """All artifacts of one model: the file manifest.json beside them."""

    model_config = ConfigDict(extra="forbid")

    VERSION = 1
    REMEDY = "export again with this version"

    version: Literal[1] = Field(default=1, description="version of this format")
    role: str = Field(description="dense or pruned")
    tuned: str | None = Field(description="block format whose codes were trained; null: there are none")
    group: int = Field(description="inputs that share a scale in blocks that were not tuned (model/blocks.py)")
    layers: list[tuple[int, int, int]] = Field(description="[heads, kv heads, FFN width] of every layer")
    parameters: int | None = Field(default=None, description="parameters of the model; null: not counted")
    lineage: dict[str, str] = Field(
        description="hash of all that it was made from; `model` is the dense model's folder, dense and pruned alike"
    )
    artifacts: list[Artifact] = Field(description="every file or folder")

    @classmethod
    def version_of(cls, document: Mapping[str, Any]) -> Any:
        """A manifest that states no version is of the first."""
        return document.get("version", 1)


def engine_of(artifact_format: str) -> str:
    """The name of the engine that runs a format.

    >>> engine_of("onnx-int4"), engine_of("gguf-q5_k")
    ('onnxruntime', 'llama.cpp')
    """
    return described(artifact_format).engine


def slow_ones(formats: Iterable[str]) -> list[str]:
    """A line for each of these formats that is slow in its runtime.

    >>> [line.partition(":")[0] for line in slow_ones(["gguf-q4_0", "gguf-q4_1", "gguf-q4_1"])]
    ['gguf-q4_1']
    """
    return [f"{name}: {slow}" for name in dict.fromkeys(formats) if (slow := described(name).slow)]


def code_of_others(formats: Iterable[str]) -> dict[str, str]:
    """sha256 of the code of others that makes and runs these formats: of records by name, of files by module.

    An export is made again when that code changes. A stage's key holds saap-edge's own code already (chain/code.py).
    """
    found = {}
    for record in map(format_of, formats):
        engine = engine_named(record.engine)
        named = (record.writer, record.refusal, record.shipped, record.token_check, engine.entry)
        modules = {entry.partition(":")[0] for entry in named if entry and not entry.startswith("saap_edge.")}
        if modules:
            found[record.name] = hashlib.sha256(repr(record).encode()).hexdigest()
        for module in modules:
            spec = find_spec(module)
            found[module] = file_hash(Path(spec.origin)) if spec and spec.origin else ""
    return found


def context_of(path: Path) -> int:
    """Tokens of the longest sequence that an artifact can hold. Raises SaapError when it does not say."""
    context = engine_at(path).context(path)
    if context is None:
        raise SaapError(f"'{path}' does not say how long its context is: export the model again")
    return context


def vocab_size_of(path: Path) -> int | None:
    """Number of logits that an artifact gives for a token; None where it does not say."""
    return engine_at(path).vocab_size(path)


def size_and_hash(path: Path) -> tuple[int, str]:
    """Bytes and sha256 of a file. Of a folder: the sum of its files, and the hash over their names and hashes."""
    if path.is_file():
        return path.stat().st_size, file_hash(path)
    files = sorted(item for item in path.rglob("*") if item.is_file())
    listing = "".join(f"{item.relative_to(path)}\0{file_hash(item)}\n" for item in files)
    return sum(item.stat().st_size for item in files), hashlib.sha256(listing.encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read manifest.json and check that every artifact still is what the manifest says.

    Raises SaapError when it is missing, damaged or of another version, or an artifact's sha256 differs.
    """
    path = folder / "manifest.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SaapError(f"'{path}' is not a manifest: {str(error).splitlines()[0]}") from None
    manifest = Manifest.parse(document, f"'{path}'")
    for artifact in manifest.artifacts:
        target = folder / artifact.path
        if not target.exists() or size_and_hash(target)[1] != artifact.sha256:
            raise SaapError(f"'{target}' is missing or was changed since export (its sha256 differs): export again")
    return manifest
