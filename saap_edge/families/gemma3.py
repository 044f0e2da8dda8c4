"""Gemma 3, text only: Gemma 2 with norms of q and k instead of soft caps, and two rotary frequencies."""

from dataclasses import replace

from saap_edge.families import gemma2
from saap_edge.families.base import Exports, Refusal

FAMILY = replace(
    gemma2.FAMILY,
    model_type="gemma3_text",
    title="Gemma 3",
    covers="Gemma 3 270M and 1B (text)",
    exports=Exports(
        gguf_uniform="gemma3",
        gguf_layers=Refusal(gemma2.UNIFORM_ONLY),
        onnx=Refusal("the ONNX graph has no norms of sublayer outputs yet"),
    ),
    defaults=gemma2.DEFAULTS | {"max_position_embeddings": 131072},
    qk_norm=True,
)
