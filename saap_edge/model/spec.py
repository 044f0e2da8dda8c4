"""The shape of a dense or pruned model, read from a checked config.json; needs no torch and no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from saap_edge.documents.plan import LayerShape, alike
from saap_edge.errors import SaapError
from saap_edge.families import Config, Family, Gemma, family_of
from saap_edge.families.rope import head_dim_of, rope_of
from saap_edge.model.mixers import DeltaNet, Mamba, head_width

__all__ = [
    "ATTENDS_NOWHERE", "PRUNED_TYPE", "DeltaNet", "LayerShape", "Mamba", "ModelSpec", "attends_nowhere",
    "canonical_config", "config_family", "for_transformers_4", "head_width", "linear_shapes", "mixed_as",
    "spec_from_config",
]  # fmt: skip

PRUNED_TYPE = "saap_edge"  # model_type of a folder with widths per layer


@dataclass(frozen=True)
class ModelSpec:
    """All that an exporter or an engine must know about a model besides its tensors.

    Attributes:
        layers: widths, one a layer.
        rope_scaling: parameters as families/rope.py's `rope_of` gives them; None for plain rope.
        tied: the output head is the embedding.
        context: longest text, in tokens.
        qkv_bias, o_bias, gate_up_bias, down_bias: which projections have a bias.
        gemma: what only Gemma's arithmetic has.
        unrotated: the layers whose queries and keys have no rotary positions.
        taps: tokens that a short convolution sees, in layers that have one; 0: no layer has.
        delta: what gated DeltaNets have, in layers that have one; None: no layer has.
        mamba: what Mamba-2 blocks have; None: there are none. Beside them, a layer has attention or an FFN, not both.
        rotary: dimensions of a head that rotate, from its first; None: all.
    """

    family: Family
    vocab_size: int
    hidden: int
    head_dim: int
    layers: tuple[LayerShape, ...]
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    tied: bool
    context: int
    qkv_bias: bool
    o_bias: bool
    gate_up_bias: bool
    down_bias: bool
    gemma: Gemma | None = None
    unrotated: frozenset[int] = frozenset()
    taps: int = 0
    delta: DeltaNet | None = None
    mamba: Mamba | None = None
    rotary: int | None = None

    @property
    def no_depth(self) -> str | None:
        """Why attention or FFN cannot be removed whole from a layer of this model; None where they can."""
        if self.family.uniform_only or self.family.no_depth:
            return self.family.uniform_only or self.family.no_depth
        if self.o_bias or self.down_bias:
            return "o_proj or down_proj has a bias, which would have to stay"
        return None

    @property
    def biased(self) -> frozenset[str]:
        """The projections that have a bias, by their names within a layer."""
        carried = (
            (self.qkv_bias, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            (self.o_bias, ("self_attn.o_proj", *(["linear_attn.out_proj"] if self.delta else []))),
            (self.gate_up_bias, ("mlp.gate_proj", "mlp.up_proj")),
            (self.down_bias, ("mlp.down_proj",)),
        )
        return frozenset(name for there, names in carried if there for name in names)

    @property
    def uniform(self) -> bool:
        """Whether all layers have the same widths: all with attention, where others have a convolution or DeltaNet."""
        return alike(self.layers)

    @property
    def attention(self) -> LayerShape:
        """The first layer with attention; the first layer if none has any."""
        return next((layer for layer in self.layers if layer.attends), self.layers[0])

    @property
    def widest_ffn(self) -> int:
        """Channels of the widest FFN."""
        return max(layer.ffn for layer in self.layers)

    @property
    def mambas(self) -> int:
        """Number of Mamba-2 blocks."""
        return sum(layer.mamba for layer in self.layers)

    @property
    def is_gemma4(self) -> bool:
        """Whether its arithmetic is Gemma 4's."""
        return self.gemma is not None and self.gemma.scaled

    @property
    def head_dims(self) -> list[int]:
        """The sizes of heads that its layers have."""
        return sorted({self.head_dim, *(layer.head_dim for layer in self.layers if layer.head_dim)})

    @property
    def convolutions(self) -> int:
        """Number of layers with a short convolution."""
        return sum(layer.conv for layer in self.layers)

    @property
    def stateful(self) -> str | None:
        """What some layers have in the place of attention that remembers a text in states of one size; or None."""
        named = (("short convolutions", self.taps), ("gated DeltaNets", self.delta), ("Mamba-2 blocks", self.mamba))
        return next((name for name, there in named if there), None)

    def heads_width(self, layer: LayerShape) -> int:
        """Inputs of a layer's output projection: of all query heads, or of a DeltaNet's value heads."""
        return layer.heads * head_width(layer, self.head_dim, self.delta)

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of KV cache for one token: keys and values of every layer, `element_bytes` a number."""
        return sum(2 * self.kv_width(layer) * element_bytes for layer in self.layers)

    def head_size(self, layer: LayerShape) -> int:
        """Numbers of a head of a layer's attention."""
        return layer.head_dim or self.head_dim

    def kv_width(self, layer: LayerShape) -> int:
        """Numbers of a token's keys that a layer keeps, and as many of values; 0 where it keeps none."""
        return layer.kv_heads * self.head_size(layer) * layer.caches

    def state_bytes(self, element_bytes: int = 4) -> int:
        """Bytes that convolutions, the last `taps` - 1 tokens, DeltaNets and Mamba-2 remember of any text."""
        numbers = self.convolutions * max(self.taps - 1, 0) * self.hidden
        numbers += self.mambas * self.mamba.state if self.mamba else 0
        if self.delta:
            numbers += sum(self.delta.state(layer) for layer in self.layers if layer.linear)
        return numbers * element_bytes

    def layer_parameters(self) -> int:
        """Weights of attention and FFN projections, which pruning can remove; no embeddings, norms or biases."""
        return sum(
            rows * columns
            for index in range(len(self.layers))
            for name, (rows, columns) in linear_shapes(self, index).items()
            if not any(part in name for part in (".conv.", ".mamba.", ".per_layer_"))
        )

    def mixer_weights(self) -> int:
        """Weights of the projections of convolutions and Mamba-2 blocks, which stay."""
        mamba = self.mambas * self.mamba.weights(self.hidden) if self.mamba else 0
        return self.convolutions * 4 * self.hidden**2 + mamba

    @property
    def per_layer(self) -> int:
        """Size of the embeddings that every layer has of its own (Gemma 4), or 0."""
        return self.gemma.per_layer if self.gemma else 0

    def per_layer_weights(self) -> int:
        """Weights of the layers' projections of such embeddings, which stay."""
        return len(self.layers) * 2 * self.hidden * self.per_layer

    def per_layer_projection(self) -> int:
        """Weights of the matrix from a token's embedding to those of all layers, which stays."""
        return len(self.layers) * self.per_layer * self.hidden

    def per_layer_table(self) -> int:
        """Weights of the table of such embeddings, of which a token reads one row."""
        return len(self.layers) * self.per_layer * self.vocab_size


