"""What a model family declares. To add a family, write one file that builds a `Family` (docs/families.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from saap_edge.families.rope import head_dim_of, refuse_rope, rope_of

__all__ = [
    "FFN_CHANNEL", "KEY_HEAD", "KV_GROUP", "LLAMA_EXPORTS", "UNGATED_CHANNEL", "Config", "Coupling", "Exports",
    "Family", "Gemma", "Refusal", "Source", "as_llama", "refuse_by_layer", "refuse_common", "within_window",
]  # fmt: skip

Config = dict[str, Any]


@dataclass(frozen=True)
class Coupling:
    """A coupled structure: weight slices that can only be removed together (docs/method.md).

    Attributes:
        kind: "kv_group", "key_head" or "ffn".
        rows: modules that lose output rows, and entries of their bias. Names are relative to a decoder layer.
        columns: modules that lose input columns.
        shared: what of `rows` and `beside` has one part a KV group; the rest has one for each of the group's heads.
        beside: parameters that are no projections, and lose rows too.
    """

    kind: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    shared: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The sublayer that holds all of it."""
        return self.columns[0].split(".")[0]


# One KV group: a kv head with its n_rep query heads. The planner counts kv heads; surgery expands to rows.
KV_GROUP = Coupling(
    "kv_group", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",),
    shared=("self_attn.k_proj", "self_attn.v_proj"),
)  # fmt: skip
# One key head of a gated DeltaNet with the value heads that share it, each of which has a state of its own.
KEY_HEAD = Coupling(
    "key_head", tuple(f"linear_attn.in_proj_{letter}" for letter in "qkvzba"), ("linear_attn.out_proj",),
    shared=tuple(f"linear_attn.{part}_{letter}" for part in ("in_proj", "conv") for letter in "qk"),
    beside=(*(f"linear_attn.conv_{letter}.weight" for letter in "qkv"), "linear_attn.A_log", "linear_attn.dt_bias"),
)  # fmt: skip
FFN_CHANNEL = Coupling("ffn", ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))
UNGATED_CHANNEL = Coupling("ffn", ("mlp.up_proj",), ("mlp.down_proj",))

# The projections of a short convolution and of a Mamba-2 block, which no pruning cuts.
_STAYING = {"conv": ("conv.in_proj", "conv.out_proj"), "mamba": ("mamba.in_proj", "mamba.out_proj")}
# Those of embeddings that every layer has of its own, which no pruning cuts either.
PER_LAYER = ("per_layer_input_gate", "per_layer_projection")


@dataclass(frozen=True)
class Source:
    """Where a tensor of the canonical form comes from: a stored tensor, rows [start, stop) of it, times a factor.

    `order` and `factors` have an entry for each row of a head, the same for all heads: the stored row that comes there,
    and what it is multiplied by.
    """

    name: str
    rows: tuple[int, int] | None = None
    factor: float = 1.0
    order: tuple[int, ...] | None = None
    factors: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Gemma:
    """What Gemma's arithmetic has and Llama's has not, as far as Gemma models differ in it.

    Attributes:
        attention_scalar: attention scores are divided by its square root.
        attention_cap, final_cap: soft caps on scores and on logits, or None.
        window: tokens that a windowed layer sees.
        windowed: for each layer, whether it has the window.
        window_theta: rope base of windowed layers; None if all layers have the same.
        per_layer: size of the embeddings that every layer has of its own, or 0.
        turned: share of a head's pairs that rotate in layers without window; the others keep their places.
        scaled: a layer's output is multiplied by a number of its own.
        plain_values: values are normalised as keys are, without weights.
    """

    attention_scalar: float
    attention_cap: float | None
    final_cap: float | None
    window: int | None
    windowed: tuple[bool, ...]
    window_theta: float | None
    per_layer: int = 0
    turned: float = 1.0
    scaled: bool = False
    plain_values: bool = False


class Refusal(str):
    """Why a runtime cannot run a model; stands in place of an architecture in `Exports`."""


