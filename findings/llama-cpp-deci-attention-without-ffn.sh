#!/usr/bin/env bash
# llama.cpp (in xllamacpp 2026.10.11549; llama-cpp-python 0.3.36 does the same): in the architecture `deci`, a layer that
# keeps its attention and has no FFN loses its attention, too.
#
# `deci` is the architecture for layers of unequal widths (Nemotron): attention.head_count and feed_forward_length are arrays,
# and a 0 says that the layer lacks that sublayer. One would expect that "heads, but no FFN" adds the attention's output to
# the residual stream, or does not load. Seen: the file loads without a warning, and the attention's output goes
# nowhere. Answers stay the same to the last digit when all its weights are replaced by others, and they equal those of a
# file whose attention gives 0. What helps: a zero FFN of width 32.
#
# Run: findings/llama-cpp-deci-attention-without-ffn.sh      (half a minute, most of it pip; a wheel, nothing is built)
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


def answer(seed, width, size=0.2):
    """Log probabilities of all tokens; `seed`, `size`: layer 0's attention, `width`: its FFN, which is all zero."""
    writer = gguf.GGUFWriter(path, "deci")
    for add, value in {writer.add_context_length: 256, writer.add_embedding_length: 64, writer.add_block_count: 2,
                       writer.add_head_count: [2, 2], writer.add_head_count_kv: [2, 2], writer.add_key_length: 32,
                       writer.add_value_length: 32, writer.add_rope_dimension_count: 32, writer.add_layer_norm_rms_eps: 1e-5,
                       writer.add_feed_forward_length: [width, 64], writer.add_tokenizer_model: "llama",
                       writer.add_token_list: ["<unk>", "<s>", "</s>", *"abcdefghijklm"], writer.add_token_scores: [0.0] * 16,
                       writer.add_token_types: [2, 3, 3] + [1] * 13}.items():
        add(value)
    attention, rest = np.random.default_rng(seed), np.random.default_rng(0)
    shapes = {f"blk.1.ffn_{name}": (64, 64) for name in ("gate", "up", "down")}
    shapes |= {f"blk.{layer}.attn_{name}": (64, 64) for layer in (0, 1) for name in ("q", "k", "v", "output")}
    for name, shape in (shapes | {"token_embd": (16, 64), "output": (16, 64)}).items():
        values = size * attention.normal(size=shape) if "blk.0." in name else 0.2 * rest.normal(size=shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    if width:
        for name, shape in {"gate": (width, 64), "up": (width, 64), "down": (64, width)}.items():
            writer.add_tensor(f"blk.0.ffn_{name}.weight", np.zeros(shape, np.float32))
    for name in ["output", "blk.0.attn", "blk.1.attn", "blk.1.ffn"] + ["blk.0.ffn"] * (width > 0):
        writer.add_tensor(f"{name}_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup, params.verbosity = path, 256, False, -1
    request = {"prompt": [1, 3, 4, 5, 6], "max_tokens": 1, "temperature": 0, "logprobs": 16}
    server = xllamacpp.Server(params)
    told = server.handle_completions(request)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return np.array([each["logprob"] for each in sorted(told, key=lambda each: each["id"])])


def moved(first, second):
    return float(np.abs(answer(**first) - answer(**second)).max())


print("xllamacpp", version("xllamacpp"))
lost = moved({"seed": 1, "width": 0}, {"seed": 2, "width": 0})
kept = moved({"seed": 1, "width": 32}, {"seed": 2, "width": 32})
silent = moved({"seed": 1, "width": 0}, {"seed": 1, "width": 32, "size": 0})
print(f"log probabilities move by, when layer 0 gets another attention: no FFN {lost:.6f}, a zero FFN of 32 {kept:.3f}")
print(f"no FFN, against a zero FFN and an attention of zeros: {silent:.6f}")
sys.exit(not (lost == 0 and silent < 1e-5 and kept > 0.1))
PYTHON
"$folder/venv/bin/python" "$folder/run.py" "$folder" || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   xllamacpp 2026.10.11549
#   log probabilities move by, when layer 0 gets another attention: no FFN 0.000000, a zero FFN of 32 4.245
#   no FFN, against a zero FFN and an attention of zeros: 0.000000