def mixed_as(layers: Sequence[LayerShape], dense: Sequence[LayerShape]) -> list[LayerShape]:
    """The widths `layers`, with what the dense model has in the place of attention.

    What a layer of the dense model lacks, it lacks here too: a convolution, which always stays, has no heads.

    >>> mixed_as([LayerShape(4, 2, 64)] * 2, [LayerShape(0, 0, 96, conv=True), LayerShape(8, 4, 96, linear=True)])
    [LayerShape(heads=0, kv_heads=0, ffn=64, conv=True), LayerShape(heads=4, kv_heads=2, ffn=64, linear=True)]
    """
    return [
        replace(
            before,
            heads=shape.heads if before.heads else 0,
            kv_heads=shape.kv_heads if before.heads else 0,
            ffn=shape.ffn if before.ffn else 0,
        )
        for shape, before in zip(layers, dense, strict=False)
    ]


ATTENDS_NOWHERE = "no layer with attention would be left, and transformers counts a text's tokens there: keep one"


def attends_nowhere(layers: Sequence[LayerShape]) -> bool:
    """Whether a model has convolutions, DeltaNets or Mamba-2 blocks, and attention nowhere."""
    hybrid = any(shape.conv or shape.linear or shape.mamba for shape in layers)
    return hybrid and not any(shape.attends for shape in layers)


