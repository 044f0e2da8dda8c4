#!/usr/bin/env bash
# onnxruntime-genai 0.18.0: a null in tokenizer_config.json, which transformers takes for "not given", and no tokenizer
# opens at all.
#
# Tools write `"chat_template": null` or `"model_max_length": null` where there is nothing to say, and transformers,
# tokenizers and llama.cpp's converter read that as absent. Seen: with chat_template, tokenizer_class, model_max_length or
# clean_up_tokenization_spaces null, opening the tokenizer raises a JSON type error that names neither file nor field; other
# fields (pad_token, unk_token) may be null. What helps: leave the field out.
#
# Run: findings/genai-null-in-tokenizer-config.sh      (a minute, most of it pip)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check onnxruntime-genai==0.18.0 onnx==1.23.2 tokenizers==0.22.2 2> /dev/null
cat > "$folder/run.py" <<'PYTHON'
import json
import sys
from importlib.metadata import version
from pathlib import Path

import onnx
import onnxruntime_genai as genai
from onnx import TensorProto, helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

folder = Path(sys.argv[1])


def write_tokenizer():
    """Byte-level BPE, as GPT-2 has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(["one two three"] * 9, trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False))
    tokenizer.save(str(folder / "tokenizer.json"))


def write_model():
    """A graph that gives the ids back as logits: genai has a tokenizer only of a model."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", 1])
    nodes = [helper.make_node("Cast", ["input_ids"], ["floats"], to=TensorProto.FLOAT),
             helper.make_node("Unsqueeze", ["floats", "last"], ["logits"])]
    graph = helper.make_graph(nodes, "g", [ids], [logits], [helper.make_tensor("last", TensorProto.INT64, [1], [2])])
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), folder / "g.onnx")
    decoder = {"session_options": {"provider_options": []}, "filename": "g.onnx", "head_size": 1, "hidden_size": 1,
               "num_attention_heads": 1, "num_hidden_layers": 1, "num_key_value_heads": 1,
               "inputs": {"input_ids": "input_ids"}, "outputs": {"logits": "logits"}}
    model = {"type": "llama", "context_length": 1, "vocab_size": 1, "decoder": decoder, "bos_token_id": 0,
             "eos_token_id": 0, "pad_token_id": 0}
    (folder / "genai_config.json").write_text(json.dumps({"model": model, "search": {"max_length": 1}}))


def opened(**fields):
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end|>"} | fields
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    try:
        return [int(token) for token in genai.Tokenizer(genai.Model(str(folder))).encode("one two")] and "opens"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"


write_tokenizer()
write_model()
print("onnxruntime-genai", version("onnxruntime-genai"))
found = {"nothing null": opened()}
for name in ("chat_template", "tokenizer_class", "model_max_length", "clean_up_tokenization_spaces", "pad_token", "unk_token"):
    found[name] = opened(**{name: None})
for name, what in found.items():
    print(f"{name}: {what}")
refused = {name for name, what in found.items() if what != "opens"}
sys.exit(refused != {"chat_template", "tokenizer_class", "model_max_length", "clean_up_tokenization_spaces"})
PYTHON
"$folder/venv/bin/python" "$folder/run.py" "$folder" || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   onnxruntime-genai 0.18.0
#   nothing null: opens
#   chat_template: RuntimeError: [json.exception.type_error.302] type must be string, but is null
#   tokenizer_class: RuntimeError: [json.exception.type_error.302] type must be string, but is null
#   model_max_length: RuntimeError: [json.exception.type_error.302] type must be number, but is null
#   clean_up_tokenization_spaces: RuntimeError: [json.exception.type_error.302] type must be boolean, but is null
#   pad_token: opens
#   unk_token: opens
