"""A GGUF file or a Hugging Face folder in mistralrs. It takes text only."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

from mistralrs import Architecture, CompletionRequest, Runner, Which

asked = json.loads(sys.argv[1])
path = Path(asked["path"])
if path.is_file():
    which = Which.GGUF(quantized_model_id=str(path.parent), quantized_filename=path.name)
else:
    which = Which.Plain(model_id=str(path), arch=Architecture.Llama)
answer = Runner(which=which).send_completion_request(
    CompletionRequest(model="default", prompt=asked["text"], max_tokens=asked["new"], temperature=0.0, top_k=1)
)
print(json.dumps({"version": version("mistralrs"), "text": answer.choices[0].text}))