@dataclass(frozen=True)
class Exports:
    """What runs a family in each runtime: llama.cpp's architecture, the kind of ONNX graph, or a Refusal.

    Attributes:
        gguf_uniform: for layers of equal widths.
        gguf_layers: for widths that differ from layer to layer.
        onnx: the graph, for both kinds of widths.
        gguf_layers_untied: as `gguf_layers`, for a model with a separate output head; None: no difference.
        gguf_kv_by_layer: `gguf_uniform` has KV heads of each layer, and needs only FFNs of one width.
    """

    gguf_uniform: str | Refusal
    gguf_layers: str | Refusal
    onnx: str | Refusal
    gguf_layers_untied: str | Refusal | None = None
    gguf_kv_by_layer: bool = False


@dataclass(frozen=True)
class Family:
    """A decoder family. Everything about it is declared; no model is traced.

    Attributes:
        model_type: `model_type` in config.json.
        title: the name people use.
        covers: known models of the family.
        exports: what runs it in each runtime.
        qkv_bias, o_bias: config -> whether these projections have a bias.
        mlp_bias: config -> whether gate, up and down have one.
        refuse: config -> the reason why this model cannot be handled, or None.
        defaults: transformers' values of absent fields, as far as they are read here.
        canonical: config -> the config of the canonical form, to which tensors and widths are brought.
        source: (config, canonical tensor name) -> where it comes from, for families stored in another layout.
        qk_norm: queries and keys are normalised head by head.
        norms_after_rope: that is after they were rotated, not before.
        uniform_only: the reason why all layers must keep the same widths, or None.
        no_depth: the reason why no layer can lose its whole attention or FFN, or None.
        gemma: config -> what it has of Gemma's arithmetic; None for all other families.
        unrotated: config -> the layers without rotary positions.
        spelled: config -> the same with other names of its fields, which transformers knows too, replaced.
        plain: config of our own class with layers that are alike -> that of transformers' class, as which it is saved.
            Where it is set, the canonical form is our own class, also of a dense model. It gives None where
            transformers' class cannot hold the layers.
        traits: config of our own class -> for each layer, what it has beside widths (fields of LayerShape).
        by_layer: `canonical` reads `per_layer_config` itself, as transformers' class does.
        gated: attention's q_proj gives each head a gate beside its query, on what the head adds.
        centred_norms: norms multiply by 1 + weight, but for that within a DeltaNet.
        whole: `model_type` of models of which this is the text part (their `text_config`).
        dropped: starts of the names of tensors that such models have beside it.
        stem: what checkpoints have at the start of names in place of "model.".
    """

    model_type: str
    title: str
    covers: str
    exports: Exports
    qkv_bias: Callable[[Config], bool] = lambda config: False
    o_bias: Callable[[Config], bool] = lambda config: False
    mlp_bias: Callable[[Config], bool] = lambda config: False
    refuse: Callable[[Config], str | None] = lambda config: refuse_common(config)
    defaults: Config = field(default_factory=dict)
    canonical: Callable[[Config], Config] = lambda config: config
    source: Callable[[Config, str], Source] | None = None
    qk_norm: bool = False
    norms_after_rope: bool = False
    uniform_only: str | None = None
    no_depth: str | None = None
    gemma: Callable[[Config], Gemma] | None = None
    unrotated: Callable[[Config], frozenset[int]] = lambda config: frozenset()
    spelled: Callable[[Config], Config] = lambda config: config
    plain: Callable[[Config], Config | None] | None = None
    traits: Callable[[Config], list[dict[str, Any]]] | None = None
    by_layer: bool = False
    gated: bool = False
    centred_norms: bool = False
    whole: str | None = None
    dropped: tuple[str, ...] = ()
    stem: str | None = None
    attention: Coupling = KV_GROUP
    linear: Coupling = KEY_HEAD
    ffn: Coupling = FFN_CHANNEL

    @property
    def name(self) -> str:
        """The name under which it is registered."""
        return self.model_type

    @property
    def ungated(self) -> bool:
        """Whether FFNs have no gate_proj."""
        return self.ffn == UNGATED_CHANNEL

    @property
    def qk_norms(self) -> tuple[str, ...]:
        """Names within a layer of the norms of q and of k, as transformers' class has them; empty without `qk_norm`."""
        if not self.qk_norm:
            return ()
        names = ("query_layernorm", "key_layernorm") if self.norms_after_rope else ("q_norm", "k_norm")
        return tuple(f"self_attn.{name}" for name in names)

    def projections(self, layer: Any) -> Iterator[tuple[Coupling, str]]:
        """Every projection of a decoder layer that pruning cuts, and its coupling; whole sublayers may be lacking."""
        for coupling in (self.attention, self.linear, self.ffn):
            module = getattr(layer, coupling.module, None)
            for name in (*coupling.rows, *coupling.columns) if module is not None else ():
                if hasattr(module, name.split(".")[1]):  # a layer that borrows keys and values makes none
                    yield coupling, name

    def linears(self, layer: Any) -> list[str]:
        """Names of all projections of a decoder layer: those of `projections`, and those that no pruning cuts."""
        staying = [name for part, names in _STAYING.items() if getattr(layer, part, None) is not None for name in names]
        per_layer = PER_LAYER if hasattr(layer, PER_LAYER[0]) else ()
        return [*staying, *(name for _, name in self.projections(layer)), *per_layer]


