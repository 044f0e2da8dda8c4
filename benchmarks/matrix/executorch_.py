"""A folder of `saap-edge export --for executorch` in ExecuTorch's runtime."""

import json
import sys
from importlib.metadata import version

import executorch.extension.llm.custom_ops.custom_ops
import executorch.kernels.quantized  # noqa: F401
import torch
from executorch.runtime import Runtime

asked = json.loads(sys.argv[1])
program = Runtime.get().load_program(asked["path"] + "/model.pte")
method = program.load_method("forward")
ids, done, tokens = asked["ids"], 0, []
while len(tokens) < asked["new"]:
    places = torch.arange(done, done + len(ids))
    logits = method.execute([torch.tensor([ids]), places])[0].flatten()  # of the last token
    done += len(ids)
    tokens.append(int(logits.argmax()))
    ids = tokens[-1:]
print(json.dumps({"version": version("executorch"), "tokens": tokens}))
