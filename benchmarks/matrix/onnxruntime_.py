"""An ONNX folder in a plain onnxruntime session. Every cache shape comes from the graph."""

import json
import os
import sys

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime

asked = json.loads(sys.argv[1])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
session = onnxruntime.InferenceSession(asked["path"] + "/model.onnx", options, providers=["CPUExecutionProvider"])
names = [value.name for value in session.get_outputs()]
past = {
    value.name: np.zeros([1, value.shape[1], 0, value.shape[3]], np.float32)
    for value in session.get_inputs()
    if value.name.startswith("past_key_values")
}
ids, done, tokens = asked["ids"], 0, []
while len(tokens) <= asked["new"]:
    done += len(ids)
    feeds = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, done), np.int64)}
    found = dict(zip(names, session.run(None, feeds | past), strict=True))
    if not tokens:
        np.save(asked["logits"], found["logits"][0])
    past = {name: found[name.replace("past_key_values", "present")] for name in past}
    tokens.append(int(found["logits"][0, -1].argmax()))
    ids = tokens[-1:]
print(json.dumps({"version": onnxruntime.__version__, "tokens": tokens[: asked["new"]]}))
