"""A decoder whose layers differ in heads, kv heads and FFN width, and may lack attention or FFN, or have a convolution.

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
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import HunYuanDenseV1Attention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

__all__ = ["SaapEdgeConfig", "SaapEdgeForCausalLM", "SaapEdgeLayer", "SaapEdgeModel"]


AUTO_MAP = {
    "AutoConfig": "modeling_saap_edge.SaapEdgeConfig",
    "AutoModelForCausalLM": "modeling_saap_edge.SaapEdgeForCausalLM",
}
# transformers' names for the numbers of `layer_widths`, and for what a layer can lack.
WIDTHS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
SKIPS = ("attention", "mlp")
CACHES_CONVOLVE = hasattr(DynamicCache, "update_conv_state")  # not in transformers 4


def widths_by_layer(
    layers: dict[Any, dict[str, Any]], shape: list[int], count: int, convolved: list[int] | None = None
) -> list[list[int]]:
    """`layer_widths` of transformers' `per_layer_config`; `shape` are the widths of layers that it does not name.

    Layers that are 1 in `convolved` have a convolution in the place of attention.
    """
    named = {int(key): layer for key, layer in layers.items()}
    for index, conv in enumerate(convolved or ()):
        if conv:
            layer = named.get(index, {})
            named[index] = {**layer, "skip": [*layer.get("skip", ()), "attention"]}
    widths = []
    for index in range(count):
        layer = named.get(index, {})
        heads, kv_heads, ffn = (layer.get(name, usual) for name, usual in zip(WIDTHS, shape, strict=True))
        attention, mlp = (name not in layer.get("skip", ()) for name in SKIPS)
        widths.append([heads * attention, kv_heads * attention, ffn * mlp])
    return widths


class SaapEdgeConfig(LlamaConfig):
    """A Llama configuration with widths per layer.

    `layer_widths` is a list of [heads, kv_heads, ffn], 0 where a layer has no attention or no FFN;
    `num_attention_heads`, `num_key_value_heads` and `intermediate_size` keep the dense model's values.
    `base_model_type` names the family of the dense model. `qk_norm`: queries and keys are normalised, as in Qwen3.
    `norms_after_rope`: they are so after they were rotated, as in Hunyuan.
    `no_rope_layers`: for each layer 1, or 0 where queries and keys are not rotated (SmolLM3); None: all are.
    `conv_layers`: for each layer 0, or 1 where a short convolution of `conv_taps` tokens is in the place of attention
    (LFM2); its heads are 0.
    Biases have one flag per kind of projection, because repair may give o and down one where the others have none.

    config.json says the widths in transformers' own field `per_layer_config` too, and may say them there alone. In
    memory, caches of transformers 5 take their shapes from it.
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
    no_rope_layers: list | None = None  # type: ignore[type-arg]
    conv_layers: list | None = None  # type: ignore[type-arg]
    conv_taps: int | None = None

    @property
    def layer_types(self) -> list[str]:
        """What each layer keeps of a text, as transformers' caches ask, where some have a convolution."""
        if "layer_types" in self.__dict__:
            return self.__dict__["layer_types"]  # type: ignore[no-any-return]
        if not self.conv_layers or not self.layer_widths:
            raise AttributeError("layer_types")  # as of a Llama: all layers have attention
        kinds = {True: "full_attention", False: "moe"}  # transformers' word for a layer that keeps nothing
        return [
            "conv" if conv else kinds[heads > 0]
            for conv, (heads, *_) in zip(self.conv_layers, self.layer_widths, strict=True)
        ]

    @layer_types.setter
    def layer_types(self, types: list[str]) -> None:
        self.__dict__["layer_types"] = types

    @property
    def per_layer_config(self) -> list[Any]:
        """A configuration for each place in a cache: for each layer with attention, with heads of its own.

        Where some layers have a convolution, every layer has a place, as in transformers' own hybrids.

        transformers 5 makes static caches of it, for `generate(cache_implementation="static")` and torch.export. It is
        computed from `layer_widths`.
        """
        configs = []
        for heads, kv_heads, ffn in self.layer_widths or ():
            if heads or self.conv_layers:
                local = copy.copy(self)
                local.num_attention_heads, local.num_key_value_heads, local.intermediate_size = heads, kv_heads, ffn
                configs.append(local)
        return configs

    @per_layer_config.setter
    def per_layer_config(self, layers: dict[Any, dict[str, Any]] | None) -> None:
        if layers is None:
            return
        shape = [getattr(self, name) for name in WIDTHS]
        widths = widths_by_layer(layers, shape, self.num_hidden_layers, self.conv_layers)
        if self.layer_widths is None:
            self.layer_widths = widths
        elif [list(layer) for layer in self.layer_widths] != widths:
            raise ValueError("layer_widths and per_layer_config say different widths")

    def to_dict(self) -> dict[str, Any]:
        """As transformers', with `per_layer_config`: what layers have that is not as in the dense model."""
        layers: dict[str, dict[str, Any]] = {}
        for index, widths in enumerate(self.layer_widths or ()):
            heads, _, ffn = widths
            heads = heads or bool(self.conv_layers and self.conv_layers[index])  # a convolution is no lack of it
            said: dict[str, Any] = {
                name: width for name, width in zip(WIDTHS, widths, strict=True) if width not in (0, getattr(self, name))
            }
            skipped = [name for name, width in zip(SKIPS, (heads, ffn), strict=True) if not width]
            if said or skipped:
                layers[str(index)] = said | ({"skip": skipped} if skipped else {})
        return {**super().to_dict(), "per_layer_config": layers}


