"""What config.json may say that it should not: fields and values that a random checkpoint is damaged with."""

from __future__ import annotations

from typing import Any

__all__ = ["ELSE", "FLAGS", "NUMBERS", "ODD_IDS", "ROPES", "VALUES"]

NUMBERS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta", "partial_rotary_factor", "sliding_window",
    "max_window_layers", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
    "embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier", "rope_local_base_freq",
    "original_max_position_embeddings", "sliding_window_pattern", "bos_token_id", "eos_token_id", "pad_token_id",
    "initializer_range", "attention_dropout", "pretraining_tp",
)  # fmt: skip
VALUES = (
    0, -1, 1.5, "7", "", None, [1], {}, 10**30, 2**31, True, False, float("nan"), float("inf"), 1e-300, 3, 48, 1e300,
)  # fmt: skip
FLAGS = (
    "tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "qkv_bias", "o_bias", "down_bias",
    "qk_norm", "use_cache", "return_dict", "output_attentions", "output_hidden_states",
    "use_bidirectional_attention",
    "rope_interleaved", "is_decoder",
)  # fmt: skip
ROPES: tuple[Any, ...] = (
    {}, [], "linear", {"type": "linear"}, {"type": "linear", "factor": 0}, {"rope_type": "linear", "factor": "2"},
    {"rope_type": "linear", "factor": None}, {"rope_type": "linear", "factor": 0.5},
    {"rope_type": "linear", "factor": -2},
    {"rope_type": 5}, {"rope_type": None}, {"rope_type": "nope", "factor": 2.0}, {"factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0}, {"rope_type": "default", "rope_theta": 0},
    {"rope_type": "default", "rope_theta": "10000"}, {"rope_type": "default", "rope_theta": -5.0},
    {"rope_type": "default", "rope_theta": None}, {"rope_type": "default", "rope_theta": [1]},
    {"rope_type": "default", "rope_theta": float("nan")}, {"rope_type": "default", "partial_rotary_factor": 0.5},
    {"rope_type": "default", "partial_rotary_factor": 0}, {"rope_type": "default", "partial_rotary_factor": "1"},
    {"rope_type": "yarn", "factor": 0}, {"rope_type": "yarn", "factor": 4.0, "beta_fast": "x"},
    {"rope_type": "yarn", "factor": 4.0, "beta_fast": 0, "beta_slow": 0}, {"rope_type": "yarn"},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": -1},
    {"rope_type": "yarn", "factor": 4.0, "truncate": False},
    {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.9},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": "32"},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 32},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 32},
    {"rope_type": "longrope", "short_factor": 1.0, "long_factor": [1.0] * 4},
    {"rope_type": "longrope", "short_factor": ["a"] * 4, "long_factor": [1.0] * 4},
    {"rope_type": "longrope", "short_factor": [0.0] * 4, "long_factor": [0.0] * 4},
    {"full_attention": {"rope_type": "default", "rope_theta": 5e3}}, {"full_attention": 3, "sliding_attention": None},
    {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "linear", "factor": 2.0}},
)  # fmt: skip
ELSE: tuple[tuple[str, Any], ...] = (
    ("model_type", "mamba"), ("model_type", 3), ("model_type", None), ("model_type", ...), ("model_type", "Llama"),
    ("model_type", "gpt2"), ("model_type", "saap_edge"), ("base_model_type", "granite"), ("base_model_type", "gemma2"),
    ("base_model_type", "qwen3"), ("base_model_type", None), ("architectures", ["LlamaForSequenceClassification"]),
    ("architectures", "LlamaForCausalLM"), ("architectures", 3), ("hidden_act", "gelu"), ("hidden_act", None),
    ("hidden_act", "silu"), ("hidden_act", "swish"), ("hidden_activation", "relu"), ("hidden_activation", None),
    ("layer_types", ["full_attention"]), ("layer_types", ["full_attention"] * 3), ("layer_types", ["nope", "nope"]),
    ("layer_types", "full_attention"), ("layer_types", [1, 2]), ("layer_types", ["sliding_attention"] * 2),
    ("layer_types", []), ("layer_types", ["full_attention", "sliding_attention"]),
    ("layer_types", ["chunked_attention"] * 2),
    ("layer_widths", [[4, 2, 64]]), ("layer_widths", [[4, 2, 64], [4, 0, 64]]), ("layer_widths", None),
    ("layer_widths", [[4, 2], [4, 2]]), ("layer_widths", [[4, -2, 64]] * 2), ("layer_widths", [[0, 0, 0]] * 2),
    ("layer_widths", "x"), ("quantization_config", {"quant_method": "gptq", "bits": 4}), ("quantization_config", "fp8"),
    ("quantization_config", {}), ("dtype", "nope"), ("torch_dtype", "int8"), ("dtype", 3), ("torch_dtype", None),
    ("attn_implementation", "flash_attention_2"), ("_attn_implementation", "flash_attention_2"),
    ("transformers_weights", "other.safetensors"), ("transformers_weights", 5), ("text_config", {"hidden_size": 7}),
    ("auto_map", {"AutoModelForCausalLM": "mine.Model"}), ("pruned_heads", {"0": [1]}), ("num_labels", "two"),
    ("id2label", 3), ("problem_type", "nope"), ("is_encoder_decoder", True), ("chunk_size_feed_forward", 4),
    ("tie_encoder_decoder", True), ("name_or_path", 3), ("transformers_version", 4), ("rope_type", "linear"),
    ("sub_configs", {}), ("attribute_map", {}), ("per_layer_config", {}), ("base_model_tp_plan", 3), ("to_dict", 3),
    ("eos_token_id", [[0]]), ("eos_token_id", [0, "x"]), ("eos_token_id", []), ("eos_token_id", {"a": 1}),
)  # fmt: skip
ODD_IDS: tuple[Any, ...] = (-1, 320, 10**9, [0, 5000], [-3])
