"""The bytes that decoding a token has to read, of any artifact: the floor of its time."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from saap_edge.engines.base import ArtifactCost
from saap_edge.engines.gguf_cost import gguf_cost
from saap_edge.engines.options import UBATCH, EngineOptions, check_options, kv_bytes, kv_refusal
from saap_edge.engines.registry import engine_named, engine_opening
from saap_edge.errors import SaapError
from saap_edge.formats import KINDS, described, kind_of

__all__ = ["ArtifactCost", "artifact_cost", "bytes_per_token", "cached_as", "savings", "work_bytes"]


def bytes_per_token(projection_bytes: int, kv_bytes_per_token: int, context: int) -> int:
    """Bytes that decoding one token reads from memory: the weights once, and keys and values of `context` tokens.

    >>> bytes_per_token(projection_bytes=1_000_000, kv_bytes_per_token=512, context=100)
    1051200
    """
    return projection_bytes + kv_bytes_per_token * context


_FITTED = 64  # tokens of the prompts whose work space is in the fit already (benchmarks/data/memory.csv)
_SMALLER = "q8_0"  # a type of KV cache that costs little quality
_MASK = 6  # bytes of attention's mask for a token and one that it looks at


def work_bytes(cost: ArtifactCost, context: int, tokens: int) -> int:
    """Work space for so many tokens at once, beyond that which the fit includes; 0 where the header does not tell.

    >>> cost = ArtifactCost("gguf-q4_0", 700, 23_040, 750, 1250, batch_bytes=25_000)
    >>> [work_bytes(cost, context=520, tokens=tokens) for tokens in (16, 128, 512)]
    [0, 1799680, 12597760]
    """
    return max(0, tokens - _FITTED) * (cost.batch_bytes + _MASK * context) if cost.batch_bytes else 0


def savings(cost: ArtifactCost, prompt_tokens: int, context: int, ubatch: int | None) -> list[str]:
    """Options that would take at least a MiB less, where they were not used, in words.

    >>> cost = ArtifactCost("gguf-q4_0", 700, 23_040, 750, 1250, None, 11_520, (64, 64), batch_bytes=25_000)
    >>> savings(cost, 512, 512, None), savings(cost, 512, 512, 64), savings(replace(cost, kv="q4_0"), 64, 64, None)
    (['--kv q8_0 5.3 MiB', '--ubatch 64 12.0 MiB'], ['--kv q8_0 5.3 MiB'], [])
    """
    found = {}
    if cost.kv is None and cost.kv_elements and kv_refusal(_SMALLER, cost.head_dims) is None:
        found[f"--kv {_SMALLER}"] = context * (cost.kv_bytes_per_token - kv_bytes(cost.kv_elements, _SMALLER))
    if ubatch is None:
        found[f"--ubatch {_FITTED}"] = work_bytes(cost, context, min(prompt_tokens, UBATCH))
    return [f"{option} {size / 2**20:.1f} MiB" for option, size in found.items() if size >= 2**20]


def cached_as(cost: ArtifactCost, kv: str | None) -> ArtifactCost:
    """The cost with keys and values of the type `kv`; as it is where that is None.

    Raises SaapError where the format's engine, or the size of the heads, allows no such cache.

    >>> cost = ArtifactCost("gguf-q4_0", 700, 23_040, 750, 1250, kv_elements=11_520, head_dims=(64, 64))
    >>> [cached_as(cost, kv).kv_bytes_per_token for kv in (None, "f16", "q8_0", "q4_0")]
    [23040, 23040, 12240, 6480]
    """
    if kv is None:
        return cost
    check_options(described(cost.format).engine, EngineOptions(kv=kv))
    if refusal := kv_refusal(kv, cost.head_dims):
        raise SaapError(refusal)
    return replace(cost, kv=kv, kv_bytes_per_token=kv_bytes(cost.kv_elements, kv))


def artifact_cost(path: Path, artifact_format: str | None = None) -> ArtifactCost:
    """What running an artifact costs, read from its headers. No runtime and no weights are loaded.

    Args:
        path: a .gguf file (any one, if the model is split over several), an ONNX or OpenVINO folder, a bundle (folder
            or .tar.zst), a folder with manifest.json, or a run's --out folder.
        artifact_format: which artifact, where `path` holds several.

    Raises SaapError when `path` is none of these or damaged, and when its headers do not tell what a token reads.
    """
    with ExitStack() as stack:
        return _cost(*_find(Path(path), artifact_format, stack))


def _find(path: Path, artifact_format: str | None, stack: ExitStack) -> tuple[Path, str | None]:
    """The artifact's own path, and its format; None: its header must tell."""
    if path.name.endswith(".tar.zst"):
        from saap_edge.bundle.archive import unpacked

        path = stack.enter_context(unpacked(path))
    if (path / "bundle.json").is_file():
        from saap_edge.bundle.schema import read_bundle

        bundle = read_bundle(path)
        return path / bundle.model, _only(bundle.format, artifact_format, path)
    engine = engine_opening(path)
    if path.is_file() or (path.is_dir() and engine and kind_of(engine.kind or "").usual):
        if artifact_format and engine and described(artifact_format).kind != engine.kind:
            raise SaapError(f"--format {artifact_format}: '{path}' is a {str(engine.kind).upper()} artifact")
        return path, artifact_format
    for name, kind in KINDS.items():  # a run's --out folder
        if kind.usual and (path / name).is_symlink():
            path = (path / name).resolve().parent
    if not (path / "manifest.json").is_file():
        raise SaapError(
            f"'{path}' is no artifact: give a .gguf file, an ONNX or OpenVINO folder, a bundle or a folder with "
            "manifest.json"
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
    engine = engine_named(described(artifact_format).engine) if artifact_format else engine_opening(path)
    if engine is None:  # a file of any name: its header says what it is
        return gguf_cost(path, None)
    if engine.cost is None:
        raise SaapError(f"'{path}': what a token reads is not known of artifacts of {engine.name}")
    return engine.cost(path, artifact_format)
