"""What leaves first inside one sublayer, at what loss, and what the rest takes over: closed forms of one Gram matrix.

With G = E[x x^T] of an output projection's inputs and F = E[(dL/dy)^2] of its outputs, removing inputs s costs, after
the best repair of what stays,

    1/2 tr( sqrt(F) W_s [G^-1]_ss^-1 W_s^T sqrt(F) )          nats per token

(Optimal Brain Surgeon with Kronecker-factored curvature; cf. The LLM Surgeon, 2312.17244).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from saap_edge.errors import SaapError

__all__ = ["RIDGE", "damped", "least_squares", "nested_repairs", "removal_costs", "removal_inverse"]

RIDGE = 1e-3  # of the mean diagonal of the Gram matrix: enough for channels that are nearly collinear
STEPS = 256  # greedy steps a sublayer at most: wide FFNs lose several channels a step
PENDING = 96  # columns that leave before the whole matrices are updated


def damped(gram: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
    """`gram` [in, in] in float64, plus `ridge` times its mean diagonal on the diagonal."""
    wide = gram.double()
    weight = ridge * wide.diagonal().mean().clamp_min(1e-30)
    return wide + weight * torch.eye(len(wide), dtype=torch.float64, device=wide.device)


def least_squares(gram: torch.Tensor, cross: torch.Tensor, start: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
    """Weights [out, in] that minimise || t - W x ||^2 + ridge || W - start ||^2 over the data. Solved in float64.

    Args:
        gram: [in, in], sum of x x^T.
        cross: [out, in], sum of t x^T.
        start: [out, in]. The ridge pulls towards it; without data it is the result.
        ridge: relative to the mean diagonal of `gram`.

    Inputs (1, 0) and (0, 1) with targets 2 and 3:

    >>> least_squares(torch.eye(2), torch.tensor([[2.0, 3.0]]), torch.zeros(1, 2), ridge=0.0).tolist()
    [[2.0, 3.0]]
    """
    start64 = start.double()
    missing = cross.double() - start64 @ gram.double()
    system = damped(gram, ridge)
    factor = _factor(system)
    step = torch.linalg.solve(system, missing.T) if factor is None else torch.cholesky_solve(missing.T, factor)
    solved: torch.Tensor = start64 + step.T
    return solved.to(start.dtype)


def removal_inverse(gram: torch.Tensor) -> torch.Tensor:
    """G^-1 of a damped Gram matrix [in, in], float64: what costs of removal are made of."""
    system = damped(gram)
    factor = _factor(system)
    return torch.linalg.inv(system) if factor is None else torch.cholesky_inverse(factor)


def _factor(system: torch.Tensor) -> torch.Tensor | None:
    """The Cholesky factor; None where sums in float32 left a matrix that is only nearly positive."""
    try:
        factor: torch.Tensor = torch.linalg.cholesky(system)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return None
    return factor


def removal_costs(
    weight: torch.Tensor, inverse: torch.Tensor, curvature: torch.Tensor, columns: torch.Tensor, greedy: bool = True
) -> torch.Tensor:
    """Loss of removing each structure, float64 [structures]; in nats per token if `curvature` is in nats^2.

    Args:
        weight: [out, in].
        inverse: [in, in], `removal_inverse` of E[x x^T].
        curvature: [out], E[(dL/dy)^2].
        columns: int64 [structures, width], the input columns of each structure.
        greedy: remove one structure after the other and update what stays; else the cost of removing each alone.

    Greedy costs never fall along the order of removal: a structure that would be cheaper than the one removed before it
    takes that one's cost. So sorting by them gives the order. Raises SaapError where costs are not finite.

    Two independent inputs of variance 1, with weights 1 and 3, cost w^2 / 2 each:

    >>> columns, inverse = torch.tensor([[0], [1]]), removal_inverse(torch.eye(2))
    >>> removal_costs(torch.tensor([[1.0, 3.0]]), inverse, torch.ones(1), columns).round(decimals=2).tolist()
    [0.5, 4.5]
    """
    columns = columns.to(weight.device)
    left = weight.double() * (0.5 * curvature.double()).sqrt()[:, None]
    if not greedy:
        return _finite(_single_costs(left, inverse, columns))
    steps = (
        _channels(left, inverse, columns[:, 0]) if columns.shape[1] == 1 else _slices(left, inverse.clone(), columns)
    )
    costs = torch.zeros(len(columns), dtype=torch.float64)
    reached = 0.0
    for gone, now in steps:
        # Rising by a hair where the order's own costs fall: sorting then gives the order, ties included.
        for structure, cost in zip(gone.tolist(), _finite(now).tolist(), strict=True):
            reached = max(reached * (1 + 1e-12) + 1e-300, cost)
            costs[structure] = reached
    return costs.to(weight.device)


def _finite(costs: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(costs).all()):
        raise SaapError("costs of removal that are no finite numbers: scores or activations are too large")
    return costs


def _single_costs(left: torch.Tensor, inverse: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    if columns.shape[1] == 1:
        return left.square().sum(0)[columns[:, 0]] / inverse.diagonal()[columns[:, 0]].clamp_min(1e-30)
    blocks = inverse[columns[:, :, None], columns[:, None, :]]
    parts = left[:, columns].transpose(0, 1)  # [structures, out, width]
    lost: torch.Tensor = ((parts @ torch.linalg.inv(blocks)) * parts).sum(dim=(1, 2))
    return lost


def _slices(
    left: torch.Tensor, inverse: torch.Tensor, columns: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(structure, its cost) in order of removal, of few structures that are several columns wide. Changes both."""
    alive = torch.ones(len(columns), dtype=torch.bool, device=left.device)
    for _ in range(len(columns)):
        now = _finite(_single_costs(left, inverse, columns))
        now[~alive] = torch.inf
        first = torch.argsort(now, stable=True)[:1]
        yield first, now[first]
        alive[first] = False
        if bool(alive.any()):
            _remove(left, inverse, columns[first].flatten())


