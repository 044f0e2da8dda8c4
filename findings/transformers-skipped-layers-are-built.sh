#!/usr/bin/env bash
# transformers 5.24.0: what Llama makes of `per_layer_config` in config.json.
#
# The field (from 5.14 on) gives single layers other widths, or lets them skip a part: {"1": {"skip": ["mlp"]}}. Llama's class
# does not build such layers yet. With another width it raises an error, as one would expect. Seen: with nothing but `skip`,
# it builds the whole model without a word, and config.json keeps saying that the layer skips. A folder that lacks the
# skipped layer's weights, as it should, is loaded with random numbers in their place; the report calls them missing.
# What helps: compare the layers that were built with config.per_layer_config, or treat any missing weight as an error.
#
# Run: findings/transformers-skipped-layers-are-built.sh      (about 2 minutes: it installs a CPU build of torch)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 2> /dev/null
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check transformers==5.24.0 safetensors==0.8.0 2> /dev/null
TRANSFORMERS_VERBOSITY=error TQDM_DISABLE=1 "$folder/venv/bin/python" - "$folder/model" << 'PYTHON'
import json
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

folder = sys.argv[1]
torch.manual_seed(0)
shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=64)
print(f"transformers {transformers.__version__}")
try:
    LlamaForCausalLM(LlamaConfig(per_layer_config={"1": {"intermediate_size": 32}}, **shape))
    raised = "nothing"
except Exception as error:
    raised = type(error).__name__
print(f"another width: raises {raised}")

model = LlamaForCausalLM(LlamaConfig(per_layer_config={"1": {"skip": ["mlp"]}}, **shape))
built = hasattr(model.model.layers[1].mlp, "down_proj")
model.save_pretrained(folder)
said = json.load(open(f"{folder}/config.json"))["per_layer_config"]
print(f"skip alone: the skipped FFN is built {built}, config.json says {said}")

file = f"{folder}/model.safetensors"
kept = {name: tensor for name, tensor in load_file(file).items() if ".1.mlp." not in name}
save_file(kept, file, {"format": "pt"})
loaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
missing = sorted(report["missing_keys"])
filled = bool(loaded.model.layers[1].mlp.down_proj.weight.abs().max() > 0)
print(f"its weights not stored: filled with random numbers {filled}, {len(missing)} reported as missing")
found = (raised, built, said, filled, len(missing))
expected = ("AmbiguousGlobalPerLayerAttributeError", True, {"1": {"skip": ["mlp"]}}, True, 3)
sys.exit(0 if found == expected else "the behaviour has changed")
PYTHON
# Output seen:
#   transformers 5.24.0
#   another width: raises AmbiguousGlobalPerLayerAttributeError
#   skip alone: the skipped FFN is built True, config.json says {'1': {'skip': ['mlp']}}
#   its weights not stored: filled with random numbers True, 3 reported as missing
