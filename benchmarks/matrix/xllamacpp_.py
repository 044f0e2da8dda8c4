"""A GGUF file in xllamacpp's server."""

import json
import sys
from importlib.metadata import version

import xllamacpp

asked = json.loads(sys.argv[1])
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel = asked["path"], 512, 1
settings.cpuparams.n_threads = 1
answer = xllamacpp.Server(settings).handle_completions({
    "prompt": asked["ids"], "n_predict": asked["new"], "temperature": 0, "top_k": 1, "repeat_penalty": 1.0,
    "ignore_eos": True,
})  # fmt: skip
print(json.dumps({"version": version("xllamacpp"), "text": answer["choices"][0]["text"]}))
