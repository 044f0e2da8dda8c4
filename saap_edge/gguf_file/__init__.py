"""What a GGUF file of a model holds: its metadata, and its tensors under transformers' names."""
