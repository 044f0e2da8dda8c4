#!/usr/bin/env bash
# openvino 2026.4.1: save_model writes a file that read_model of the same version refuses.
#
# One would expect that a model that OpenVINO reads, compiles and runs can be saved and read again; `ovc model.onnx` and
# convert_model + save_model are the documented way from ONNX to its own format. Seen: an ONNX graph with the contrib
# operator GroupQueryAttention runs from the .onnx file with the right numbers. save_model writes the operator as an
# internal one of the opset "extension" without a complaint, and read_model of that file says "Cannot create
# GroupQueryAttention layer ... from unsupported opset". The way round is to keep the .onnx, or to build the graph from
# operators that are public.
#
# Run: findings/openvino-saves-an-onnx-model-that-it-cannot-read.sh      (half a minute)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check openvino==2026.4.1 onnx==1.23.2 2> /dev/null
cat > "$folder/look.py" << 'PY'
import sys

sys.modules["openvino_telemetry"] = None  # importing it sends an event
import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, helper

folder, heads, width = sys.argv[1], 2, 16
names = ("query", "key", "value")
floats = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "tokens", heads * width]) for name in names]
past = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, heads, "past", width]) for name in ("pk", "pv")]
counts = [helper.make_tensor("last", TensorProto.INT32, [1], [4]), helper.make_tensor("total", TensorProto.INT32, [], [5])]
out = [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, "tokens", heads * width])]
out += [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, heads, "total", width]) for name in ("k", "v")]
node = helper.make_node("GroupQueryAttention", [*names, "pk", "pv", "last", "total"], ["out", "k", "v"],
                        domain="com.microsoft", num_heads=heads, kv_num_heads=heads)
graph = helper.make_graph([node], "attention", [*floats, *past], out, counts)
opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
onnx.save(helper.make_model(graph, ir_version=10, opset_imports=opsets), f"{folder}/model.onnx")

core = ov.Core()
model = core.read_model(f"{folder}/model.onnx")
dice = np.random.default_rng(0)
q, k, v = (dice.normal(size=(1, 5, heads * width)).astype(np.float32) for _ in names)
empty = np.zeros((1, heads, 0, width), np.float32)
found = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([q, k, v, empty, empty])[0]
q, k, v = (x.reshape(5, heads, width).transpose(1, 0, 2) for x in (q, k, v))
scores = q @ k.transpose(0, 2, 1) / width**0.5 + np.triu(np.full((5, 5), -1e9), 1)
shares = np.exp(scores - scores.max(-1, keepdims=True))
wanted = ((shares / shares.sum(-1, keepdims=True)) @ v).transpose(1, 0, 2).reshape(1, 5, -1)
print("from .onnx: as numpy" if np.abs(found - wanted).max() < 1e-4 else "from .onnx: other numbers")
ov.save_model(core.read_model(f"{folder}/model.onnx"), f"{folder}/model.xml")
print("saved")
try:
    core.read_model(f"{folder}/model.xml")
    print("read again")
except RuntimeError as error:
    print("read_model refuses it:", next(line for line in str(error).splitlines() if "GroupQueryAttention" in line)[:120])
PY
told=$("$folder/venv/bin/python" "$folder/look.py" "$folder" 2> /dev/null)
"$folder/venv/bin/python" -m pip list --disable-pip-version-check 2> /dev/null | grep '^openvino '
echo "$told"
[[ $told == "from .onnx: as numpy"*saved*"read_model refuses it:"* ]] || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   openvino           2026.4.1
#   from .onnx: as numpy
#   saved
#   read_model refuses it: Cannot create GroupQueryAttention layer v id:36 from unsupported opset: extension
