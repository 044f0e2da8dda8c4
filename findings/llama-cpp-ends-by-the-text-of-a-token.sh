#!/usr/bin/env bash
# llama.cpp (in xllamacpp 2026.10.11549; llama-cpp-python 0.3.36 does the same): the spelling of a token ends an answer,
# whatever the file says about it.
#
# One would expect that an answer ends where tokenizer.ggml.eos_token_id (or eot, eom) says. Seen, with an eos_token_id that
# the model never makes: a token of type "normal" ends the answer if it is spelt <|file_sep|>, <REPO>, <PAD> or [EOS]; the
# source lists about 30 more spellings. No key turns that off, and the token's text is not returned. So a model that is to write
# several files with <|file_sep|> between them (Qwen2.5-Coder's token) stops after the first.
# <|end|> is such an end as well, until the vocabulary also has <|return|> and <|call|>: then it is none.
#
# Run: findings/llama-cpp-ends-by-the-text-of-a-token.sh      (half a minute, most of it pip; a wheel, nothing is built)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check xllamacpp==2026.10.11549 gguf==0.19.0 2> /dev/null
cat > "$folder/run.py" <<'PYTHON'
import sys
from importlib.metadata import version

import gguf
import numpy as np
import xllamacpp

path = f"{sys.argv[1]}/model.gguf"


def write(spelling, *others):
    """A model that says token 4 for ever; `spelling` is its text."""
    tokens = ["<unk>", "<s>", "</s>", "a", spelling, *others]
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in {writer.add_context_length: 256, writer.add_embedding_length: 32, writer.add_block_count: 1,
                       writer.add_head_count: 1, writer.add_feed_forward_length: 32, writer.add_layer_norm_rms_eps: 1e-5,
                       writer.add_tokenizer_model: "llama", writer.add_token_list: tokens,
                       writer.add_token_scores: [0.0] * len(tokens), writer.add_bos_token_id: 1, writer.add_eos_token_id: 2,
                       writer.add_token_types: [2, 3, 3] + [1] * (len(tokens) - 3)}.items():
        add(value)
    tensors = {f"blk.0.{each}": np.zeros((32, 32)) for each in ("attn_q", "attn_k", "attn_v", "attn_output")}
    tensors |= {f"blk.0.{each}": np.zeros((32, 32)) for each in ("ffn_gate", "ffn_up", "ffn_down")}
    tensors |= {each: np.ones(32) for each in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")}
    tensors |= {"token_embd": np.ones((len(tokens), 32)), "output": np.eye(len(tokens))[4][:, None] * np.ones(32)}
    for name, values in tensors.items():
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def answer(*spellings):
    write(*spellings)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup, params.verbosity = path, 256, False, -1
    server = xllamacpp.Server(params)
    choice = server.handle_completions({"prompt": [1, 3], "max_tokens": 3, "temperature": 0})["choices"][0]
    return f"{choice['finish_reason']} {choice['text']}".strip()


print("xllamacpp", version("xllamacpp"))
cases = [(spelling,) for spelling in ("<|sep|>", "<|file_sep|>", "<REPO>", "<PAD>", "[EOS]", "<|end|>")]
cases.append(("<|end|>", "<|return|>", "<|call|>"))
found = {" beside ".join(case): answer(*case) for case in cases}
print("\n".join(f"{case}: {what}" for case, what in found.items()))
sys.exit(list(found.values()) != ["length " + "<|sep|>" * 3] + ["stop"] * 5 + ["length " + "<|end|>" * 3])
PYTHON
"$folder/venv/bin/python" "$folder/run.py" "$folder" || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   xllamacpp 2026.10.11549
#   <|sep|>: length <|sep|><|sep|><|sep|>
#   <|file_sep|>: stop
#   <REPO>: stop
#   <PAD>: stop
#   [EOS]: stop
#   <|end|>: stop
#   <|end|> beside <|return|> beside <|call|>: length <|end|><|end|><|end|>
