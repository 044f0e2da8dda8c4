"""The layers in front of the first that lost something: there the student is the dense model, with nothing to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from saap_edge.model.tensors import TensorStore

__all__ = ["first_changed"]


def first_changed(dense: Path, pruned: Path, model: Any) -> int:
    """The first layer of `pruned` whose weights are not the very ones of `dense`; 0 where all layers are the same.

    Layers of equal weights whose inputs are equal give the same outputs: what they see does not depend on what is
    trained behind them. Only as many tensors are read as are equal, and one more.

    `model`: that of the folder `pruned`, before anything in it is replaced.
    """
    stores = TensorStore(dense), TensorStore(pruned)
    behind = ("model.layers.", "model.norm.", "lm_head.")
    before = [name for name, _ in model.named_parameters() if not name.startswith(behind)]
    if not all(_equal(name, *stores) for name in before):
        return 0
    for index, layer in enumerate(model.model.layers):
        if not all(_equal(f"model.layers.{index}.{name}", *stores) for name, _ in layer.named_parameters()):
            return index
    return 0


def _equal(name: str, *stores: TensorStore) -> bool:
    if not all(name in store for store in stores) or len({store.shape(name) for store in stores}) > 1:
        return False
    return torch.equal(*(store.tensor(name).float() for store in stores))
