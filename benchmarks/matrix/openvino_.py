"""The graph of an ONNX folder in OpenVINO, which reads it as it is."""

import json
import sys

sys.modules["openvino_telemetry"] = None

import numpy as np  # noqa: E402
import openvino  # noqa: E402

asked = json.loads(sys.argv[1])
core = openvino.Core()
model = core.read_model(asked["path"] + "/model.onnx")
compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
names = [output.get_any_name() for output in compiled.outputs]
shapes = {value.get_any_name(): value.partial_shape for value in compiled.inputs}
past = {
    name: np.zeros([1, shape[1].get_length(), 0, shape[3].get_length()], np.float32)
    for name, shape in shapes.items()
    if name.startswith("past_key_values")
}
extra = {"logits_from": np.zeros(1, np.int64)} if "logits_from" in shapes else {}
ids, done, tokens = asked["ids"], 0, []
while len(tokens) <= asked["new"]:
    done += len(ids)
    feeds = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, done), np.int64)}
    answer = compiled(feeds | past | extra)
    found = {name: np.array(answer[name]) for name in names}
    if not tokens:
        np.save(asked["logits"], found["logits"][0])
    past = {name: found[name.replace("past_key_values", "present")] for name in past}
    tokens.append(int(found["logits"][0, -1].argmax()))
    ids = tokens[-1:]
print(json.dumps({"version": openvino.__version__.partition("-")[0], "tokens": tokens[: asked["new"]]}))
