#!/usr/bin/env bash
# onnxruntime-genai 0.18.0: a generator takes the memory of the longest text, search.max_length, before it has a token.
#
# One would expect a KV cache to grow with the text, as it does where past and present do not share buffers. Seen: with
# past_present_share_buffer, making a generator touches the whole cache of max_length tokens before it has a prompt: 512
# MiB here for 65,536 tokens of one layer. Where max_length is the model's whole context, a model whose weights fit may
# still not fit. What helps: a smaller max_length, in genai_config.json or by set_search_options before the generator is
# made.
#
# Run: findings/genai-cache-of-the-longest-text.sh      (a minute, most of it pip; takes 0.7 GB of memory)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check onnxruntime-genai==0.18.0 onnx==1.23.2 psutil 2> /dev/null
cat > "$folder/run.py" <<'PYTHON'
import json
import sys
from importlib.metadata import version
from pathlib import Path

import onnx
import onnxruntime_genai as genai
import psutil
from onnx import TensorProto, helper

folder, shared = Path(sys.argv[1]), sys.argv[2] == "shared"
HEADS, WIDTH, LONGEST = 8, 128, 65536


def write_model():
    """A graph that gives the ids back as logits and leaves its cache as it is (one layer)."""
    past = [helper.make_tensor_value_info(f"past_key_values.0.{kind}", TensorProto.FLOAT, ["batch_size", HEADS, "past", WIDTH])
            for kind in ("key", "value")]
    present = [helper.make_tensor_value_info(f"present.0.{kind}", TensorProto.FLOAT, ["batch_size", HEADS, "total", WIDTH])
               for kind in ("key", "value")]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", 1])
    nodes = [helper.make_node("Cast", ["input_ids"], ["floats"], to=TensorProto.FLOAT),
             helper.make_node("Unsqueeze", ["floats", "last"], ["logits"]),
             *(helper.make_node("Identity", [one.name], [other.name]) for one, other in zip(past, present))]
    last = helper.make_tensor("last", TensorProto.INT64, [1], [2])
    graph = helper.make_graph(nodes, "g", [ids, *past], [logits, *present], [last])
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), folder / "g.onnx")
    decoder = {"session_options": {"provider_options": []}, "filename": "g.onnx", "head_size": WIDTH,
               "hidden_size": HEADS * WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": 1,
               "num_key_value_heads": HEADS,
               "inputs": {"input_ids": "input_ids", "past_key_names": "past_key_values.%d.key",
                          "past_value_names": "past_key_values.%d.value"},
               "outputs": {"logits": "logits", "present_key_names": "present.%d.key",
                           "present_value_names": "present.%d.value"}}
    model = {"type": "llama", "context_length": LONGEST, "vocab_size": 1, "decoder": decoder, "bos_token_id": 0,
             "eos_token_id": 0, "pad_token_id": 0}
    search = {"max_length": LONGEST, "past_present_share_buffer": shared}
    (folder / "genai_config.json").write_text(json.dumps({"model": model, "search": search}))


def mib():
    return psutil.Process().memory_info().rss / 2**20


write_model()
model = genai.Model(str(folder))
rows = []
for longest in (LONGEST, 64):
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=longest)
    before = mib()
    generator = genai.Generator(model, params)
    rows.append(round(mib() - before))
    del generator
print(f"shared: {shared}; MiB of a generator without a token, max_length {LONGEST}: {rows[0]}, max_length 64: {rows[1]}")
PYTHON
"$folder/venv/bin/python" -m pip list --disable-pip-version-check 2> /dev/null | grep onnxruntime-genai
shared=$("$folder/venv/bin/python" "$folder/run.py" "$folder" shared)
apart=$("$folder/venv/bin/python" "$folder/run.py" "$folder" apart)
printf '%s\n%s\n' "$shared" "$apart"
[[ $shared =~ ": "([0-9]+)", max_length 64: "([0-9]+)$ ]] && ((BASH_REMATCH[1] >= 500 && BASH_REMATCH[2] <= 20)) &&
  [[ $apart =~ ": "([0-9]+)", max_length 64: "([0-9]+)$ ]] && ((BASH_REMATCH[1] <= 20)) || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   onnxruntime-genai 0.18.0
#   shared: True; MiB of a generator without a token, max_length 65536: 512, max_length 64: 0
#   shared: False; MiB of a generator without a token, max_length 65536: 0, max_length 64: 0
