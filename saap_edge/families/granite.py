"""Granite 3: Llama with four scalar factors. They are folded into the weights, and the model is handled as Llama.

Granite computes   x = embedding_multiplier * E[token],  x += residual_multiplier * sublayer(norm(x)),
attention scores = attention_multiplier * q k,  logits = head(norm(x)) / logits_scaling.
"""

import math

from saap_edge.families.base import LLAMA_EXPORTS, Config, Family, Source, as_llama


def source(config: Config, name: str) -> Source:
    """Where a tensor comes from: its own name, times the factor that makes Llama's arithmetic give Granite's answers.

    >>> source({"hidden_size": 64, "num_attention_heads": 4, "attention_multiplier": 0.5, "embedding_multiplier": 12.0,
    ...     "logits_scaling": 8.0, "residual_multiplier": 0.22, "tie_word_embeddings": True},
    ...     "model.layers.0.self_attn.q_proj.weight").factor
    2.0
    """
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    embedding, logits = config["embedding_multiplier"], config["logits_scaling"]
    residual, attention = config["residual_multiplier"], config["attention_multiplier"]
    # A tied head has the embedding's factor and can have none of its own: the norm before it corrects for both.
    tied = bool(config["tie_word_embeddings"])
    factors = {
        "model.embed_tokens.": embedding,
        "model.norm.": 1 / (embedding * logits) if tied else 1.0,
        "lm_head.": embedding if tied else 1 / logits,
        ".q_proj.": attention * math.sqrt(head_dim),  # Llama divides scores by sqrt(head_dim)
        ".o_proj.": residual,
        ".down_proj.": residual,
    }
    return Source(name, factor=next((factor for part, factor in factors.items() if part in name), 1.0))


FAMILY = Family(
    model_type="granite",
    title="Granite",
    covers="Granite 3 dense",
    exports=LLAMA_EXPORTS,
    qkv_bias=lambda config: bool(config.get("attention_bias")),
    o_bias=lambda config: bool(config.get("attention_bias")),
    mlp_bias=lambda config: bool(config.get("mlp_bias")),
    defaults={
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "tie_word_embeddings": False,
    },
    canonical=lambda config: (
        as_llama(config) | {name: bool(config.get(name)) for name in ("attention_bias", "mlp_bias")}
    ),
    source=source,
)
