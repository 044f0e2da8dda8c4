"""Compresso: gates learnt by gradient, together with low-rank adapters, under a budget (arXiv 2310.05015).

Every KV group and FFN channel has a gate z in [0, 1] on what it gives to o_proj or down_proj. Gates are drawn at every
step from the hard-concrete distribution (Louizos et al., arXiv 1712.01312), which has mass at exactly 0 and 1:

    z = min(1, max(0, LOW + (HIGH - LOW) sigmoid((log u - log(1 - u) + a) / TEMPERATURE)))        u uniform in (0, 1)
    P(z > 0) = sigmoid(a - TEMPERATURE log(-LOW / HIGH))

The weights are frozen. The a of all gates and LoRA adapters of all projections move against

    loss of the next token + l (s - t) + PENALTY / 2 (s - t)^2

s is the share of the cost that is expected to go, the sum of cost times 1 - P(z > 0), and t the share wanted, which
grows from 0 to the ratio over the first half of the steps. l is a Lagrange multiplier: it is 0 until then, and grows by
MULTIPLIER (s - t) at every step of the second half, so that missing the budget costs more and more, while the gates'
learning rate falls to 0. Structures leave in the order of P(z > 0).

Limits, temperature, rates of the gates and rank are those of the authors' code (github.com/microsoft/Moonlit,
Compresso). Theirs learns for hundreds of thousands of steps, this for hundreds, and so these things differ: gates start
further from open; the multiplier is that of the augmented Lagrangian, where the authors learn two by Adam, which needs
longer to settle than there are steps; adapters are on all projections and learn faster; the text is the calibration
text, not instructions. There are no gates on the hidden size, which is no structure here, and no prompt that tells the
model that it was pruned, which every input of the deployed model would have to carry. The adapters are thrown away with
the gates: repair and recovery make up for what left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from saap_edge.errors import SaapError
from saap_edge.families import Family
from saap_edge.model.adapters import LoraLinear, put
from saap_edge.model.arithmetic import Precision, multiplied
from saap_edge.model.checkpointing import checkpointed
from saap_edge.model.folder import spec_of
from saap_edge.model.head import next_token_gradient
from saap_edge.pruning.masks import masked
from saap_edge.pruning.orders import Values
from saap_edge.pruning.score import SUBLAYERS
from saap_edge.pruning.space import Space, shape_widths

__all__ = ["Gates", "compresso_values"]

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3  # a gate is 0 or 1 with some mass, because it is drawn from beyond them
CLOSED = 0.1  # the authors' rate of dropping at the start: 0.01 there
EDGE = math.log(100)  # a stays between -EDGE and EDGE, so that no gate is ever decided for good
GATE_RATE, ADAPTER_RATE = 0.1, 1e-3  # learning rates of Adam
PENALTY, MULTIPLIER = 300.0, 12.0  # large: s is a share, and a gate moves it by a ten-thousandth
RANK = 8
WARM = 0.5  # share of the steps over which the budget grows


class Gates:
    """Hard-concrete gates, one a structure.

    Attributes:
        a: the parameters, float32 [structures].

    >>> gates = Gates(3, torch.Generator().manual_seed(0))
    >>> bool((gates.open() > 0.97).all()), bool(((gates.draw() >= 0) & (gates.draw() <= 1)).all())
    (True, True)
    """

    def __init__(self, structures: int, random: torch.Generator) -> None:
        self._random = random
        start = math.log(1 - CLOSED) - math.log(CLOSED) + 0.01 * torch.randn(structures, generator=random)
        self.a = nn.Parameter(start.clamp(-EDGE, EDGE))

    def draw(self) -> torch.Tensor:
        """One draw of all gates, [structures] in [0, 1]."""
        u = torch.rand(len(self.a), generator=self._random).clamp(1e-6, 1 - 1e-6)
        stretched = torch.sigmoid((torch.log(u) - torch.log1p(-u) + self.a) / TEMPERATURE) * (HIGH - LOW) + LOW
        return stretched.clamp(0, 1)

    def open(self) -> torch.Tensor:
        """The probability of every gate that it is not 0, [structures]."""
        return torch.sigmoid(self.a - TEMPERATURE * math.log(-LOW / HIGH))


def compresso_values(
    model: Any,
    space: Space,
    windows: torch.Tensor,
    ratio: float,
    steps: int,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
    precision: Precision = "float32",
    checkpointing: bool = False,
) -> Values:
    """Learn, for a budget, the probability that each structure's gate is open; `[layer][kind]` [structures].

    Structures without a gate have the value 1: those of protected layers, and query slots.

    Args:
        model: the dense transformers model; it is as it was afterwards.
        windows: calibration token ids [n, window]; each step sees one window.
        ratio: share of the dense cost to save.
        steps: each is a forward and a backward pass over one window.
        seed: of the gates' draws and the adapters' first values.
        progress: called after every step.
        precision: of matrix products (model/arithmetic.py).
        checkpointing: recompute activations in the backward pass.

    Raises SaapError when a loss is not finite.
    """
    free = set(space.sublayers())
    keys = [(layer, kind) for layer in range(len(space.shapes)) for kind in SUBLAYERS if (layer, kind) in free]
    sizes = [shape_widths(space.shapes[layer])[kind] for layer, kind in keys]
    costs = torch.tensor([space.structure_cost(layer, kind) for layer, kind in keys])
    shares = (costs / space.total(space.dense())).repeat_interleave(torch.tensor(sizes))
    gates, masks = Gates(sum(sizes), torch.Generator().manual_seed(seed)), dict[tuple[int, str], torch.Tensor]()
    with _adapted(model, spec_of(model).family, seed) as adapters, checkpointed(model, checkpointing):
        lagrangian = _Lagrangian(gates, shares, ratio, adapters)
        with masked(model, space, masks):
            for step in range(steps):
                masks.update(zip(keys, gates.draw().split(sizes), strict=True))
                tokens = windows[step % len(windows)][None].to(model.get_input_embeddings().weight.device)
                _backward(model, tokens, precision)
                lagrangian.step((step + 1) / steps)
                progress()
    values: Values = [{kind: np.ones(n) for kind, n in shape_widths(shape).items()} for shape in space.shapes]
    for (layer, kind), part in zip(keys, gates.open().detach().double().split(sizes), strict=True):
        values[layer][kind] = part.numpy()
    return values


def _backward(model: Any, tokens: torch.Tensor, precision: Precision) -> None:
    """Add the gradients of the loss of next tokens. Raises SaapError when it is not finite."""
    states = multiplied(precision, model.model)(input_ids=tokens, use_cache=False).last_hidden_state
    loss, gradient = multiplied(precision, next_token_gradient)(model, states.detach(), tokens)
    if not math.isfinite(loss):
        raise SaapError(f"compresso: the loss under gates is {loss}: the model or text is broken")
    states.backward(gradient)


class _Lagrangian:
    """The optimiser of gates and adapters under the budget, and its multiplier."""

    def __init__(self, gates: Gates, shares: torch.Tensor, ratio: float, adapters: list[nn.Parameter]) -> None:
        self._gates, self._shares, self._ratio, self._multiplier = gates, shares, ratio, 0.0
        groups = [{"params": [gates.a], "lr": GATE_RATE}, {"params": adapters, "lr": ADAPTER_RATE}]
        self._optimizer = torch.optim.Adam(groups)

    def step(self, done: float) -> None:
        """Add the gradients of the budget's part of the loss to those that are there, and move everything.

        `done` is the share of all steps that are done with this one.
        """
        missed = (self._shares * (1 - self._gates.open())).sum() - self._ratio * min(1.0, done / WARM)
        (self._multiplier * missed + PENALTY / 2 * missed.square()).backward()
        if done > WARM:
            self._multiplier += MULTIPLIER * float(missed.detach())
            self._optimizer.param_groups[0]["lr"] = GATE_RATE * (1 - done) / (1 - WARM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            self._gates.a.clamp_(-EDGE, EDGE)


@contextmanager
def _adapted(model: Any, family: Family, seed: int) -> Iterator[list[nn.Parameter]]:
    """Put adapters on all projections, which alone get gradients; leaving takes them off again."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    places = [(layer, name) for layer in model.model.layers for _, name in list(family.projections(layer))]
    plain = [layer.get_submodule(name) for layer, name in places]
    try:
        model.requires_grad_(False)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapted = [LoraLinear(linear, RANK) for linear in plain]
        for (layer, name), one in zip(places, adapted, strict=True):
            put(layer, name, one)
        yield [parameter for one in adapted for parameter in (one.lora_a, one.lora_b)]
    finally:
        for (layer, name), linear in zip(places, plain, strict=True):
            put(layer, name, linear)
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
