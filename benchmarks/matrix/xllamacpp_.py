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
    "return_tokens": True, "ignore_eos": True,
})  # fmt: skip
answer = answer[0] if isinstance(answer, list) else answer
answer = json.loads(answer) if isinstance(answer, str) else answer
told = {"tokens": answer["tokens"]} if answer.get("tokens") else {"text": answer.get("content", answer)}
print(json.dumps({"version": version("xllamacpp")} | told))
