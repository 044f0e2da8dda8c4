#!/usr/bin/env bash
# onnxruntime-genai 0.18.0: where a tokenizer splits digits first (SmolLM2, Granite), a run of spaces before a digit gets
# other token ids than from tokenizers, whose tokenizer.json it reads.
#
# One would expect one reader of tokenizer.json to give the ids of another, or to refuse. Seen: with Digits before ByteLevel
# tokenizers has two spaces before a digit as one token of two spaces, genai as two tokens of one; behind a letter both
# agree. Code and tables are full of such runs. The text decodes to the same, so that nothing looks wrong.
#
# Run: findings/genai-spaces-before-digits.sh      (a minute, most of it pip)
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
    """Byte-level BPE that splits digits first, with a token of two spaces."""
    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(split), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(["one  2 two  3   4\n\n5  b"] * 9, trainers.BpeTrainer(
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


write_tokenizer()
write_model()
(folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end|>"}))
reader, tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json")), genai.Tokenizer(genai.Model(str(folder)))
print("onnxruntime-genai", version("onnxruntime-genai"), "tokenizers", version("tokenizers"))
found = []
for text in ("a  1", "a  b", "a 1"):
    here = [reader.id_to_token(token) for token in reader.encode(text).ids]
    there = [reader.id_to_token(int(token)) for token in tokenizer.encode(text)]
    found.append(here == there)
    print(f"{text!r}: tokenizers {here}, genai {there}")
sys.exit(found != [False, True, True])
PYTHON
"$folder/venv/bin/python" "$folder/run.py" "$folder" 2> /dev/null || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   onnxruntime-genai 0.18.0 tokenizers 0.22.2
#   'a  1': tokenizers ['a', 'ĠĠ', '1'], genai ['a', 'Ġ', 'Ġ', '1']
#   'a  b': tokenizers ['a', 'Ġ', 'Ġb'], genai ['a', 'Ġ', 'Ġb']
#   'a 1': tokenizers ['a', 'Ġ', '1'], genai ['a', 'Ġ', '1']
