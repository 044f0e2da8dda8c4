"""Closed forms of removal, against the plain algorithm that updates whole matrices."""

import numpy as np
import pytest
import torch

from saap_edge.pruning import removal
from saap_edge.pruning.removal import RIDGE, damped, least_squares, nested_repairs, removal_costs, removal_inverse


def moments(width, seed, tokens=2000):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = random(tokens, width) @ (torch.eye(width) + 0.4 * random(width, width) / width**0.5)
    inputs *= torch.rand(width, generator=generator, dtype=torch.float64) + 0.05
    return inputs.T @ inputs / tokens, random(width // 2, width), random(width // 2).square()


def plain_order(weight, gram, curvature, batch):
    """Greedy removal of single columns, everything updated after each step: (order, costs as they were)."""
    inverse, left = torch.linalg.inv(damped(gram)), weight * (0.5 * curvature).sqrt()[:, None]
    alive, order, costs = list(range(len(gram))), [], []
    while alive:
        now = (left.square().sum(0) / inverse.diagonal())[alive]
        gone = [alive[i] for i in torch.argsort(now, stable=True)[:batch]]
        costs += torch.sort(now, stable=True).values[:batch].tolist()
        order += gone
        alive = [column for column in alive if column not in gone]
        block, rows = torch.linalg.inv(inverse[gone][:, gone]), inverse[gone].clone()
        left = left - left[:, gone] @ block @ rows
        inverse = inverse - rows.T @ block @ rows
    return order, costs


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("width", "steps", "pending"), [(24, 256, 5), (70, 20, 12), (70, 256, 96), (33, 7, 1)])
def test_costs_of_channels_are_those_of_the_plain_algorithm(width, steps, pending, seed, monkeypatch):
    monkeypatch.setattr(removal, "STEPS", steps)
    monkeypatch.setattr(removal, "PENDING", pending)
    gram, weight, curvature = moments(width, seed)
    found = removal_costs(weight, removal_inverse(gram), curvature, torch.arange(width)[:, None])
    order, costs = plain_order(weight, gram, curvature, max(1, width // steps))
    assert torch.argsort(found, stable=True).tolist() == order
    np.testing.assert_allclose(found[order], np.maximum.accumulate(costs), rtol=1e-6)


def test_the_inverse_is_not_changed():
    gram, weight, curvature = moments(12, 0)
    inverse = removal_inverse(gram)
    before = inverse.clone()
    for columns in (torch.arange(12)[:, None], torch.arange(12).reshape(4, 3)):
        removal_costs(weight, inverse, curvature, columns)
    torch.testing.assert_close(inverse, before, atol=0, rtol=0)
    torch.testing.assert_close(inverse @ damped(gram), torch.eye(12, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(4))
def test_nested_repairs_are_least_squares_at_every_width(seed):
    gram, weight, _ = moments(40, seed)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    found = dict(nested_repairs(weight, gram, order, [8, 32, 17, 40, 1]))
    assert sorted(found) == [1, 8, 17, 32, 40]
    mean = float(gram.diagonal().mean())
    for width, repaired in found.items():
        kept = order[:width]
        inner = gram[kept][:, kept]
        ridge = RIDGE * mean / float(inner.diagonal().mean())  # one ridge for all widths: that of the whole matrix
        wanted = least_squares(inner, weight @ gram[:, kept], weight[:, kept], ridge)
        torch.testing.assert_close(repaired, wanted, atol=1e-8, rtol=1e-8)


def test_matrices_that_rounding_left_not_quite_positive_are_solved_all_the_same():
    gram, weight, _ = moments(10, 0)
    gram -= 1.5 * RIDGE * gram.diagonal().mean() * torch.eye(10) + torch.linalg.eigvalsh(gram)[0] * torch.eye(10)
    with pytest.raises(RuntimeError):
        torch.linalg.cholesky(damped(gram))
    (found,) = (repaired for width, repaired in nested_repairs(weight, gram, torch.arange(10), [6]))
    kept = torch.arange(6)
    torch.testing.assert_close(found, least_squares(gram[:6, :6], weight @ gram[:, :6], weight[:, kept]))
    assert torch.isfinite(removal_inverse(gram)).all()