def _remove(left: torch.Tensor, inverse: torch.Tensor, gone: torch.Tensor) -> None:
    """Take columns out, in place: the rest of W takes over what they gave, the rest of G^-1 forgets them."""
    block = torch.linalg.inv(inverse[gone][:, gone])
    rows = inverse[gone].clone()
    left -= left[:, gone] @ block @ rows
    inverse -= rows.T @ block @ rows
    left[:, gone] = 0
    inverse[gone] = 0
    inverse[:, gone] = 0
    inverse[gone, gone] = 1


def _channels(
    left: torch.Tensor, inverse: torch.Tensor, columns: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(channels, their costs) in order of removal, STEPS steps at most, of single columns.

    The costs need two diagonals alone, of H = G^-1 and of M = (sqrt(F) W)^T sqrt(F) W. Taking columns s out of both is

        P = H_ss^-1 H_s:    D = M_s: - 1/2 M_ss P    H -= P^T H_s:    M -= P^T D + D^T P

    so rows of H and M are made where they are needed, and the matrices themselves follow a block at a time: products
    of matrices instead of a pass over both for every few channels. What has left is dropped from them.
    """
    numbers = torch.arange(len(columns), device=left.device)  # the channel of every row of the matrices
    square, inverse = (left.T @ left)[columns][:, columns], inverse[columns][:, columns]
    batch = max(1, len(columns) // STEPS)
    while len(numbers):
        pending = _Pending(inverse, square)
        while pending.alive_count and len(pending.taken) < PENDING:
            now = _finite(pending.costs())
            chosen = torch.argsort(now.where(pending.alive, torch.inf), stable=True)[: min(batch, pending.alive_count)]
            yield numbers[chosen], now[chosen]
            pending.take(chosen)
        inverse, square = pending.applied()
        numbers = numbers[pending.alive]


class _Pending:
    """Columns that are taken out of H and M, while the matrices still hold them."""

    def __init__(self, inverse: torch.Tensor, square: torch.Tensor) -> None:
        self.inverse, self.square = inverse, square
        self.diagonals = torch.stack([inverse.diagonal(), square.diagonal()])
        self.alive = torch.ones(len(inverse), dtype=torch.bool, device=inverse.device)
        self.alive_count = len(inverse)
        self.taken: list[int] = []
        size = min(len(inverse), PENDING + STEPS)
        self.rows, self.shares, self.changes = (inverse.new_empty(size, len(inverse)) for _ in range(3))

    def costs(self) -> torch.Tensor:
        return self.diagonals[1] / self.diagonals[0].clamp_min(1e-30)

    def take(self, gone: torch.Tensor) -> None:
        """Take these columns out of the diagonals, and keep what the matrices lack."""
        first, last = len(self.taken), len(self.taken) + len(gone)
        shares, changes = self.shares[:first], self.changes[:first]
        rows = torch.addmm(self.inverse[gone], shares[:, gone].T, self.rows[:first], alpha=-1)
        squares = torch.addmm(self.square[gone], shares[:, gone].T, changes, alpha=-1)
        squares.addmm_(changes[:, gone].T, shares, alpha=-1)
        share = torch.linalg.solve(rows[:, gone], rows)
        change = torch.addmm(squares, squares[:, gone], share, alpha=-0.5)
        self.rows[first:last], self.shares[first:last], self.changes[first:last] = rows, share, change
        self.diagonals[0] -= (share * rows).sum(0)
        self.diagonals[1] -= 2 * (share * change).sum(0)
        self.alive[gone] = False
        self.alive_count -= len(gone)
        self.taken += gone.tolist()

    def applied(self) -> tuple[torch.Tensor, torch.Tensor]:
        """H and M of the columns that stay."""
        alive, count = self.alive, len(self.taken)
        rows, shares, changes = (part[:count][:, alive] for part in (self.rows, self.shares, self.changes))
        inverse = torch.addmm(self.inverse[alive][:, alive], shares.T, rows, alpha=-1)
        square = torch.addmm(self.square[alive][:, alive], shares.T, changes, alpha=-1)
        return inverse, square.addmm_(changes.T, shares, alpha=-1)


def nested_repairs(
    weight: torch.Tensor, gram: torch.Tensor, order: torch.Tensor, widths: Sequence[int]
) -> Iterator[tuple[int, torch.Tensor]]:
    """(width, repaired weights [out, width]) for widths of which each keeps the first columns of one `order`.

    What `least_squares` gives for a projection's own outputs, with one ridge for all widths. With the factor L of the
    ordered Gram matrix (L L^T) and Y = W L, the repaired weights of the first k columns are Y[:, :k] L[:k, :k]^-1, and

        W_j = W_k[:, :j] - Y[:, j:k] (L^-1)[j:k, :j]

    steps from one width to the next without solving anything anew.

    Args:
        weight: [out, in]; gram: [in, in], of its inputs.
        order: int64 [in], columns by what they are worth, the dearest first.
        widths: of each result; columns of a result are in the order of `order`, yielded from wide to narrow.
    """
    factor = _factor(damped(gram[order][:, order]))
    if factor is None:
        for width in widths:
            kept = order[:width]
            yield width, least_squares(gram[kept][:, kept], weight.double() @ gram[:, kept], weight[:, kept])
        return
    left = weight.double()[:, order]
    product = left @ factor
    inverse = torch.linalg.solve_triangular(
        factor, torch.eye(len(factor), dtype=factor.dtype, device=factor.device), upper=False
    )
    reached = len(order)
    for width in sorted(widths, reverse=True):
        if width < reached:
            left = torch.addmm(left[:, :width], product[:, width:reached], inverse[width:reached, :width], alpha=-1)
            reached = width
        yield width, left.to(weight.dtype)
