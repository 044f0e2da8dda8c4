"""Pruning in rounds: what is gone stays gone, and every round looks at the model as it then is."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from saap_edge.model.folder import spec_of
from saap_edge.pruning.iterate import iterative_values
from saap_edge.pruning.kept import kept_structures, ranked_widths
from saap_edge.pruning.settings import PruneSettings
from saap_edge.pruning.space import Space
from tests.conftest import tiny_model

WINDOWS = torch.randint(0, 320, (4, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def setting(per_layer_family):
    model = tiny_model(per_layer_family)
    spec = spec_of(model)
    return model, Space(spec.layers, spec.hidden, spec.head_dim)


def random_values(rng):
    return [{"attention": rng.random(4), "slots": np.ones(2), "ffn": rng.random(128)} for _ in range(3)]


def test_one_round_is_the_plain_order(setting):
    model, space = setting
    values = random_values(np.random.default_rng(0))
    assert iterative_values(model, space, lambda: values, WINDOWS, 0.4, 1)[2] is values[2]


def test_each_round_sees_the_model_without_what_is_gone(setting):
    """Fresh random values every round: only memory of the rounds before can keep structures gone."""
    model, space = setting
    rng, gone = np.random.default_rng(1), []
    ffns = [layer.mlp for layer in model.model.layers if layer.mlp is not None]

    def value():
        columns = [ffn.down_proj.weight.abs().sum(0) == 0 for ffn in ffns]
        gone.append(sum(int(mask.sum()) for mask in columns))
        layers = zip(random_values(rng), space.dense(), strict=True)
        return [{kind: figures[: sizes[kind]] for kind, figures in layer.items()} for layer, sizes in layers]

    before = [ffn.down_proj.weight.detach().clone() for ffn in ffns]
    values = iterative_values(model, space, value, WINDOWS, 0.5, 3)
    assert gone[0] == 0 < gone[1] <= gone[2]
    removed = sum(int(np.isinf(layer["ffn"]).sum()) for layer in values)
    assert removed == gone[2]
    kept = kept_structures(values, ranked_widths(values, space, 0.5))
    assert all(np.isfinite(v["ffn"][k["ffn"]]).all() for v, k in zip(values, kept, strict=True))
    for ffn, weight in zip(ffns, before, strict=True):
        torch.testing.assert_close(ffn.down_proj.weight, weight, atol=0, rtol=0)


@pytest.mark.parametrize("method", ["auto", "search", "uniform"])
def test_rounds_are_for_orders_only(method):
    with pytest.raises(ValidationError, match="rounds are for methods that rank"):
        PruneSettings(method=method, rounds=2)
