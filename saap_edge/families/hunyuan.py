"""Hunyuan, dense: queries and keys are normalised head by head after they are rotated, not before as in Qwen3.

What its checkpoints call "dynamic" scaling with an `alpha` depends on no length: it is plain rope of a larger base.
"""

from saap_edge.families.base import Config, Exports, Family, Refusal
from saap_edge.families.rope import head_dim_of, rope_of


def canonical(config: Config) -> Config:
    """The config with `alpha` as part of the rotary base, as transformers' class computes it.

    >>> canonical({"head_dim": 4, "rope_scaling": {"type": "dynamic", "alpha": 3.0, "factor": 1.0}})["rope_parameters"]
    {'rope_type': 'default', 'rope_theta': 90000.0}
    """
    rope, head_dim = rope_of(config), head_dim_of(config)
    if rope["rope_type"] != "dynamic" or not rope.get("alpha"):
        return config
    theta = rope["rope_theta"] * rope["alpha"] ** (head_dim / (head_dim - 2))
    plain = {"rope_type": "default", "rope_theta": theta}
    return {**config, "rope_scaling": None, "rope_theta": theta, "rope_parameters": plain}


FAMILY = Family(
    model_type="hunyuan_v1_dense",
    title="Hunyuan",
    covers="Hunyuan 0.5B, 1.8B, 4B, 7B (dense)",
    exports=Exports(
        gguf_uniform="hunyuan-dense",
        gguf_layers=Refusal("no architecture of llama.cpp has widths per layer and norms of q and k after rope"),
        onnx="qk-norm",
    ),
    qkv_bias=lambda config: bool(config.get("attention_bias")),
    o_bias=lambda config: bool(config.get("attention_bias")),
    defaults={"rms_norm_eps": 1e-5},
    canonical=canonical,
    qk_norm=True,
    norms_after_rope=True,
)
