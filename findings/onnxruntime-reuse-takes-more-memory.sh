#!/usr/bin/env bash
# onnxruntime 1.32.0: "memory reuse", on by default, takes more memory where layers have widths of their own.
#
# One would expect that enable_mem_reuse lowers the memory of a run, or changes nothing. A plan made when the session is
# opened says which result gets the buffer of an earlier one, and only results of the same shape share one. The buffer is
# kept between them, however many layers lie between, and is never lent to another shape. In a model whose layers are
# alike that is one buffer. In a pruned model, where each width comes again some layers later, one buffer of every width
# is there at once. With enable_mem_reuse = False each is given back after its last use, and the arena lends it to the
# next layer of whatever width. Answers are the same.
#
# Two chains of 24 layers (x + relu(x W1) W2) and a prompt of 4096 rows: widths 512 everywhere; and the widths 480 to 568
# in steps of 8, then the same backwards. What a run adds to the process's highest memory, in MiB.
#
# Run: findings/onnxruntime-reuse-takes-more-memory.sh      (Linux, half a minute)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 2> /dev/null
cat > "$folder/run.py" << 'EOF'
import json
import resource
import subprocess
import sys

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ROWS, HIDDEN, LAYERS = 4096, 64, 24


def chain(widths):
    draw, nodes, weights, last = np.random.default_rng(0), [], [], "x0"
    for layer, width in enumerate(widths):
        for name, shape in ((f"up{layer}", (HIDDEN, width)), (f"down{layer}", (width, HIDDEN))):
            weights.append(numpy_helper.from_array((draw.standard_normal(shape) / 32).astype(np.float32), name))
        result = f"x{layer + 1}"
        nodes += [
            helper.make_node("MatMul", [last, f"up{layer}"], [f"a{layer}"]),
            helper.make_node("Relu", [f"a{layer}"], [f"r{layer}"]),
            helper.make_node("MatMul", [f"r{layer}", f"down{layer}"], [f"d{layer}"]),
            helper.make_node("Add", [last, f"d{layer}"], [result]),
        ]
        last = result
    shape = ["rows", HIDDEN]
    graph = helper.make_graph(
        nodes, "chain", [helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)], weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def highest():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if len(sys.argv) == 1:
    rising = [480 + 8 * step for step in range(LAYERS // 2)]
    kinds = {"alike": [512] * LAYERS, "own widths": rising + rising[::-1]}
    found = {}
    for kind, widths in kinds.items():
        for reuse in (True, False):
            told = subprocess.run(
                [sys.executable, __file__, json.dumps(widths), str(int(reuse))], capture_output=True, check=True, text=True
            )
            found[kind, reuse] = json.loads(told.stdout)
            print(f"{kind}, enable_mem_reuse={reuse}: {found[kind, reuse][0]:.0f} MiB")
    same = all(found[kind, True][1] == found[kind, False][1] for kind in kinds)
    print(f"answers are the same: {same}")
    alike, own = ([found[kind, reuse][0] for reuse in (True, False)] for kind in kinds)
    if not (same and own[0] > 3 * own[1] and alike[0] < 1.5 * alike[1]):
        raise SystemExit("the behaviour has changed")
else:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_mem_reuse = 1, bool(int(sys.argv[2]))
    session = onnxruntime.InferenceSession(chain(json.loads(sys.argv[1])), options, providers=["CPUExecutionProvider"])
    rows = np.random.default_rng(1).standard_normal((ROWS, HIDDEN)).astype(np.float32)
    before = highest()
    answer = session.run(None, {"x0": rows})[0]
    print(json.dumps([highest() - before, float(np.abs(answer).sum())]))
EOF
"$folder/venv/bin/python" -m pip list --disable-pip-version-check 2> /dev/null | grep -E '^onnx(runtime)? '
"$folder/venv/bin/python" "$folder/run.py"
# Output seen:
#   onnx              1.23.2
#   onnxruntime       1.32.0
#   alike, enable_mem_reuse=True: 6 MiB
#   alike, enable_mem_reuse=False: 6 MiB
#   own widths, enable_mem_reuse=True: 100 MiB
#   own widths, enable_mem_reuse=False: 19 MiB
#   answers are the same: True
