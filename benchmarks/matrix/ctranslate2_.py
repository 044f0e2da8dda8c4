"""A Hugging Face folder in CTranslate2, through its own converter."""

import json
import sys
import tempfile
from pathlib import Path

import ctranslate2
from ctranslate2.converters import TransformersConverter
from transformers import AutoTokenizer

asked = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(asked["path"])
with tempfile.TemporaryDirectory() as folder:
    out = Path(folder, "model")
    TransformersConverter(asked["path"], trust_remote_code=True).convert(str(out))
    model = ctranslate2.Generator(str(out), device="cpu", inter_threads=1, intra_threads=1)
    made = model.generate_batch(
        [tokenizer.convert_ids_to_tokens(asked["ids"])], max_length=asked["new"], min_length=asked["new"],
        sampling_topk=1, include_prompt_in_result=False, end_token=[],
    )  # fmt: skip
print(json.dumps({"version": ctranslate2.__version__, "tokens": made[0].sequences_ids[0]}))
