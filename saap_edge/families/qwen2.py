"""Qwen2 and Qwen2.5: biases on q, k and v, none on o."""

from saap_edge.families.base import Family, refuse_common

FAMILY = Family(
    model_type="qwen2",
    title="Qwen2",
    qkv_bias=lambda config: True,
    o_bias=lambda config: False,
    mlp_bias=lambda config: False,
    # llama.cpp's own `qwen2` demands n_head * head_dim == n_embd, which pruning breaks.
    uniform_arch=None,
    refuse=lambda config: (
        "sliding-window attention is not supported" if config.get("use_sliding_window") else refuse_common(config)
    ),
)
