"""Text carried through the layers one at a time is where the whole model has it, at every depth."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saap_edge.families import FAMILIES
from saap_edge.model.stream import attention_branch, ffn_branch, layer_arguments, layer_inputs
from tests.conftest import skip_without, tiny_model

BORROWING = {
    "num_hidden_layers": 4, "num_kv_shared_layers": 2, "use_double_wide_mlp": True,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in FAMILIES}
CASES["gemma4_text, keys and values borrowed"] = ("gemma4_text", BORROWING)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_states_are_those_of_the_whole_model(case: str) -> None:
    family, overrides = CASES[case]
    skip_without(family)
    model = tiny_model(family, **overrides)
    windows = torch.randint(0, 300, (3, 24), generator=torch.manual_seed(3))
    hidden = model.config.hidden_size
    [states] = layer_inputs(model, windows)
    seen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(input_ids=windows, use_cache=False)
    wanted = [output[0] if isinstance(output, tuple) else output for output in seen]
    arguments = layer_arguments(model, windows)
    for index, (layer, keywords) in enumerate(zip(model.model.layers, arguments, strict=True)):
        states = states + attention_branch(layer, keywords)(states)
        states = states + ffn_branch(layer, keywords)(states)
        torch.testing.assert_close(states[..., :hidden], wanted[index], atol=1e-4, rtol=1e-4, msg=f"layer {index}")
