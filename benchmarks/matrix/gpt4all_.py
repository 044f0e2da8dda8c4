"""A GGUF file in gpt4all. It takes text only."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

from gpt4all import GPT4All

asked = json.loads(sys.argv[1])
path = Path(asked["path"])
model = GPT4All(path.name, model_path=str(path.parent), allow_download=False, n_threads=1, device="cpu", n_ctx=512)
text = model.generate(asked["text"], max_tokens=asked["new"], temp=0, repeat_penalty=1.0)
print(json.dumps({"version": version("gpt4all"), "text": text}))
