"""Gemma 2: sublayers normalised before and after, soft caps on scores and logits, alternating sliding windows."""

from saap_edge.families.base import Config, Exports, Family, Gemma, Refusal, refuse_common
from saap_edge.families.rope import head_dim_of, refuse_rope, rope_of

GELU = "gelu_pytorch_tanh"
UNIFORM_ONLY = (
    "no architecture of llama.cpp takes widths per layer together with Gemma's norms of sublayer outputs, and the "
    "pruned model is saved as the plain Gemma class"
)
# What transformers assumes of all Gemma models.
DEFAULTS: Config = {
    "head_dim": 256, "num_key_value_heads": 4, "tie_word_embeddings": True, "hidden_activation": GELU,
    "query_pre_attn_scalar": 256, "sliding_window": 4096,
}  # fmt: skip


def refuse(config: Config) -> str | None:
    """Why this Gemma cannot be handled, or None (`Family.refuse`)."""
    if config.get("use_bidirectional_attention"):
        return "bidirectional attention is not supported: this is no decoder"
    # Gemma 3 has one set of parameters for each type of layer.
    stored = config.get("rope_scaling") or config.get("rope_parameters") or {}
    for rope in [value for value in stored.values() if isinstance(value, dict)] or [stored]:
        reason = refuse_rope(rope_of({**config, "rope_scaling": rope}), head_dim_of(config), False, ("default",))
        if reason:
            return reason
    # `hidden_act` is an old field that some checkpoints still have; `hidden_activation` counts.
    return refuse_common({**config, "hidden_act": config["hidden_activation"]}, GELU, by_layer=True)


def gemma(config: Config, period: int = 2, window_theta: float | None = None) -> Gemma:
    """What the config says of Gemma's arithmetic. Without `layer_types`, every `period`-th layer has no window."""
    types = config.get("layer_types")
    if types:
        windowed = [name == "sliding_attention" for name in types]
    else:
        windowed = [index % period > 0 for index in range(1, int(config["num_hidden_layers"]) + 1)]
    return Gemma(
        attention_scalar=float(config["query_pre_attn_scalar"]),
        attention_cap=config["attn_logit_softcapping"],
        final_cap=config["final_logit_softcapping"],
        window=config["sliding_window"],
        windowed=tuple(windowed),
        window_theta=window_theta,
    )


FAMILY = Family(
    model_type="gemma2",
    title="Gemma 2",
    covers="Gemma 2 2B, 9B, 27B",
    exports=Exports(
        gguf_uniform="gemma2",
        gguf_layers=Refusal(UNIFORM_ONLY),
        onnx="gemma",
    ),
    qkv_bias=lambda config: bool(config.get("attention_bias")),
    o_bias=lambda config: bool(config.get("attention_bias")),
    refuse=refuse,
    defaults=DEFAULTS
    | {"max_position_embeddings": 8192, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    uniform_only=UNIFORM_ONLY,
    centred_norms=True,
    gemma=gemma,
)
