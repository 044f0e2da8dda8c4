#!/usr/bin/env bash
# llama-cpp-python 0.3.36: shifting a context (llama_memory_seq_add) changes the answers of SmolLM3.
#
# A program whose context is full drops its oldest tokens and moves the others to earlier positions (`--context-shift`).
# llama.cpp turns the cached keys by the difference. Attention with rope knows relative positions only, and attention without
# it knows none, so that one would expect the same answers after all tokens have moved alike. Seen: that holds to 1e-5 with
# three layers. SmolLM3's fourth layer (and every fourth after it) has no rope: its keys were never turned, and its queries
# never are. The shift turns these keys all the same, further at every shift, and the answers become others.
# What helps: read the text that stays again instead of moving it.
#
# Run: findings/llama-cpp-smollm3-keys-turn-when-shifted.sh
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


def write(layers):
    """Random layers."""
    writer = gguf.GGUFWriter(path, "smollm3")
    for add, value in {writer.add_context_length: 1024, writer.add_embedding_length: 64, writer.add_block_count: layers,
                       writer.add_head_count: 2, writer.add_feed_forward_length: 64, writer.add_layer_norm_rms_eps: 1e-5,
                       writer.add_tokenizer_model: "llama", writer.add_token_scores: [0.0] * 16,
                       writer.add_token_list: ["<unk>", "<s>", "</s>", *"abcdefghijklm"],
                       writer.add_token_types: [2, 3, 3] + [1] * 13}.items():
        add(value)
    normal = np.random.default_rng(0).normal
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {f"blk.{layer}.{part}": (64, 64) for layer in range(layers) for part in parts}
    for name, shape in (shapes | {"token_embd": (16, 64), "output": (16, 64)}).items():
        writer.add_tensor(f"{name}.weight", normal(0, 0.2, shape).astype(np.float32))
    norms = [f"blk.{layer}.{part}_norm" for layer in range(layers) for part in ("attn", "ffn")]
    for name in ("output_norm", *norms):
        writer.add_tensor(f"{name}.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def differences(shifts):
    """Of the logits behind one text, before and after it was moved by 3 positions, several times. The cache is float32."""
    model = llama_cpp.Llama(path, n_ctx=512, type_k=0, type_v=0, flash_attn=False, verbose=False)
    model.eval([3, 11, 5, 6, 7, 8, 9, 10])
    memory, batch, seen = llama_cpp.llama_get_memory(model.ctx), llama_cpp.llama_batch_init(1, 0, 1), []
    batch.n_tokens, batch.token[0], batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, 11, 1, 0, 1
    for end in range(8, 9 + 3 * shifts, 3):
        batch.pos[0] = end
        assert llama_cpp.llama_decode(model.ctx, batch) == 0
        seen.append(np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, 0), (16,)).copy())
        llama_cpp.llama_memory_seq_rm(memory, 0, end, -1)
        llama_cpp.llama_memory_seq_add(memory, 0, 0, -1, 3)
    llama_cpp.llama_batch_free(batch)
    return [float(np.abs(logits - seen[0]).max()) for logits in seen]


print("llama-cpp-python", llama_cpp.__version__)
found = {}
for layers in (3, 4):
    write(layers)
    found[layers] = differences(10)
    print(f"{layers} layers: logits move by " + ", ".join(f"{found[layers][n]:.5f} (shift {n})" for n in (1, 3, 10)))
sys.exit(not (max(found[3]) < 1e-4 and min(found[4][1:]) > 0.01))
PYTHON
"$folder/venv/bin/python" "$folder/run.py" "$folder" || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   llama-cpp-python 0.3.36
#   3 layers: logits move by 0.00000 (shift 1), 0.00000 (shift 3), 0.00000 (shift 10)
#   4 layers: logits move by 0.51445 (shift 1), 0.18233 (shift 3), 0.31371 (shift 10)
