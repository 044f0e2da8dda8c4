"""GGUF that stock llama.cpp runs, with heads, kv heads and FFN width per layer.

Models with widths per layer use architectures that read all three as arrays: `deci`, or `openelm` if q and k are
normalised. A uniform model uses the architecture that its family names (Exports). The layout is that of the GGUF
specification (ggml/docs/gguf.md), tensor names are those of gguf-py's `constants.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from saap_edge.errors import SaapError
from saap_edge.exporting.gemma import add_gemma
from saap_edge.exporting.gguf_gemma4 import PER_LAYER, add_gemma4, full_head_dim, layer_factor, turning
from saap_edge.exporting.gguf_lfm2 import file_heads, head_places
from saap_edge.exporting.gguf_nemotron_h import add_mamba, mamba_vectors, nemotron_h_parts
from saap_edge.exporting.gguf_qwen35 import DELTA_NET, add_delta_nets, delta_net_vectors, value_places
from saap_edge.exporting.gguf_rows import pack, permute, placed, unpermute
from saap_edge.exporting.gguf_tokenizer import add_tokenizer, model_name
from saap_edge.exporting.refusal import export_refusal, gguf_architecture
from saap_edge.exporting.rope import rope_frequencies
from saap_edge.exporting.weights import ExportWeights, floats_of
from saap_edge.families.rope import attention_factor, yarn_scale
from saap_edge.formats import written_by
from saap_edge.model.blocks import BLOCK, BLOCK_FORMATS
from saap_edge.model.inventory import PER_LAYER_MATRIX, PER_LAYER_NORM, PER_LAYER_TABLE
from saap_edge.model.spec import LayerShape, ModelSpec, linear_shapes

__all__ = ["WRITER", "Projection", "pack", "permute", "projections", "summarise", "unpermute", "write_gguf"]

WRITER = "saap_edge.exporting.writers:gguf"

_TYPE = gguf.GGMLQuantizationType
_FILE_TYPE = gguf.LlamaFileType
# What distinguishes llama.cpp's architectures (its src/models, and llama_model_rope_type).
_BY_LAYER = ("deci", "openelm", "nemotron_h", "gemma4")  # widths are arrays
_FUSED = ("openelm",)  # q, k and v are one matrix
# Rope pairs neighbouring rows of q and k; all others pair halves, as transformers does.
_NEIGHBOURS = ("llama", "deci", "smollm3")
_PER_LAYER = ("token_embd", "model_proj")
_TABLE = ("llama", "deci")  # they read rope_freqs, a table of any frequencies
# llama.cpp's projection <- ours, stacked if there are several.
_QKV = {"attn_q": ("self_attn.q_proj",), "attn_k": ("self_attn.k_proj",), "attn_v": ("self_attn.v_proj",)}
_FUSED_QKV = {"attn_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")}
_CONVOLUTION = {"shortconv.in_proj": ("conv.in_proj",), "shortconv.out_proj": ("conv.out_proj",)}
_REST = {
    "attn_output": ("self_attn.o_proj",), "ffn_gate": ("mlp.gate_proj",), "ffn_up": ("mlp.up_proj",),
    "ffn_down": ("mlp.down_proj",),
}  # fmt: skip


@dataclass(frozen=True)
class Projection:
    """A projection matrix of a GGUF file.

    Attributes:
        sources: the folder's weights that are stacked in it.
        heads: its rows are permuted within so many heads; None: not at all.
        rows, columns: where the weight's rows or columns are in the file's, which has zeros between them, and how many
            the file has; None: they are the file's.
    """

    name: str
    sources: tuple[str, ...]
    heads: int | None
    rows: tuple[np.ndarray, int] | None = None
    columns: tuple[np.ndarray, int] | None = None


@dataclass(frozen=True)
class _Tensor:
    """A tensor to write: name, type and shape are known before its data is read."""

    name: str
    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape)) // block * size


def write_gguf(folder: Path, out: Path, quantisation: str, whole_heads: bool = False) -> dict[str, Any]:
    """Write the model in `folder` as one GGUF file.

    Projections are floats or blocks. If the folder has tuned blocks of that format, these are written; the scale of a
    larger group is repeated in each block of 32. Token embedding and output head are the same floats, or Q8_0 if
    projections are blocks. Norms and biases are F32. Tensors are read, coded and written one at a time.

    Args:
        folder: Hugging Face folder, dense or pruned.
        out: the file.
        quantisation: of a GGUF format that we write, such as "q4_0" (those of kquants.py are made by llama.cpp).
        whole_heads: as of ExportWeights.

    Returns a summary: architecture, bytes by type, file bytes, and `projection_bytes`, the weight bytes that decoding
    one token reads. Raises SaapError for a model or tokenizer that llama.cpp cannot run.
    """
    known = written_by(WRITER)
    if quantisation not in known:
        raise SaapError(f"GGUF quantisation '{quantisation}' is unknown (known: {', '.join(known)})")
    weights = ExportWeights(folder, whole_heads)
    spec = weights.spec
    refusal = export_refusal(spec, f"gguf-{quantisation}")
    if refusal:
        raise SaapError(refusal)
    architecture = gguf_architecture(spec)
    tensors = list(_tensors(weights, quantisation, architecture))
    writer = gguf.GGUFWriter(out, architecture)
    writer.add_name(model_name(Path(folder), spec))
    _add_metadata(writer, spec, quantisation)
    add_tokenizer(writer, Path(folder), spec)
    for tensor in tensors:
        shape = gguf.quant_shape_to_byte_shape(tensor.shape, tensor.kind) if _quantised(tensor.kind) else tensor.shape
        dtype = {_TYPE.F32: np.float32, _TYPE.F16: np.float16}.get(tensor.kind, np.uint8)
        writer.add_tensor_info(tensor.name, shape, np.dtype(dtype), tensor.nbytes, raw_dtype=tensor.kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(tensor.read())
    except BaseException:
        out.unlink(missing_ok=True)  # half a file is worse than none
        raise
    finally:
        writer.close()
    sizes = [(tensor.name, tensor.kind.name, tensor.nbytes) for tensor in tensors]
    return summarise(sizes, architecture, quantisation, out, spec)


def _quantised(kind: gguf.GGMLQuantizationType) -> bool:
    return kind not in (_TYPE.F32, _TYPE.F16)


def summarise(
    tensors: list[tuple[str, str, int]], architecture: str, quantisation: str, out: Path, spec: ModelSpec
) -> dict[str, Any]:
    """The summary that `write_gguf` returns, from the (name, type, bytes) of each tensor."""
    by_type: dict[str, int] = {}
    for _, kind, size in tensors:
        by_type[kind] = by_type.get(kind, 0) + size
    # Decoding a token reads every matrix once, but only one row of an untied embedding, and of layers' own ones.
    rows = {"per_layer_token_embd.weight", *(() if spec.tied else ("token_embd.weight",))}
    read = sum(size for name, _, size in tensors if name not in rows)
    return {
        "architecture": architecture,
        "quantisation": quantisation,
        "bytes_by_type": by_type,
        "file_bytes": out.stat().st_size,
        "projection_bytes": read,
    }


def _add_metadata(writer: gguf.GGUFWriter, spec: ModelSpec, quantisation: str) -> None:
    uniform = writer.arch not in _BY_LAYER
    first, kv_heads = spec.attention, [layer.kv_heads for layer in spec.layers]
    heads = first.heads
    if writer.arch == "lfm2":
        shared = [(file_heads(spec, layer) or (0, 0)) if layer.heads else (0, 0) for layer in spec.layers]
        heads, kv_heads = max(shared)[0], [count for _, count in shared]
        writer.add_shortconv_l_cache(spec.taps)
    writer.add_context_length(spec.context)
    writer.add_embedding_length(spec.hidden)
    writer.add_block_count(len(spec.layers))
    # 'nemotron_h' takes no head_dim from the file where the first block says 0 heads, and goes by KV heads.
    fewest = heads if spec.mamba else 0
    writer.add_head_count(heads if uniform else [layer.heads or fewest for layer in spec.layers])
    writer.add_head_count_kv(first.kv_heads if uniform and not spec.taps else kv_heads)
    writer.add_feed_forward_length(first.ffn if uniform else [layer.ffn for layer in spec.layers])
    # llama.cpp's default of hidden / heads is wrong once heads are gone.
    width = full_head_dim(spec)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(spec.rotary or width)
    writer.add_rope_freq_base(spec.rope_theta)
    _add_rope_scaling(writer, spec)
    writer.add_layer_norm_rms_eps(spec.rms_norm_eps)
    writer.add_vocab_size(spec.vocab_size)
    if spec.gemma:
        add_gemma(writer, spec.gemma)
    if writer.arch == "gemma4":
        add_gemma4(writer, spec)
    if spec.delta:
        add_delta_nets(writer, spec)
    if spec.mamba:
        add_mamba(writer, spec)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(_FILE_TYPE.__members__.get(f"MOSTLY_{quantisation.upper()}", _FILE_TYPE.ALL_F32))


def _add_rope_scaling(writer: gguf.GGUFWriter, spec: ModelSpec) -> None:
    """Add what the metadata holds of the scaling: all of it if the architecture reads no table of frequencies."""
    scaling, factor = spec.rope_scaling, attention_factor(spec.rope_scaling)
    if scaling and writer.arch not in _TABLE:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["rope_type"]))
        writer.add_rope_scaling_factor(float(scaling["factor"]))
        if scaling["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
            # llama.cpp multiplies by the paper's factor itself. When it shifts the context, it multiplies keys by both
            # again: they are cancelled here and put into the norm of q instead (`_norm`), if there is one.
            factor = (1.0 if spec.family.qk_norm else factor) / yarn_scale(float(scaling["factor"]))
    if factor != 1.0:
        writer.add_rope_scaling_attn_factors(factor)


def _tensors(weights: ExportWeights, quantisation: str, architecture: str) -> Iterator[_Tensor]:
    spec = weights.spec
    table = (spec.vocab_size, spec.hidden)
    vocabulary = written_by(WRITER)[quantisation].table_block if quantisation in BLOCK_FORMATS else quantisation
    embedding = Projection("token_embd.weight", ("model.embed_tokens.weight",), None)
    yield _matrix(weights, embedding, table, vocabulary)
    if spec.rope_scaling and architecture in _TABLE:
        # llama.cpp divides its plain frequencies by these.
        plain = 1 / spec.rope_theta ** (np.arange(0, spec.head_dim, 2) / spec.head_dim)
        factors = (plain / rope_frequencies(spec)).astype(np.float32)
        yield _Tensor("rope_freqs.weight", _TYPE.F32, factors.shape, lambda: factors)
    if architecture == "gemma4":
        table_of_pairs = turning(spec)
        yield _Tensor("rope_freqs.weight", _TYPE.F32, table_of_pairs.shape, lambda: table_of_pairs)
    if spec.per_layer:
        yield from _per_layer(weights, vocabulary, quantisation)
    for index in range(len(spec.layers)):
        yield from _layer(weights, index, quantisation, architecture)
    last = "token_embd_norm.weight" if architecture == "lfm2" else "output_norm.weight"  # as llama.cpp calls it there
    yield _norm(weights, "model.norm.weight", last, spec.hidden)
    if not spec.tied:
        yield _matrix(weights, Projection("output.weight", ("lm_head.weight",), None), table, vocabulary)


def _per_layer(weights: ExportWeights, vocabulary: str, quantisation: str) -> Iterator[_Tensor]:
    """What gives every layer an embedding of its own. The matrix stays in floats, as in files that llama.cpp makes."""
    spec, parts = weights.spec, (PER_LAYER_TABLE, PER_LAYER_MATRIX)
    table, matrix = (
        Projection(f"per_layer_{name}.weight", (part,), None) for name, part in zip(_PER_LAYER, parts, strict=True)
    )
    width = len(spec.layers) * spec.per_layer
    yield _matrix(weights, table, (spec.vocab_size, width), vocabulary)
    yield _matrix(weights, matrix, (width, spec.hidden), "f16" if quantisation in BLOCK_FORMATS else quantisation)
    yield _norm(weights, PER_LAYER_NORM, "per_layer_proj_norm.weight", spec.per_layer)


def _layer(weights: ExportWeights, index: int, quantisation: str, architecture: str) -> Iterator[_Tensor]:
    spec, source, target = weights.spec, f"model.layers.{index}.", f"blk.{index}."
    shapes = linear_shapes(spec, index)
    if spec.layers[index].conv:
        kernel = weights.tensor(f"{source}conv.conv.weight").squeeze(1).numpy()
        yield _Tensor(f"{target}shortconv.conv.weight", _TYPE.F32, kernel.shape, lambda: kernel)
    if spec.layers[index].linear or spec.layers[index].mamba:
        vectors = delta_net_vectors if spec.layers[index].linear else mamba_vectors
        for name, (size, read) in vectors(spec, index, weights.tensor).items():
            yield _Tensor(f"{target}{name}", _TYPE.F32, size, read)
    if spec.gemma and spec.gemma.scaled:
        yield _Tensor(
            f"{target}layer_output_scale.weight", _TYPE.F32, (1,), lambda: layer_factor(weights.tensor, index)
        )
    for ours, theirs in _norms(spec, index).items():
        width = spec.head_size(spec.layers[index]) if theirs.startswith("self_attn.") else spec.hidden
        yield _norm(weights, f"{source}{theirs}.weight", f"{target}{ours}.weight", width)
    for matrix in projections(spec, architecture, index):
        first = matrix.sources[0]
        rows, columns = sum(shapes[name][0] for name in matrix.sources), shapes[first][1]
        shape = matrix.rows[1] if matrix.rows else rows, matrix.columns[1] if matrix.columns else columns
        yield _matrix(weights, matrix, shape, quantisation)
        module = first.removesuffix(".weight")
        if module.removeprefix(source) in spec.biased:
            name = f"{matrix.name.removesuffix('.weight')}.bias"
            yield _vector(weights, f"{module}.bias", name, rows, matrix.heads)


def projections(spec: ModelSpec, architecture: str, index: int) -> Iterator[Projection]:
    """The projection matrices of layer `index` in a file of that architecture."""
    layer = spec.layers[index]
    heads = {"attn_q": layer.heads, "attn_k": layer.kv_heads} if architecture in _NEIGHBOURS else {}
    parts: dict[str, tuple[str, ...]] = {**(_FUSED_QKV if architecture in _FUSED else _QKV), **_REST}
    if spec.mamba:
        parts = nemotron_h_parts(layer)
    elif layer.conv or layer.linear:
        parts = {**(DELTA_NET if layer.linear else _CONVOLUTION), **_REST}
        del parts["attn_output"]
    if layer.kv == "borrowed":
        del parts["attn_k"], parts["attn_v"]
    parts |= PER_LAYER if spec.per_layer else {}
    for ours, stacked in parts.items():
        sources = tuple(f"model.layers.{index}.{theirs}.weight" for theirs in stacked)
        rows, columns = _spread(spec, architecture, layer, ours)
        yield Projection(f"blk.{index}.{ours}.weight", sources, heads.get(ours), rows, columns)


def _spread(spec: ModelSpec, architecture: str, layer: LayerShape, name: str) -> list[tuple[np.ndarray, int] | None]:
    """`Projection.rows` and `columns` of an attention matrix, or one of a DeltaNet."""
    if layer.linear and layer.heads != layer.kv_heads and name in DELTA_NET and spec.delta:
        width = 1 if name in ("ssm_beta", "ssm_alpha") else spec.delta.values
        places = value_places(layer, width, 2 * layer.kv_heads * spec.delta.keys if name == "attn_qkv" else 0)
        return [None, (places, len(places))] if name == "ssm_out" else [(places, len(places)), None]
    if architecture != "lfm2" or layer.conv or not name.startswith("attn_"):
        return [None, None]
    queries = name in ("attn_q", "attn_output")
    count = (file_heads(spec, layer) or (0, 0))[0 if queries else 1] * spec.head_dim
    places = head_places(spec, layer, queries)
    found = None if len(places) == count else (places, count)
    return [None, found] if name == "attn_output" else [found, None]


def _norms(spec: ModelSpec, index: int) -> dict[str, str]:
    """A layer's norms: llama.cpp's name -> the folder's."""
    norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    if spec.gemma:
        norms |= {"post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm"}
        norms |= {"post_ffw_norm": "post_feedforward_layernorm"}
        norms |= {"post_norm": "post_per_layer_input_norm"} if spec.per_layer else {}
    if spec.family.gated:
        norms = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
    if spec.mamba:
        return {"attn_norm": "post_attention_layernorm" if spec.layers[index].ffn else "input_layernorm"}
    if not spec.layers[index].attends:
        return norms
    own = ("attn_q_norm",) if spec.layers[index].kv == "borrowed" else ("attn_q_norm", "attn_k_norm")
    return norms | dict(zip(own, spec.family.qk_norms, strict=False))


