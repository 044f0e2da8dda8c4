"""GGUF as an input: a file is unpacked into a Hugging Face folder whose weights stay in the file."""