def linear_shapes(spec: ModelSpec, index: int) -> dict[str, tuple[int, int]]:
    """Weight shapes [out, in] of the projections of layer `index`, by full tensor name."""
    layer, prefix = spec.layers[index], f"model.layers.{index}."
    shapes = _of_a_delta_net(spec, layer) if layer.linear else _of_attention(spec, layer)
    shapes |= dict.fromkeys(spec.family.ffn.rows, (layer.ffn, spec.hidden))
    shapes["mlp.down_proj"] = (spec.hidden, layer.ffn)
    if layer.mamba and spec.mamba:
        shapes |= {"mamba.in_proj": (spec.mamba.rows, spec.hidden), "mamba.out_proj": (spec.hidden, spec.mamba.inner)}
    if layer.conv:
        shapes |= {"conv.in_proj": (3 * spec.hidden, spec.hidden), "conv.out_proj": (spec.hidden, spec.hidden)}
    if spec.per_layer:
        sizes = (spec.per_layer, spec.hidden)
        shapes |= {"per_layer_input_gate": sizes, "per_layer_projection": sizes[::-1]}
    return {f"{prefix}{name}.weight": shape for name, shape in shapes.items()}


def _of_attention(spec: ModelSpec, layer: LayerShape) -> dict[str, tuple[int, int]]:
    width = spec.head_size(layer)
    q, kv = layer.heads * width, layer.kv_heads * width
    own = {} if layer.kv == "borrowed" else {f"self_attn.{name}_proj": (kv, spec.hidden) for name in "kv"}
    queries = {"self_attn.q_proj": (2 * q if spec.family.gated else q, spec.hidden)}
    return queries | own | {"self_attn.o_proj": (spec.hidden, q)}


def _of_a_delta_net(spec: ModelSpec, layer: LayerShape) -> dict[str, tuple[int, int]]:
    assert spec.delta is not None
    keys, values = layer.kv_heads * spec.delta.keys, layer.heads * spec.delta.values
    rows = {"q": keys, "k": keys, "v": values, "z": values, "b": layer.heads, "a": layer.heads}
    shapes = {f"linear_attn.in_proj_{letter}": (count, spec.hidden) for letter, count in rows.items()}
    return shapes | {"linear_attn.out_proj": (spec.hidden, values)}


# Fields of our config.json -> what a family declares.
_DECLARED = {
    "qk_norm": "qk_norm", "norms_after_rope": "norms_after_rope", "gated_attention": "gated",
    "centred_norms": "centred_norms",
}  # fmt: skip


def config_family(config: Config) -> tuple[Family, Config]:
    """The family of a parsed config.json, and the config with transformers' defaults for absent fields.

    Raises SaapError when the family is unknown, or the model uses an unsupported feature.
    """
    pruned = config.get("model_type") == PRUNED_TYPE
    family = family_of(str(config.get("base_model_type", "llama") if pruned else config.get("model_type")))
    if pruned and ((family.source and not family.plain) or family.uniform_only):
        raise SaapError(f"base_model_type '{family.model_type}': no model of widths per layer is of this family")
    for name, declared in _DECLARED.items() if pruned else ():
        if (said := bool(config.get(name))) != getattr(family, declared):
            raise SaapError(f"{name} is {said}, and not so in base_model_type '{family.model_type}'")
    if pruned and config.get("gated_mlp", True) == family.ungated:
        raise SaapError(f"gated_mlp is {not family.ungated} in base_model_type '{family.model_type}'")
    full = family.defaults | config
    reason = family.refuse(full)
    if reason:
        raise SaapError(f"this {family.title} model cannot be handled: {reason}")
    return family, full


def canonical_config(config: Config) -> Config:
    """The config of the canonical form (`Family.canonical`). Raises SaapError as `config_family`.

    Mistral is handled as Llama:

    >>> config = canonical_config({"model_type": "mistral", "hidden_size": 64, "num_attention_heads": 4})
    >>> config["model_type"], config["max_position_embeddings"]
    ('llama', 4096)
    """
    family, full = config_family(config)
    return config if config.get("model_type") == PRUNED_TYPE else family.canonical(full)


_BESIDE_LONGROPE = ("partial_rotary_factor", "original_max_position_embeddings")


