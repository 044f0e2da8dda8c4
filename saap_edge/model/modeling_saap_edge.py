"""A decoder whose layers differ in heads, kv heads and FFN width, and may lack attention or FFN.

In the place of attention a layer may have a short convolution, a gated DeltaNet, or a Mamba-2 block. Gemma 4's layers
are transformers' own, each built with its widths.

This file travels with every pruned model (`auto_map` in config.json), so that
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` works where saap-edge is not installed. It
imports nothing but torch and transformers, and leaves attention, rotary embeddings, cache and generation to them.
"""

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import HunYuanDenseV1Attention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention
from transformers.models.qwen3_next.modeling_qwen3_next import (
    Qwen3NextAttention,
    Qwen3NextRMSNorm,
    Qwen3NextRMSNormGated,
    Qwen3NextRotaryEmbedding,
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

try:
    from transformers.models.gemma4 import modeling_gemma4 as gemma4
except ImportError:  # transformers 4 does not have it
    gemma4 = None  # type: ignore[assignment]

__all__ = ["SaapEdgeConfig", "SaapEdgeForCausalLM", "SaapEdgeLayer", "SaapEdgeModel"]


AUTO_MAP = {
    "AutoConfig": "modeling_saap_edge.SaapEdgeConfig",
    "AutoModelForCausalLM": "modeling_saap_edge.SaapEdgeForCausalLM",
}
# transformers' names for the numbers of `layer_widths`, and for what a layer can lack.
WIDTHS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
LINEAR_WIDTHS = ("linear_num_value_heads", "linear_num_key_heads", "intermediate_size")  # of a layer with a DeltaNet
SKIPS = ("attention", "mlp")
CACHES_CONVOLVE = hasattr(DynamicCache, "update_conv_state")  # not in transformers 4


def width_names(linear: list[int] | None, index: int) -> tuple[str, ...]:
    """Names of the widths of layer `index`; `linear` as `linear_layers`."""
    return LINEAR_WIDTHS if linear and linear[index] else WIDTHS


def widths_by_layer(layers: dict[Any, dict[str, Any]], usual: dict[str, Any], count: int) -> list[list[int]]:
    """`layer_widths` of transformers' `per_layer_config`; `usual` has the widths of layers that it does not name.

    It also has `conv_layers`, `linear_layers` and `mamba_layers`: which have a convolution, a DeltaNet or a Mamba-2
    block in the place of attention.
    """
    named = {int(key): layer for key, layer in layers.items()}
    for kind in ("conv_layers", "mamba_layers"):
        for index, there in enumerate(usual.get(kind) or ()):
            if there:
                layer = named.get(index, {})
                named[index] = {**layer, "skip": [*layer.get("skip", ()), "attention"]}
    widths = []
    for index in range(count):
        layer = named.get(index, {})
        names = width_names(usual.get("linear_layers"), index)
        heads, kv_heads, ffn = (int(layer.get(name, usual[name])) for name in names)
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
    `linear_layers`: for each layer 0, or 1 where a gated DeltaNet is in the place of attention (Qwen3.5), of the sizes
    `linear_key_head_dim`, `linear_value_head_dim` and `linear_conv_kernel_dim`; its widths are [value heads, key heads,
    ffn].
    `mamba_layers`: for each layer 0, or 1 where a Mamba-2 block is in the place of attention (Nemotron-H), of
    `mamba_num_heads` heads of `mamba_head_dim`, `n_groups`, `ssm_state_size` and `conv_kernel`; its heads are 0. Such a
    model's layers have one sublayer each.
    `gated_attention`: each head has a gate in q_proj, beside its query. `centred_norms`: norms multiply by 1 + weight.
    `gated_mlp`: FFNs have a gate_proj.
    Biases have one flag per kind of projection, because repair may give o and down one where the others have none.
    Of Gemma 4: `layer_types` and `sliding_window` as transformers has them, `rope_parameters` for each type of layer;
    `global_head_dim`, the size of heads in layers without window; `num_kv_shared_layers`, how many of the last layers
    borrow keys and values; `hidden_size_per_layer_input`, the size of the embeddings of every layer's own, and
    `vocab_size_per_layer_input`, their number; `final_logit_softcapping`.

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
    linear_layers: list | None = None  # type: ignore[type-arg]
    linear_num_key_heads: int | None = None
    linear_num_value_heads: int | None = None
    linear_key_head_dim: int | None = None
    linear_value_head_dim: int | None = None
    linear_conv_kernel_dim: int | None = None
    mamba_layers: list | None = None  # type: ignore[type-arg]
    mamba_num_heads: int | None = None
    mamba_head_dim: int | None = None
    ssm_state_size: int | None = None
    n_groups: int | None = None
    conv_kernel: int | None = None
    use_conv_bias: bool = True
    time_step_min: float = 0.0
    chunk_size: int = 128
    gated_attention: bool = False
    centred_norms: bool = False
    gated_mlp: bool = True
    sliding_window: int | None = None
    global_head_dim: int | None = None
    hidden_size_per_layer_input: int = 0
    vocab_size_per_layer_input: int = 0
    final_logit_softcapping: float | None = None

    def __post_init__(self, **keywords: Any) -> None:
        if self.is_gemma4:  # no other model has the field: caches of transformers 4 would take 0 for all layers
            self.num_kv_shared_layers = keywords.pop("num_kv_shared_layers", 0)
        if keywords.get("layer_types"):  # transformers asks for them before it sets fields of this class
            self.layer_types = keywords["layer_types"]
        super().__post_init__(**keywords)  # type: ignore[no-untyped-call]

    def validate_architecture(self) -> None:
        """As transformers', but Gemma 4's heads need not fill the hidden size."""
        if not self.is_gemma4:
            super().validate_architecture()  # type: ignore[no-untyped-call]

    @property
    def is_gemma4(self) -> bool:
        """The dense model is a Gemma 4."""
        return self.base_model_type == "gemma4_text"

    @property
    def kv_sharing_modes(self) -> list[str | None] | None:
        """For each layer, as transformers' caches and attention ask: "store" where others read its keys and values,
        "reuse" where it reads others'; None where no model of the kind has any such layers."""
        if not self.is_gemma4:
            return None
        kinds, first = self.layer_types, len(self.layer_types) - self.num_kv_shared_layers
        last = {kind: index for index, kind in enumerate(kinds[:first])}
        modes = ["reuse" if index >= first else None for index in range(len(kinds))]
        return ["store" if index == last.get(kinds[index]) else mode for index, mode in enumerate(modes)]

    @property
    def stateful(self) -> bool:
        """Some layers have a convolution, a DeltaNet or a Mamba-2 block in the place of attention."""
        return bool(self.conv_layers or self.linear_layers or self.mamba_layers)

    @property
    def layer_types(self) -> list[str]:
        """What each layer keeps of a text, as transformers' caches ask, where some have no attention but another."""
        if "layer_types" in self.__dict__:
            return self.__dict__["layer_types"]  # type: ignore[no-any-return]
        if not self.stateful or not self.layer_widths:
            raise AttributeError("layer_types")  # as of a Llama: all layers have attention
        none = [0] * len(self.layer_widths)
        by_kind = (self.conv_layers or none, self.mamba_layers or none, self.linear_layers or none)
        return [
            "conv" if conv else "linear_attention" if mamba or (heads and linear)
            else "full_attention" if heads else "moe"  # transformers' word for a layer that keeps nothing
            for conv, mamba, linear, (heads, *_) in zip(*by_kind, self.layer_widths, strict=True)
        ]  # fmt: skip

    @layer_types.setter
    def layer_types(self, types: list[str]) -> None:
        self.__dict__["layer_types"] = types

    @property
    def per_layer_config(self) -> "Places":
        """A configuration for each place in a cache: for each layer with attention, with heads of its own.

        Where some layers have a convolution or a DeltaNet, every layer has a place, as in transformers' own hybrids.

        transformers 5 makes static caches of it, for `generate(cache_implementation="static")` and torch.export. It is
        computed from `layer_widths`.
        """
        configs = Places()
        for index, (heads, kv_heads, ffn) in enumerate(self.layer_widths or ()):
            if heads or self.stateful:
                local = copy.copy(self)
                local.num_attention_heads, local.num_key_value_heads, local.intermediate_size = heads, kv_heads, ffn
                if self.is_gemma4 and self.layer_types[index] == "full_attention":
                    local.head_dim = self.global_head_dim
                configs.append(local)
        return configs

    @per_layer_config.setter
    def per_layer_config(self, layers: dict[Any, dict[str, Any]] | None) -> None:
        if layers is None:
            return
        kinds = ("conv_layers", "linear_layers", "mamba_layers")
        usual = {name: getattr(self, name) for name in (*WIDTHS, *LINEAR_WIDTHS, *kinds)}
        widths = widths_by_layer(layers, usual, self.num_hidden_layers)
        if self.layer_widths is None:
            self.layer_widths = widths
        elif [list(layer) for layer in self.layer_widths] != widths:
            raise ValueError("layer_widths and per_layer_config say different widths")

    def to_dict(self) -> dict[str, Any]:
        """As transformers', with `per_layer_config`: what layers have that is not as in the dense model."""
        layers: dict[str, dict[str, Any]] = {}
        for index, widths in enumerate(self.layer_widths or ()):
            heads, _, ffn = widths
            for staying in (self.conv_layers, self.mamba_layers):  # which is no lack of attention
                heads = heads or bool(staying and staying[index])
            named = zip(width_names(self.linear_layers, index), widths, strict=True)
            said: dict[str, Any] = {name: width for name, width in named if width not in (0, getattr(self, name))}
            skipped = [name for name, width in zip(SKIPS, (heads, ffn), strict=True) if not width]
            if said or skipped:
                layers[str(index)] = said | ({"skip": skipped} if skipped else {})
        return {**super().to_dict(), "per_layer_config": layers}


class Places(list):  # type: ignore[type-arg]
    """Configurations of layers, by place or, of a model with several, by type of layer."""

    def __getitem__(self, place: Any) -> Any:
        return super().__getitem__(self[0].layer_types.index(place) if isinstance(place, str) else place)


def cache_of(keywords: dict[str, Any]) -> Any:
    """The cache among what a layer is given; transformers 5.24 has another name for it.

    >>> cache_of({"past_key_values": 1}), cache_of({"cache": 2}), cache_of({})
    (1, 2, None)
    """
    return keywords.get("cache", keywords.get("past_key_values"))


def after_past(states: torch.Tensor, cache: Any, cache_index: int, taps: int) -> torch.Tensor:
    """`states` [batch, channels, tokens] behind the `taps` - 1 tokens before them: of the cache, or zeros."""
    wanted = states.shape[2] + taps - 1
    if cache is not None:
        if not hasattr(cache, "update_conv_state"):
            raise ValueError("a cache of transformers 4 holds no states of convolutions: use transformers 5")
        states = cache.update_conv_state(states, cache_index, conv_kernel_size=taps)
    return nn.functional.pad(states, (max(wanted - states.shape[2], 0), 0))[:, :, -wanted:]


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
        seen = self.conv(after_past(gate_in * x, past_key_values, self.cache_index, self.taps))
        result: torch.Tensor = self.out_proj((gate_out * seen).transpose(1, 2))
        return result


class SaapEdgeDeltaNet(nn.Module):
    """Qwen3.5's gated DeltaNet, with queries, keys and values apart: each of them loses rows of its own in pruning.

    Value head h shares key head h // (value heads / key heads), and has a state [keys, values] of its own.
    """

    def __init__(self, config: SaapEdgeConfig, value_heads: int, key_heads: int, cache_index: int):
        super().__init__()
        size, self.taps = config.hidden_size, config.linear_conv_kernel_dim or 1
        self.keys, self.values = config.linear_key_head_dim or 1, config.linear_value_head_dim or 1
        self.key_heads, self.value_heads, self.cache_index = key_heads, value_heads, cache_index
        keys, values = key_heads * self.keys, value_heads * self.values
        self.widths = [keys, keys, values]
        self.in_proj_q, self.in_proj_k = (nn.Linear(size, keys, bias=False) for _ in "qk")
        self.in_proj_v, self.in_proj_z = (nn.Linear(size, values, bias=False) for _ in "vz")
        self.in_proj_b, self.in_proj_a = (nn.Linear(size, value_heads, bias=False) for _ in "ba")
        self.conv_q, self.conv_k, self.conv_v = (
            nn.Conv1d(width, width, self.taps, groups=width, bias=False) for width in self.widths
        )
        self.A_log, self.dt_bias = (nn.Parameter(torch.zeros(value_heads)) for _ in "Ad")
        self.norm = Qwen3NextRMSNormGated(self.values, eps=config.rms_norm_eps)
        self.out_proj = nn.Linear(values, size, bias=config.o_bias)

    def forward(
        self, hidden_states: torch.Tensor, past_key_values: Any = None, padding: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`hidden_states` [batch, tokens, hidden]; `padding` as of SaapEdgeConvolution."""
        batch, count, _ = hidden_states.shape
        if padding is not None and count > 1:
            hidden_states = hidden_states * padding[:, -count:, None].to(hidden_states.dtype)
        state, cached = None, past_key_values is not None
        if cached and CACHES_CONVOLVE:  # before the tokens are put down: then there would be a state already
            state = past_key_values.get_recurrent_state(self.cache_index)
        before = torch.cat([each(hidden_states) for each in (self.in_proj_q, self.in_proj_k, self.in_proj_v)], dim=-1)
        before = after_past(before.transpose(1, 2), past_key_values, self.cache_index, self.taps)
        kernel = torch.cat([self.conv_q.weight, self.conv_k.weight, self.conv_v.weight])
        seen = nn.functional.conv1d(before, kernel, groups=len(kernel))
        query, key, value = nn.functional.silu(seen).transpose(1, 2).split(self.widths, dim=-1)
        shared = self.value_heads // self.key_heads
        query, key = (each.reshape(batch, count, -1, self.keys).repeat_interleave(shared, 2) for each in (query, key))
        decay = nn.functional.softplus(self.in_proj_a(hidden_states).float() + self.dt_bias)
        rule: Any = torch_recurrent_gated_delta_rule if count == 1 and cached else torch_chunk_gated_delta_rule
        result, state = rule(
            query, key, value.reshape(batch, count, -1, self.values), g=-self.A_log.float().exp() * decay,
            beta=self.in_proj_b(hidden_states).sigmoid(), initial_state=state, output_final_state=cached,
            use_qk_l2norm_in_kernel=True,
        )  # fmt: skip
        if cached:
            past_key_values.update_recurrent_state(state, self.cache_index)
        gate = self.in_proj_z(hidden_states)
        normed = self.norm(result.reshape(-1, self.values), gate.reshape(-1, self.values))
        mixed: torch.Tensor = self.out_proj(normed.reshape(batch, count, -1))
        return mixed


class SaapEdgeMamba(nn.Module):
    """Nemotron-H's Mamba-2: each head's state [channels, states] decays and grows by dt x B, and is read by C.

    Heads share B and C within a group. In a prompt transformers keeps time steps dt from falling below `time_step_min`,
    and in single steps after it lets them; so does this.
    """

    def __init__(self, config: SaapEdgeConfig, cache_index: int):
        super().__init__()
        self.heads, self.width = config.mamba_num_heads or 1, config.mamba_head_dim or 1
        self.groups, self.states = config.n_groups or 1, config.ssm_state_size or 1
        self.taps, self.chunk, self.least = config.conv_kernel or 1, config.chunk_size, config.time_step_min
        self.cache_index, self.eps = cache_index, config.rms_norm_eps
        inner, shared = self.heads * self.width, self.groups * self.states
        self.widths = [inner, shared, shared]
        convolved = inner + 2 * shared
        self.in_proj = nn.Linear(config.hidden_size, inner + convolved + self.heads, bias=False)
        self.conv1d = nn.Conv1d(convolved, convolved, self.taps, groups=convolved, bias=config.use_conv_bias)
        self.A_log, self.D, self.dt_bias = (nn.Parameter(torch.zeros(self.heads)) for _ in "ADd")
        self.norm = LlamaRMSNorm(inner, eps=config.rms_norm_eps)  # for its weight: the mean is taken by group
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(
        self, hidden_states: torch.Tensor, past_key_values: Any = None, padding: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`hidden_states` [batch, tokens, hidden]; `padding` as of SaapEdgeConvolution."""
        batch, count, _ = hidden_states.shape
        seen = None
        if padding is not None and count > 1:
            seen = padding[:, -count:, None].to(hidden_states.dtype)
            hidden_states = hidden_states * seen
        state, cached = None, past_key_values is not None
        if cached and CACHES_CONVOLVE:  # before the tokens are put down: then there would be a state already
            state = past_key_values.get_recurrent_state(self.cache_index)
        gate, mixed, dt = self.in_proj(hidden_states).split([self.widths[0], sum(self.widths), self.heads], dim=-1)
        mixed = after_past(mixed.transpose(1, 2), past_key_values, self.cache_index, self.taps)
        mixed = nn.functional.silu(self.conv1d(mixed)).transpose(1, 2)
        x, b, c = (mixed if seen is None else mixed * seen).split(self.widths, dim=-1)
        dt = nn.functional.softplus(dt + self.dt_bias).float()
        if state is None or count > 1:
            dt = dt.clamp(min=self.least)
        x = x.reshape(batch, count, self.heads, self.width).float()
        b, c = (
            each.reshape(batch, count, self.groups, self.states).repeat_interleave(self.heads // self.groups, 2).float()
            for each in (b, c)
        )
        if state is None:
            state = x.new_zeros(batch, self.heads, self.width, self.states)
        result, state = scanned(x * dt[..., None], -self.A_log.float().exp() * dt, b, c, state.float(), self.chunk)
        if cached:
            past_key_values.update_recurrent_state(state, self.cache_index)
        result = (result + self.D[:, None] * x).flatten(2) * nn.functional.silu(gate.float())
        grouped = result.unflatten(-1, (self.groups, -1))
        grouped = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + self.eps)
        output: torch.Tensor = self.out_proj((self.norm.weight * grouped.flatten(2)).to(hidden_states.dtype))
        return output


def scanned(
    x: torch.Tensor, decay: torch.Tensor, b: torch.Tensor, c: torch.Tensor, state: torch.Tensor, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What heads read of their states, [batch, tokens, heads, width], and the states after the last token.

    state = exp(decay) state + x b^T, and c reads it, token after token; `chunk` tokens at a time as one product
    (arXiv 2405.21060). x [batch, tokens, heads, width], decay [batch, tokens, heads], b and c [batch, tokens, heads,
    states], state [batch, heads, width, states].
    """
    results = []
    for part, fall, write, read in zip(*(each.split(chunk, dim=1) for each in (x, decay, b, c)), strict=True):
        total = fall.cumsum(1)
        between = total[:, :, None] - total[:, None]  # of the tokens that read, and of those that wrote
        late = torch.ones(between.shape[1:3], dtype=torch.bool, device=x.device).triu(1)
        scores = torch.einsum("blhn,bshn->blsh", read, write) * between.masked_fill(late[..., None], -torch.inf).exp()
        before = torch.einsum("blhn,bhpn->blhp", read, state) * total.exp()[..., None]
        results.append(torch.einsum("blsh,bshp->blhp", scores, part) + before)
        rest = (total[:, -1:] - total).exp()[..., None]
        state = state * total[:, -1].exp()[..., None, None] + torch.einsum("blhn,blhp->bhpn", write * rest, part)
    return torch.cat(results, dim=1), state


class SaapEdgeMLP(nn.Module):
    """An FFN without gate: down(act(up(states)))."""

    def __init__(self, config: SaapEdgeConfig, width: int):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, width, bias=config.gate_up_bias)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=config.down_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down_proj(self.act_fn(self.up_proj(hidden_states)))
        return output


class SaapEdgeLayer(GradientCheckpointingLayer):
    """A decoder layer with widths of its own. Parts that it lacks are None, norms included.

    `cache_index` counts only layers with attention, because transformers takes a cache's length from its first layer.
    Where some layers have a convolution, a DeltaNet or a Mamba-2 block, it counts all.
    `rotated`: queries and keys are rotated by their positions.
    `mixer`: what stands in the place of attention, "conv", "linear_attn" or "mamba", if not attention itself.
    """

    def __init__(
        self, config: SaapEdgeConfig, widths: list[int], cache_index: int, rotated: bool = True,
        mixer: str = "self_attn",
    ):  # fmt: skip
        super().__init__()
        self.rotated = rotated
        heads, kv_heads, ffn = widths
        local = copy.copy(config)
        local.num_attention_heads, local.num_key_value_heads, local.intermediate_size = heads, kv_heads, ffn
        local.attention_bias, local.mlp_bias = config.qkv_bias, config.gate_up_bias
        local.layer_types = ["full_attention"] * (cache_index + 1)  # Qwen3's attention in transformers 4 reads it
        self.input_layernorm = self.self_attn = self.post_attention_layernorm = self.mlp = self.conv = None
        self.linear_attn = self.mamba = None
        norm = norm_class(config)
        if heads or mixer in ("conv", "mamba"):
            self.input_layernorm = norm(config.hidden_size, eps=config.rms_norm_eps)
        if mixer == "conv":
            self.conv = SaapEdgeConvolution(config, cache_index)
        elif mixer == "mamba":
            self.mamba = SaapEdgeMamba(config, cache_index)
        elif heads and mixer == "linear_attn":
            self.linear_attn = SaapEdgeDeltaNet(config, heads, kv_heads, cache_index)
        elif heads:
            self.self_attn = attention_class(config)(local, cache_index)
            # Llama ties the bias of o to that of q, k, v, and the bias of down to gate and up; here they are free.
            if config.o_bias != config.qkv_bias:
                inputs = self.self_attn.o_proj.in_features
                self.self_attn.o_proj = nn.Linear(inputs, config.hidden_size, bias=config.o_bias)
            # Attention looks up its implementation (sdpa, eager, ...) in its config. It gets the shared one, so that a
            # change has effect.
            self.self_attn.config = config
        if ffn:
            self.post_attention_layernorm = norm(config.hidden_size, eps=config.rms_norm_eps)
            self.mlp = LlamaMLP(local) if config.gated_mlp else SaapEdgeMLP(config, ffn)
            if config.down_bias != config.gate_up_bias:
                self.mlp.down_proj = nn.Linear(ffn, config.hidden_size, bias=config.down_bias)

    def forward(
        self, hidden_states: torch.Tensor, padding: torch.Tensor | None = None, **keywords: Any
    ) -> torch.Tensor:
        mixers = (self.conv, self.linear_attn, self.mamba)
        remembering: Any = next((mixer for mixer in mixers if mixer is not None), None)
        if remembering is not None and self.input_layernorm is not None:
            normed = self.input_layernorm(hidden_states)
            hidden_states = hidden_states + remembering(normed, cache_of(keywords), padding)
        if self.self_attn is not None and self.input_layernorm is not None:
            normed = self.input_layernorm(hidden_states)
            if not self.rotated:  # by an angle of zero
                cos, sin = keywords["position_embeddings"]
                keywords["position_embeddings"] = torch.ones_like(cos), torch.zeros_like(sin)
            hidden_states = hidden_states + self.self_attn(hidden_states=normed, **keywords)[0]
        if self.mlp is not None and self.post_attention_layernorm is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states


def norm_class(config: SaapEdgeConfig) -> Any:
    """The class of norms of hidden states."""
    return Qwen3NextRMSNorm if config.centred_norms else LlamaRMSNorm


def attention_class(config: SaapEdgeConfig) -> Any:
    """The class of attention."""
    if config.gated_attention:
        return Qwen3NextAttention
    if config.norms_after_rope:
        return HunYuanDenseV1Attention
    return Qwen3Attention if config.qk_norm else LlamaAttention


def build_layers(config: SaapEdgeConfig) -> nn.ModuleList:
    """All decoder layers of a configuration."""
    assert config.layer_widths is not None
    layers, attentions = nn.ModuleList(), 0
    none = [0] * len(config.layer_widths)
    rotated = config.no_rope_layers or [1] * len(config.layer_widths)
    kinds = zip(config.conv_layers or none, config.linear_layers or none, config.mamba_layers or none, strict=True)
    for widths, turned, (conv, linear, mamba) in zip(config.layer_widths, rotated, kinds, strict=True):
        mixer = "conv" if conv else "linear_attn" if linear else "mamba" if mamba else "self_attn"
        layers.append(SaapEdgeLayer(config, widths, attentions, bool(turned), mixer))
        attentions += widths[0] > 0 or config.stateful
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


def gemma4_layer(config: SaapEdgeConfig, index: int) -> Any:
    """transformers' layer of Gemma 4 with the widths of layer `index`."""
    local = config.per_layer_config[index]
    local.attention_bias = local.attention_k_eq_v = local.enable_moe_block = local.use_double_wide_mlp = False
    local.hidden_activation, local.use_bidirectional_attention = config.hidden_act, None
    layer: Any = gemma4.Gemma4TextDecoderLayer(local, index)
    # As in SaapEdgeLayer: attention looks up its implementation in the shared configuration.
    layer.config = layer.self_attn.config = layer.mlp.config = config
    if config.o_bias:
        layer.self_attn.o_proj = nn.Linear(layer.self_attn.o_proj.in_features, config.hidden_size)
    if config.down_bias:
        layer.mlp.down_proj = nn.Linear(layer.mlp.down_proj.in_features, config.hidden_size)
    return layer


class SaapEdgeGemma4Model(gemma4.Gemma4TextModel if gemma4 else nn.Module):  # type: ignore[misc]
    """Gemma 4's decoder without its output head: transformers' own, with layers of different widths."""

    config_class = SaapEdgeConfig

    def __init__(self, config: SaapEdgeConfig):
        if gemma4 is None:
            raise ImportError("this transformers does not have Gemma 4: use version 5.24 or later")
        super(gemma4.Gemma4TextModel, self).__init__(config)  # type: ignore[misc]
        size, own, count = config.hidden_size, config.hidden_size_per_layer_input, config.num_hidden_layers
        table: Any = gemma4.Gemma4TextScaledWordEmbedding
        norm, rotary = gemma4.Gemma4RMSNorm, cast(Any, gemma4.Gemma4TextRotaryEmbedding)
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = table(config.vocab_size, size, config.pad_token_id, embed_scale=size**0.5)
        self.layers = nn.ModuleList([gemma4_layer(config, index) for index in range(len(config.layer_widths or ()))])
        self.norm, self.rotary_emb = norm(size, eps=config.rms_norm_eps), rotary(config)
        self.gradient_checkpointing, self.unique_layer_types = False, set(config.layer_types)
        self.first_kv_shared_layer_idx = count - config.num_kv_shared_layers
        self.hidden_size_per_layer_input = own
        if own:
            rows = config.vocab_size_per_layer_input
            self.embed_tokens_per_layer = table(rows, count * own, config.pad_token_id, embed_scale=own**0.5)
            self.per_layer_input_scale, self.per_layer_model_projection_scale = 2.0**-0.5, size**-0.5
            self.per_layer_model_projection = nn.Linear(size, count * own, bias=False)
            self.per_layer_projection_norm = norm(own, eps=config.rms_norm_eps)
        self.post_init()


class SaapEdgeModel(LlamaModel):
    """The decoder without its output head."""

    config_class = SaapEdgeConfig
    _no_split_modules = ["SaapEdgeLayer"]  # noqa: RUF012 (as transformers has it)
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": SaapEdgeLayer,
        "attentions": [LlamaAttention, Qwen3Attention, HunYuanDenseV1Attention, Qwen3NextAttention],
    }  # fmt: skip

    def __init__(self, config: SaapEdgeConfig):
        with without_layers(config):
            super().__init__(config)
        self.layers = build_layers(config)
        if config.centred_norms:
            self.norm = norm_class(config)(config.hidden_size, eps=config.rms_norm_eps)
        if config.gated_attention:  # a part of each head rotates
            rotary: Any = Qwen3NextRotaryEmbedding
            self.rotary_emb = rotary(config)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **keywords: Any) -> Any:
        if self.config.stateful:  # attention gets a mask of pairs of tokens, all else which tokens are padding
            kind = "conv" if self.config.conv_layers else "linear_attention"
            by_kind = attention_mask if isinstance(attention_mask, dict) else {kind: attention_mask}
            padding, attention_mask = by_kind.get(kind), by_kind.get("full_attention", attention_mask)
            if padding is not None and padding.ndim == 2:
                keywords["padding"] = padding
            if not CACHES_CONVOLVE and cache_of(keywords) is None:
                keywords["use_cache"] = False
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **keywords)


