"""Folders with tuned codes, as the recover stage leaves them, but random: no rounding could hit them by chance."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from saap_edge.model.blocks import BLOCK_FORMATS, Blocks, dequantise
from saap_edge.model.checkpoint import open_checkpoint
from saap_edge.model.folder import load_model
from saap_edge.model.tensors import Codes


def random_blocks(shape: tuple[int, int], format_name: str, group: int, dice: torch.Generator) -> Blocks:
    """Values of about the size of `randomise_projections`', with every code and both ends of zero points."""
    format, (rows, columns) = BLOCK_FORMATS[format_name], shape
    figures = (rows, -(-columns // group))
    codes = torch.randint(0, format.highest + 1, shape, generator=dice).byte()
    scales = ((0.005 + 0.025 * torch.rand(figures, generator=dice)) * 15 / format.highest).half()
    if format.offset == "minimum":
        offsets = (-7.5 * scales.float() + 0.02 * torch.randn(figures, generator=dice)).half()
        return Blocks(format, group, codes, scales, offsets)
    if format.offset == "zero_point":
        spread = format.highest * (0.5 + 0.1 * torch.randn(figures, generator=dice))
        return Blocks(format, group, codes, scales, spread.round().clamp(0, format.highest).byte())
    # Symmetric formats have scales of both signs.
    return Blocks(format, group, codes, scales * (torch.randint(0, 2, figures, generator=dice) * 2 - 1))


def tune(folder: Path, format_name: str, group: int) -> dict[str, Blocks]:
    """Give every projection of the folder random blocks and weights near them, and return the blocks."""
    dice = torch.Generator().manual_seed(0)
    blocks = {
        name: random_blocks(tuple(parameter.shape), format_name, group, dice)
        for name, parameter in load_model(folder).named_parameters()
        if "_proj" in name and name.endswith(".weight")
    }
    Codes.save(blocks, folder)
    tensors, checkpoint = load_file(folder / "model.safetensors"), open_checkpoint(folder)
    for name, part in blocks.items():
        values, source = dequantise(part), checkpoint.source(name)
        near = values * (1 + 0.1 * torch.randn(values.shape, generator=dice))
        start, stop = source.rows or (0, len(near))
        tensors[source.name] = torch.cat([tensors[source.name][:start], near, tensors[source.name][stop:]])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return blocks
