"""Qwen3: queries and keys normalised head by head; no biases by default."""

from saap_edge.families import qwen2
from saap_edge.families.base import Exports, Family, Refusal

FAMILY = Family(
    model_type="qwen3",
    title="Qwen3",
    covers="Qwen3 0.6B to 32B (not the mixtures of experts)",
    exports=Exports(
        gguf_uniform="qwen3",
        gguf_layers="openelm",
        gguf_layers_untied=Refusal(
            "no architecture of llama.cpp has per-layer widths, norms of q and k, and an output matrix of its own"
        ),
        onnx="qk-norm",
    ),
    qkv_bias=lambda config: bool(config.get("attention_bias")),
    o_bias=lambda config: bool(config.get("attention_bias")),
    defaults=qwen2.FAMILY.defaults | {"head_dim": 128, "num_key_value_heads": 32},
    canonical=qwen2.canonical,
    qk_norm=True,
)
