"""Layers that are the dense model's own are not trained where it is the dense model that is learnt from."""

import numpy as np
import pytest
import torch

from saap_edge.families import FAMILIES
from saap_edge.model.folder import load_model
from saap_edge.pruning.surgery import cut
from saap_edge.recovery.run import ADAPTERS, Texts, recover
from saap_edge.recovery.settings import RecoverSettings
from saap_edge.recovery.unchanged import first_changed
from tests.conftest import tiny_model, write_folder
from tests.pruning.test_surgery import random_kept

WHOLE = {"attention": np.arange(4), "slots": np.arange(2), "ffn": np.arange(128)}


def pruned_from(dense, whole):
    """The model without parts of all but the first layers."""
    return cut(dense, [WHOLE] * whole + random_kept(0)[whole:])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The dense folder, and one whose first layer is whole."""
    root, dense = tmp_path_factory.mktemp("unchanged"), tiny_model("llama")
    return write_folder(dense, root / "dense"), write_folder(pruned_from(dense, 1), root / "pruned")


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.uniform_only])
def test_the_first_layer_that_lost_something(name, tmp_path):
    dense = tiny_model(name)
    folder = write_folder(dense, tmp_path / "dense")
    mamba = name == "nemotron_h"  # whose first layer is one of Mamba-2, which loses nothing
    for whole in (0, 2):
        pruned = write_folder(pruned_from(dense, whole), tmp_path / str(whole))
        assert first_changed(folder, pruned, load_model(pruned)) == max(whole, mamba)


def test_a_model_that_lost_nothing_is_trained_from_the_first_layer(folders):
    assert first_changed(folders[0], folders[0], load_model(folders[0])) == 0


@pytest.mark.parametrize(
    "name", ["embed_tokens.weight", "layers.0.input_layernorm.weight", "layers.0.mlp.up_proj.weight"]
)
def test_one_weight_that_is_another(folders, tmp_path, name):
    model = load_model(folders[1])
    with torch.no_grad():
        weight = model.model.get_parameter(name)
        weight.copy_(weight.clone().index_fill_(0, torch.tensor([0]), 0.5))
    changed = write_folder(model, tmp_path / "changed")
    assert first_changed(folders[0], changed, load_model(changed)) == 0
    assert first_changed(*folders, load_model(folders[1])) == 1


@pytest.mark.parametrize("distillation", [0.5, 1.0])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_is_trained(folders, tmp_path, adapter, distillation):
    torch.manual_seed(0)
    said = torch.randint(1, 320, (24, 32))
    settings = RecoverSettings(
        tokens=1024, batch=4, rank=4, adapter=adapter, weights_learning_rate=1e-3, distillation=distillation,
        precision="float32",
    )  # fmt: skip
    found = recover(
        *folders, Texts(said[:8], said[:16], said[16:]), settings, group=32, seed=0, out=tmp_path / "out",
        work=tmp_path / "work",
    )  # fmt: skip
    before, after = load_model(folders[1]), load_model(tmp_path / "out" / "model")
    trained = [
        any(
            not torch.equal(value, after.get_parameter(f"model.layers.{index}.{name}"))
            for name, value in layer.named_parameters()
        )
        for index, layer in enumerate(before.model.layers)
    ]
    assert found["kept"].startswith("tuned weights")
    assert found["first_trained_layer"] == (1 if distillation == 1 else 0)
    assert trained == [distillation < 1, True, True]
