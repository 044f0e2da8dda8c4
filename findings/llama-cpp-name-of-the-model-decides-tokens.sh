#!/usr/bin/env bash
# llama.cpp (in xllamacpp 2026.10.11549; llama-cpp-python 0.3.36 does the same): `general.name` decides how text is split
# into tokens.
#
# One would expect that the name of a model is for people, and that the tokenizer.ggml.* keys say all about tokens. Seen: where
# the name contains "phi-3" or "phi3", in any case and inside any word, spaces behind special tokens leave the prompt, as
# Phi-3's tokenizer.json says (rstrip); a GGUF has no key for it. Nothing is logged. So a model of another family loses spaces
# when it is called Dolphi3n, and Phi-3 keeps spaces that it never saw in training when it is called "Phi 3 Mini 4k Instruct".
# That is what gguf-py's Metadata.load, which the converter calls, makes of a folder Phi-3-mini-4k-instruct.
# What helps: compare ids with those of the original tokenizer.
#
# Run: findings/llama-cpp-name-of-the-model-decides-tokens.sh      (half a minute, most of it pip; a wheel, nothing is built)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check xllamacpp==2026.10.11549 gguf==0.19.0 2> /dev/null
cat > "$folder/run.py" <<'PYTHON'
import sys
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

path, prompt = f"{sys.argv[1]}/model.gguf", "<|user|> a<|end|> b"
tokens = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", "<|end|>", "\u2581", "a", "b"]


def write(name):
    """A model of zeros: only its tokenizer matters."""
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in {writer.add_name: name, writer.add_context_length: 256, writer.add_embedding_length: 32,
                       writer.add_block_count: 1, writer.add_head_count: 1, writer.add_feed_forward_length: 32,
                       writer.add_layer_norm_rms_eps: 1e-5, writer.add_tokenizer_model: "llama",
                       writer.add_token_list: tokens, writer.add_token_scores: [0.0] * len(tokens),
                       writer.add_token_types: [2, 3, 3, 3, 3, 3, 1, 1, 1], writer.add_bos_token_id: 1,
                       writer.add_eos_token_id: 2, writer.add_add_space_prefix: False}.items():
        add(value)
    shapes = {f"blk.0.{each}": (32, 32) for each in ("attn_q", "attn_k", "attn_v", "attn_output")}
    shapes |= {f"blk.0.{each}": (32, 32) for each in ("ffn_gate", "ffn_up", "ffn_down")}
    shapes |= {each: (32,) for each in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")}
    for tensor, shape in (shapes | {"token_embd": (len(tokens), 32)}).items():
        writer.add_tensor(f"{tensor}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def count(name):
    write(name)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup, params.verbosity = path, 256, False, -1
    server = xllamacpp.Server(params)
    return server.handle_completions({"prompt": prompt, "max_tokens": 1, "temperature": 0})["usage"]["prompt_tokens"]


print(f"xllamacpp {version('xllamacpp')}, gguf {version('gguf')}, tokens of {prompt!r} with <s>, by the name of the model:")
repository = "Phi-3-mini-4k-instruct"
by_converter = gguf.Metadata.load(model_path=Path(sys.argv[1], repository)).name
found = {name: count(name) for name in (repository, by_converter, "Mini", "Dolphi3n")}
print(", ".join(f"{name}: {number}" for name, number in found.items()))
sys.exit(found != {repository: 5, "Phi 3 Mini 4k Instruct": 7, "Mini": 7, "Dolphi3n": 5})
PYTHON
"$folder/venv/bin/python" "$folder/run.py" "$folder" || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   xllamacpp 2026.10.11549, gguf 0.19.0, tokens of '<|user|> a<|end|> b' with <s>, by the name of the model:
#   Phi-3-mini-4k-instruct: 5, Phi 3 Mini 4k Instruct: 7, Mini: 7, Dolphi3n: 5
