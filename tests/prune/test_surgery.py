"""Surgery against zeroing, repair against least squares."""

import numpy as np
import pytest
import torch

from saap_edge.evaluate.perplexity import perplexity
from saap_edge.prune.repair import least_squares, repair
from saap_edge.prune.surgery import cut, zero_removed
from tests.conftest import tiny_model

IDS = torch.arange(1, 40).view(1, -1)


def random_kept(seed, uniform=False):
    rng = np.random.default_rng(seed)
    kept = []
    for layer in range(3):
        kv, ffn = (2, 64) if uniform else (layer + 1, 32 * (layer + 1))
        kept.append({
            "attention": np.sort(rng.choice(4, kv, replace=False)), "ffn": np.sort(rng.choice(128, ffn, replace=False)),
        })  # fmt: skip
    return kept


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cut_equals_dense_with_the_rest_zeroed(family, seed, uniform):
    dense, kept = tiny_model(family, seed=seed), random_kept(seed, uniform)
    pruned = cut(dense, kept)
    zero_removed(dense, kept)
    torch.testing.assert_close(pruned(IDS).logits, dense(IDS).logits, atol=1e-5, rtol=1e-4)


def test_cut_with_biases_on_o():
    dense = tiny_model("llama", attention_bias=True)
    kept = random_kept(5)
    pruned = cut(dense, kept)
    zero_removed(dense, kept)
    torch.testing.assert_close(pruned(IDS).logits, dense(IDS).logits, atol=1e-5, rtol=1e-4)


def test_cutting_nothing_changes_nothing(family):
    dense = tiny_model(family)
    kept = [{"attention": np.arange(4), "ffn": np.arange(128)}] * 3
    torch.testing.assert_close(cut(dense, kept)(IDS).logits, dense(IDS).logits)


def test_least_squares_is_the_minimum():
    torch.manual_seed(0)
    inputs = torch.randn(500, 24) @ torch.randn(24, 24)
    weight, kept = torch.randn(8, 24), torch.arange(0, 24, 2)
    mended = least_squares(weight, inputs.T @ inputs, kept, ridge=1e-9)
    best = torch.linalg.lstsq(inputs[:, kept].double(), (inputs @ weight.T).double()).solution.T
    torch.testing.assert_close(mended.double(), best, atol=1e-3, rtol=1e-3)


def test_least_squares_without_data_is_the_plain_cut():
    weight, kept = torch.randn(4, 6), torch.tensor([1, 4])
    torch.testing.assert_close(least_squares(weight, torch.zeros(6, 6), kept), weight[:, kept])


def test_repair_brings_the_logits_nearer_to_dense(family):
    dense, kept = tiny_model(family), random_kept(0)
    torch.manual_seed(0)
    windows, fresh = torch.randint(0, 320, (24, 32)), torch.randint(0, 320, (8, 32))
    pruned = cut(dense, kept)
    target = dense(fresh).logits
    before = float((pruned(fresh).logits - target).square().mean())
    repair(dense, pruned, kept, windows)
    assert float((pruned(fresh).logits - target).square().mean()) < before


def test_repair_of_an_uncut_model_does_nothing(family):
    dense = tiny_model(family)
    kept = [{"attention": np.arange(4), "ffn": np.arange(128)}] * 3
    pruned = cut(dense, kept)
    repair(dense, pruned, kept, torch.randint(0, 320, (4, 16)))
    torch.testing.assert_close(pruned(IDS).logits, dense(IDS).logits)
    assert perplexity(pruned, IDS).value == pytest.approx(perplexity(dense, IDS).value)
