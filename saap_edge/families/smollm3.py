"""SmolLM3: Llama without rotary positions in every fourth layer."""

from saap_edge.families.base import Config, Exports, Family, Refusal, within_window


def unrotated(config: Config) -> frozenset[int]:
    """The layers without rotary positions: those of 0 in `no_rope_layers`, else every `no_rope_layer_interval`-th.

    >>> sorted(unrotated({"num_hidden_layers": 9, "no_rope_layer_interval": 4}))
    [3, 7]
    """
    layers = range(int(config["num_hidden_layers"]))
    said = config.get("no_rope_layers")
    if said is None:
        return frozenset(layers[config["no_rope_layer_interval"] - 1 :: config["no_rope_layer_interval"]])
    return frozenset(index for index in layers if not said[index])


def canonical(config: Config) -> Config:
    """The config with its context limited to the sliding window, which only layers without rotary positions have."""
    types = config.get("layer_types")
    windowed = "sliding_attention" in types if types else config["use_sliding_window"] and bool(unrotated(config))
    return within_window(config, config["sliding_window"]) if windowed else config


FAMILY = Family(
    model_type="smollm3",
    title="SmolLM3",
    covers="SmolLM3 3B",
    exports=Exports(
        gguf_uniform="smollm3",
        gguf_layers=Refusal(
            "no architecture of llama.cpp has per-layer widths, and rotary positions in some layers only"
        ),
        onnx="llama",
    ),
    qkv_bias=lambda config: bool(config.get("attention_bias")),
    o_bias=lambda config: bool(config.get("attention_bias")),
    mlp_bias=lambda config: bool(config.get("mlp_bias")),
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "rope_theta": 2e6,
        "use_sliding_window": False,
        "sliding_window": None,
        "no_rope_layer_interval": 4,
    },
    canonical=canonical,
    unrotated=unrotated,
)
