"""Building, loading and saving models: a pruned model is a Hugging Face folder that AutoModelForCausalLM loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from saap_edge.errors import SaapError
from saap_edge.model import modeling_saap_edge
from saap_edge.model.modeling_saap_edge import SaapEdgeConfig, SaapEdgeForCausalLM
from saap_edge.model.spec import PRUNED_TYPE, LayerShape, ModelSpec, spec_from_config

__all__ = [
    "TOKENIZER_FILES", "build_pruned", "copy_tokenizer", "load_model", "load_tokenizer", "placement", "save_model",
    "spec_of",
]  # fmt: skip

AutoConfig.register(PRUNED_TYPE, SaapEdgeConfig)
AutoModelForCausalLM.register(SaapEdgeConfig, SaapEdgeForCausalLM)

# What travels with the weights: everything a tokenizer or a chat needs.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
MODELING_FILE = Path(modeling_saap_edge.__file__)


def placement() -> str | None:
    """Where the weights of a model go that is only run and scored: over all GPUs, by accelerate; else None, the CPU."""
    return "auto" if torch.cuda.is_available() else None


def load_model(
    folder: str | Path, dtype: torch.dtype = torch.float32, device_map: str | dict[str, Any] | None = None
) -> PreTrainedModel:
    """Load a dense or pruned folder in evaluation mode, on the CPU or as `device_map` (accelerate's) says.

    Weights whose file has the wanted dtype stay pages of the mapped file; others are converted tensor by tensor.
    Raises SaapError when transformers cannot load it, or the devices do not hold all weights.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, use_safetensors=True, device_map=device_map
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise SaapError(f"cannot load the model in '{folder}': {str(error).splitlines()[0]}") from error
    if any(parameter.is_meta for parameter in model.parameters()):
        raise SaapError(
            f"the GPUs do not hold the model in '{folder}': score in bfloat16, or use the CPU (CUDA_VISIBLE_DEVICES=)"
        )
    return model.eval()


def load_tokenizer(folder: str | Path) -> Any:
    """The folder's tokenizer. Raises SaapError when there is none."""
    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise SaapError(f"cannot load a tokenizer from '{folder}': {str(error).splitlines()[0]}") from error


def spec_of(model: PreTrainedModel) -> ModelSpec:
    """The shape of a loaded model."""
    return spec_from_config(model.config.to_dict())


def build_pruned(dense: PreTrainedModel, layers: list[LayerShape]) -> PreTrainedModel:
    """An empty-handed model of the given widths: norms, embeddings and head copied, projections uninitialised.

    A uniform shape gives the family's plain class (every tool opens it), any other gives SaapEdgeForCausalLM. The
    result has the dense model's dtype and device.
    """
    spec = spec_of(dense)
    config = _pruned_config(dense, spec, layers)
    with torch.device("meta"):
        model = (type(dense) if len(set(layers)) == 1 and not _is_pruned(dense) else SaapEdgeForCausalLM)(config)
    model = cast(Any, model).to_empty(device=dense.device).to(dense.dtype)
    model.model.rotary_emb = type(dense.model.rotary_emb)(config=model.config).to(dense.device)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(dense.model.embed_tokens.weight)
        model.model.norm.weight.copy_(dense.model.norm.weight)
        for new, old in zip(model.model.layers, dense.model.layers, strict=True):
            new.input_layernorm.weight.copy_(old.input_layernorm.weight)
            new.post_attention_layernorm.weight.copy_(old.post_attention_layernorm.weight)
        if spec.tied:
            model.tie_weights()
        else:
            model.lm_head.weight.copy_(dense.lm_head.weight)
    model.generation_config = dense.generation_config
    return model.eval()


def _is_pruned(model: PreTrainedModel) -> bool:
    return bool(model.config.model_type == PRUNED_TYPE)


def _pruned_config(dense: PreTrainedModel, spec: ModelSpec, layers: list[LayerShape]) -> Any:
    if len(set(layers)) == 1 and not _is_pruned(dense):
        config = type(dense.config)(**_plain(dense.config.to_dict()))
        config.head_dim = spec.head_dim
        config.num_attention_heads, config.num_key_value_heads = layers[0].heads, layers[0].kv_heads
        config.intermediate_size = layers[0].ffn
        return config
    source = dense.config.to_dict()
    keep = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "intermediate_size", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
        "rope_parameters", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache",
    )  # fmt: skip
    config = SaapEdgeConfig(
        **{name: source[name] for name in keep if name in source},
        head_dim=spec.head_dim,
        base_model_type=spec.family.model_type,
        layer_widths=[[layer.heads, layer.kv_heads, layer.ffn] for layer in layers],
        qkv_bias=spec.qkv_bias,
        o_bias=spec.o_bias,
        down_bias=spec.down_bias,
    )
    module = MODELING_FILE.stem
    config.auto_map = {
        "AutoConfig": f"{module}.SaapEdgeConfig",
        "AutoModelForCausalLM": f"{module}.SaapEdgeForCausalLM",
    }
    config.architectures = ["SaapEdgeForCausalLM"]
    config._attn_implementation = dense.config._attn_implementation
    return config


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """A config dictionary without what transformers derives itself."""
    return {name: value for name, value in config.items() if name not in ("model_type", "transformers_version")}


def save_model(model: PreTrainedModel, tokenizer_from: str | Path, out: str | Path) -> None:
    """Write a Hugging Face folder: safetensors, config, tokenizer and, for per-layer widths, the modelling file."""
    out = Path(out)
    model.save_pretrained(str(out))
    if _is_pruned(model):
        shutil.copyfile(MODELING_FILE, out / MODELING_FILE.name)
    copy_tokenizer(tokenizer_from, out)


def copy_tokenizer(source: str | Path, out: str | Path) -> None:
    """Copy the tokenizer's files byte for byte: re-saving through a library may change them."""
    for name in TOKENIZER_FILES:
        path = Path(source) / name
        if path.is_file() and not (Path(out) / name).exists():
            shutil.copyfile(path, Path(out) / name)
