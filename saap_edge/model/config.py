"""config.json, read once: every field that is used has the right type and a possible value, or the file is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from saap_edge.errors import SaapError
from saap_edge.families import FAMILIES, Config
from saap_edge.model.by_layer import in_our_form

__all__ = ["read_config", "read_object", "without_odd_ids"]

_Count = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
# Beyond these limits, what is computed from them overflows float32, or torch's integers.
_Number = Annotated[float, Field(strict=True, ge=-1e18, le=1e18)]
_Positive = Annotated[float, Field(strict=True, ge=1e-18, le=1e18)]
_Flag = Annotated[bool, Field(strict=True)]
_Id = Annotated[int, Field(strict=True)]
_Width = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]

_Taps = Annotated[int, Field(strict=True, ge=1, le=1024)]

_MAYBE_NULL = ("intermediate_size", "num_key_value_heads")  # where blocks say it


def _not_zero(value: float) -> float:
    if not value:
        raise ValueError("it divides, and cannot be 0")
    return value


_Factor = Annotated[_Number, AfterValidator(_not_zero)]


class _Fields(BaseModel):
    """The fields that are read of config.json, if present. Null is allowed where it means absent to transformers."""

    model_config = ConfigDict(extra="allow")

    model_type: str
    vocab_size: _Count = 1
    hidden_size: _Count = 1
    intermediate_size: _Count = 1
    num_hidden_layers: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 1
    num_attention_heads: _Count = 1
    num_key_value_heads: _Count | None = None
    head_dim: _Count | None = None
    max_position_embeddings: _Count = 1
    original_max_position_embeddings: _Count | None = None
    hidden_act: str | None = None
    hidden_activation: str | None = None
    rms_norm_eps: _Positive = 1.0
    rope_theta: _Positive | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_local_base_freq: _Positive | None = None
    partial_rotary_factor: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    tie_word_embeddings: _Flag = False
    attention_bias: _Flag = False
    mlp_bias: _Flag = False
    bos_token_id: _Id | None = None
    eos_token_id: _Id | list[_Id] | None = None
    pad_token_id: _Id | None = None
    sliding_window: _Width | None = None
    use_sliding_window: _Flag = False
    max_window_layers: _Width = 0
    sliding_window_pattern: _Count = 1
    layer_types: list[str] | None = None
    no_rope_layers: list[Annotated[int, Field(strict=True, ge=0, le=1)]] | None = None
    no_rope_layer_interval: _Count = 1
    query_pre_attn_scalar: _Positive = 1.0
    attn_logit_softcapping: _Positive | None = None
    final_logit_softcapping: _Positive | None = None
    embedding_multiplier: _Factor = 1.0
    logits_scaling: _Factor = 1.0
    residual_multiplier: _Number = 1.0
    attention_multiplier: _Number = 1.0
    shared_intermediate_size: _Count = 1
    num_local_experts: _Width | None = 0
    position_embedding_type: str | None = None
    use_bias: _Flag | None = False
    base_model_type: str | None = None
    layer_widths: list[tuple[_Width, _Width, _Width]] | None = None
    qkv_bias: _Flag = False
    o_bias: _Flag = False
    gate_up_bias: _Flag = False
    down_bias: _Flag = False
    qk_norm: _Flag = False
    norms_after_rope: _Flag = False
    full_attn_idxs: list[_Width] | None = None
    block_ff_dim: _Count | None = None
    tie_embedding: _Flag | None = None
    norm_eps: _Positive = 1.0
    conv_bias: _Flag = False
    conv_L_cache: _Taps = 3
    block_multiple_of: _Count = 256
    block_ffn_dim_multiplier: _Positive | None = None
    block_auto_adjust_ff_dim: _Flag = True
    conv_layers: list[Annotated[int, Field(strict=True, ge=0, le=1)]] | None = None
    conv_taps: _Taps | None = None
    linear_layers: list[Annotated[int, Field(strict=True, ge=0, le=1)]] | None = None
    linear_num_key_heads: _Count | None = None
    linear_num_value_heads: _Count | None = None
    linear_key_head_dim: _Count | None = None
    linear_value_head_dim: _Count | None = None
    linear_conv_kernel_dim: _Taps | None = None
    full_attention_interval: _Count | None = None
    attn_output_gate: _Flag = True
    gated_attention: _Flag = False
    centred_norms: _Flag = False
    global_head_dim: _Count | None = None
    num_global_key_value_heads: _Count | None = None
    num_kv_shared_layers: _Width | None = 0
    hidden_size_per_layer_input: _Width | None = None
    vocab_size_per_layer_input: _Width | None = None
    attention_k_eq_v: _Flag = False
    use_double_wide_mlp: _Flag = False
    enable_moe_block: _Flag = False
    gated_mlp: _Flag = True
    layers_block_type: list[str] | None = None
    hybrid_override_pattern: str | None = None
    layer_norm_epsilon: _Positive = 1.0
    mlp_hidden_act: str | None = None
    mamba_hidden_act: str | None = None
    mamba_layers: list[Annotated[int, Field(strict=True, ge=0, le=1)]] | None = None
    mamba_num_heads: _Count | None = None
    mamba_head_dim: _Count | None = None
    ssm_state_size: _Count | None = None
    n_groups: _Count | None = None
    conv_kernel: _Taps | None = None
    use_conv_bias: _Flag = True
    time_step_min: Annotated[float, Field(strict=True, ge=0, le=1e18)] = 0.0
    chunk_size: _Count = 128
    quantization_config: dict[str, Any] | None = None


def read_config(folder: str | Path) -> Config:
    """The content of a folder's config.json, brought into our own form if it has widths per layer (`in_our_form`).

    Raises SaapError when it is missing, is not a JSON object, or has an impossible value in a field that is used.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise SaapError(f"no config.json in '{folder}': give a Hugging Face model folder")
    config = read_object(path)
    try:
        config = _text_part(config)
        _check(config | dict.fromkeys(_MAYBE_NULL, 1) if config.get("block_configs") else config, path)
        family = FAMILIES.get(config["model_type"])
        config = family.spelled(config) if family else config
        ours = in_our_form(config)
    except SaapError as error:
        raise error if str(error).startswith(str(path)) else SaapError(f"{path}: {error}") from None
    if ours is not config:
        _check(ours, path)
    return ours


