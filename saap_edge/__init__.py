"""saap-edge: from a Hugging Face causal LM to verified GGUF and ONNX on a board's budget."""

__version__ = "0.1.0"
