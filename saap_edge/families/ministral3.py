"""Ministral 3: Mistral whose queries grow with their position, beyond the context of pretraining. Handled as Llama.

Queries are multiplied by 1 + beta log(1 + floor(position / context of pretraining)) (transformers'
`get_llama_4_attn_scale`), which is 1 as far as that context goes. So the context is limited to it. The text part of a
model that also sees images is read alone.
"""

from saap_edge.families.base import LLAMA_EXPORTS, Config, Family, as_llama, refuse_common, within_window
from saap_edge.families.rope import rope_of

_ROPE = {
    "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 16384,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
_OF_QUERIES = ("llama_4_scaling_beta", "max_position_embeddings")  # among the parameters of rope


def canonical(config: Config) -> Config:
    """The Llama config with the context of pretraining.

    >>> rope = {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 64, "llama_4_scaling_beta": 0.1}
    >>> found = canonical({"max_position_embeddings": 1024, "rope_parameters": rope})
    >>> found["max_position_embeddings"], "llama_4_scaling_beta" in found["rope_parameters"]
    (64, False)
    """
    llama = as_llama(config)
    rope = llama["rope_parameters"]
    llama["rope_parameters"] = {name: value for name, value in rope.items() if name not in _OF_QUERIES}
    return within_window(within_window(llama, rope["original_max_position_embeddings"]), config.get("sliding_window"))


def refuse(config: Config) -> str | None:
    """Why a model cannot be handled, or None."""
    rope = rope_of(config)
    lacking = [name for name in ("original_max_position_embeddings", "llama_4_scaling_beta") if rope.get(name) is None]
    if lacking:
        return f"rope_parameters lacks {' and '.join(lacking)}, by which transformers' class scales queries"
    return refuse_common(config)


FAMILY = Family(
    model_type="ministral3",
    title="Ministral 3",
    covers="Ministral 3 3B, 8B and 14B (text)",
    exports=LLAMA_EXPORTS,
    refuse=refuse,
    defaults={
        "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5, "max_position_embeddings": 262144,
        "sliding_window": None, "rope_parameters": _ROPE,
    },
    canonical=canonical,
    whole="mistral3",
    dropped=(
        "model.vision_tower.", "model.multi_modal_projector.", "vision_tower.", "multi_modal_projector.",
    ),
)  # fmt: skip
