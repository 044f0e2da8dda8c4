"""Llama 1 to 3, SmolLM2, TinyLlama: no biases by default; grouped-query or plain multi-head attention."""

from saap_edge.families.base import Family, refuse_common

FAMILY = Family(
    model_type="llama",
    title="Llama",
    qkv_bias=lambda config: bool(config.get("attention_bias", False)),
    o_bias=lambda config: bool(config.get("attention_bias", False)),
    mlp_bias=lambda config: bool(config.get("mlp_bias", False)),
    uniform_arch="llama",
    refuse=lambda config: (
        "mlp_bias is not supported: llama.cpp has no bias on gate and up"
        if config.get("mlp_bias")
        else refuse_common(config)
    ),
)
