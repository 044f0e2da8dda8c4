"""ERNIE 4.5, dense: Llama whose rope turns neighbouring rows of a head. Handled as Llama, whose rope turns halves."""

from saap_edge.families.base import LLAMA_EXPORTS, Config, Family, Source, as_llama
from saap_edge.families.rope import head_dim_of


def source(config: Config, name: str) -> Source:
    """Where a tensor comes from (`Family.source`): rows of q and k in Llama's order, all else as it is stored.

    >>> source({"head_dim": 8}, "model.layers.0.self_attn.k_proj.weight").order
    (0, 2, 4, 6, 1, 3, 5, 7)
    """
    if ".q_proj." not in name and ".k_proj." not in name:
        return Source(name)
    head_dim = head_dim_of(config)
    return Source(name, order=(*range(0, head_dim, 2), *range(1, head_dim, 2)))


FAMILY = Family(
    model_type="ernie4_5",
    title="ERNIE 4.5",
    covers="ERNIE 4.5 0.3B",
    exports=LLAMA_EXPORTS,
    qkv_bias=lambda config: bool(config.get("attention_bias")),
    o_bias=lambda config: bool(config.get("attention_bias")),
    mlp_bias=lambda config: bool(config.get("mlp_bias")),
    defaults={
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    canonical=lambda config: (
        as_llama(config) | dict.fromkeys(("attention_bias", "mlp_bias"), bool(config.get("use_bias")))
    ),
    source=source,
)
