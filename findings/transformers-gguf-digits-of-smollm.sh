#!/usr/bin/env bash
# transformers 5.23.0: AutoTokenizer.from_pretrained(..., gguf_file=...) and the splitting rule `smollm`.
#
# A GGUF names the rule that splits text before byte-pair merges (tokenizer.ggml.pre). One would expect that transformers
# follows it, or refuses a name that it does not know.
# Seen: its table lacks smollm (also starcoder, refact, deepseek-v3), and such a file gets GPT-2's rule without a warning.
# SmolLM2's digits, which stand alone in its own tokenizer and in llama.cpp, are then merged: "2024" is one token
# instead of four. The model still answers, worse. What such a file gives in llama.cpp is the truth.
#
# Run: findings/transformers-gguf-digits-of-smollm.sh      (about 2 minutes: it installs a CPU build of torch)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 2> /dev/null
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check transformers==5.23.0 gguf==0.19.0 2> /dev/null
mkdir "$folder/model"
"$folder/venv/bin/python" - "$folder/model" << 'PYTHON'
import json
import sys

import gguf
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

folder, text = sys.argv[1], "in 2024"
print(f"transformers {transformers.__version__}")
learner = Tokenizer(models.BPE())
learner.pre_tokenizer = pre_tokenizers.ByteLevel(False)
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
learner.train_from_iterator(["in 2024 and in 2024, as in 2024"] * 9, trainer)
learnt = json.loads(learner.to_str())["model"]

writer = gguf.GGUFWriter(f"{folder}/model.gguf", "llama")
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("smollm")
writer.add_token_list(sorted(learnt["vocab"], key=learnt["vocab"].get))
writer.add_token_merges([" ".join(pair) for pair in learnt["merges"]])
writer.add_token_types([1] * len(learnt["vocab"]))
writer.add_bos_token_id(0)
writer.add_eos_token_id(0)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.close()

found = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf").tokenize(text)
rule = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
learner.pre_tokenizer = pre_tokenizers.Sequence(rule)
expected = learner.encode(text).tokens
print(f"tokenizer.ggml.pre = smollm, {text!r}: {found}; by that rule: {expected}")
sys.exit(0 if found == ["in", "Ġ2024"] and expected == ["in", "Ġ", *"2024"] else "the behaviour has changed")
PYTHON
# Output seen:
#   transformers 5.23.0
#   tokenizer.ggml.pre = smollm, 'in 2024': ['in', 'Ġ2024']; by that rule: ['in', 'Ġ', '2', '0', '2', '4']
