#!/usr/bin/env bash
# transformers 5.24.0: what Nemotron-H answers to a text that it reads at once, and to the same text token by token.
#
# The time steps of a Mamba-2 are softplus(projection + dt_bias). Seen: in a prompt the class raises them to `time_step_min`
# of config.json (0.001 by default), and in single steps with a cache it does not. A model with smaller steps so gives a text
# other logits when it is read at once than when it is generated, and other logits without a cache than with one.
# `time_step_limit`, which published config.json say beside it (0 to infinity), is not read.
# What helps: a `time_step_min` below all steps (1e-30, say) in config.json, where both ways are to agree.
#
# Run: findings/transformers-nemotron-h-bounds-time-steps-in-prompts-only.sh   (about 2 minutes: a CPU build of torch)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 2> /dev/null
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check transformers==5.24.0 safetensors==0.8.0 2> /dev/null
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - << 'PYTHON'
import sys

import torch
import transformers
from transformers import DynamicCache, NemotronHConfig, NemotronHForCausalLM


def difference(low, **said):
    """The largest difference of a logit between a text that is read at once and one that is read token by token."""
    torch.manual_seed(0)
    config = NemotronHConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, layers_block_type=["linear_attention", "full_attention", "mlp"],
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, mamba_num_heads=4, mamba_head_dim=16, n_groups=1,
        ssm_state_size=16, initializer_range=0.3, **said,
    )
    model = NemotronHForCausalLM(config).eval()
    with torch.no_grad():
        model.model.layers[0].mixer.dt_bias.fill_(low)
        ids, cache, steps = torch.arange(1, 33)[None], DynamicCache(config=config), []
        for token in ids.split(1, dim=1):
            steps.append(model(token, cache=cache, use_cache=True).logits)
        return float((torch.cat(steps, dim=1) - model(ids).logits).abs().max())


print(f"transformers {transformers.__version__}")
usual, small, bounded = difference(0.0), difference(-9.0), difference(-9.0, time_step_min=1e-30)
limit = difference(-9.0, time_step_limit=(0.0, float("inf")))
print(f"time steps of about 0.7: at once and token by token differ by {usual:.6f}")
print(f"time steps of about 0.0001: {small:.6f}")
print(f"... with time_step_limit from 0 to infinity: {limit:.6f}")
print(f"... with time_step_min 1e-30: {bounded:.6f}")
same = usual < 1e-4 and bounded < 1e-4
sys.exit(0 if same and small > 1e-3 and limit == small else "the behaviour has changed")
PYTHON
# Output seen:
#   transformers 5.24.0
#   time steps of about 0.7: at once and token by token differ by 0.000013
#   time steps of about 0.0001: 0.123514
#   ... with time_step_limit from 0 to infinity: 0.123514
#   ... with time_step_min 1e-30: 0.000012
