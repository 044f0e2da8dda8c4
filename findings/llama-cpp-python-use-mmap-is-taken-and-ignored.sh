#!/usr/bin/env bash
# llama-cpp-python 0.3.36: the model parameter use_mmap is gone, and setting it changes nothing, without a word.
#
# One would expect `parameters.use_mmap = False` on llama_model_default_params() to keep llama.cpp from mapping the file, as
# it did, or an AttributeError now that llama.cpp has load_mode instead. But the parameters are a ctypes structure, which
# takes any attribute: the file stays mapped. That costs memory where it was meant to save some: of a type that llama.cpp
# repacks as it loads (Q4_0, Q4_K, IQ4_NL) the mapped pages stay resident beside the repacked copy. What works: load_mode =
# LLAMA_LOAD_MODE_NONE, or Llama(use_mmap=False), which sets that.
#
# Run: findings/llama-cpp-python-use-mmap-is-taken-and-ignored.sh      (pip builds llama-cpp-python: 7 minutes, or 15 s from its cache)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check llama-cpp-python==0.3.36 gguf==0.19.0 2> /dev/null
cat > "$folder/run.py" <<'PYTHON'
import sys
from importlib.metadata import version
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

HIDDEN, FFN, LAYERS = 512, 2048, 4
path = Path(sys.argv[1]) / "model.gguf"
writer = gguf.GGUFWriter(str(path), "llama")
tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
writer.add_context_length(64)
writer.add_embedding_length(HIDDEN)
writer.add_block_count(LAYERS)
writer.add_head_count(8)
writer.add_feed_forward_length(FFN)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_tokenizer_model("llama")
writer.add_token_list(tokens)
writer.add_token_scores([0.0] * len(tokens))
writer.add_token_types([2, 3, 3, *[6] * 256])
random = np.random.default_rng(0)


def add(name, rows, columns):
    kind = gguf.GGMLQuantizationType.Q4_0
    data = gguf.quants.quantize(random.normal(0, 0.02, (rows, columns)).astype(np.float32), kind)
    writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)


def add_norm(name):
    writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, np.float32))


add("token_embd", len(tokens), HIDDEN)
add("output", len(tokens), HIDDEN)
add_norm("output_norm")
for layer in range(LAYERS):
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        add(f"blk.{layer}.{name}", HIDDEN, HIDDEN)
    add(f"blk.{layer}.ffn_gate", FFN, HIDDEN)
    add(f"blk.{layer}.ffn_up", FFN, HIDDEN)
    add(f"blk.{layer}.ffn_down", HIDDEN, FFN)
    for name in ("attn_norm", "ffn_norm"):
        add_norm(f"blk.{layer}.{name}")
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()


def mapped():
    return str(path) in Path("/proc/self/maps").read_text()


def loaded(**changes):
    """Whether the file is mapped while a model is loaded with these parameters."""
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = 0
    for name, value in changes.items():
        setattr(parameters, name, value)
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    found = mapped()
    llama_cpp.llama_model_free(model)
    return found


def quiet(level, text, data):
    pass


callback = llama_cpp.llama_log_callback(quiet)
llama_cpp.llama_log_set(callback, None)
llama_cpp.llama_backend_init()
print("llama-cpp-python", version("llama-cpp-python"))
fields = [name for name, _ in llama_cpp.llama_model_default_params()._fields_]
print("a parameter use_mmap:", "use_mmap" in fields, "| load_mode:", "load_mode" in fields)
found = [loaded(), loaded(use_mmap=False), loaded(load_mode=llama_cpp.LLAMA_LOAD_MODE_NONE)]
for what, is_mapped in zip(("as it is", "use_mmap = False", "load_mode = LLAMA_LOAD_MODE_NONE"), found):
    print(f"{what}: {'mapped' if is_mapped else 'not mapped'}")
llama = llama_cpp.Llama(str(path), use_mmap=False, verbose=False, n_ctx=64)
found.append(mapped())
print("Llama(use_mmap=False):", "mapped" if found[-1] else "not mapped")
sys.exit("use_mmap" in fields or found != [True, True, False, False])
PYTHON
"$folder/venv/bin/python" "$folder/run.py" "$folder" || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   llama-cpp-python 0.3.36
#   a parameter use_mmap: False | load_mode: True
#   as it is: mapped
#   use_mmap = False: mapped
#   load_mode = LLAMA_LOAD_MODE_NONE: not mapped
#   Llama(use_mmap=False): not mapped
