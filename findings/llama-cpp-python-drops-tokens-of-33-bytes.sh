#!/usr/bin/env bash
# llama-cpp-python 0.3.36: a token whose text is longer than 32 bytes is missing from answers, without a word.
#
# One would expect that detokenize gives back the text that tokenize was given. It reads every token's text into a buffer of
# 32 bytes; llama.cpp answers that the text does not fit, by the length it would need as a negative number, and that number
# is taken for the end of a slice. So the token adds nothing. Completions, chats and streams are made by the same function.
# Long tokens are ordinary words in scripts of three bytes a letter (379 tokens of Gemma 3, in Hindi, Bengali and Tamil
# among others), and indentation of code (47 tokens of SmolLM2, runs of 33 spaces and more). token_to_piece is no way out:
# it gives such a token as 32 zero bytes.
#
# Run: findings/llama-cpp-python-drops-tokens-of-33-bytes.sh      (pip builds llama-cpp-python: 7 minutes, or 15 s from its cache)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check llama-cpp-python==0.3.36 gguf==0.19.0 2> /dev/null
cat > "$folder/run.py" <<'PYTHON'
import sys
from importlib.metadata import version

import gguf
import llama_cpp

path = f"{sys.argv[1]}/vocabulary.gguf"
WORDS = ["नमस्ते", "क" * 10 + "aa", "क" * 11]  # 18, 32 and 33 bytes
writer = gguf.GGUFWriter(path, "llama")
tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *WORDS]
writer.add_context_length(64)
writer.add_embedding_length(32)
writer.add_block_count(1)
writer.add_head_count(1)
writer.add_feed_forward_length(32)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_tokenizer_model("llama")
writer.add_token_list(tokens)
writer.add_token_scores([0.0] * len(tokens))
writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)])
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

print("llama-cpp-python", version("llama-cpp-python"))
model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
found = []
for number, word in enumerate(WORDS, start=len(tokens) - len(WORDS)):
    text = model.detokenize([number])
    found.append(text == word.encode())
    print(f"a token of {len(word.encode())} bytes: detokenize gives {len(text)} bytes")
piece = model._model.token_to_piece(len(tokens) - 1)
print("token_to_piece of the last:", "zero bytes only" if not any(piece) else "its text", len(piece))
sys.exit(found != [True, True, False] or any(piece))
PYTHON
"$folder/venv/bin/python" "$folder/run.py" "$folder" || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   llama-cpp-python 0.3.36
#   a token of 18 bytes: detokenize gives 18 bytes
#   a token of 32 bytes: detokenize gives 32 bytes
#   a token of 33 bytes: detokenize gives 0 bytes
#   token_to_piece of the last: zero bytes only 32
