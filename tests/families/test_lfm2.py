"""LFM2: short convolutions beside attention. Reading, the names of fields, caches, padding, and what is refused."""

import copy
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Lfm2ForCausalLM

from saap_edge.errors import SaapError
from saap_edge.families.lfm2 import ffn_width, source
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.classes import TRANSFORMERS_4
from saap_edge.model.folder import build_pruned, load_model, save_model, spec_of
from saap_edge.model.spec import LayerShape
from saap_edge.pruning.surgery import cut
from tests.conftest import randomise_projections, raw_model, tiny_model, write_folder
from tests.families.support import (
    assert_refused,
    assert_steps_as_it_reads,
    assert_widths_of_others_refused,
    saved,
)

IDS = torch.arange(1, 40).view(1, -1)
ALL = {"attention": np.arange(4), "slots": np.arange(2), "ffn": np.arange(128)}
only_5 = pytest.mark.skipif(TRANSFORMERS_4, reason="the cache of transformers 4 holds no states of convolutions")


@pytest.mark.parametrize("adjusted", [True, False])
def test_names_of_fields_in_the_checkpoints_of_liquid_ai(adjusted, tmp_path):
    """LFM2's own config.json says full_attn_idxs, block_ff_dim and tie_embedding; the FFN's width is computed."""
    words = {"intermediate_size": 200, "block_auto_adjust_ff_dim": adjusted, "block_multiple_of": 32}
    raw = raw_model("lfm2", tied=False, **words)
    folder = saved(
        raw, tmp_path, layer_types=..., intermediate_size=..., tie_word_embeddings=...,
        full_attn_idxs=[1, 2], block_ff_dim=200, tie_embedding=False, block_norm_eps=1e-5, conv_dim=64,
    )  # fmt: skip
    spec = read_spec(folder)
    assert [layer.conv for layer in spec.layers] == [True, False, False] and not spec.tied
    assert {layer.ffn for layer in spec.layers} == {160 if adjusted else 200}
    torch.testing.assert_close(load_model(folder)(IDS).logits, raw(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 1.3, None])
@pytest.mark.parametrize(("width", "multiple"), [(6656, 256), (200, 32), (97, 10)])
def test_the_width_of_the_ffn_is_transformers(width, multiple, factor):
    words = {"intermediate_size": width, "block_multiple_of": multiple, "block_ffn_dim_multiplier": factor}
    if factor is None:  # newer classes want a number
        words["block_ffn_dim_multiplier"] = 1.0
    words["block_auto_adjust_ff_dim"] = True
    model = raw_model("lfm2", **words)
    if factor is None:
        from transformers.models.lfm2.modeling_lfm2 import Lfm2MLP

        config = copy.copy(model.config)
        config.__dict__["block_ffn_dim_multiplier"] = None
        assert ffn_width(words | {"block_ffn_dim_multiplier": None}) == Lfm2MLP(config).w1.out_features
    else:
        assert ffn_width(words) == model.model.layers[0].feed_forward.w1.out_features


