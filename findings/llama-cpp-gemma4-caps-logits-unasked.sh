#!/usr/bin/env bash
# llama-cpp-python 0.3.36: a Gemma 4 file that says nothing of a soft cap on logits gets one of 30.
#
# Gemma 4 may have a soft cap on its logits, c * tanh(logits / c) (`final_logit_softcapping`; null: none). In GGUF that is
# `gemma4.final_logit_softcapping`, an optional key, which llama.cpp's converter leaves out where the model has no cap. One
# would expect that no cap is what llama.cpp computes then. Seen: it caps at 30, the cap of other Gemma models. No logit is
# beyond 30, the order of tokens stays, and their probabilities are others.
# What helps: write the key with 0, which switches the cap off.
#
# Run: findings/llama-cpp-gemma4-caps-logits-unasked.sh
# (pip builds llama-cpp-python from source with a C++ compiler: 7 minutes on 2 idle cores, 13 on 2 busy ones; half a minute
# where pip has that build in its cache)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check llama-cpp-python==0.3.36 gguf==0.19.0 2> /dev/null
cat > "$folder/run.py" <<'PYTHON'
import sys

import gguf
import llama_cpp
import numpy as np

path = f"{sys.argv[1]}/model.gguf"


def write(cap):
    """Two random layers, one with a window. The head is four times as large as needed."""
    writer = gguf.GGUFWriter(path, "gemma4")
    for add, value in {writer.add_context_length: 64, writer.add_embedding_length: 64, writer.add_block_count: 2,
                       writer.add_head_count: 2, writer.add_head_count_kv: 2, writer.add_feed_forward_length: 64,
                       writer.add_layer_norm_rms_eps: 1e-6, writer.add_sliding_window: 8,
                       writer.add_tokenizer_model: "llama", writer.add_token_scores: [0.0] * 16,
                       writer.add_token_list: ["<unk>", "<s>", "</s>", *"abcdefghijklm"],
                       writer.add_token_types: [2, 3, 3] + [1] * 13}.items():
        add(value)
    writer.add_array("gemma4.attention.sliding_window_pattern", [True, False])
    for name, value in (("attention.key_length_swa", 32), ("attention.value_length_swa", 32),
                        ("embedding_length_per_layer_input", 0)):
        writer.add_uint32(f"gemma4.{name}", value)
    if cap is not None:
        writer.add_float32("gemma4.final_logit_softcapping", cap)
    normal = np.random.default_rng(0).normal
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {f"blk.{layer}.{part}": (64, 64) for layer in range(2) for part in parts}
    for name, shape in (shapes | {"token_embd": (16, 64), "output": (16, 64)}).items():
        writer.add_tensor(f"{name}.weight", normal(0, 4 if name == "output" else 0.2, shape).astype(np.float32))
    for name in ("output_norm", *(f"blk.{layer}.{part}_norm" for layer in range(2)
                                  for part in ("attn", "post_attention", "ffn", "post_ffw"))):
        writer.add_tensor(f"{name}.weight", np.ones(64, np.float32))
    for name in (f"blk.{layer}.attn_{part}_norm" for layer in range(2) for part in "qk"):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    writer.add_tensor("rope_freqs.weight", np.ones(16, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits():
    model = llama_cpp.Llama(path, n_ctx=64, flash_attn=False, verbose=False)
    model.eval([3, 11, 5, 6])
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, 3), (16,)).copy()


print("llama-cpp-python", llama_cpp.__version__)
found = {}
for cap in (None, 0.0):
    write(cap)
    found[cap] = logits()
    words = "no word of a cap" if cap is None else "a cap of 0"
    print(f"{words}: the largest logit is {np.abs(found[cap]).max():.1f}")
capped = float(np.abs(30 * np.tanh(found[0.0] / 30) - found[None]).max())
print(f"without a word they are 30 * tanh(logits / 30), within {capped:.5f}")
sys.exit(not (np.abs(found[0.0]).max() > 40 and np.abs(found[None]).max() <= 30 and capped < 1e-3))
PYTHON
"$folder/venv/bin/python" "$folder/run.py" "$folder" || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   llama-cpp-python 0.3.36
#   no word of a cap: the largest logit is 29.2
#   a cap of 0: the largest logit is 64.4
#   without a word they are 30 * tanh(logits / 30), within 0.00000
