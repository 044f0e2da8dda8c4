"""Gemma 3, text only: Gemma 2 with norms of q and k instead of soft caps, and two rotary bases."""

from dataclasses import replace

from saap_edge.families import gemma2
from saap_edge.families.base import Config, Exports, Gemma, Refusal

DEFAULTS: Config = {
    "max_position_embeddings": 131072, "attn_logit_softcapping": None, "final_logit_softcapping": None,
    "rope_theta": 1e6,
}  # fmt: skip


def gemma(config: Config) -> Gemma:
    """As Gemma 2's, with a rope base for windowed layers (in older folders `rope_local_base_freq`).

    Scores have no cap: transformers' class ignores the field.
    """
    rope = (config.get("rope_parameters") or {}).get("sliding_attention", {})
    theta = rope.get("rope_theta") or config.get("rope_local_base_freq") or 10000.0
    parsed = gemma2.gemma(config, config.get("sliding_window_pattern", 6), float(theta))
    return replace(parsed, attention_cap=None)


FAMILY = replace(
    gemma2.FAMILY,
    model_type="gemma3_text",
    title="Gemma 3",
    covers="Gemma 3 270M and 1B (text)",
    exports=Exports(
        gguf_uniform="gemma3",
        gguf_layers=Refusal(gemma2.UNIFORM_ONLY),
        onnx="gemma",
    ),
    defaults=gemma2.DEFAULTS | DEFAULTS,
    qk_norm=True,
    gemma=gemma,
)
