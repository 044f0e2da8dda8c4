#!/usr/bin/env bash
# llama-cpp-python 0.3.36: quantising with an importance matrix writes zeros for weights whose importance is 0, in about half
# of the types, Q6_K among them.
#
# An importance matrix says how much the calibration text used each input column. A column that this text never used (a dead
# or rare channel, padding) has importance 0. One would expect that its weights are then rounded without care.
# Seen: where all columns of a block have importance 0, Q4_0, Q5_0, IQ4_NL, IQ4_XS, Q3_K and even Q6_K store 0 for all of
# its weights: they are gone, for any text that does use them. Q4_1, Q5_1, Q8_0, Q2_K, Q4_K and Q5_K round them as usual.
# llama_model_quantize returns 0 and warns of nothing. What helps: a floor under importances, here 1e-6 of the others.
#
# Run: findings/llama-cpp-columns-without-importance-become-zero.sh
# (pip builds llama-cpp-python from source with a C++ compiler: 7 minutes on 2 idle cores, 13 on 2 busy ones; half a minute
# where pip has that build in its cache)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check llama-cpp-python==0.3.36 gguf==0.19.0 2> /dev/null
cat > "$folder/run.py" <<'PYTHON'
import ctypes
import sys

import gguf
import llama_cpp
import numpy as np

plain, quantised = f"{sys.argv[1]}/plain.gguf", f"{sys.argv[1]}/quantised.gguf"
matrices = [f"blk.0.{each}.weight" for each in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")]
weights = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
warnings = []


@llama_cpp.llama_log_callback
def note(level, text, _):
    if level in (3, 4):  # warnings, errors
        warnings.append(text.decode())


def write():
    writer = gguf.GGUFWriter(plain, "llama")
    for add, value in {writer.add_context_length: 64, writer.add_embedding_length: 256, writer.add_block_count: 1,
                       writer.add_head_count: 4, writer.add_feed_forward_length: 256, writer.add_layer_norm_rms_eps: 1e-5,
                       writer.add_vocab_size: 256, writer.add_tokenizer_model: "none"}.items():
        add(value)
    for name in [*matrices, "token_embd.weight"]:
        writer.add_tensor(name, weights)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(256, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def error(kind, low):
    """Relative error of the first 32 columns, whose importance is `low`; that of the others is 1."""
    importance = (ctypes.c_float * 256)(*[low] * 32 + [1] * 224)
    rows = (llama_cpp.llama_model_imatrix_data * (len(matrices) + 1))()
    for row, name in zip(rows, matrices):
        row.name, row.data, row.size = name.encode(), importance, 256
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}"), True, 1
    params.imatrix = rows
    assert llama_cpp.llama_model_quantize(plain.encode(), quantised.encode(), ctypes.byref(params)) == 0
    tensor = next(each for each in gguf.GGUFReader(quantised).tensors if each.name == "blk.0.ffn_down.weight")
    off = (gguf.quants.dequantize(tensor.data, tensor.tensor_type) - weights)[:, :32]
    return float(np.sqrt((off**2).mean() / (weights[:, :32] ** 2).mean()))


llama_cpp.llama_log_set(note, ctypes.c_void_p(0))
write()
print(f"llama-cpp-python {llama_cpp.__version__}, relative error of 32 of 256 columns by their importance (0; 1e-6):")
kinds = ["Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS", "Q3_K_S", "Q6_K", "Q4_1", "Q5_1", "Q8_0", "Q2_K", "Q4_K_S", "Q5_K_S"]
found = {kind: (error(kind, 0), error(kind, 1e-6)) for kind in kinds}
for some in (kinds[:6], kinds[6:]):
    print(", ".join(f"{kind} {found[kind][0]:.3f}; {found[kind][1]:.3f}" for kind in some))
print("warnings:", warnings)
wiped = [kind for kind, (zero, _) in found.items() if zero == 1]
sys.exit(wiped != kinds[:6] or max(kept for _, kept in found.values()) > 0.4)
PYTHON
"$folder/venv/bin/python" "$folder/run.py" "$folder" || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   llama-cpp-python 0.3.36, relative error of 32 of 256 columns by their importance (0; 1e-6):
#   Q4_0 1.000; 0.082, Q5_0 1.000; 0.041, IQ4_NL 1.000; 0.076, IQ4_XS 1.000; 0.076, Q3_K_S 1.000; 0.146, Q6_K 1.000; 0.018
#   Q4_1 0.078; 0.070, Q5_1 0.038; 0.034, Q8_0 0.005; 0.005, Q2_K 0.333; 0.273, Q4_K_S 0.079; 0.072, Q5_K_S 0.039; 0.036
#   warnings: []
