"""A decoder whose layers differ in heads, kv heads and FFN width, and may lack attention or FFN.

This file travels with every pruned model (`auto_map` in config.json), so that
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` works where saap-edge is not installed. It
imports nothing but torch and transformers, and leaves attention, rotary embeddings, cache and generation to them.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import HunYuanDenseV1Attention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

__all__ = ["SaapEdgeConfig", "SaapEdgeForCausalLM", "SaapEdgeLayer", "SaapEdgeModel"]


class SaapEdgeConfig(LlamaConfig):
    """A Llama configuration with widths per layer.

    `layer_widths` is a list of [heads, kv_heads, ffn], 0 where a layer has no attention or no FFN;
    `num_attention_heads`, `num_key_value_heads` and `intermediate_size` keep the dense model's values.
    `base_model_type` names the family of the dense model. `qk_norm`: queries and keys are normalised, as in Qwen3.
    `norms_after_rope`: they are so after they were rotated, as in Hunyuan.
    Biases have one flag per kind of projection, because repair may give o and down one where the others have none.

    Caches of transformers 5 take their shapes from `per_layer_config`.
    """

    model_type = "saap_edge"

    base_model_type: str = "llama"
    layer_widths: list | None = None  # type: ignore[type-arg]
    qkv_bias: bool = False
    o_bias: bool = False
    gate_up_bias: bool = False
    down_bias: bool = False
    qk_norm: bool = False
    norms_after_rope: bool = False

    @property  # type: ignore[misc]
    def per_layer_config(self) -> list[Any]:  # type: ignore[override]
        """A configuration for each place in a cache: for each layer with attention, with heads of its own.

        transformers 5 makes static caches of it, for `generate(cache_implementation="static")` and torch.export. It is
        computed, not stored: config.json says `layer_widths`, which any version reads.
        """
        configs = []
        for heads, kv_heads, ffn in self.layer_widths or ():
            if heads:
                local = copy.copy(self)
                local.num_attention_heads, local.num_key_value_heads, local.intermediate_size = heads, kv_heads, ffn
                configs.append(local)
        return configs


class SaapEdgeLayer(GradientCheckpointingLayer):
    """A decoder layer with widths of its own. Parts that it lacks are None, norms included.

    `cache_index` counts only layers with attention, because transformers takes a cache's length from its first layer.
    """

    def __init__(self, config: SaapEdgeConfig, widths: list[int], cache_index: int):
        super().__init__()
        heads, kv_heads, ffn = widths
        local = copy.copy(config)
        local.num_attention_heads, local.num_key_value_heads, local.intermediate_size = heads, kv_heads, ffn
        local.attention_bias, local.mlp_bias = config.qkv_bias, config.gate_up_bias
        local.layer_types = ["full_attention"] * (cache_index + 1)  # Qwen3's attention in transformers 4 reads it
        self.input_layernorm = self.self_attn = self.post_attention_layernorm = self.mlp = None
        attention: Any = Qwen3Attention if config.qk_norm else LlamaAttention
        attention = HunYuanDenseV1Attention if config.norms_after_rope else attention
        if heads:
            self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.self_attn = attention(local, cache_index)
            # Llama ties the bias of o to that of q, k, v, and the bias of down to gate and up; here they are free.
            if config.o_bias != config.qkv_bias:
                inputs = self.self_attn.o_proj.in_features
                self.self_attn.o_proj = nn.Linear(inputs, config.hidden_size, bias=config.o_bias)
            # Attention looks up its implementation (sdpa, eager, ...) in its config. It gets the shared one, so that a
            # change has effect.
            self.self_attn.config = config
        if ffn:
            self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.mlp = LlamaMLP(local)
            if config.down_bias != config.gate_up_bias:
                self.mlp.down_proj = nn.Linear(ffn, config.hidden_size, bias=config.down_bias)

    def forward(self, hidden_states: torch.Tensor, **keywords: Any) -> torch.Tensor:
        if self.self_attn is not None and self.input_layernorm is not None:
            normed = self.input_layernorm(hidden_states)
            hidden_states = hidden_states + self.self_attn(hidden_states=normed, **keywords)[0]
        if self.mlp is not None and self.post_attention_layernorm is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states


def build_layers(config: SaapEdgeConfig) -> nn.ModuleList:
    """All decoder layers of a configuration."""
    assert config.layer_widths is not None
    layers, attentions = nn.ModuleList(), 0
    for widths in config.layer_widths:
        layers.append(SaapEdgeLayer(config, widths, attentions))
        attentions += widths[0] > 0
    return layers


@contextmanager
def without_layers(config: SaapEdgeConfig) -> Iterator[None]:
    """Keep the parent classes from building every layer at dense width first.

    This changes the config itself for a moment, not a copy: transformers writes its choice of attention into the config
    it is given, and without that choice attention would silently run without a causal mask.
    """
    count, config.num_hidden_layers = config.num_hidden_layers, 0
    try:
        yield
    finally:
        config.num_hidden_layers = count


class SaapEdgeModel(LlamaModel):
    """The decoder without its output head."""

    config_class = SaapEdgeConfig
    _no_split_modules = ["SaapEdgeLayer"]  # noqa: RUF012 (as transformers has it)
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": SaapEdgeLayer, "attentions": [LlamaAttention, Qwen3Attention, HunYuanDenseV1Attention],
    }  # fmt: skip

    def __init__(self, config: SaapEdgeConfig):
        with without_layers(config):
            super().__init__(config)
        self.layers = build_layers(config)
        self.post_init()  # type: ignore[no-untyped-call]


class SaapEdgeForCausalLM(LlamaForCausalLM):
    """The decoder with its output head."""

    config_class = SaapEdgeConfig
    _no_split_modules = ["SaapEdgeLayer"]  # noqa: RUF012

    def __init__(self, config: SaapEdgeConfig):
        with without_layers(config):
            super().__init__(config)
        self.model = SaapEdgeModel(config)
        self.post_init()  # type: ignore[no-untyped-call]
