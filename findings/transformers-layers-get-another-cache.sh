#!/usr/bin/env bash
# transformers 5.23.0 and 5.24.0: a minor release gives decoder layers their cache as `cache`, and no longer as
# `past_key_values`.
#
# A layer of one's own in a library's model (a short convolution with a state, say) that takes its cache by name, and all
# else as **keywords, is built and called without a word by both. Callers' `past_key_values` is still taken, with a
# warning about itself. But from 5.24 on the layer finds no cache: whole texts are as before, and only what is generated
# token by token is wrong.
#
# Run: findings/transformers-layers-get-another-cache.sh      (4 minutes, most of it pip; needs no model)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/python" -m pip install -q --disable-pip-version-check "$@" 2> /dev/null; }
pip torch==2.13.0 numpy
cat > "$folder/run.py" <<'PYTHON'
import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM


class Before(torch.nn.Module):
    """Adds the sum of all tokens so far to each."""

    def forward(self, states, past_key_values=None, **keywords):
        before = 0 if past_key_values is None else getattr(past_key_values, "kept", 0)
        sums = states.cumsum(1) + before
        if past_key_values is not None:
            past_key_values.kept = sums[:, -1:]
        return states + sums


torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2,
)
model = LlamaForCausalLM(config).eval()
model.model.layers[1] = Before()
ids = torch.arange(12).view(1, -1)
with torch.no_grad():
    whole, cache, steps = model(ids, use_cache=False).logits, DynamicCache(config=config), []
    for position in range(ids.shape[1]):
        found = model(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
        steps.append(found.logits)
same = torch.allclose(torch.cat(steps, dim=1), whole, atol=1e-4)
print(f"transformers {transformers.__version__}: token by token as the whole text: {same}")
PYTHON
pip transformers==5.23.0
old=$("$folder/venv/bin/python" "$folder/run.py" 2> /dev/null)
pip transformers==5.24.0
new=$("$folder/venv/bin/python" "$folder/run.py" 2> /dev/null)
printf '%s\n%s\n' "$old" "$new"
[[ $old == *": True" && $new == *": False" ]] || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   transformers 5.23.0: token by token as the whole text: True
#   transformers 5.24.0: token by token as the whole text: False
