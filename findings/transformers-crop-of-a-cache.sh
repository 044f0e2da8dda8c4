#!/usr/bin/env bash
# transformers 5.23.0: the argument of DynamicCache.crop is how many tokens go, in 4.57.6 it was how many stay.
#
# Code that rolls a cache back (speculative decoding, a prompt that is used again) called crop(length). Seen: 5.23 takes
# crop(-n) for "remove n", refuses crop(n), and takes crop(0), which emptied a cache in 4.57, for "remove nothing": the old
# text stays in the cache without a word, and the answers after it are another text's. crop(-n) means the same in both.
#
# Run: findings/transformers-crop-of-a-cache.sh      (3 minutes, most of it pip; needs no model)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/python" -m pip install -q --disable-pip-version-check "$@" 2> /dev/null; }
pip torch==2.13.0 numpy
cat > "$folder/run.py" <<'PYTHON'
import torch
import transformers
from transformers import DynamicCache


def left(count):
    """Tokens of 5 that are left."""
    cache = DynamicCache()
    cache.update(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4), 0)
    try:
        cache.crop(count)
    except ValueError as error:
        return f"ValueError: {str(error)[:60]}"
    return cache.get_seq_length()


print(f"transformers {transformers.__version__}, of 5 tokens: " + "; ".join(f"crop({n}) leaves {left(n)}" for n in (0, 2, -2)))
PYTHON
pip transformers==4.57.6
old=$("$folder/venv/bin/python" "$folder/run.py" 2> /dev/null)
pip transformers==5.23.0
new=$("$folder/venv/bin/python" "$folder/run.py" 2> /dev/null)
printf '%s\n%s\n' "$old" "$new"
[[ $old == *"crop(0) leaves 0; crop(2) leaves 2; crop(-2) leaves 3" ]] &&
  [[ $new == *"crop(0) leaves 5; crop(2) leaves ValueError"*"crop(-2) leaves 3" ]] || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   transformers 4.57.6, of 5 tokens: crop(0) leaves 0; crop(2) leaves 2; crop(-2) leaves 3
#   transformers 5.23.0, of 5 tokens: crop(0) leaves 5; crop(2) leaves ValueError: Calling `crop` with a positive value
#   (`2`) is not supported.; crop(-2) leaves 3
