#!/usr/bin/env bash
# llama-cpp-python 0.3.36: shifting a context (llama_memory_seq_add) changes the answers of every Hunyuan model (hunyuan-dense).
#
# A program whose context is full drops its oldest tokens and moves the others to earlier positions (`--context-shift`).
# llama.cpp turns the cached keys by the difference. Attention with rope knows relative positions only, so that one would
# expect the same answers after all tokens have moved alike, and no other model without scaled rope gives others. Hunyuan
# normalises its keys after they were rotated, and what is cached has the factors of that norm. Keys that are turned once
# more then have each factor in the place of another number. Seen: logits move by 0.10, and by nothing at all where all
# factors of the norm are 1. llama.cpp offers the shift (llama_memory_can_shift says yes).
# What helps: read the text that stays again instead of moving it.
#
# Run: findings/llama-cpp-hunyuan-keys-turn-after-their-norm.sh
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


def write(factors):
    """One random layer; `factors`: those of the norm of keys."""
    writer = gguf.GGUFWriter(path, "hunyuan-dense")
    for add, value in {writer.add_context_length: 1024, writer.add_embedding_length: 64, writer.add_block_count: 1,
                       writer.add_head_count: 2, writer.add_feed_forward_length: 64, writer.add_layer_norm_rms_eps: 1e-5,
                       writer.add_tokenizer_model: "llama", writer.add_token_scores: [0.0] * 16,
                       writer.add_token_list: ["<unk>", "<s>", "</s>", *"abcdefghijklm"],
                       writer.add_token_types: [2, 3, 3] + [1] * 13}.items():
        add(value)
    normal = np.random.default_rng(0).normal
    shapes = {f"blk.0.{each}": (64, 64) for each in ("attn_q", "attn_k", "attn_v", "attn_output")}
    shapes |= {f"blk.0.{each}": (64, 64) for each in ("ffn_gate", "ffn_up", "ffn_down")}
    for name, shape in (shapes | {"token_embd": (16, 64), "output": (16, 64)}).items():
        writer.add_tensor(f"{name}.weight", normal(0, 0.2, shape).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(64, np.float32))
    writer.add_tensor("blk.0.attn_q_norm.weight", np.ones(32, np.float32))
    writer.add_tensor("blk.0.attn_k_norm.weight", np.array(factors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def difference():
    """Of the logits behind one text, before and after it was moved by 3 positions. The cache is float32."""
    model = llama_cpp.Llama(path, n_ctx=512, type_k=0, type_v=0, flash_attn=False, verbose=False)
    model.eval([3, 11, 5, 6, 7, 8, 9, 10])
    memory, batch, seen = llama_cpp.llama_get_memory(model.ctx), llama_cpp.llama_batch_init(1, 0, 1), []
    assert llama_cpp.llama_memory_can_shift(memory)
    batch.n_tokens, batch.token[0], batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, 11, 1, 0, 1
    for end in (8, 11):
        batch.pos[0] = end
        assert llama_cpp.llama_decode(model.ctx, batch) == 0
        seen.append(np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, 0), (16,)).copy())
        llama_cpp.llama_memory_seq_rm(memory, 0, end, -1)
        llama_cpp.llama_memory_seq_add(memory, 0, 0, -1, 3)
    llama_cpp.llama_batch_free(batch)
    return float(np.abs(seen[1] - seen[0]).max())


print("llama-cpp-python", llama_cpp.__version__)
found = []
for name, factors in (("all 1", np.ones(32)), ("0.2 to 4", np.linspace(0.2, 4, 32))):
    write(factors)
    found.append(difference())
    print(f"factors of the norm of keys {name}: logits move by {found[-1]:.5f}")
sys.exit(not (found[0] < 1e-4 and found[1] > 0.05))
PYTHON
"$folder/venv/bin/python" "$folder/run.py" "$folder" || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   llama-cpp-python 0.3.36
#   factors of the norm of keys all 1: logits move by 0.00000
#   factors of the norm of keys 0.2 to 4: logits move by 0.10612
