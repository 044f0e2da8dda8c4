"""A Hugging Face folder in LiteRT, through its own converter, litert-torch. Its .tflite is run a token at a time."""

import glob
import json
import sys
import tempfile
from importlib.metadata import version

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from litert_torch.generative.export_hf.export import export

asked = json.loads(sys.argv[1])
with tempfile.TemporaryDirectory() as folder:
    export(asked["path"], folder, trust_remote_code=True, prefill_lengths=[16], cache_length=128,
           quantization_recipe="", bundle_litert_lm=False)  # fmt: skip
    model = Interpreter(glob.glob(folder + "/**/*.tflite", recursive=True)[0], num_threads=1)
    step = model.get_signature_runner("decode")
    shapes = {name: told["shape"] for name, told in step.get_input_details().items()}
    cache = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name.startswith("kv_cache")}
    ids, tokens, rows, place = list(asked["ids"]), [], [], 0
    while len(tokens) < asked["new"]:
        mask = np.where(np.arange(shapes["mask"][-1]) <= place, 0.0, -1e9).astype(np.float32)
        found = step(tokens=np.array([[ids[place]]], np.int32), input_pos=np.array([place], np.int32),
                     mask=mask.reshape(shapes["mask"]), **cache)  # fmt: skip
        cache = {name: found[name] for name in cache}
        rows.append(found["logits"].reshape(-1))
        place += 1
        if place == len(ids):
            tokens.append(int(rows[-1].argmax()))
            ids.append(tokens[-1])
np.save(asked["logits"], np.stack(rows[: len(asked["ids"])]))
print(json.dumps({"version": version("litert-torch"), "tokens": tokens}))
