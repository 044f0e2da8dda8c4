"""The architectures of llama.cpp that are read: the family of each, and the place of its tensors in that family."""

from __future__ import annotations

import re
from dataclasses import dataclass

from saap_edge.errors import SaapError

__all__ = ["ARCHITECTURES", "UNROTATED_PERIOD", "Architecture", "Place", "architecture_of", "place_of"]

# Every so many layers has no rotary positions (fixed in llama.cpp's src/models).
UNROTATED_PERIOD = {"smollm3": 4, "nemotron_h": 1}


@dataclass(frozen=True)
class Architecture:
    """What distinguishes an architecture.

    Attributes:
        model_type: that of transformers.
        neighbours: rope rotates pairs of neighbouring rows of q and k, which the converter has reordered so (llama.cpp,
            llama_model_rope_type: NORM). transformers pairs a row of one half with the same row of the other.
        by_layer: heads and widths may differ from layer to layer.
        fused: in transformers q, k and v are one matrix, and gate and up another.
        late_norms: q and k are normalised after rope, and transformers' class has other names for these norms.
        gemma: norms before and after sublayers, stored as 1 + weight.
        convolved: layers without KV heads have a short convolution, and transformers' class has names of its own.
    """

    model_type: str
    neighbours: bool = False
    by_layer: bool = False
    fused: bool = False
    late_norms: bool = False
    gemma: bool = False
    convolved: bool = False


ARCHITECTURES = {
    "llama": Architecture("llama", neighbours=True),
    "deci": Architecture("llama", neighbours=True, by_layer=True),
    "granite": Architecture("granite", neighbours=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "openelm": Architecture("qwen3", by_layer=True),
    "phi3": Architecture("phi3", fused=True),
    "smollm3": Architecture("smollm3", neighbours=True),
    "ernie4_5": Architecture("ernie4_5"),  # rope turns neighbouring rows in both, as they are stored
    "hunyuan-dense": Architecture("hunyuan_v1_dense", late_norms=True),
    "lfm2": Architecture("lfm2", convolved=True),
    "gemma2": Architecture("gemma2", gemma=True),
    "gemma3": Architecture("gemma3_text", gemma=True),
}


def architecture_of(name: str, where: str) -> Architecture:
    """The architecture of that name, in the file `where`. Raises SaapError, which lists all, when there is none."""
    if name not in ARCHITECTURES:
        raise SaapError(f"'{where}': architecture '{name}' is not supported (supported: {', '.join(ARCHITECTURES)})")
    return ARCHITECTURES[name]


@dataclass(frozen=True)
class Place:
    """The place of a tensor in transformers.

    Attributes:
        module: its name, within the layer if it is in one.
        leaf: "weight" or "bias".
        layer: number of the layer, or None outside the layers.
        part: of a module with several matrices in one: "q", "k", "v", "gate" or "up".
    """

    module: str
    leaf: str
    layer: int | None = None
    part: str | None = None

    @property
    def name(self) -> str:
        """The full name of transformers' tensor."""
        prefix = "" if self.layer is None else f"model.layers.{self.layer}."
        return f"{prefix}{self.module}.{self.leaf}"


_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LFM2_LAST = {"token_embd_norm": "model.embedding_norm"}
_ROPE = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")  # go into config.json
_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_GEMMA = {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_LATE_NORMS = {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}
_LFM2 = {
    "attn_norm": "operator_norm", "ffn_norm": "ffn_norm", "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm", "attn_output": "self_attn.out_proj", "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3", "ffn_down": "feed_forward.w2", "shortconv.conv": "conv.conv",
    "shortconv.in_proj": "conv.in_proj", "shortconv.out_proj": "conv.out_proj",
}  # fmt: skip
_FUSED = {
    "attn_q": ("self_attn.qkv_proj", "q"), "attn_k": ("self_attn.qkv_proj", "k"), "attn_v": ("self_attn.qkv_proj", "v"),
    "ffn_gate": ("mlp.gate_up_proj", "gate"), "ffn_up": ("mlp.gate_up_proj", "up"),
}  # fmt: skip
_IN_LAYER = re.compile(r"blk\.(\d+)\.([\w.]+)\.(weight|bias)")
_OUTSIDE = re.compile(r"(\w+)\.(weight|bias)")


def place_of(name: str, architecture: Architecture) -> Place | None:
    """The place of a tensor by its name in the file; None for tables of rope. Raises KeyError for an unknown name.

    >>> place_of("blk.3.ffn_down.weight", ARCHITECTURES["llama"]).name
    'model.layers.3.mlp.down_proj.weight'
    >>> place_of("blk.0.attn_k.weight", ARCHITECTURES["phi3"])
    Place(module='self_attn.qkv_proj', leaf='weight', layer=0, part='k')
    """
    if name in _ROPE:
        return None
    inside = _IN_LAYER.fullmatch(name)
    if not inside:
        outside = _OUTSIDE.fullmatch(name)
        if not outside:
            raise KeyError(name)
        return Place((_WHOLE | (_LFM2_LAST if architecture.convolved else {}))[outside[1]], outside[2])
    layer, stem, leaf = int(inside[1]), inside[2], inside[3]
    if architecture.fused and stem in _FUSED:
        module, part = _FUSED[stem]
        return Place(module, leaf, layer, part)
    own = (_GEMMA if architecture.gemma else {}) | (_LATE_NORMS if architecture.late_norms else {})
    own |= _LFM2 if architecture.convolved else {}
    return Place((_LAYER | own)[stem], leaf, layer)
