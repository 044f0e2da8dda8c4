"""A Llama-like decoder whose layers differ in heads, kv heads and FFN width.

This file travels with every pruned model (`auto_map` in config.json), so that
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` works where saap-edge is not installed. It
imports nothing but torch and transformers, and leaves attention, rotary embeddings, cache and generation to them.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

__all__ = ["SaapEdgeConfig", "SaapEdgeForCausalLM", "SaapEdgeModel"]


class SaapEdgeConfig(LlamaConfig):
    """A Llama configuration with widths per layer.

    `layer_widths` is a list of [heads, kv_heads, ffn]; `num_attention_heads`, `num_key_value_heads` and
    `intermediate_size` keep the dense model's values. `base_model_type` names the family the model came from.
    """

    model_type = "saap_edge"

    base_model_type: str = "llama"
    layer_widths: list | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    down_bias: bool = False


def build_layer(config: SaapEdgeConfig, index: int) -> LlamaDecoderLayer:
    """A decoder layer of that layer's own widths."""
    local = copy.copy(config)
    assert config.layer_widths is not None
    local.num_attention_heads, local.num_key_value_heads, local.intermediate_size = config.layer_widths[index]
    local.attention_bias, local.mlp_bias = config.qkv_bias, False
    layer = LlamaDecoderLayer(local, index)
    attention, mlp = layer.self_attn, layer.mlp
    # Llama ties the bias of o to that of q, k, v, and the bias of down to gate and up; here they are free.
    if config.o_bias != config.qkv_bias:
        attention.o_proj = nn.Linear(attention.o_proj.in_features, config.hidden_size, bias=config.o_bias)
    if config.down_bias:
        mlp.down_proj = nn.Linear(mlp.intermediate_size, config.hidden_size, bias=True)
    # Attention looks up its implementation (sdpa, eager, ...) in its config: the shared one, so that a change holds.
    attention.config = config
    return layer


@contextmanager
def without_layers(config: SaapEdgeConfig) -> Iterator[None]:
    """The parent classes would first build every layer at dense width: let them build none.

    The config itself is changed for that moment, not a copy: transformers writes its choice of attention into the
    config it is given, and attention without that choice would silently run without a causal mask.
    """
    count, config.num_hidden_layers = config.num_hidden_layers, 0
    try:
        yield
    finally:
        config.num_hidden_layers = count


class SaapEdgeModel(LlamaModel):
    config_class = SaapEdgeConfig

    def __init__(self, config: SaapEdgeConfig):
        with without_layers(config):
            super().__init__(config)
        self.layers = nn.ModuleList(build_layer(config, index) for index in range(config.num_hidden_layers))
        self.post_init()


class SaapEdgeForCausalLM(LlamaForCausalLM):
    config_class = SaapEdgeConfig

    def __init__(self, config: SaapEdgeConfig):
        with without_layers(config):
            super().__init__(config)
        self.model = SaapEdgeModel(config)
        self.post_init()
