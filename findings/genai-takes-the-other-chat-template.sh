#!/usr/bin/env bash
# onnxruntime-genai 0.18.0 and transformers 5.23.0 take different chat templates from one folder: where
# tokenizer_config.json has a chat_template and chat_template.jinja lies beside it, genai takes the first, transformers the
# second.
#
# Folders come to hold both when somebody edits or re-saves one of them: transformers 5 writes chat_template.jinja, and the
# entry of an older tokenizer_config.json stays. Seen: neither says a word, and the two runtimes make different prompts of
# one chat. What helps: one template, in one place.
#
# Run: findings/genai-takes-the-other-chat-template.sh      (a minute, most of it pip)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check onnxruntime-genai==0.18.0 onnx==1.23.2 transformers==5.23.0 jinja2==3.1.6 2> /dev/null
cat > "$folder/run.py" <<'PYTHON'
import json
import sys
from importlib.metadata import version
from pathlib import Path

import onnx
import onnxruntime_genai as genai
from onnx import TensorProto, helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

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


write_tokenizer()
write_model()
said = {"in tokenizer_config.json": "old", "in chat_template.jinja": "new"}
config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "chat_template": "old {{ messages[0]['content'] }}"}
(folder / "tokenizer_config.json").write_text(json.dumps(config))
(folder / "chat_template.jinja").write_text("new {{ messages[0]['content'] }}")
(folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
chat = [{"role": "user", "content": "hello"}]
theirs = genai.Tokenizer(genai.Model(str(folder))).apply_chat_template(json.dumps(chat), add_generation_prompt=False)
ours = AutoTokenizer.from_pretrained(folder).apply_chat_template(chat, tokenize=False)
print("onnxruntime-genai", version("onnxruntime-genai"), "makes:", theirs)
print("transformers", version("transformers"), "makes:", ours)
sys.exit((theirs, ours) != ("old hello", "new hello"))
PYTHON
"$folder/venv/bin/python" "$folder/run.py" "$folder" 2> /dev/null || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   onnxruntime-genai 0.18.0 makes: old hello
#   transformers 5.23.0 makes: new hello
