"""Reading GGUF files: their metadata, and their tensors under transformers' names."""
