"""Frozen weights shared out over the processes of a launch, so that no device has to hold a whole model (FSDP2).

What is trained, the adapters, is small: every process has all of it, and gradients are averaged as without sharding. So
checkpoints are the same files, whatever the number of processes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

__all__ = ["ignore_frozen", "shard", "sharded"]


@contextmanager
def sharded(model: Any, wanted: bool = True) -> Iterator[None]:
    """Inside, each process has its part of every decoder layer's frozen weights, on its device; then all is as before.

    A layer's weights are gathered as it runs, and again as its gradients are computed. Parameters that are trained are
    the same objects inside and afterwards. Outside, the model is on the CPU, where its weights may be mapped from a
    file. Without a launch of several processes, or if not `wanted`, nothing is done.

    Every process has to run the model as often as the others: they wait for one another.
    """
    if not wanted or PartialState().num_processes == 1:
        yield
        return
    layers = list(model.model.layers)
    shard(model)
    try:
        yield
    finally:
        model.model.layers = nn.ModuleList(layers)
        model.to("cpu")


def shard(model: Any) -> Any:
    """Replace the decoder layers of a transformers model by sharded copies, put it on this process's device, return it.

    Only one layer at a time is copied whole. Embeddings and head stay whole in every process.
    """
    device = PartialState().device
    mesh = init_device_mesh(device.type, (PartialState().num_processes,))
    model.model.layers = nn.ModuleList(_sharded_copy(layer, mesh) for layer in model.model.layers)
    return model.to(device)


def _sharded_copy(layer: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """A copy of a layer that has the same trained parameters, and a part of all else."""
    trained = {id(value): value for value in layer.parameters() if value.requires_grad}
    copied = copy.deepcopy(layer, dict[int, Any](trained))
    for module in copied.modules():
        _freeze_buffers(module)
    fully_shard(copied, mesh=mesh, ignored_params=set(trained.values()))
    return copied


def _freeze_buffers(module: nn.Module) -> None:
    """Make parameters of the buffers in the module's state (codes, scales): only parameters are shared out."""
    for name, value in list(module.named_buffers(recurse=False)):
        if name not in module._non_persistent_buffers_set:
            delattr(module, name)
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def ignore_frozen(student: nn.Module) -> None:
    """Keep DistributedDataParallel, which will wrap `student`, from comparing and sending what is not trained."""
    names = [name for name, value in student.named_parameters() if not value.requires_grad]
    names += [name for name, _ in student.named_buffers()]
    wrapper: Any = torch.nn.parallel.DistributedDataParallel
    wrapper._set_params_and_buffers_to_ignore_for_model(student, names)
