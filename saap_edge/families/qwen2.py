"""Qwen2 and Qwen2.5: biases on q, k and v, none on o."""

from saap_edge.families.base import Config, Exports, Family, within_window


def canonical(config: Config) -> Config:
    """The config with its context limited to the sliding window, if any layer uses the window."""
    types = config.get("layer_types") or []
    windowed = "sliding_attention" in types if types else config["max_window_layers"] < config["num_hidden_layers"]
    used = config["use_sliding_window"] and windowed
    return within_window(config, config["sliding_window"]) if used else config


FAMILY = Family(
    model_type="qwen2",
    title="Qwen2",
    covers="Qwen2, Qwen2.5",
    # llama.cpp's own `qwen2` demands n_head * head_dim == n_embd, which pruning breaks.
    exports=Exports(gguf_uniform="deci", gguf_layers="deci", onnx="llama"),
    qkv_bias=lambda config: True,
    defaults={
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "max_position_embeddings": 32768,
    },
    canonical=canonical,
)
