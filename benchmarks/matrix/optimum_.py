"""An ONNX folder in optimum's ORTModelForCausalLM."""

import json
import os
import sys
from importlib.metadata import version

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import torch
from optimum.onnxruntime import ORTModelForCausalLM

asked = json.loads(sys.argv[1])
model = ORTModelForCausalLM.from_pretrained(asked["path"], use_io_binding=False)
ids = torch.tensor([asked["ids"]])
made = model.generate(
    ids, attention_mask=torch.ones_like(ids), max_new_tokens=asked["new"], min_new_tokens=asked["new"], do_sample=False,
    repetition_penalty=1.0, pad_token_id=0,
)  # fmt: skip
print(json.dumps({"version": version("optimum-onnx"), "tokens": made[0, ids.shape[1] :].tolist()}))
