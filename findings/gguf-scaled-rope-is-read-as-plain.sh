#!/usr/bin/env bash
# openvino-genai 2026.4.1 and transformers 5.23.0: a GGUF's rope scaling is lost as the file is read.
#
# Both open GGUF files of the architecture `llama`: LLMPipeline("model.gguf"), from_pretrained(..., gguf_file=...). Such a file
# says scaled rope in two ways: as a tensor rope_freqs.weight (Llama 3.1 and 3.2) or as llama.rope.scaling.type and factor
# (linear, yarn). One would expect that these are followed, or that the file is refused. Seen: both libraries load either
# kind without a word and answer as if it were not scaled; llama.cpp gives another answer, the right one. What
# helps in transformers: pass a config with rope_parameters set (logits then agree); else open the original folder.
#
# Run: findings/gguf-scaled-rope-is-read-as-plain.sh      (about 4 minutes, most of it pip: torch and OpenVINO)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/python" -m pip install -q --disable-pip-version-check "$@" 2> /dev/null; }
pip torch==2.13.0
pip transformers==5.23.0 accelerate==1.15.0 openvino-genai==2026.4.1.0
pip xllamacpp==2026.10.11549 gguf==0.19.0
cat > "$folder/run.py" <<'PYTHON'
import sys
from importlib.metadata import version

import gguf
import numpy as np
import openvino_genai
import torch
import xllamacpp
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM

folder, prompt = sys.argv[1], "abcdefghijklmnopqrstuvwxyz"
tokens = ["<|end|>", *sorted(ByteLevel.alphabet()), "ab"]


def write(kind):
    writer = gguf.GGUFWriter(f"{folder}/{kind}.gguf", "llama")
    for add, value in {writer.add_file_type: 1, writer.add_context_length: 256, writer.add_embedding_length: 64,
                       writer.add_block_count: 1, writer.add_head_count: 2, writer.add_head_count_kv: 2,
                       writer.add_feed_forward_length: 64, writer.add_rope_dimension_count: 32, writer.add_rope_freq_base: 1e4,
                       writer.add_layer_norm_rms_eps: 1e-5, writer.add_vocab_size: len(tokens), writer.add_bos_token_id: 0,
                       writer.add_eos_token_id: 0, writer.add_add_bos_token: False, writer.add_tokenizer_model: "gpt2",
                       writer.add_tokenizer_pre: "gpt-2", writer.add_token_list: tokens, writer.add_token_merges: ["a b"],
                       writer.add_token_types: [3] + [1] * 257}.items():
        add(value)
    normal = np.random.default_rng(0).normal
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {f"blk.0.{each}": (64, 64) for each in matrices}
    for name, shape in (shapes | {"token_embd": (len(tokens), 64), "output": (len(tokens), 64)}).items():
        writer.add_tensor(f"{name}.weight", normal(0, 0.3, shape).astype(np.float16))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(64, np.float32))
    if kind == "rope_freqs":
        writer.add_tensor("rope_freqs.weight", np.geomspace(1, 8, 16).astype(np.float32))
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def in_llama_cpp(kind):
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup, params.verbosity = f"{folder}/{kind}.gguf", 256, False, -1
    server = xllamacpp.Server(params)
    return server.handle_completions({"prompt": prompt, "max_tokens": 12, "temperature": 0})["choices"][0]["text"]


def in_openvino(kind):
    return openvino_genai.LLMPipeline(f"{folder}/{kind}.gguf", "CPU").generate(prompt, max_new_tokens=12, do_sample=False)


def in_transformers(kind):
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=f"{kind}.gguf", dtype=torch.float32)
    ids = torch.tensor([[tokens.index("ab"), *map(tokens.index, prompt[2:])]])
    return model.generate(ids, max_new_tokens=12, do_sample=False)[0].tolist()


for kind in ("plain", "rope_freqs", "linear"):
    write(kind)
print(", ".join(f"{name} {version(name)}" for name in ("openvino-genai", "transformers", "xllamacpp")))
found = {}
for run in (in_llama_cpp, in_openvino, in_transformers):
    plain = run("plain")
    found[run.__name__] = [run(kind) == plain for kind in ("rope_freqs", "linear")]
    print(f"{run.__name__}: answers as of the plain file: rope_freqs {found[run.__name__][0]}, linear {found[run.__name__][1]}")
sys.exit(list(found.values()) != [[False, False], [True, True], [True, True]])
PYTHON
"$folder/venv/bin/python" "$folder/run.py" "$folder" 2> /dev/null || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   openvino-genai 2026.4.1.0, transformers 5.23.0, xllamacpp 2026.10.11549
#   in_llama_cpp: answers as of the plain file: rope_freqs False, linear False
#   in_openvino: answers as of the plain file: rope_freqs True, linear True
#   in_transformers: answers as of the plain file: rope_freqs True, linear True
