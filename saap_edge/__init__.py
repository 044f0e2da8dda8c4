"""saap-edge: from a Hugging Face causal LM to verified GGUF and ONNX on a board's budget."""

from saap_edge.telemetry import turn_telemetry_off

__version__ = "0.1.0"

turn_telemetry_off()
