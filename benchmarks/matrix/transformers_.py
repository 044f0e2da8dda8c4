"""A GGUF file or a Hugging Face folder in transformers, the folder with its own code where it has some."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

asked = json.loads(sys.argv[1])
path = Path(asked["path"])
where = {"gguf_file": path.name} if path.is_file() else {"trust_remote_code": True}
folder = path.parent if path.is_file() else path
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where).eval()
ids = torch.tensor([asked["ids"]])
with torch.no_grad():
    np.save(asked["logits"], model(ids).logits[0].float().numpy())
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=asked["new"], min_new_tokens=asked["new"],
        do_sample=False, repetition_penalty=1.0, pad_token_id=0,
    )  # fmt: skip
print(json.dumps({"version": transformers.__version__, "tokens": made[0, ids.shape[1] :].tolist()}))
