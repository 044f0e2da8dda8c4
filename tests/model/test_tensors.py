"""Tensors in pieces are the whole ones, in every layout that a family stores them in."""

import pytest
import torch

from saap_edge.exporting.weights import ExportWeights
from saap_edge.model import checkpoint
from saap_edge.model.blocks import BLOCK_FORMATS, quantise, quantise_rows
from saap_edge.model.tensors import TensorStore
from tests.conftest import raw_model, write_folder

# Fused, reordered within heads and scaled there; scaled whole; stored as it is; an FFN off the grid, which is padded.
LAYOUTS = {
    "phi3": {"hidden_size": 128, "max_position_embeddings": 128, "sliding_window": 256, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75, "short_factor": [1.1] * 6,
        "long_factor": [2.0] * 6, "original_max_position_embeddings": 64,
    }},
    "granite": {}, "llama": {"intermediate_size": 44},
}  # fmt: skip


@pytest.fixture(params=list(LAYOUTS))
def folder(request, tmp_path):
    model = raw_model(request.param, tied=False, **LAYOUTS[request.param])
    return write_folder(model, tmp_path / "model")


@pytest.mark.parametrize("numbers", [1, 64 * 17, 64 * 40])  # a row or a head at least; parts that divide nothing evenly
def test_pieces_are_the_whole(folder, numbers, monkeypatch):
    store, weights = TensorStore(folder), ExportWeights(folder)
    names = [f"model.layers.1.{part}_proj.weight" for part in ("self_attn.q", "self_attn.k", "mlp.up", "mlp.down")]
    whole = {
        name: (store.tensor(name), weights.tensor(name), weights.blocks(name, BLOCK_FORMATS["q4_0"]))
        for name in ("model.embed_tokens.weight", "lm_head.weight", *names)
    }
    monkeypatch.setattr(checkpoint, "PIECE", numbers)
    for name, (stored, padded, blocks) in whole.items():
        pieces = list(store.pieces(name))
        assert len(pieces) > 1 and store.shape(name) == stored.shape
        assert torch.equal(torch.cat(pieces), stored) and torch.equal(weights.tensor(name), padded)
        again = weights.blocks(name, BLOCK_FORMATS["q4_0"])
        assert torch.equal(again.codes, blocks.codes) and torch.equal(again.scales, blocks.scales)
        assert torch.equal(blocks.codes, quantise(padded, BLOCK_FORMATS["q4_0"]).codes)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_rows_are_rounded_alike_in_any_pieces(name):
    """Wide enough that several pieces of rounding make one piece of reading."""
    weight, format = torch.randn(37, 4096), BLOCK_FORMATS[name]
    expected = quantise(weight, format, 128)
    for sizes in ([37], [1, 20, 16], [9] * 4 + [1]):
        found = quantise_rows(weight.split(sizes), weight.shape, format, 128)
        for part in ("codes", "scales", "offsets"):
            ours, theirs = getattr(found, part), getattr(expected, part)
            assert ours is theirs is None or torch.equal(ours, theirs)
