"""Llama 1 to 3, SmolLM2, TinyLlama: no biases by default; grouped-query or plain multi-head attention."""

from saap_edge.families.base import LLAMA_EXPORTS, Family

FAMILY = Family(
    model_type="llama",
    title="Llama",
    covers="Llama 1 to 3, SmolLM2, TinyLlama",
    exports=LLAMA_EXPORTS,
    qkv_bias=lambda config: bool(config.get("attention_bias")),
    o_bias=lambda config: bool(config.get("attention_bias")),
    mlp_bias=lambda config: bool(config.get("mlp_bias")),
)
