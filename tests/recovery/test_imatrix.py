"""The importance matrix against activations taken apart by hand."""

import re

import numpy as np
import pytest
import torch

from saap_edge.errors import SaapError
from saap_edge.exporting.imatrix import read_importance, save_importance
from saap_edge.model.stream import attention_branch, layer_arguments, layer_inputs
from saap_edge.recovery.imatrix import importance_matrix
from tests.conftest import VOCABULARY, tiny_model

PROJECTION = re.compile(r"(_proj(_[qkvzba])?|per_layer_(input_gate|projection|model_projection))\.weight$")


def test_mean_of_squared_inputs_of_every_projection(per_layer_family, tmp_path):
    model = tiny_model(per_layer_family)
    windows = torch.randint(VOCABULARY, (11, 24), generator=torch.Generator().manual_seed(0))
    matrix = importance_matrix(model, windows)
    assert sorted(matrix) == sorted(name for name, _ in model.named_parameters() if PROJECTION.search(name))
    layer, state = model.model.layers[0], model.get_input_embeddings()(windows)
    firsts = ("conv.in_proj", "linear_attn.in_proj_b", "mamba.in_proj", "self_attn.v_proj")
    first = next(name for name in firsts if getattr(layer, name.split(".")[0], None) is not None)
    expected = {first: layer.input_layernorm(state)}
    width = model.config.hidden_size  # states of Gemma 4 are wider
    if layer.mlp is not None:  # a Mamba-2 block has none
        with torch.no_grad():
            state = torch.cat(layer_inputs(model, windows))
            state = (state + attention_branch(layer, layer_arguments(model, windows)[0])(state))[..., :width]
            inner = getattr(layer, "pre_feedforward_layernorm", layer.post_attention_layernorm)(state)
            expected["mlp.up_proj"] = inner
            expected["mlp.down_proj"] = layer.mlp.act_fn(layer.mlp.gate_proj(inner)) * layer.mlp.up_proj(inner)
    for name, inputs in expected.items():
        mean = inputs.detach().square().mean((0, 1)).numpy()
        np.testing.assert_allclose(matrix[f"model.layers.0.{name}.weight"], mean, rtol=1e-4)
    again = read_importance(save_importance(matrix, tmp_path))
    assert all(np.array_equal(again[name], values) for name, values in matrix.items())


def test_a_file_that_is_none_is_refused_in_one_line(tmp_path):
    (tmp_path / "broken").write_bytes(b"x" * 100)
    for name in ("absent", "broken"):
        with pytest.raises(SaapError, match="is not an importance matrix") as error:
            read_importance(tmp_path / name)
        assert "\n" not in str(error.value)