def _text_part(config: Config) -> Config:
    """The config of the text model in one that also has parts for images; any other as it is."""
    family = next((each for each in FAMILIES.values() if each.whole and each.whole == config.get("model_type")), None)
    if family is None:
        return config
    text = config.get("text_config")
    if not isinstance(text, dict) or text.get("model_type", family.model_type) != family.model_type:
        raise SaapError(f"a '{family.whole}' model whose text_config is no '{family.model_type}' is not supported")
    above = ("tie_word_embeddings", "quantization_config")
    return text | {"model_type": family.model_type} | {name: config[name] for name in above if name in config}


def read_object(path: Path, optional: bool = False) -> dict[str, Any]:
    """The JSON object in a file; an empty one if there is no file and it is `optional`.

    Raises SaapError when the file cannot be read or holds anything else.
    """
    if optional and not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise SaapError(f"{path}: not valid JSON (line {error.lineno}: {error.msg})") from None
    except UnicodeDecodeError:
        raise SaapError(f"{path}: not UTF-8, which JSON has to be") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists of thousands of levels
        raise SaapError(f"{path}: not JSON that can be read ({str(error).partition(';')[0]})") from None
    except OSError as error:
        raise SaapError(f"cannot read '{path}': {error.strerror}") from None
    if not isinstance(content, dict):
        raise SaapError(f"{path}: not a JSON object")
    return content


def _check(config: Config, path: Path) -> None:
    try:
        fields = _Fields.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        name, *place = first["loc"]
        where = f"{name}{''.join(f'[{part}]' for part in place if isinstance(part, int))}"  # pydantic adds its types
        message = "it is missing" if first["type"] == "missing" else f"{first['msg']}, got {first['input']!r}"
        raise SaapError(f"{path}: {where}: {message}") from None
    heads = config.get("num_attention_heads")
    if heads and heads % (fields.num_key_value_heads or heads):
        raise SaapError(f"{path}: {heads} attention heads cannot share {fields.num_key_value_heads} key-value heads")
    per_layer = {
        "layer_types": fields.layer_types, "layer_widths": fields.layer_widths, "conv_layers": fields.conv_layers,
        "linear_layers": fields.linear_layers, "mamba_layers": fields.mamba_layers,
    }  # fmt: skip
    for name, values in per_layer.items():
        if values is not None and len(values) != config.get("num_hidden_layers", len(values)):
            layers = config["num_hidden_layers"]
            raise SaapError(f"{path}: {name} is of {len(values)} layers, num_hidden_layers says {layers}")
    rotated = fields.no_rope_layers  # transformers takes a longer list
    if rotated is not None and len(rotated) < config.get("num_hidden_layers", 0):
        raise SaapError(
            f"{path}: no_rope_layers is of {len(rotated)} layers, num_hidden_layers says {config['num_hidden_layers']}"
        )
    for index, (heads, kv_heads, ffn) in enumerate(fields.layer_widths or ()):
        if bool(heads) != bool(kv_heads) or (heads and heads % kv_heads):
            raise SaapError(
                f"{path}: layer {index}: {heads} query heads cannot be shared by {kv_heads} kv heads (llama.cpp would "
                "abort the process): keep whole kv groups"
            )
        if heads and fields.conv_layers and fields.conv_layers[index]:
            raise SaapError(f"{path}: layer {index}: a layer with a convolution (conv_layers) has no heads")
        if fields.mamba_layers and bool(heads) + bool(ffn) + fields.mamba_layers[index] != 1:
            raise SaapError(
                f"{path}: layer {index}: beside Mamba-2 blocks (mamba_layers) a layer is one, or has attention or an "
                "FFN, and no two of them"
            )


def without_odd_ids(config: Config) -> tuple[Config, list[str]]:
    """The config without special ids outside the vocabulary, and a line about each.

    A model cannot produce such a token, and runtimes refuse to load a model with such an id.

    >>> without_odd_ids({"vocab_size": 100, "eos_token_id": [2, 100]})
    ({'vocab_size': 100, 'eos_token_id': [2]}, ['eos_token_id 100 is outside the vocabulary of 100: it is left out'])
    """
    found, warnings = dict(config), []
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        said = config.get(name)
        ids = said if isinstance(said, list) else [] if said is None else [said]
        odd = [index for index in ids if not 0 <= index < config["vocab_size"]]
        if odd:
            kept = [index for index in ids if index not in odd]
            found[name] = kept if isinstance(said, list) and kept else None
            told = ", ".join(map(str, odd))
            warnings.append(f"{name} {told} is outside the vocabulary of {config['vocab_size']}: it is left out")
    return found, warnings