class SaapEdgeConvolution(nn.Module):
    """LFM2's short convolution: out(C * conv(B * x)) with B, C, x = in(states), causal, each channel by itself."""

    def __init__(self, config: SaapEdgeConfig, cache_index: int):
        super().__init__()
        size, taps = config.hidden_size, config.conv_taps or 1
        self.cache_index, self.taps = cache_index, taps
        self.in_proj = nn.Linear(size, 3 * size, bias=False)
        self.conv = nn.Conv1d(size, size, taps, groups=size, bias=False)
        self.out_proj = nn.Linear(size, size, bias=False)

    def forward(
        self, hidden_states: torch.Tensor, past_key_values: Any = None, padding: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`hidden_states` [batch, tokens, hidden]; `padding` [batch, tokens so far] is 0 where a token is padding."""
        count = hidden_states.shape[1]
        if padding is not None and count > 1:  # a token that is being generated is none
            hidden_states = hidden_states * padding[:, -count:, None].to(hidden_states.dtype)
        gate_in, gate_out, x = self.in_proj(hidden_states).transpose(1, 2).chunk(3, dim=1)
        states = before = gate_in * x
        if past_key_values is not None:
            if not hasattr(past_key_values, "update_conv_state"):
                raise ValueError("a cache of transformers 4 holds no states of convolutions: use transformers 5")
            before = past_key_values.update_conv_state(states, self.cache_index, conv_kernel_size=self.taps)
        before = nn.functional.pad(before, (max(count + self.taps - 1 - before.shape[2], 0), 0))
        seen = self.conv(before[:, :, 1 - self.taps - count :])
        result: torch.Tensor = self.out_proj((gate_out * seen).transpose(1, 2))
        return result


class SaapEdgeLayer(GradientCheckpointingLayer):
    """A decoder layer with widths of its own. Parts that it lacks are None, norms included.

    `cache_index` counts only layers with attention, because transformers takes a cache's length from its first layer.
    Where some layers have a convolution, it counts all.
    `rotated`: queries and keys are rotated by their positions.
    `convolved`: a short convolution stands in the place of attention.
    """

    def __init__(
        self, config: SaapEdgeConfig, widths: list[int], cache_index: int, rotated: bool = True, convolved: bool = False
    ):
        super().__init__()
        self.rotated = rotated
        heads, kv_heads, ffn = widths
        local = copy.copy(config)
        local.num_attention_heads, local.num_key_value_heads, local.intermediate_size = heads, kv_heads, ffn
        local.attention_bias, local.mlp_bias = config.qkv_bias, config.gate_up_bias
        local.layer_types = ["full_attention"] * (cache_index + 1)  # Qwen3's attention in transformers 4 reads it
        self.input_layernorm = self.self_attn = self.post_attention_layernorm = self.mlp = self.conv = None
        attention: Any = Qwen3Attention if config.qk_norm else LlamaAttention
        attention = HunYuanDenseV1Attention if config.norms_after_rope else attention
        if convolved:
            self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.conv = SaapEdgeConvolution(config, cache_index)
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

    def forward(
        self, hidden_states: torch.Tensor, padding: torch.Tensor | None = None, **keywords: Any
    ) -> torch.Tensor:
        if self.conv is not None and self.input_layernorm is not None:
            normed = self.input_layernorm(hidden_states)
            hidden_states = hidden_states + self.conv(normed, keywords.get("past_key_values"), padding)
        if self.self_attn is not None and self.input_layernorm is not None:
            normed = self.input_layernorm(hidden_states)
            if not self.rotated:  # by an angle of zero
                cos, sin = keywords["position_embeddings"]
                keywords["position_embeddings"] = torch.ones_like(cos), torch.zeros_like(sin)
            hidden_states = hidden_states + self.self_attn(hidden_states=normed, **keywords)[0]
        if self.mlp is not None and self.post_attention_layernorm is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states


def build_layers(config: SaapEdgeConfig) -> nn.ModuleList:
    """All decoder layers of a configuration."""
    assert config.layer_widths is not None
    layers, attentions = nn.ModuleList(), 0
    rotated = config.no_rope_layers or [1] * len(config.layer_widths)
    convolved = config.conv_layers or [0] * len(config.layer_widths)
    for widths, turned, conv in zip(config.layer_widths, rotated, convolved, strict=True):
        layers.append(SaapEdgeLayer(config, widths, attentions, bool(turned), bool(conv)))
        attentions += widths[0] > 0 or bool(config.conv_layers)
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

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **keywords: Any) -> Any:
        if self.config.conv_layers:  # attention gets a mask of pairs of tokens, convolutions which tokens are padding
            by_kind = attention_mask if isinstance(attention_mask, dict) else {"conv": attention_mask}
            padding, attention_mask = by_kind.get("conv"), by_kind.get("full_attention", attention_mask)
            if padding is not None and padding.ndim == 2:
                keywords["padding"] = padding
            if not CACHES_CONVOLVE and keywords.get("past_key_values") is None:
                keywords["use_cache"] = False
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **keywords)


class SaapEdgeForCausalLM(LlamaForCausalLM):
    """The decoder with its output head."""

    config_class = SaapEdgeConfig
    _no_split_modules = ["SaapEdgeLayer"]  # noqa: RUF012

    def __init__(self, config: SaapEdgeConfig):
        with without_layers(config):
            super().__init__(config)
        self.model = SaapEdgeModel(config)
        self.post_init()  # type: ignore[no-untyped-call]

    def generate(self, *args: Any, **keywords: Any) -> Any:
        """As transformers'; where its caches hold no states of convolutions, each token reads all before it again."""
        if self.config.conv_layers and not CACHES_CONVOLVE:
            keywords["use_cache"] = False
        return super().generate(*args, **keywords)  # type: ignore[misc]