def for_transformers_4(config: Config) -> Config:
    """The config with its rope in transformers 4's fields too, because it silently ignores `rope_parameters`.

    An existing `rope_scaling` stays: transformers 5 and `rope_of` prefer it to `rope_parameters`.

    >>> for_transformers_4({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}})
    ... # doctest: +NORMALIZE_WHITESPACE
    {'rope_parameters': {'rope_type': 'linear', 'rope_theta': 10000.0, 'factor': 2.0},
     'rope_theta': 10000.0, 'rope_scaling': {'rope_type': 'linear', 'factor': 2.0}}
    """
    rope: Config = config.get("rope_parameters") or {}
    full, windowed = rope.get("full_attention", rope), rope.get("sliding_attention", {})
    if config.get("rope_scaling") or full.get("rope_type") == "proportional":  # which transformers 4 does not know
        return config
    words: Config = {}
    if "rope_theta" in full:
        words["rope_theta"] = full["rope_theta"]
    if full.get("rope_type", "default") != "default":
        words["rope_scaling"] = {name: value for name, value in full.items() if name != "rope_theta"}
    elif full.get("partial_rotary_factor", 1.0) != 1.0:
        words["partial_rotary_factor"] = full["partial_rotary_factor"]
    if full.get("rope_type") == "longrope":
        # Phi-3 accepts only the factors there, and the type as `type`; other fields must be outside.
        words |= {name: words["rope_scaling"].pop(name) for name in _BESIDE_LONGROPE if name in full}
        words["rope_scaling"]["type"] = words["rope_scaling"].pop("rope_type")
    if "rope_theta" in windowed:
        words["rope_local_base_freq"] = windowed["rope_theta"]
    return config | words


def spec_from_config(config: Config) -> ModelSpec:
    """The spec of a parsed config.json. Raises SaapError as `config_family`.

    >>> spec = spec_from_config({"model_type": "llama", "vocab_size": 49152, "hidden_size": 576,
    ...     "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536, "num_hidden_layers": 30})
    >>> spec.layers[0], spec.head_dim, spec.layer_parameters(), spec.kv_bytes_per_token(2)
    (LayerShape(heads=9, kv_heads=3, ffn=1536), 64, 106168320, 23040)
    """
    family, _ = config_family(config)
    config = canonical_config(config)
    pruned = config["model_type"] == PRUNED_TYPE
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    if pruned:
        none = [0] * len(config["layer_widths"])
        kinds = (config.get(f"{kind}_layers") or none for kind in ("conv", "linear", "mamba"))
        traits = family.traits(config) if family.traits else [{} for _ in none]
        layers = tuple(
            LayerShape(*widths, *map(bool, kind), **others)
            for widths, others, *kind in zip(config["layer_widths"], traits, *kinds, strict=True)
        )
    else:
        kv_heads = int(config.get("num_key_value_heads") or heads)
        layers = (LayerShape(heads, kv_heads, int(config["intermediate_size"])),) * int(config["num_hidden_layers"])
    # A pruned folder says it itself, whatever its family assumes.
    said = {index for index, turned in enumerate(config.get("no_rope_layers") or ()) if not turned}
    rope, context = rope_of(config), int(config.get("max_position_embeddings", 2048))
    # Some scalings change with the length of the text, but not up to the context of pretraining, which is all that
    # exports have: there longrope uses its short factors, and dynamic scales nothing.
    scaled = rope["rope_type"] not in ("default", "dynamic", "proportional")
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
        unrotated=frozenset(said) if pruned else family.unrotated(config),
        taps=int(config.get("conv_taps") or 0) if pruned else 0,
        delta=_delta_net(config) if pruned and config.get("linear_layers") else None,
        mamba=_mamba(config) if pruned and config.get("mamba_layers") else None,
        rotary=int(head_dim_of(config) * rope["partial_rotary_factor"]) if family.gated else None,
    )


def _delta_net(config: Config) -> DeltaNet:
    names = ("linear_key_head_dim", "linear_value_head_dim", "linear_conv_kernel_dim")
    return DeltaNet(*(int(config[name]) for name in names))


def _mamba(config: Config) -> Mamba:
    names = ("mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups", "conv_kernel")
    heads, width, states, groups, taps = (int(config[name]) for name in names)
    return Mamba(heads, width, states, groups, taps, bool(config["use_conv_bias"]))