_SAME = {"swish": "silu", "gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh"}  # other names

# Llama's exports, for all families whose canonical form is Llama.
LLAMA_EXPORTS = Exports(gguf_uniform="llama", gguf_layers="deci", onnx="llama")

_LLAMA_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "dtype", "torch_dtype",
)  # fmt: skip


def as_llama(config: Config) -> Config:
    """The Llama config with the same widths, rope, norms and vocabulary."""
    kept = {name: config[name] for name in _LLAMA_FIELDS if config.get(name) is not None}
    rope = {name: value for name, value in rope_of(config).items() if name != "partial_rotary_factor"}
    return kept | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_parameters": rope}


def within_window(config: Config, window: int | None) -> Config:
    """The config with its context limited to the sliding window, within which attention is full: no export has windows.

    A token sees itself and the `window` - 1 tokens before it. So a text of up to `window` tokens loses nothing.

    >>> within_window({"max_position_embeddings": 32768, "sliding_window": 4096}, 4096)
    {'max_position_embeddings': 4096}
    """
    dropped = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
    rest = {name: value for name, value in config.items() if name not in dropped}
    if not window:
        return rest
    return rest | {"max_position_embeddings": min(int(config.get("max_position_embeddings", window)), window)}


def refuse_by_layer(config: Config) -> str | None:
    """Why a config.json with rotary parameters for each type of layer is refused, or None if it has none."""
    stored = config.get("rope_scaling") or config.get("rope_parameters") or {}
    nested = any(isinstance(value, dict) for value in stored.values())
    return "rope parameters for each type of layer are not supported" if nested else None


def refuse_common(
    config: Config, activation: str = "silu", partial: bool = False, by_layer: bool = False
) -> str | None:
    """Why no export of any family has what this config asks for, or None.

    Args:
        activation: the one that the family's exports have.
        partial: rotary embeddings may leave dimensions out.
        by_layer: each type of layer may have its own rotary parameters.

    >>> refuse_common({"hidden_size": 64, "num_attention_heads": 4, "hidden_act": "relu"})
    "hidden_act 'relu' is not supported (supported: silu)"
    """
    if not by_layer and (reason := refuse_by_layer(config)):
        return reason
    reason = refuse_rope(rope_of(config), head_dim_of(config), partial)
    if reason:
        return reason
    used = config.get("hidden_act") or config.get("hidden_activation") or activation
    if _SAME.get(used, used) != activation:
        return f"hidden_act '{used}' is not supported (supported: {activation})"
    types = set(config.get("layer_types") or ())
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    odd = types - {"full_attention"} - ({"sliding_attention"} if window else set())
    if odd:
        return f"layer_types has '{min(odd)}'" + ("" if window else ", and there is no sliding_window")
    return None
