"""Attention of short windows by products of matrices: as near to float32 as torch's own kernel, in every family."""

from contextlib import nullcontext

import pytest
import torch

from saap_edge.families import FAMILIES
from saap_edge.model import attention
from saap_edge.model.attention import LONGEST, short_attention
from saap_edge.pruning.surgery import cut
from tests.conftest import tiny_model
from tests.pruning.test_surgery import kept_for

WINDOWS = torch.randint(1, 320, (2, 48), generator=torch.Generator().manual_seed(0))  # beyond the sliding windows of 8


@pytest.fixture
def taken(monkeypatch):
    """How often attention took torch's own kernel, and how often products of matrices."""
    counts = {"torch": 0, "products": 0}
    for name, place, function in (
        ("torch", attention, "sdpa_attention_forward"), ("products", torch, "baddbmm"),
    ):  # fmt: skip
        original = getattr(place, function)

        def counted(*inputs, name=name, original=original, **keywords):
            counts[name] += 1
            return original(*inputs, **keywords)

        monkeypatch.setattr(place, function, counted)
    return counts


def run(model, short, halved=True):
    """States of the last layer, and the gradient of a loss of them with respect to the embeddings."""
    weights = model.model.embed_tokens.weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=halved), short_attention(model) if short else nullcontext():
        states = model.model(input_ids=WINDOWS, use_cache=False).last_hidden_state
        loss = (states.float() * torch.linspace(-1, 1, states.shape[-1])).square().mean()
    return states.detach().float(), torch.autograd.grad(loss, weights)[0]


def apart(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_as_near_to_float32_as_torchs_kernel(name, pruned, taken):
    model = tiny_model(name)
    model = cut(model, kept_for(name, 0)) if pruned else model
    exact, torchs, ours = run(model, False, halved=False), run(model, False), run(model, True)
    if model.config._attn_implementation == "sdpa":
        assert taken["products"] and not taken["torch"]
    for wanted, theirs, found in zip(exact, torchs, ours, strict=True):
        assert apart(found, wanted) <= 1.5 * apart(theirs, wanted)


def test_float32_takes_torchs_kernel_and_changes_nothing(taken):
    model = tiny_model("llama")
    assert all(torch.equal(*pair) for pair in zip(run(model, False, False), run(model, True, False), strict=True))
    assert taken["torch"] and not taken["products"]
    assert model.config._attn_implementation == "sdpa"


def test_long_windows_take_torchs_kernel(taken, monkeypatch):
    monkeypatch.setattr(attention, "LONGEST", WINDOWS.shape[1] - 1)
    run(tiny_model("llama"), True)
    assert LONGEST >= 256 and taken["torch"] and not taken["products"]


def test_a_mask_of_each_sequence_takes_torchs_kernel(taken):
    """A padded batch: its sequences see different tokens."""
    model, seen = tiny_model("llama"), torch.ones_like(WINDOWS)
    seen[0, :5] = 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = model.model(input_ids=WINDOWS, attention_mask=seen, use_cache=False).last_hidden_state
        with short_attention(model):
            found = model.model(input_ids=WINDOWS, attention_mask=seen, use_cache=False).last_hidden_state
    assert taken["torch"] and not taken["products"]
    assert torch.equal(found, wanted)
