"""Granite 4 without Mamba: Granite 3 under another name, with gate and up in one matrix. Handled as Llama.

transformers' class (granitemoehybrid) is that of the hybrids too. Each of its layers has attention or Mamba, then a
shared MLP, to which experts may be added. Here all layers have attention, and there are no experts.
"""

from dataclasses import replace

from saap_edge.families import granite
from saap_edge.families.base import Config, Source, refuse_common

DENSE = "take a Granite 4 without them (350M, 1B, Micro; their names have no 'h')"
ATTENTION = {"attention", "full_attention"}  # the older and the newer word


def refuse(config: Config) -> str | None:
    """Why this Granite 4 cannot be handled, or None (`Family.refuse`)."""
    other = set(config["layer_types"] or ["mamba"]) - ATTENTION  # without the field all layers are Mamba's
    if other:
        return f"layers of type '{min(other)}' are not supported: {DENSE}"
    if config["num_local_experts"] != 0:
        return f"experts are not supported (num_local_experts is {config['num_local_experts']}): {DENSE}"
    if config["position_embedding_type"] != "rope":
        said = config["position_embedding_type"]
        return f"position_embedding_type is {said!r}: attention without rotary positions is not supported: {DENSE}"
    return refuse_common({**config, "layer_types": None})


def canonical(config: Config) -> Config:
    """Llama's config. The MLP has a width of its own, and never a bias."""
    mlp = {"intermediate_size": config["shared_intermediate_size"], "mlp_bias": False}
    return granite.FAMILY.canonical(config | mlp)


def source(config: Config, name: str) -> Source:
    """Where a tensor comes from, with Granite's factors (`Family.source`). `input_linear` has gate's rows, then up's.

    >>> source({**FAMILY.defaults, "hidden_size": 64, "num_attention_heads": 4, "shared_intermediate_size": 128},
    ...     "model.layers.0.mlp.up_proj.weight")
    ... # doctest: +ELLIPSIS
    Source(name='model.layers.0.shared_mlp.input_linear.weight', rows=(128, 256), ...)
    """
    found, ffn = granite.source(config, name), config["shared_intermediate_size"]
    parts = {
        "gate_proj": ("input_linear", (0, ffn)),
        "up_proj": ("input_linear", (ffn, 2 * ffn)),
        "down_proj": ("output_linear", None),
    }
    for part, (stored, rows) in parts.items():
        if f".mlp.{part}." in name:
            return replace(found, name=name.replace(f".mlp.{part}.", f".shared_mlp.{stored}."), rows=rows)
    return found


FAMILY = replace(
    granite.FAMILY,
    model_type="granitemoehybrid",
    title="Granite 4",
    covers="Granite 4 350M, 1B and Micro without Mamba",
    mlp_bias=lambda config: False,
    refuse=refuse,
    defaults=granite.FAMILY.defaults
    | {
        "layer_types": None,
        "num_local_experts": 8,
        "position_embedding_type": None,
        "shared_intermediate_size": 1024,
    },
    canonical=canonical,
    source=source,
)
