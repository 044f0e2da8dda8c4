"""Checks that a checkpoint holds exactly the tensors that its config.json describes, each once and of its shape."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping

import torch

from saap_edge.errors import SaapError
from saap_edge.families import Family, Source
from saap_edge.gguf_file.tensors import Entry
from saap_edge.model.spec import DeltaNet, LayerShape, Mamba, ModelSpec, linear_shapes

__all__ = [
    "EMBEDDING", "HEAD", "PER_LAYER_MATRIX", "PER_LAYER_NORM", "PER_LAYER_TABLE", "canonical_names", "check_inventory",
    "needed", "parameters", "text_names",
]  # fmt: skip

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PER_LAYER_TABLE, PER_LAYER_MATRIX = "model.embed_tokens_per_layer.weight", "model.per_layer_model_projection.weight"
PER_LAYER_NORM = "model.per_layer_projection_norm.weight"
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Older Llama checkpoints hold these tables; every class computes them itself.
_COMPUTED = "rotary_emb.inv_freq"
# Names that quantisers store with or for a weight: bitsandbytes, GPTQ, AWQ, compressed-tensors, fp8, HQQ, MXFP4.
_QUANTISED = re.compile(
    r"\.(SCB|CB|weight_format|absmax|nested_absmax|quant_map|nested_quant_map|quant_state\.\w+|qweight|qzeros|scales"
    r"|g_idx|weight_packed|weight_shape|weight_scale|weight_scale_inv|weight_zero_point|input_scale|scale|zero_point"
    r"|W_q|meta|\w+_blocks|\w+_scales)$"
)
_DOUBLED = re.compile(r"^model\.(?=(model|lm_head)\.)")
_INNER = re.compile(r"(?<=^model\.)language_model\.|^language_model\.(?=model\.|lm_head\.)")
_ADAPTER = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|modules_to_save|base_layer)\.")


def needed(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of the canonical form, by name."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.vocab_size, spec.hidden)}
    for index in range(len(spec.layers)):
        shapes |= _layer(spec, index)
    if spec.per_layer:
        width = len(spec.layers) * spec.per_layer
        shapes |= {PER_LAYER_TABLE: (spec.vocab_size, width), PER_LAYER_MATRIX: (width, spec.hidden)}
        shapes[PER_LAYER_NORM] = (spec.per_layer,)
    shapes["model.norm.weight"] = (spec.hidden,)
    if not spec.tied:
        shapes[HEAD] = (spec.vocab_size, spec.hidden)
    return shapes


def _layer(spec: ModelSpec, index: int) -> dict[str, tuple[int, ...]]:
    prefix, layer = f"model.layers.{index}.", spec.layers[index]
    shapes: dict[str, tuple[int, ...]] = {}
    there = {"conv": layer.conv, "mamba": layer.mamba, "mlp": layer.ffn}
    for name, shape in linear_shapes(spec, index).items():
        sublayer = name.removeprefix(prefix).split(".")[0]
        if not sublayer.startswith("per_layer_") and not there.get(sublayer, layer.heads):
            continue
        shapes[name] = shape
        module = name.removesuffix(".weight")
        if module.removeprefix(prefix) in spec.biased:
            shapes[f"{module}.bias"] = shape[:1]
    mixed = layer.heads or layer.conv or layer.mamba
    norms = [*(["input_layernorm"] if mixed else []), *(["post_attention_layernorm"] if layer.ffn else [])]
    if spec.gemma:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        norms += ["post_per_layer_input_norm"] if spec.per_layer else []
        shapes |= {f"{prefix}layer_scalar": (1,)} if spec.gemma.scaled else {}
    shapes |= {f"{prefix}{norm}.weight": (spec.hidden,) for norm in norms}
    if layer.conv:
        shapes[f"{prefix}conv.conv.weight"] = (spec.hidden, 1, spec.taps)
    if layer.mamba and spec.mamba:
        shapes |= {f"{prefix}mamba.{name}": shape for name, shape in _beside_mamba(spec.mamba).items()}
    if layer.attends:
        borrowed = layer.kv == "borrowed"  # keys too, and with their norm
        shapes |= {
            f"{prefix}{norm}.weight": (spec.head_size(layer),)
            for norm in spec.family.qk_norms[: 1 if borrowed else None]
        }
    elif layer.heads and spec.delta:
        shapes |= {f"{prefix}linear_attn.{name}": shape for name, shape in _beside(spec.delta, layer).items()}
    return shapes


def _beside(delta: DeltaNet, layer: LayerShape) -> dict[str, tuple[int, ...]]:
    """Shapes of what a gated DeltaNet has beside projections."""
    keys, values = layer.kv_heads * delta.keys, layer.heads * delta.values
    channels = {"q": keys, "k": keys, "v": values}
    kernels = {f"conv_{letter}.weight": (count, 1, delta.taps) for letter, count in channels.items()}
    return kernels | {"A_log": (layer.heads,), "dt_bias": (layer.heads,), "norm.weight": (delta.values,)}


def _beside_mamba(mamba: Mamba) -> dict[str, tuple[int, ...]]:
    """Shapes of what a Mamba-2 block has beside projections."""
    shapes: dict[str, tuple[int, ...]] = {"conv1d.weight": (mamba.convolved, 1, mamba.taps)}
    shapes |= {"conv1d.bias": (mamba.convolved,)} if mamba.conv_bias else {}
    return shapes | {name: (mamba.heads,) for name in ("A_log", "D", "dt_bias")} | {"norm.weight": (mamba.inner,)}


def canonical_names(stored: Iterable[str]) -> dict[str, str]:
    """Name in transformers' class -> stored name, as transformers renames tensors when it loads them.

    A decoder that was saved without its head lacks the first "model."; some tools write it twice. If two stored names
    become the same, only one is kept, so that the result is shorter than `stored`.

    >>> canonical_names(["layers.0.mlp.up_proj.weight"])
    {'model.layers.0.mlp.up_proj.weight': 'layers.0.mlp.up_proj.weight'}
    """
    names = list(stored)
    if any(name.startswith(("model.model.layers.", "model.model.embed_tokens.")) for name in names):
        return {_DOUBLED.sub("", name): name for name in names}
    if any(name.startswith("model.") for name in names) or not any(name.startswith("layers.") for name in names):
        return {name: name for name in names}
    return {name if name.startswith("lm_head.") else f"model.{name}": name for name in names}


def text_names(stored: Iterable[str], family: Family, whole: bool) -> tuple[list[tuple[str, str]], list[str]]:
    """(name in the text model, stored name) of its tensors, and a line about each part that is none of it.

    `Family.dropped` names these parts, and `Family.stem` another start of names. `whole`: config.json is of a model
    with more than text, whose text part has names of its own.
    """
    names, lines = list(stored), []
    for start in family.dropped:
        count = sum(name.startswith(start) for name in names)
        if count:
            lines.append(f"{count} tensors '{start}*' are no part of the text model: they are left out")
    kept = [name for name in names if not any(map(name.startswith, family.dropped))]
    if family.stem:
        start = family.stem
        return [(f"model.{name.removeprefix(start)}" if name.startswith(start) else name, name) for name in kept], lines
    return [(_INNER.sub("", name) if whole else name, name) for name in kept], lines


def check_inventory(
    where: str, spec: ModelSpec, source: Callable[[str], Source], entries: Mapping[str, Entry],
    quantised_by: str | None = None, assumed: Iterable[str] = (),
) -> None:  # fmt: skip
    """Raise SaapError that names a tensor when `entries` are not what `spec` needs.

    Args:
        where: the folder, for the message.
        source: canonical name -> where it is stored (`Family.source`).
        entries: what is stored, under the names of transformers' class.
        quantised_by: `quant_method` of config.json, or None.
        assumed: fields that config.json lacks and that have transformers' values.
    """
    expected = _stored_shapes(spec, source)
    _refuse_quantised(where, entries, quantised_by)
    adapters = [name for name in entries if _ADAPTER.search(name)]
    if adapters:
        raise SaapError(
            f"{where}: an adapter lies beside the weights ('{adapters[0]}'{_more(adapters)}): merge it first "
            "(merge_and_unload in peft)"
        )
    lacks = f" (it lacks {', '.join(assumed)}: transformers' own is assumed)" if assumed else ""
    missing = [name for name in expected if name not in entries]
    if missing:
        raise SaapError(f"{where}: {_why_missing(missing, entries)}{lacks}")
    for name, shape in expected.items():
        if entries[name].shape != shape:
            raise SaapError(f"{where}: {name} is {entries[name].shape}, config.json says {shape}{lacks}")
    idle = _idle(spec)
    extra = [name for name in entries if name not in expected and name not in idle and not name.endswith(_COMPUTED)]
    if extra:
        raise SaapError(f"{where}: {_what_is_extra(extra, spec)}")


def _idle(spec: ModelSpec) -> set[str]:
    """What some programs store though nothing reads it: norms before sublayers that are gone, and what made the keys
    and values that a layer borrows. transformers leaves it out without a word."""
    borrowers = [index for index, layer in enumerate(spec.layers) if layer.kv == "borrowed"]
    idle = [(index, f"self_attn.{name}") for index in borrowers for name in ("k_proj", "v_proj", "k_norm")]
    idle += [(index, "input_layernorm") for index, layer in enumerate(spec.layers) if not layer.heads]
    idle += [(index, "post_attention_layernorm") for index, layer in enumerate(spec.layers) if not layer.ffn]
    return {f"model.layers.{index}.{norm}.weight" for index, norm in idle}


def _stored_shapes(spec: ModelSpec, source: Callable[[str], Source]) -> dict[str, tuple[int, ...]]:
    """Shapes under stored names; a matrix with several parts is as long as the last row of any of them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in needed(spec).items():
        part = source(name)
        rows = part.rows[1] if part.rows else shape[0]
        shapes[part.name] = (max(rows, shapes.get(part.name, (0,))[0]), *shape[1:])
    return shapes


