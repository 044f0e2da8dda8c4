"""Phi-3-mini-4k, Phi-3-medium-4k, Phi-4: Llama with q, k, v in one matrix and gate and up in another. Handled as Llama.

The variants with long contexts (longrope) and Phi-4-mini (partial rotary embeddings) are refused.
"""

from saap_edge.families.base import LLAMA_EXPORTS, Config, Family, Source, as_llama, within_window


def source(config: Config, name: str) -> Source:
    """Rows of `qkv_proj` are all queries, then keys, then values; of `gate_up_proj` the gate, then up."""
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    heads = config["num_attention_heads"]
    q, kv, ffn = heads * head_dim, (config.get("num_key_value_heads") or heads) * head_dim, config["intermediate_size"]
    parts = {
        "q_proj": ("qkv_proj", 0, q), "k_proj": ("qkv_proj", q, kv), "v_proj": ("qkv_proj", q + kv, kv),
        "gate_proj": ("gate_up_proj", 0, ffn), "up_proj": ("gate_up_proj", ffn, ffn),
    }  # fmt: skip
    for part, (fused, start, rows) in parts.items():
        if f".{part}." in name:
            return Source(name.replace(part, fused), (start, start + rows))
    return Source(name)


FAMILY = Family(
    model_type="phi3",
    title="Phi-3",
    covers="Phi-3-mini-4k, Phi-3-medium-4k, Phi-4",
    exports=LLAMA_EXPORTS,
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
    canonical=lambda config: as_llama(within_window(config, config.get("sliding_window"))),
    source=source,
)
