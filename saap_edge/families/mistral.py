"""Mistral 7B, Nemo, Small: Llama with, in the first version, a sliding window. Handled as Llama."""

from saap_edge.families.base import LLAMA_EXPORTS, Family, as_llama, within_window

FAMILY = Family(
    model_type="mistral",
    title="Mistral",
    covers="Mistral 7B, Nemo, Small",
    exports=LLAMA_EXPORTS,
    defaults={"sliding_window": 4096, "num_key_value_heads": 8, "max_position_embeddings": 131072},
    canonical=lambda config: within_window(as_llama(config), config["sliding_window"]),
)
