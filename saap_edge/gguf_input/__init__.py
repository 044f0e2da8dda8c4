"""GGUF files as input: a file is unpacked into a Hugging Face folder, but its weights stay in the file."""
