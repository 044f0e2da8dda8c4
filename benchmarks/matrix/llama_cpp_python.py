"""A GGUF file in llama-cpp-python."""

import json
import sys

import llama_cpp
import numpy as np

asked = json.loads(sys.argv[1])
model = llama_cpp.Llama(asked["path"], n_ctx=512, n_threads=1, logits_all=True, verbose=False)
model.eval(asked["ids"])
np.save(asked["logits"], np.array(model.scores[: len(asked["ids"])], dtype=np.float32))
tokens = []
for _ in range(asked["new"]):
    tokens.append(int(np.argmax(model.scores[model.n_tokens - 1])))
    model.eval(tokens[-1:])
print(json.dumps({"version": llama_cpp.__version__, "tokens": tokens}))
