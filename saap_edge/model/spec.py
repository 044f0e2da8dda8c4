"""The shape of a dense or pruned model, as a checked config.json says it: no torch, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from saap_edge.documents.plan import LayerShape
from saap_edge.errors import SaapError
from saap_edge.families import Config, Family, Gemma, family_of
from saap_edge.families.rope import head_dim_of, rope_of

__all__ = [
    "PRUNED_TYPE", "LayerShape", "ModelSpec", "canonical_config", "config_family", "for_transformers_4",
    "linear_shapes", "spec_from_config",
]  # fmt: skip

PRUNED_TYPE = "saap_edge"  # model_type of a folder with per-layer widths


@dataclass(frozen=True)
class ModelSpec:
    """All an exporter or an engine must know of a model beside its tensors."""

    family: Family
    vocab_size: int
    hidden: int
    head_dim: int
    layers: tuple[LayerShape, ...]
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None  # parameters as families/rope.py's `rope_of`, or None
    tied: bool
    context: int
    qkv_bias: bool
    o_bias: bool
    gate_up_bias: bool
    down_bias: bool
    gemma: Gemma | None = None

    @property
    def no_depth(self) -> str | None:
        """Why attention and FFN can only be narrowed in this model, never removed whole; None where they can."""
        if self.family.uniform_only:
            return self.family.uniform_only
        if self.o_bias or self.down_bias:
            return "o_proj or down_proj has a bias, which would have to stay"
        return None

    @property
    def biased(self) -> frozenset[str]:
        """The projections that carry a bias, named within a layer."""
        carried = (
            (self.qkv_bias, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            (self.o_bias, ("self_attn.o_proj",)),
            (self.gate_up_bias, ("mlp.gate_proj", "mlp.up_proj")),
            (self.down_bias, ("mlp.down_proj",)),
        )
        return frozenset(name for there, names in carried if there for name in names)

    @property
    def uniform(self) -> bool:
        """All layers have the same widths."""
        return len(set(self.layers)) == 1

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """KV cache bytes one token costs: keys and values of every layer."""
        return sum(2 * layer.kv_heads * self.head_dim * element_bytes for layer in self.layers)

    def layer_parameters(self) -> int:
        """Parameters in attention and FFN projections (what pruning can remove; no embeddings, norms, biases)."""
        return sum(
            rows * columns for index in range(len(self.layers)) for rows, columns in linear_shapes(self, index).values()
        )


def linear_shapes(spec: ModelSpec, index: int) -> dict[str, tuple[int, int]]:
    """Weight shapes [out, in] of the projections of layer `index`, by full tensor name."""
    layer, prefix = spec.layers[index], f"model.layers.{index}."
    q, kv = layer.heads * spec.head_dim, layer.kv_heads * spec.head_dim
    shapes = {
        "self_attn.q_proj": (q, spec.hidden),
        "self_attn.k_proj": (kv, spec.hidden),
        "self_attn.v_proj": (kv, spec.hidden),
        "self_attn.o_proj": (spec.hidden, q),
        "mlp.gate_proj": (layer.ffn, spec.hidden),
        "mlp.up_proj": (layer.ffn, spec.hidden),
        "mlp.down_proj": (spec.hidden, layer.ffn),
    }
    return {f"{prefix}{name}.weight": shape for name, shape in shapes.items()}


def config_family(config: Config) -> tuple[Family, Config]:
    """The family of a parsed config.json, and the config with what transformers assumes where it says nothing.

    Raises SaapError when the family is unknown, or the model uses an unsupported feature.
    """
    pruned = config.get("model_type") == PRUNED_TYPE
    family = family_of(str(config.get("base_model_type", "llama") if pruned else config.get("model_type")))
    if pruned and (family.source or family.uniform_only):
        raise SaapError(f"base_model_type '{family.model_type}': no model of widths per layer is of this family")
    if pruned and bool(config.get("qk_norm")) != family.qk_norm:
        raise SaapError(
            f"qk_norm is {bool(config.get('qk_norm'))}, and not so in base_model_type '{family.model_type}'"
        )
    full = family.defaults | config
    reason = family.refuse(full)
    if reason:
        raise SaapError(f"this {family.title} model cannot be handled: {reason}")
    return family, full


def canonical_config(config: Config) -> Config:
    """The config a model is handled as (Family.canonical). Raises SaapError as `config_family` does."""
    family, full = config_family(config)
    return config if config.get("model_type") == PRUNED_TYPE else family.canonical(full)


_BESIDE_LONGROPE = ("partial_rotary_factor", "original_max_position_embeddings")


def for_transformers_4(config: Config) -> Config:
    """The config with its rope in the words of transformers 4 too, which overlooks `rope_parameters` without a word.

    A `rope_scaling` that is there stays: it goes before `rope_parameters` in transformers 5, and in `rope_of`.
    """
    if config.get("rope_scaling"):
        return config
    rope: Config = config.get("rope_parameters") or {}
    full, windowed = rope.get("full_attention", rope), rope.get("sliding_attention", {})
    words: Config = {}
    if "rope_theta" in full:
        words["rope_theta"] = full["rope_theta"]
    if full.get("rope_type", "default") != "default":
        words["rope_scaling"] = {name: value for name, value in full.items() if name != "rope_theta"}
    if full.get("rope_type") == "longrope":
        # Phi-3 admits nothing but the factors there, and the type under this name; the rest lies beside it.
        words |= {name: words["rope_scaling"].pop(name) for name in _BESIDE_LONGROPE if name in full}
        words["rope_scaling"]["type"] = words["rope_scaling"].pop("rope_type")
    if "rope_theta" in windowed:
        words["rope_local_base_freq"] = windowed["rope_theta"]
    return config | words


def spec_from_config(config: Config) -> ModelSpec:
    """The spec of a parsed config.json. Raises SaapError as `config_family` does."""
    pruned, (family, _) = config.get("model_type") == PRUNED_TYPE, config_family(config)
    config = canonical_config(config)
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    if pruned:
        layers = tuple(LayerShape(*widths) for widths in config["layer_widths"])
    else:
        kv_heads = int(config.get("num_key_value_heads") or heads)
        layers = (LayerShape(heads, kv_heads, int(config["intermediate_size"])),) * int(config["num_hidden_layers"])
    rope, context = rope_of(config), int(config.get("max_position_embeddings", 2048))
    # A scaling that changes with the length of the text is fixed up to the context of pretraining, and no export has
    # more: longrope keeps its short factors, dynamic scales nothing.
    scaled = rope["rope_type"] not in ("default", "dynamic")
    if rope["rope_type"] == "longrope":
        context = min(context, rope["original_max_position_embeddings"])
    return ModelSpec(
        family=family,
        vocab_size=int(config["vocab_size"]),
        hidden=hidden,
        head_dim=head_dim_of(config),
        layers=layers,
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=rope["rope_theta"],
        rope_scaling=rope if scaled else None,
        tied=bool(config.get("tie_word_embeddings", False)),
        context=context,
        qkv_bias=bool(config["qkv_bias"]) if pruned else family.qkv_bias(config),
        o_bias=bool(config["o_bias"]) if pruned else family.o_bias(config),
        gate_up_bias=bool(config.get("gate_up_bias")) if pruned else family.mlp_bias(config),
        down_bias=bool(config["down_bias"]) if pruned else family.mlp_bias(config),
        gemma=family.gemma(config) if family.gemma else None,
    )