def _refuse_quantised(where: str, entries: Mapping[str, Entry], quantised_by: str | None) -> None:
    beside = [name for name in entries if _QUANTISED.search(name)]
    odd = [name for name, entry in entries.items() if entry.dtype not in _FLOATS]
    if beside or odd:
        name = (beside or odd)[0]
        kind = f", {entries[name].dtype}".replace("torch.", "") if odd and not beside else ""
        by = f" by {quantised_by}" if quantised_by else ""
        raise SaapError(
            f"{where}: the weights are already quantised{by} ('{name}'{kind}{_more(beside or odd)}): give the "
            "unquantised model"
        )


def _why_missing(missing: list[str], entries: Mapping[str, Entry]) -> str:
    name = missing[0]
    wrapped = next((stored for stored in entries if stored.endswith(f".{name}")), None)
    if wrapped:
        prefix = wrapped.removesuffix(name)
        return (
            f"tensor '{name}' is missing, and '{wrapped}' is there: a wrapper put '{prefix}' before every name "
            "(torch.compile, DistributedDataParallel, peft). Save the model inside it"
        )
    if missing == [HEAD]:
        return (
            f"tensor '{HEAD}' is missing, and config.json says that the head is not the embedding: give it, or set "
            "tie_word_embeddings to true if the model was trained so"
        )
    return f"tensor '{name}' is missing{_more(missing)}"


def _what_is_extra(extra: list[str], spec: ModelSpec) -> str:
    name, count = extra[0], len(spec.layers)
    layer = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    if layer and int(layer[1]) >= count:
        return f"tensor '{name}' is of layer {layer[1]}, and config.json says {count} layers (0 to {count - 1})"
    return (
        f"tensor '{name}'{_more(extra)} has no place in a {spec.family.title} model as config.json describes it: "
        "without it the answers would be another model's"
    )


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def parameters(spec: ModelSpec) -> int:
    """Number of a model's parameters, a tied matrix counted once.

    >>> from saap_edge.model.spec import spec_from_config
    >>> parameters(spec_from_config({"model_type": "llama", "vocab_size": 100, "hidden_size": 8,
    ...     "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1, "tie_word_embeddings": True}))
    1464
    """
    return sum(math.prod(shape) for shape in needed(spec).values())
