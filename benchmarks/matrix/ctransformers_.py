"""A GGUF file in ctransformers."""

import json
import sys
from importlib.metadata import version

from ctransformers import AutoModelForCausalLM

asked = json.loads(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(asked["path"], model_type="llama", threads=1)
tokens = []
for token in model.generate(asked["ids"], top_k=1, repetition_penalty=1.0, threads=1):
    tokens.append(int(token))
    if len(tokens) == asked["new"]:
        break
print(json.dumps({"version": version("ctransformers"), "tokens": tokens}))
