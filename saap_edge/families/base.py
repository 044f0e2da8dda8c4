"""What a model family declares. Adding a family is one file that builds a `Family`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from saap_edge.families.rope import head_dim_of, refuse_rope, rope_of

__all__ = [
    "FFN_CHANNEL", "KV_GROUP", "LLAMA_EXPORTS", "Config", "Coupling", "Exports", "Family", "Gemma", "Refusal", "Source",
    "as_llama", "refuse_by_layer", "refuse_common", "within_window",
]  # fmt: skip

Config = dict[str, Any]


@dataclass(frozen=True)
class Coupling:
    """A coupled structure: the weight slices that go together (METHOD: discovery).

    `rows` are modules that lose output rows (and bias entries), `columns` modules that lose input columns.
    Module names are relative to a decoder layer.
    """

    kind: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]

    @property
    def module(self) -> str:
        """The sublayer that holds all of it."""
        return self.columns[0].split(".")[0]


# One KV group: a kv head with its n_rep query heads. The planner counts kv heads; surgery expands to rows.
KV_GROUP = Coupling("kv_group", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",))
FFN_CHANNEL = Coupling("ffn", ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))


@dataclass(frozen=True)
class Source:
    """Where a tensor of the canonical form comes from: a stored tensor, rows [start, stop) of it, times a factor.

    `order` and `factors` are for rows of one head, the same in every head: which stored row comes there, times what.
    """

    name: str
    rows: tuple[int, int] | None = None
    factor: float = 1.0
    order: tuple[int, ...] | None = None
    factors: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Gemma:
    """What Gemma's arithmetic has beyond Llama's, as far as one model may differ from another.

    Attributes:
        attention_scalar: scores are divided by its square root.
        attention_cap, final_cap: soft caps on scores and on logits, None where there is none.
        window: tokens that a windowed layer sees.
        windowed: which layers have the window.
        window_theta: rope base of windowed layers, None where it is that of all.
    """

    attention_scalar: float
    attention_cap: float | None
    final_cap: float | None
    window: int | None
    windowed: tuple[bool, ...]
    window_theta: float | None


class Refusal(str):
    """Why a runtime cannot take a model, in place of the architecture that would carry it."""


@dataclass(frozen=True)
class Exports:
    """What carries a family in each runtime: llama.cpp's architecture, the ONNX graph's kind, or a Refusal.

    `gguf_layers` is for widths that differ from layer to layer, `gguf_layers_untied` for those with an output matrix of
    their own, where that makes a difference.
    """

    gguf_uniform: str | Refusal
    gguf_layers: str | Refusal
    onnx: str | Refusal
    gguf_layers_untied: str | Refusal | None = None


@dataclass(frozen=True)
class Family:
    """A decoder family, declared, never traced.

    Attributes:
        model_type: `model_type` in config.json.
        title: the name people use.
        covers: models it is known for.
        exports: what each runtime takes.
        qkv_bias, o_bias: config -> does that projection carry a bias.
        mlp_bias: config -> do gate, up and down carry one.
        refuse: config -> the reason why this model cannot be handled, or None.
        defaults: what transformers assumes where config.json says nothing, as far as it is read here.
        canonical: config -> the config the model is handled as; tensors and widths are then those of that config.
        source: (config, canonical tensor name) -> where it comes from, for families stored in another layout.
        qk_norm: queries and keys are normed head by head.
        uniform_only: the reason why all layers must keep the same widths, or None.
        gemma: config -> what it has of Gemma, None for a family that has nothing of it.
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
    uniform_only: str | None = None
    gemma: Callable[[Config], Gemma] | None = None
    attention: Coupling = KV_GROUP
    ffn: Coupling = FFN_CHANNEL

    @property
    def name(self) -> str:
        """What it is registered by."""
        return self.model_type

    def projections(self, layer: Any) -> Iterator[tuple[Coupling, str]]:
        """Every projection of a decoder layer and its coupling; a pruned layer may lack a whole sublayer."""
        for coupling in (self.attention, self.ffn):
            if getattr(layer, coupling.module, None) is not None:
                for name in (*coupling.rows, *coupling.columns):
                    yield coupling, name


_SAME = {"swish": "silu", "gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh"}  # other names

# What Llama's exports carry, for all families that are Llama once packaging and scalar factors are seen to.
LLAMA_EXPORTS = Exports(gguf_uniform="llama", gguf_layers="deci", onnx="llama")

_LLAMA_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "dtype", "torch_dtype",
)  # fmt: skip


def as_llama(config: Config) -> Config:
    """The Llama config that says the same of widths, rope, norms and vocabulary."""
    kept = {name: config[name] for name in _LLAMA_FIELDS if config.get(name) is not None}
    rope = {name: value for name, value in rope_of(config).items() if name != "partial_rotary_factor"}
    return kept | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_parameters": rope}


def within_window(config: Config, window: int | None) -> Config:
    """The same model for contexts within its sliding window, where full attention is the same: no export has windows.

    A token sees itself and the `window` - 1 before it, so that up to `window` tokens nothing is cut off.
    """
    dropped = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
    rest = {name: value for name, value in config.items() if name not in dropped}
    if not window:
        return rest
    return rest | {"max_position_embeddings": min(int(config.get("max_position_embeddings", window)), window)}


def refuse_by_layer(config: Config) -> str | None:
    """Why rotary parameters of types of layers are refused, or None; asked of config.json as it stands."""
    stored = config.get("rope_scaling") or config.get("rope_parameters") or {}
    nested = any(isinstance(value, dict) for value in stored.values())
    return "rope parameters for each type of layer are not supported" if nested else None


def refuse_common(
    config: Config, activation: str = "silu", partial: bool = False, by_layer: bool = False
) -> str | None:
    """Features no family here carries to the runtimes yet. `partial`: rotary embeddings may leave dimensions out;
    `by_layer`: each type of layer may have its own."""
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
