"""The floor: bytes one decoded token has to read, of what was measured and of artifacts that were not."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from saap_edge.engines.gguf_header import read_header
from saap_edge.engines.gguf_shape import read_shape
from saap_edge.engines.onnx_folder import onnx_context
from saap_edge.engines.onnx_header import read_graph
from saap_edge.errors import SaapError

__all__ = ["ArtifactCost", "artifact_cost", "bytes_per_token"]

_F16 = 2  # bytes of a number in llama.cpp's KV cache
_TABLES = {"per_layer_token_embd.weight", "position_embd.weight", "token_types.weight"}
_KNOWN = re.compile(
    r"(blk\.\d+\.[\w.]+|token_embd|token_embd_norm|token_types|position_embd|output|output_norm|rope_freqs"
    r"|rope_factors_long|rope_factors_short|altup_proj|altup_unembd_proj|per_layer_\w+)(\.weight|\.bias|\.scale)?"
)


@dataclass(frozen=True)
class ArtifactCost:
    """What running an artifact costs anywhere. `projection_bytes`: of weights that decoding one token reads;
    `parameters`: of the model; `context`: tokens of the longest sequence (None: the artifact does not say)."""

    format: str
    projection_bytes: int
    kv_bytes_per_token: int
    file_bytes: int
    parameters: int
    context: int | None = None


def bytes_per_token(projection_bytes: int, kv_bytes_per_token: int, context: int) -> int:
    """Weights once, and keys and values of `context` tokens: what decoding one token reads from memory."""
    return projection_bytes + kv_bytes_per_token * context


def artifact_cost(path: Path, artifact_format: str | None = None) -> ArtifactCost:
    """Read from the headers of an artifact; no runtime is loaded, and no weights.

    `path`: a .gguf file, an ONNX folder, a bundle (folder or .tar.zst), or a folder with manifest.json (or a run's
    --out folder), of which `artifact_format` says which artifact; of a GGUF in several files any one stands for all.
    Raises SaapError when it is none of these or damaged, and when what it reads per token cannot be told.
    """
    with ExitStack() as stack:
        return _cost(*_find(Path(path), artifact_format, stack))


def _find(path: Path, artifact_format: str | None, stack: ExitStack) -> tuple[Path, str | None]:
    """The artifact itself and its format, None where the file must tell."""
    if path.name.endswith(".tar.zst"):
        from saap_edge.bundle.archive import unpacked

        path = stack.enter_context(unpacked(path))
    if (path / "bundle.json").is_file():
        from saap_edge.bundle.schema import read_bundle

        bundle = read_bundle(path)
        return path / bundle.model, _only(bundle.format, artifact_format, path)
    if path.is_file() or (path / "model.onnx").is_file():
        kind = "onnx" if path.is_dir() or path.suffix == ".onnx" else "gguf"
        if artifact_format and not artifact_format.startswith(kind):
            raise SaapError(f"--format {artifact_format}: '{path}' is a {kind.upper()} artifact")
        return path, artifact_format
    for name in ("gguf", "onnx"):  # a run's --out folder
        if (path / name).is_symlink():
            path = (path / name).resolve().parent
    if not (path / "manifest.json").is_file():
        raise SaapError(
            f"'{path}' is no artifact: give a .gguf file, an ONNX folder, a bundle or a folder with manifest.json"
        )
    from saap_edge.artifacts import read_manifest

    artifacts = {artifact.format: artifact for artifact in read_manifest(path).artifacts}
    if artifact_format is None and len(artifacts) == 1:
        artifact_format = next(iter(artifacts))
    if artifact_format not in artifacts:
        given = f"--format {artifact_format}: " if artifact_format else "--format is needed: "
        raise SaapError(f"{given}'{path}' has {', '.join(artifacts)}")
    return path / artifacts[artifact_format].path, artifact_format


def _only(found: str, asked: str | None, path: Path) -> str:
    if asked not in (None, found):
        raise SaapError(f"--format {asked}: '{path}' holds {found}")
    return found


def _cost(path: Path, artifact_format: str | None) -> ArtifactCost:
    if path.is_dir():
        return _onnx_cost(path, artifact_format)
    if path.suffix == ".onnx":
        return _onnx_cost(path.parent, artifact_format)
    return _gguf_cost(path, artifact_format)


def _gguf_cost(path: Path, artifact_format: str | None) -> ArtifactCost:
    header = read_header(path)
    sizes = {tensor.name: tensor.bytes for tensor in header.tensors}
    if any("_exps" in name for name in sizes):
        raise SaapError(f"'{path}' is a mixture of experts: how many of its bytes a token reads cannot be told")
    shape = read_shape(header)
    strange = next((name for name in sizes if not _KNOWN.fullmatch(name)), None)
    if strange is not None:
        raise SaapError(f"'{path}' holds '{strange}': how much of it a token reads cannot be told")
    # Of a table a token reads one row; of the embedding too, unless it is the head.
    tables = _TABLES | ({"token_embd.weight"} if "output.weight" in sizes else set())
    kinds: Counter[str] = Counter()
    for tensor in header.tensors:
        kinds[tensor.kind] += tensor.bytes if tensor.name.startswith("blk.") else 0
    return ArtifactCost(
        artifact_format or f"gguf-{kinds.most_common(1)[0][0]}",
        sum(size for name, size in sizes.items() if name not in tables), _F16 * shape.kv_elements, header.bytes,
        sum(tensor.elements for tensor in header.tensors), shape.context,
    )  # fmt: skip


def _onnx_cost(path: Path, artifact_format: str | None) -> ArtifactCost:
    graph = read_graph(path / "model.onnx")
    return ArtifactCost(
        artifact_format or f"onnx-{graph.quantisation}", graph.bytes_per_token, graph.kv_bytes_per_token,
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()), graph.parameters,
        onnx_context(path, graph),
    )  # fmt: skip
