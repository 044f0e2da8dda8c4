"""Fusion and fluctuation against their definitions."""

import itertools

import numpy as np
import pytest

from saap_edge.pruning.fusion import fluctuation, fuse, standardise


def views(noise=(0.1, 0.5), structures=400, batches=16, seed=0):
    rng = np.random.default_rng(seed)
    latent = rng.uniform(0.5, 1.5, structures)
    return latent, np.stack([latent + rng.normal(0, s, (batches, structures)) for s in noise])


def test_sigmas_are_the_noise_levels():
    _, seen = views()
    assert fuse(seen).sigmas[:, 0] == pytest.approx([0.1, 0.5], rel=0.1)


def test_fused_importance_is_nearer_the_truth_than_the_plain_mean():
    latent, seen = views()
    fused = np.corrcoef(fuse(seen).importance, latent)[0, 1]
    assert fused > np.corrcoef(seen.mean(axis=(0, 1)), latent)[0, 1]


def test_likelihood_never_worsens():
    steps = fuse(views(seed=3)[1]).likelihood
    assert len(steps) > 1 and all(b <= a + 1e-12 for a, b in itertools.pairwise(steps))


def test_importance_is_the_papers_form():
    _, seen = views(seed=1)
    fusion = fuse(seen)
    scaled = seen / seen.mean(axis=(1, 2), keepdims=True)
    by_hand = sum(scaled[k].mean(0) / (2 * fusion.sigmas[k, 0] ** 2) for k in range(2)) + np.log(fusion.sigmas.prod())
    np.testing.assert_allclose(fusion.importance, by_hand)


def test_scaling_a_metric_changes_nothing():
    _, seen = views()
    np.testing.assert_allclose(fuse(seen).importance, fuse(seen * np.array([1e6, 1e-3])[:, None, None]).importance)


@pytest.mark.parametrize("bad", [np.ones((2, 1, 5)), np.zeros((2, 3, 5)), np.full((2, 3, 5), np.nan)])
def test_nothing_to_fuse_is_refused(bad):
    with pytest.raises(ValueError):
        fuse(bad)


def test_fluctuation_is_relative_variance():
    batches = np.array([[1.0, 10.0], [3.0, 30.0], [2.0, 20.0]])
    np.testing.assert_allclose(fluctuation(batches), [(2 / 3) / 4, (200 / 3) / 400])


def test_standardise_within_groups():
    out = standardise(np.array([1.0, 3.0, 10.0, 30.0, 7.0]), np.array([0, 0, 1, 1, 2]))
    np.testing.assert_allclose(out, [-1, 1, -1, 1, 0])


def test_groups_have_noise_of_their_own():
    """One layer is twice as noisy in one view: its sigma says so, and the log term then sets the layers apart."""
    _, seen = views(noise=(0.2, 0.2))
    groups = np.repeat([0, 1], 200)
    rng = np.random.default_rng(1)
    seen[0, :, groups == 1] += rng.normal(0, 0.6, (200, 16))
    fusion = fuse(seen, groups)
    assert fusion.sigmas[0, 1] > 2 * fusion.sigmas[0, 0]
    assert fusion.sigmas[1, 0] == pytest.approx(fusion.sigmas[1, 1], rel=0.3)


def test_any_number_of_views_and_log_scale():
    latent, seen = views(noise=(0.05, 0.1, 0.2, 0.1))
    assert np.corrcoef(fuse(np.exp(seen), scale="log").importance, latent)[0, 1] > 0.98
