#!/usr/bin/env bash
# transformers 5.23.0: a checkpoint whose config.json says tie_word_embeddings, and which stores an lm_head of its own.
#
# One would expect that the stored head is ignored (as in transformers 4), or that the loaded config says "untied".
# Seen: from_pretrained keeps the trained head and reports nothing missing or unexpected, and config.tie_word_embeddings
# stays true. So the answers are right until something ties again: resize_token_embeddings (even to add one token) and
# tie_weights then throw the trained head away without a word. The answers are another model's from there on.
# Whoever reads config.json alone (exporters, GGUF converters) loses the head at once.
#
# Run: findings/transformers-trained-head-lost-after-loading.sh      (about 2 minutes: it installs a CPU build of torch)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 2> /dev/null
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check transformers==5.23.0 safetensors==0.8.0 2> /dev/null
TRANSFORMERS_VERBOSITY=error TQDM_DISABLE=1 "$folder/venv/bin/python" - "$folder/model" << 'PYTHON'
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

folder = sys.argv[1]
torch.manual_seed(0)
shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **shape)).save_pretrained(folder)
file = f"{folder}/model.safetensors"
head = torch.randn(64, 32)
save_file(load_file(file) | {"lm_head.weight": head}, file, {"format": "pt"})

model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
silent = not any(report.values())
kept = torch.equal(model.lm_head.weight, head)
says_tied = model.config.tie_word_embeddings
model.resize_token_embeddings(65)
lost = model.lm_head.weight is model.model.embed_tokens.weight
print(f"transformers {transformers.__version__}")
print(f"loaded: head kept {kept}, loading report empty {silent}, config.tie_word_embeddings {says_tied}")
print(f"after resize_token_embeddings(65): the head is the embedding {lost}")
sys.exit(0 if (kept, silent, says_tied, lost) == (True, True, True, True) else "the behaviour has changed")
PYTHON
# Output seen:
#   transformers 5.23.0
#   loaded: head kept True, loading report empty True, config.tie_word_embeddings True
#   after resize_token_embeddings(65): the head is the embedding True