def _norm(weights: ExportWeights, source: str, name: str, size: int) -> _Tensor:
    # The factor on rotated queries and keys, both on the queries. A norm after rope takes any factor out again.
    factor = attention_factor(weights.spec.rope_scaling) ** 2 if "q_norm" in source else 1.0

    def read() -> np.ndarray:
        # Gemma and Qwen3.5 multiply by 1 + weight, llama.cpp by the stored value.
        return (weights.tensor(source).numpy() + np.float32(weights.spec.family.centred_norms)) * np.float32(factor)

    return _Tensor(name, _TYPE.F32, (size,), read)


def _vector(weights: ExportWeights, source: str, name: str, size: int, heads: int | None = None) -> _Tensor:
    def read() -> np.ndarray:
        return np.ascontiguousarray(permute(weights.tensor(source).numpy(), heads))

    return _Tensor(name, _TYPE.F32, (size,), read)


def _matrix(weights: ExportWeights, matrix: Projection, shape: tuple[int, int], quantisation: str) -> _Tensor:
    format = BLOCK_FORMATS.get(quantisation)

    def part(source: str) -> np.ndarray:
        return pack(weights.blocks(source, format)) if format else _floats(weights, source, quantisation)

    def read() -> np.ndarray:
        found = permute(_stack([part(source) for source in matrix.sources]), matrix.heads)
        found = found if matrix.rows is None else placed(found, *matrix.rows)
        return found if matrix.columns is None else _columns(found, *matrix.columns)

    return _Tensor(matrix.name, _TYPE.__members__[quantisation.upper()], shape, read)


def _columns(rows: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """Rows of values or blocks with their columns at `places` of `count`, in whole blocks of 32; zeros elsewhere."""
    blocks = rows.reshape(len(rows), len(places) // BLOCK, -1).swapaxes(0, 1)
    return placed(blocks, places[::BLOCK] // BLOCK, count // BLOCK).swapaxes(0, 1).reshape(len(rows), -1)


def _floats(weights: ExportWeights, source: str, quantisation: str) -> np.ndarray:
    """A weight [out, in] in floats, rounded to nearest even; bfloat16 as bytes, because numpy does not have it."""
    values = weights.tensor(source, floats_of(written_by(WRITER)[quantisation].name) or torch.float32)
    return (values.view(torch.uint8) if values.dtype == torch.bfloat16 else values).numpy()


def _stack(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The rows of all parts. A single part, maybe a large vocabulary, is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
