"""The importance matrix: how much every input channel of a projection matters to what it computes.

As llama-imatrix measures it (llama.cpp, tools/imatrix): the mean of squared inputs over calibration text. An error e
in a weight of input channel j costs e² times that, so quantisers that round where it matters weight errors by it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from saap_edge.model.stream import BATCH

__all__ = ["importance_matrix"]


@torch.no_grad()
def importance_matrix(model: Any, windows: torch.Tensor) -> dict[str, np.ndarray]:
    """Mean of squared inputs of every projection over `windows` [n, window]: weight name -> float32 [in].

    Windows run BATCH at a time and only sums are kept; the output matrix is not run.
    """
    sums: dict[str, torch.Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if name.endswith("_proj"):

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
