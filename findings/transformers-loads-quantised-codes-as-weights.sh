#!/usr/bin/env bash
# transformers 5.23.0: integer and fp8 tensors in a checkpoint without quantization_config are taken for weights.
#
# One would expect an error, or at least an entry in the loading report, where a matrix is stored as int8 codes (a
# quantised checkpoint whose config.json lost its quantization_config on the way).
# Seen: from_pretrained converts the codes to floats. Missing, unexpected and mismatched keys and error messages are all
# empty, nothing is logged, and the matrix has values up to 127. The scales beside it are the only trace, and where they
# were dropped as well there is none. torch.float8_e4m3fn behaves alike.
#
# Run: findings/transformers-loads-quantised-codes-as-weights.sh      (about 2 minutes: it installs a CPU build of torch)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 2> /dev/null
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check transformers==5.23.0 safetensors==0.8.0 2> /dev/null
TQDM_DISABLE=1 "$folder/venv/bin/python" - "$folder/model" << 'PYTHON'
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

folder = sys.argv[1]
torch.manual_seed(0)
shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
file, name = f"{folder}/model.safetensors", "model.layers.0.mlp.up_proj.weight"
plain = load_file(file)
print(f"transformers {transformers.__version__}")
expected = True
for dtype, largest in ((torch.int8, 127.0), (torch.float8_e4m3fn, 448.0)):
    codes = plain[name] / plain[name].abs().max() * largest
    save_file(plain | {name: (codes.round() if dtype == torch.int8 else codes).to(dtype)}, file, {"format": "pt"})
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    weight = dict(model.named_parameters())[name]
    found = weight.abs().max().item()
    print(f"{dtype}: loaded as {weight.dtype}, largest weight {found:g}, report empty {not any(report.values())}")
    expected &= weight.dtype == torch.float32 and found == largest and not any(report.values())
sys.exit(0 if expected else "the behaviour has changed")
PYTHON
# Output seen:
#   transformers 5.23.0
#   torch.int8: loaded as torch.float32, largest weight 127, report empty True
#   torch.float8_e4m3fn: loaded as torch.float32, largest weight 448, report empty True
