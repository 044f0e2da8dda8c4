"""An ONNX folder in onnxruntime-genai."""

import json
import os
import sys
from importlib.metadata import version

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime_genai as og

asked = json.loads(sys.argv[1])
model = og.Model(asked["path"])
settings = og.GeneratorParams(model)
settings.set_search_options(max_length=len(asked["ids"]) + asked["new"], do_sample=False, repetition_penalty=1.0)
generator = og.Generator(model, settings)
generator.append_tokens(asked["ids"])
tokens = []
while len(tokens) < asked["new"]:
    generator.generate_next_token()
    tokens.append(int(generator.get_next_tokens()[0]))
print(json.dumps({"version": version("onnxruntime-genai"), "tokens": tokens}))
