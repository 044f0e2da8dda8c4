"""The importance matrix: how much every input channel of a projection matters to its output.

It is the mean of squared inputs over calibration text, as llama-imatrix measures it (llama.cpp, tools/imatrix). An
error e in a weight of input channel j costs e² times channel j's mean. Quantisers weight their errors by it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from saap_edge.families.base import PER_LAYER
from saap_edge.model.stream import BATCH

__all__ = ["importance_matrix"]


@torch.no_grad()
def importance_matrix(model: Any, windows: torch.Tensor) -> dict[str, np.ndarray]:
    """Mean of squared inputs of every projection over `windows` [n, window]: weight name -> float32 [in].

    `model` is a transformers causal LM. Windows run BATCH at a time; only sums are held. The output head is not run,
    so it has no entry.
    """
    sums: dict[str, torch.Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        if ("_proj" in leaf or leaf in PER_LAYER) and not leaf.endswith("norm"):

            def add(module: Any, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
                squares = inputs[0].float().square().flatten(0, -2).sum(0).double().cpu()
                sums[f"{name}.weight"] = sums.get(f"{name}.weight", 0) + squares

            handles.append(module.register_forward_pre_hook(add))
    try:
        for chunk in windows.split(BATCH):
            model.model(input_ids=chunk.to(model.get_input_embeddings().weight.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (total / windows.numel()).float().numpy() for name, total in sums.items()}
