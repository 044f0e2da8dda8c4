#!/usr/bin/env bash
# executorch 1.5.1: the LLM runner's Python callback dies of a token that is a part of a character.
#
# Byte-level tokenizers write characters beyond ASCII as several tokens, each some of their bytes. One would expect the
# runner to hold them back until the character is whole, or to hand out bytes. Seen: `TextLLMRunner.generate` decodes each
# token by itself as UTF-8 for the Python callback, and raises UnicodeDecodeError in the middle of a text; the answer is
# lost. llama.cpp's and onnxruntime-genai's streams hold the bytes back. What helps: callbacks in C++, which get bytes.
#
# Run: findings/executorch-runner-parts-of-characters.sh      (two minutes, most of it pip)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check executorch==1.5.1 torch==2.13.0 tokenizers==0.23.3 2> /dev/null
cat > "$folder/run.py" <<'PYTHON'
import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from executorch.exir import to_edge_transform_and_lower
from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

folder = Path(sys.argv[1])
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
words = {word: index for index, word in enumerate([*alphabet, "<end>"])}
tokenizer = Tokenizer(models.BPE(words, []))
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer.add_special_tokens(["<end>"])
tokenizer.save(str(folder / "tokenizer.json"))


class Says(torch.nn.Module):
    """After any token, always the same text, token by token: a, then the two bytes of an e with an accent."""

    def __init__(self, text):
        super().__init__()
        said = tokenizer.encode(text).ids
        rows = torch.zeros(len(words), len(words))
        for token in range(len(words)):
            rows[token, said[0]] = 1.0
        for before, after in zip(said, said[1:]):
            rows[before] = 0.0
            rows[before, after] = 1.0
        self.register_buffer("rows", rows)

    def forward(self, tokens, position):
        return self.rows[tokens[:, -1]] + 0.0 * position[0]


def runs(text):
    asked = {"get_max_seq_len": 32, "get_max_context_len": 32, "use_kv_cache": True, "enable_dynamic_shape": True,
             "get_eos_ids": [words["<end>"]]}
    example, seq = (torch.ones(1, 3, dtype=torch.int64), torch.arange(3)), torch.export.Dim("seq", min=1, max=31)
    exported = torch.export.export(Says(text).eval(), example, dynamic_shapes=({1: seq}, {0: seq}))
    path = folder / "model.pte"
    path.write_bytes(to_edge_transform_and_lower(exported, constant_methods=asked).to_executorch().buffer)
    runner, heard = TextLLMRunner(str(path), str(folder / "tokenizer.json")), []
    settings = GenerationConfig(max_new_tokens=4, temperature=0.0, echo=False)
    try:
        runner.generate("x", settings, heard.append)
    except UnicodeDecodeError as error:
        return f"UnicodeDecodeError: {error.reason}, after {len(heard)} pieces"
    return f"{len(heard)} pieces, {''.join(heard)!r}"


print(f"executorch {version('executorch')}")
print(f"\na text of whole characters: {runs('ab')}", flush=True)  # the runner prints the text itself, too
print(f"\none with an accent:         {runs('a' + chr(233))}", flush=True)
PYTHON
output=$("$folder/venv/bin/python" "$folder/run.py" "$folder" 2> "$folder/log") || { tail -5 "$folder/log"; exit 1; }
printf '%s\n' "$output"
grep -q "whole characters: [0-9]* pieces" <<< "$output" && grep -q "accent:  *UnicodeDecodeError" <<< "$output" || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   executorch 1.5.1
#   a text of whole characters: 4 pieces, 'abab'
#   one with an accent:         UnicodeDecodeError: unexpected end of data, after 1 pieces