class SaapEdgeForCausalLM(LlamaForCausalLM):
    """The decoder with its output head."""

    config_class = SaapEdgeConfig
    _no_split_modules = ["SaapEdgeLayer", "Gemma4TextDecoderLayer"]  # noqa: RUF012

    def __init__(self, config: SaapEdgeConfig):
        if config.is_gemma4:
            super(LlamaForCausalLM, self).__init__(config)
            self.vocab_size, self.model = config.vocab_size, SaapEdgeGemma4Model(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        else:
            with without_layers(config):
                super().__init__(config)
            self.model = SaapEdgeModel(config)
        self.post_init()  # type: ignore[no-untyped-call]

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **keywords: Any) -> Any:  # type: ignore[override]
        """As transformers', with Gemma 4's soft cap on logits."""
        cap = self.config.final_logit_softcapping
        if not cap:
            return super().forward(*args, **keywords)
        labels = keywords.pop("labels", None)
        answer = super().forward(*args, **keywords | {"return_dict": True})
        answer.logits = cap * torch.tanh(answer.logits / cap)
        if labels is not None:
            answer.loss = self.loss_function(answer.logits, labels, self.config.vocab_size)
        return answer

    def generate(self, *args: Any, **keywords: Any) -> Any:
        """As transformers'; where its caches hold only keys and values, each token reads all before it again."""
        if self.config.stateful and not CACHES_CONVOLVE:
            keywords["use_cache"] = False
        return super().generate(*args, **keywords)