REFUSED = [
    ({"conv_bias": True}, "convolutions with biases"),
    ({"conv_L_cache": 1}, "convolutions of 1 token"),
    ({"layer_types": ["conv", "conv", "conv"]}, "it has no layer with attention"),
    ({"layer_types": ["conv", "sliding_attention", "full_attention"]}, "layer_types has 'sliding_attention'"),
    ({"rope_parameters": {"rope_type": "proportional"}}, "rope scaling 'proportional'"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSED)
def test_what_cannot_be_carried_is_refused(change, reason, tmp_path):
    assert_refused("lfm2", change, reason, tmp_path)


@pytest.mark.parametrize("field", ["per_layer_config", "block_configs"])
def test_widths_by_layer_that_others_wrote_are_refused(field, tmp_path):
    assert_widths_of_others_refused("lfm2", field, tmp_path)


# The last layer's FFN gone, attention gone in the middle; a block gone: what follows moves up with what it has.
PLANS = {
    "widths": [{"ffn": np.arange(96)}, {"attention": np.array([0, 3])}, {"slots": np.array([1])}],
    "depth": [{"ffn": np.arange(0)}, {"attention": np.arange(0)}, {}],
    "block": [{}, {"attention": np.arange(0), "ffn": np.arange(0)}, {}],
}


@only_5
@pytest.mark.parametrize("plan", PLANS)
def test_a_pruned_model_steps_as_it_reads(plan, tmp_path):
    pruned = cut(tiny_model("lfm2"), [ALL | change for change in PLANS[plan]])
    model = assert_steps_as_it_reads(pruned, tmp_path, IDS, atol=1e-5)
    assert isinstance(model, Lfm2ForCausalLM) == (plan == "block")  # alike: transformers' own class


def test_padding_does_not_reach_the_convolutions(tmp_path):
    raw = raw_model("lfm2")
    loaded = load_model(saved(raw, tmp_path))
    ids = torch.randint(1, 320, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    expected, found = raw(ids, attention_mask=mask).logits, loaded(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-4)
    if not TRANSFORMERS_4:  # whose class lets padding into its convolutions
        torch.testing.assert_close(found[1, 5:], expected[1, 5:], atol=1e-5, rtol=1e-4)
    alone = loaded(ids[1:, 5:]).logits[0]
    torch.testing.assert_close(found[1, 5:], alone, atol=1e-5, rtol=1e-4)


def test_convolutions_stay_and_one_attention_has_to():
    dense = tiny_model("lfm2")
    gone = ALL | {"attention": np.arange(0), "ffn": np.arange(0)}
    pruned = cut(dense, [gone, ALL, gone])
    assert spec_of(pruned).layers == (LayerShape(0, 0, 0, conv=True), LayerShape(8, 4, 128))
    for kept in ([ALL, gone, gone], [gone] * 3):
        with pytest.raises(SaapError, match="no layer with attention would be left"):
            cut(dense, kept)


def test_what_convolutions_remember(tmp_path):
    spec = read_spec(saved(raw_model("lfm2", conv_L_cache=5), tmp_path))
    assert spec.state_bytes() == 4 * 64 * 4 and spec.kv_bytes_per_token(2) == 2 * 2 * 4 * 16 * 2
    raw = tiny_model("lfm2", conv_L_cache=5)
    names = ("self_attn", "mlp")
    cuttable = sum(p.numel() for name, p in raw.named_parameters() if "_proj" in name and any(n in name for n in names))
    assert spec.layer_parameters() == cuttable and spec.mixer_weights() == 4 * 64 * 64


def test_a_folder_of_ours_says_its_convolutions(tmp_path):
    """Not as attention that is skipped; and a contradiction is refused."""
    model = randomise_projections(build_pruned(tiny_model("lfm2"), [LayerShape(0, 0, 96), *[LayerShape(4, 2, 64)] * 2]))
    folder = write_folder(model, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["conv_layers"] == [1, 0, 0] and config["per_layer_config"]["0"] == {"intermediate_size": 96}
    lone = {name: value for name, value in config.items() if name != "layer_widths"}
    (folder / "config.json").write_text(json.dumps(lone))
    assert read_spec(folder) == spec_of(model)
    for change, reason in (
        ({"conv_layers": [1, 0]}, "conv_layers is of 2 layers"), ({"conv_layers": [1, 1, 0]}, "has no heads"),
        ({"conv_taps": 4}, r"conv\.conv\.weight is \(64, 1, 3\), config\.json says \(64, 1, 4\)"),
    ):  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(SaapError, match=reason):
            read_spec(folder)


def test_a_uniform_plan_is_saved_as_transformers_class_in_half_precision(tmp_path):
    model = build_pruned(tiny_model("lfm2", tied=False), [LayerShape(4, 2, 64)] * 3)
    half = randomise_projections(model).to(torch.bfloat16)
    save_model(half, write_folder(tiny_model("lfm2"), tmp_path / "t"), tmp_path / "m")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    assert isinstance(plain, Lfm2ForCausalLM) and plain.config.block_auto_adjust_ff_dim is False
    ours, theirs = dict(half.named_parameters()), dict(plain.named_parameters())
    assert len(ours) == len(theirs) and all(value.dtype == torch.bfloat16 for value in theirs.values())
    for name, value in ours.items():
        assert torch.equal(theirs[source({}, name).name], value), name
