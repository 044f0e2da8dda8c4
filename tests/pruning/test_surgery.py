"""Surgery against zeroing, repair against least squares."""

import json

import numpy as np
import pytest
import torch

from saap_edge.families import FAMILIES
from saap_edge.model.folder import load_model, spec_of
from saap_edge.model.perplexity import perplexity
from saap_edge.pruning.removal import least_squares
from saap_edge.pruning.repair import repair, restored
from saap_edge.pruning.surgery import cut, zero_removed
from tests.conftest import tiny_model, write_folder

IDS = torch.arange(1, 40).view(1, -1)


def random_kept(seed, uniform=False):
    rng = np.random.default_rng(seed)
    kept = []
    for layer in range(3):
        kv, ffn = (2, 64) if uniform else (layer + 1, 32 * (layer + 1))
        kept.append({
            "attention": np.sort(rng.choice(4, kv, replace=False)), "slots": np.arange(2),
            "ffn": np.sort(rng.choice(128, ffn, replace=False)),
        })  # fmt: skip
    return kept


def kept_for(family, seed, uniform=False):
    """A random plan that the family can have."""
    return random_kept(seed, uniform or bool(FAMILIES[family].uniform_only))


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cut_equals_dense_with_the_rest_zeroed(family, seed, uniform):
    dense, kept = tiny_model(family, seed=seed), kept_for(family, seed, uniform)
    pruned = cut(dense, kept)
    zero_removed(dense, kept)
    torch.testing.assert_close(pruned(IDS).logits, dense(IDS).logits, atol=3e-5, rtol=1e-4)


BIASES = [{"attention_bias": True}, {"mlp_bias": True}, {"attention_bias": True, "mlp_bias": True}]


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("biases", BIASES, ids=" ".join)
def test_cut_with_biases(biases, uniform, tmp_path):
    """A channel's biases in gate and up go with it; those of o and down stay whole."""
    dense = tiny_model("llama", uniform, **biases)
    kept = random_kept(5, uniform)
    pruned = cut(dense, kept)
    zero_removed(dense, kept)
    torch.testing.assert_close(pruned(IDS).logits, dense(IDS).logits, atol=3e-5, rtol=1e-4)
    assert pruned.config.model_type == ("llama" if uniform else "saap_edge")
    again = load_model(write_folder(pruned, tmp_path))
    torch.testing.assert_close(again(IDS).logits, pruned(IDS).logits)


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("biases", [{}, *BIASES], ids=lambda biases: " ".join(biases) or "none")
def test_repair_with_biases(biases, uniform, tmp_path):
    """Those it adds to o and down stand beside those the model has; the folder it is saved as holds them all."""
    dense, kept = tiny_model("llama", **biases), random_kept(5, uniform)
    torch.manual_seed(0)
    windows, fresh = torch.randint(0, 320, (96, 32)), torch.randint(0, 320, (8, 32))
    target = dense(fresh).logits
    before = float((cut(dense, kept)(fresh).logits - target).square().mean())
    repair(dense, kept, windows, bias=True)
    pruned = cut(dense, kept)
    assert float((pruned(fresh).logits - target).square().mean()) < before
    torch.testing.assert_close(dense(fresh).logits, pruned(fresh).logits, atol=1e-4, rtol=1e-3)
    spec = spec_of(pruned)
    assert spec.o_bias and spec.down_bias and spec.gate_up_bias == ("mlp_bias" in biases)
    assert pruned.config.model_type == ("llama" if uniform and len(biases) == 2 else "saap_edge")
    again = load_model(write_folder(pruned, tmp_path))
    torch.testing.assert_close(again(IDS).logits, pruned(IDS).logits)


def test_folders_from_before_gate_and_up_could_have_biases(tmp_path):
    pruned = cut(tiny_model("llama"), random_kept(5))
    folder = write_folder(pruned, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["gate_up_bias"]
    (folder / "config.json").write_text(json.dumps(config))
    torch.testing.assert_close(load_model(folder)(IDS).logits, pruned(IDS).logits)


def test_cutting_nothing_changes_nothing(family):
    dense = tiny_model(family)
    kept = [{"attention": np.arange(4), "slots": np.arange(2), "ffn": np.arange(128)}] * 3
    torch.testing.assert_close(cut(dense, kept)(IDS).logits, dense(IDS).logits)


@pytest.mark.parametrize("slot", [0, 1])
def test_a_query_slot_removed_equals_zeroed(family, slot):
    dense, kept = tiny_model(family), kept_for(family, 4)
    last = 1 if FAMILIES[family].ungated else 2  # with attention
    for layer in (0, 1, 2) if FAMILIES[family].uniform_only else (0, last):
        kept[layer]["slots"] = np.array([slot])
    pruned = cut(dense, kept)
    attention = pruned.model.layers[last].self_attn  # of which each head may have a gate in q_proj
    rows = len(kept[last]["attention"]) * attention.head_dim * (1 + FAMILIES[family].gated)
    assert attention.q_proj.weight.shape[0] == rows
    zero_removed(dense, kept)
    torch.testing.assert_close(pruned(IDS).logits, dense(IDS).logits, atol=3e-5, rtol=1e-4)


def test_least_squares_is_the_minimum():
    torch.manual_seed(0)
    inputs, targets = torch.randn(500, 24) @ torch.randn(24, 24), torch.randn(500, 8)
    solved = least_squares(inputs.T @ inputs, targets.T @ inputs, torch.zeros(8, 24), ridge=1e-9)
    best = torch.linalg.lstsq(inputs.double(), targets.double()).solution.T
    torch.testing.assert_close(solved.double(), best, atol=1e-3, rtol=1e-3)


def test_least_squares_without_data_is_the_start():
    start = torch.randn(4, 2)
    torch.testing.assert_close(least_squares(torch.zeros(2, 2), torch.zeros(4, 2), start), start)


@pytest.mark.parametrize("mix", [0.0, 0.6])
def test_repair_brings_the_logits_nearer_to_dense(family, mix):
    dense, kept = tiny_model(family), kept_for(family, 0)
    if FAMILIES[family].gated:  # value heads of a random DeltaNet tell nothing of each other
        kept[0] |= {"attention": np.arange(4), "slots": np.arange(2)}
    torch.manual_seed(0)
    windows, fresh = torch.randint(0, 320, (24, 32)), torch.randint(0, 320, (8, 32))
    target = dense(fresh).logits
    before = float((cut(dense, kept)(fresh).logits - target).square().mean())
    with restored(dense):
        repair(dense, kept, windows, mix)
        masked, pruned = dense(fresh).logits, cut(dense, kept)(fresh).logits
    assert float((pruned - target).square().mean()) < before
    torch.testing.assert_close(masked, pruned, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(dense(fresh).logits, target)


def test_the_dense_target_mends_what_earlier_layers_broke(deep_family):
    """Only layer 0 is cut; layers 1 and 2 are whole, and still take part of the mending over.

    Not in Gemma, whose norms of sublayers' outputs allow the local target only.
    """
    if FAMILIES[deep_family].ungated:
        pytest.skip("its first block is a Mamba-2, which is not cut")
    dense, kept = tiny_model(deep_family), random_kept(0)
    for layer in (1, 2):
        kept[layer] = {"attention": np.arange(4), "slots": np.arange(2), "ffn": np.arange(128)}
    torch.manual_seed(0)
    windows = torch.randint(0, 320, (64, 32))
    target, distance = dense(windows).logits, {}
    for mix in (0.0, 0.6):
        with restored(dense):
            repair(dense, kept, windows, mix)
            distance[mix] = float((dense(windows).logits - target).square().mean())
    assert distance[0.6] < distance[0.0]


def test_repair_of_an_uncut_model_does_nothing(family):
    dense = tiny_model(family)
    kept = [{"attention": np.arange(4), "slots": np.arange(2), "ffn": np.arange(128)}] * 3
    before = dense(IDS).logits
    repair(dense, kept, torch.randint(0, 320, (4, 16)))
    torch.testing.assert_close(dense(IDS).logits, before, atol=1e-5, rtol=1e-4)
    assert perplexity(cut(dense, kept), IDS).value == pytest.approx(perplexity(dense, IDS).value)
