"""Qwen3.5: gated DeltaNets beside gated attention. Reading, text parts of vision models, caches, padding, refusals."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache

from saap_edge.errors import SaapError
from saap_edge.model.checkpoint import open_checkpoint, read_spec
from saap_edge.model.classes import TRANSFORMERS_4
from saap_edge.model.folder import build_pruned, load_model, save_model, spec_of
from saap_edge.model.spec import LayerShape
from saap_edge.pruning.repair import repair
from saap_edge.pruning.space import Cost
from saap_edge.pruning.surgery import cut, zero_removed
from tests.conftest import randomise_projections, raw_model, tiny_model, write_folder
from tests.families.support import (
    assert_refused,
    assert_steps_as_it_reads,
    assert_widths_of_others_refused,
    saved,
)

pytestmark = pytest.mark.skipif(TRANSFORMERS_4, reason="transformers 4 does not have Qwen3.5")
IDS = torch.arange(1, 40).view(1, -1)
ALL = {"attention": np.arange(4), "slots": np.arange(2), "ffn": np.arange(128)}
NOTHING = np.arange(0)
# Sizes of keys and values that differ, more taps, other numbers of heads, and less or more that rotates.
SHAPES = [
    {},
    {"linear_key_head_dim": 8, "linear_value_head_dim": 32, "linear_conv_kernel_dim": 2, "head_dim": 64},
    {"linear_num_key_heads": 2, "linear_num_value_heads": 6, "num_attention_heads": 4, "num_key_value_heads": 1},
    {"linear_num_key_heads": 4, "linear_num_value_heads": 4, "num_hidden_layers": 5, "linear_conv_kernel_dim": 6},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 1.0}},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_answers_are_transformers(shape, tmp_path):
    """Whole texts, more than a chunk of the delta rule, and steps of 1, 3 and 70 tokens."""
    raw = raw_model("qwen3_5_text", **shape)
    loaded = load_model(saved(raw, tmp_path))
    ids = torch.randint(1, 320, (2, 100), generator=torch.Generator().manual_seed(0))
    expected = raw(ids).logits
    torch.testing.assert_close(loaded(ids).logits, expected, atol=1e-4, rtol=1e-4)
    for sizes in ([1] * 12, [3] * 5, [70, 1, 1, 28]):
        cache, other = DynamicCache(config=loaded.config), DynamicCache(config=raw.config)
        for part in ids[:, : sum(sizes)].split(sizes, dim=1):
            found = loaded(part, past_key_values=cache, use_cache=True).logits
            told = raw(part, past_key_values=other, use_cache=True).logits
            torch.testing.assert_close(found, told, atol=1e-4, rtol=1e-4)


def test_layers_that_config_json_does_not_name(tmp_path):
    raw = raw_model("qwen3_5_text", num_hidden_layers=6, layer_types=["linear_attention", "full_attention"] * 3)
    folder = saved(raw, tmp_path, layer_types=..., full_attention_interval=2)
    assert [layer.linear for layer in read_spec(folder).layers] == [True, False] * 3
    torch.testing.assert_close(load_model(folder)(IDS).logits, raw(IDS).logits, atol=2e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def vision_folder(tmp_path_factory):
    """A whole model of transformers' class, with a part for images and, as in published ones, an MTP head."""
    folder = tmp_path_factory.mktemp("vision")
    text = raw_model("qwen3_5_text").config.to_dict()
    config = transformers.Qwen3_5Config(
        text_config=text, tie_word_embeddings=True, image_token_id=1, video_token_id=2, vision_start_token_id=3,
        vision_end_token_id=4, vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Qwen3_5ForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    assert any(name.startswith("model.language_model.") for name in tensors)
    save_file(tensors | {"mtp.norm.weight": torch.zeros(64)}, folder / "model.safetensors", {"format": "pt"})
    return model, folder


def test_the_text_part_of_a_vision_model(vision_folder, tmp_path):
    model, folder = vision_folder
    warnings = open_checkpoint(folder).warnings
    assert [line for line in warnings if "'model.visual.*' are no part of the text model: they are left out" in line]
    assert "1 tensors 'mtp.*' are no part of the text model: they are left out" in warnings
    loaded = load_model(folder)
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, atol=2e-5, rtol=1e-4)
    save_model(loaded, write_folder(tiny_model("qwen3_5_text"), tmp_path / "t"), tmp_path / "m")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert isinstance(plain, transformers.Qwen3_5ForCausalLM)
    torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, atol=2e-5, rtol=1e-4)


def test_a_vision_model_of_another_kind_is_refused(vision_folder, tmp_path):
    _, folder = vision_folder
    config = json.loads((folder / "config.json").read_text())
    for change, reason in (
        ({"text_config": {"model_type": "qwen3_5_moe_text"}}, "whose text_config is no 'qwen3_5_text'"),
        ({"text_config": None}, "whose text_config is no 'qwen3_5_text'"),
        ({"model_type": "qwen3_5_moe"}, "model family 'qwen3_5_moe' is not supported"),
    ):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(SaapError, match=reason):
            read_spec(tmp_path)


REFUSED = [
    ({"attention_bias": True}, "attention with biases"),
    ({"attn_output_gate": False}, "attention without gates"),
    ({"layer_types": ["linear_attention"] * 3}, "it has no layer with attention"),
    (
        {"layer_types": ["linear_attention", "sliding_attention", "full_attention"]},
        "layer_types has 'sliding_attention'",
    ),
    ({"linear_num_value_heads": 6}, "6 value heads .* cannot share 4 key heads"),
    ({"linear_conv_kernel_dim": 1}, "convolutions of 1 token"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling 'yarn' is not supported"),
    ({"rope_parameters": {"partial_rotary_factor": 0.3}}, "4.8 of 16 dimensions of a head would rotate"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSED)
def test_what_cannot_be_carried_is_refused(change, reason, tmp_path):
    assert_refused("qwen3_5_text", change, reason, tmp_path)


@pytest.mark.parametrize("field", ["per_layer_config", "block_configs"])
def test_widths_by_layer_that_others_wrote_are_refused(field, tmp_path):
    assert_widths_of_others_refused("qwen3_5_text", field, tmp_path)


KINDS = {
    "key heads": {"attention": np.array([0, 2])}, "value heads": {"slots": np.array([1])},
    "net": {"attention": NOTHING},
    "both": {"attention": np.array([1, 3]), "slots": np.array([0]), "ffn": np.arange(32, 96)},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_heads_of_a_delta_net_removed_equal_zeroed(kind, shape):
    """Also when the state that a head had is asked for later, in steps."""
    dense = tiny_model("qwen3_5_text", num_hidden_layers=4, **shape)
    kept = [ALL | KINDS[kind], ALL, ALL, ALL]
    pruned = cut(dense, kept)
    zero_removed(dense, kept)
    torch.testing.assert_close(pruned(IDS).logits, dense(IDS).logits, atol=3e-5, rtol=1e-4)
    caches = [DynamicCache(config=model.config) for model in (pruned, dense)]
    for part in IDS.split(7, dim=1):
        found, told = (
            model(part, past_key_values=cache, use_cache=True).logits
            for model, cache in zip((pruned, dense), caches, strict=True)
        )
        torch.testing.assert_close(found, told, atol=3e-5, rtol=1e-4)


def test_repair_nears_what_a_delta_net_gave():
    dense, windows = tiny_model("qwen3_5_text"), torch.randint(1, 320, (24, 32))
    kept = [ALL | KINDS["key heads"], ALL, ALL]

    def given(model):
        return model.model.layers[0].linear_attn(
            model.model.layers[0].input_layernorm(model.model.embed_tokens(windows))
        )

    with torch.no_grad():
        target = given(dense)
        before = float((given(cut(dense, kept)) - target).square().mean())
        repair(dense, kept, windows, mix=0.0)
        assert float((given(cut(dense, kept)) - target).square().mean()) < 0.9 * before


# Widths of each layer, whole sublayers gone, a block gone, and layers that are alike: transformers' own class.
LAST = ALL | {"attention": np.array([1]), "slots": np.array([0])}
PLANS = {
    "widths": [KINDS["both"], {"attention": np.array([0, 3])}, {"slots": np.array([1])}, {}],
    "depth": [{"ffn": NOTHING}, {"attention": NOTHING}, {}, {"attention": NOTHING}],
    "block": [{}, {"attention": NOTHING, "ffn": NOTHING}, {}, {}],
    "alike": [KINDS["key heads"], {"attention": np.array([3])}, {"attention": np.array([0])}, KINDS["value heads"]],
}


@pytest.mark.parametrize("plan", PLANS)
def test_a_pruned_model_steps_as_it_reads(plan, tmp_path):
    kinds = ["linear_attention", "full_attention", "full_attention", "linear_attention"]
    changes = PLANS[plan]
    if plan == "alike":
        changes = [KINDS["both"], *[{"attention": np.array([0, 3]), "ffn": np.arange(64)}] * 2, KINDS["both"]]
    pruned = cut(tiny_model("qwen3_5_text", num_hidden_layers=4, layer_types=kinds), [ALL | one for one in changes])
    model = assert_steps_as_it_reads(pruned, tmp_path, IDS, atol=2e-5)
    assert isinstance(model, transformers.Qwen3_5ForCausalLM) == (plan in ("block", "alike"))


def test_padding_does_not_reach_the_states(tmp_path):
    raw = raw_model("qwen3_5_text")
    loaded = load_model(saved(raw, tmp_path))
    ids = torch.randint(1, 320, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    expected, found = raw(ids, attention_mask=mask).logits, loaded(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[0], expected[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found[1, 5:], expected[1, 5:], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found[1, 5:], loaded(ids[1:, 5:]).logits[0], atol=2e-5, rtol=1e-4)


def test_one_attention_has_to_stay():
    dense = tiny_model("qwen3_5_text")
    gone = ALL | {"attention": NOTHING, "ffn": NOTHING}
    pruned = cut(dense, [gone, ALL, gone])
    assert spec_of(pruned).layers == (LayerShape(8, 4, 128),)
    with pytest.raises(SaapError, match="no layer with attention would be left"):
        cut(dense, [ALL, gone, gone])


def test_what_delta_nets_remember_and_hold(tmp_path):
    raw = raw_model("qwen3_5_text", **SHAPES[1], tied=False)
    spec = read_spec(saved(raw, tmp_path))
    cache = DynamicCache(config=raw.config)
    raw(IDS, past_key_values=cache, use_cache=True)
    states = cache.layers[0].recurrent_states[0].numel(), cache.layers[0].conv_states[0][..., 1:].numel()
    assert spec.state_bytes() == 4 * sum(states)
    keys = cache.layers[1].keys[0].numel() // IDS.numel()
    assert spec.kv_bytes_per_token(2) == 2 * 2 * keys * 2  # keys and values of two layers
    weights = sum(p.numel() for name, p in raw.named_parameters() if "_proj" in name)
    assert spec.layer_parameters() == weights
    counted = Cost(gated=True, delta=spec.delta)
    assert sum(counted.layer(layer, spec.hidden, spec.head_dim) for layer in spec.layers) == weights


def test_a_folder_of_ours_says_its_delta_nets(tmp_path):
    """In transformers' words for their widths; and a contradiction is refused."""
    widths = [LayerShape(4, 4, 96), *[LayerShape(4, 2, 64)] * 2]
    model = randomise_projections(build_pruned(tiny_model("qwen3_5_text"), widths))
    folder = write_folder(model, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["linear_layers"] == [1, 0, 0]
    assert config["per_layer_config"]["0"] == {"linear_num_value_heads": 4, "intermediate_size": 96}
    lone = {name: value for name, value in config.items() if name != "layer_widths"}
    (folder / "config.json").write_text(json.dumps(lone))
    assert read_spec(folder) == spec_of(model)
    loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, atol=2e-5, rtol=1e-4)
    named = {"per_layer_config": config["per_layer_config"] | {"0": {"num_attention_heads": 4}}}
    for change, reason in (
        ({"linear_layers": [1, 0]}, "linear_layers is of 2 layers"),
        ({"linear_key_head_dim": 8}, r"in_proj_q\.weight is \(128, 64\), config\.json says \(32, 64\)"),
        ({"gated_attention": False}, "gated_attention is False, and not so in base_model_type"),
        (named, "layer 0 has a num_attention_heads of its own"),
    ):  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(SaapError, match=reason):
            read_spec(folder)


def test_a_uniform_plan_is_saved_as_transformers_class_in_half_precision(tmp_path):
    widths = [LayerShape(6, 3, 64), *[LayerShape(4, 2, 64)] * 2]
    half = randomise_projections(build_pruned(tiny_model("qwen3_5_text", tied=False), widths)).to(torch.bfloat16)
    save_model(half, write_folder(tiny_model("qwen3_5_text"), tmp_path / "t"), tmp_path / "m")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    assert isinstance(plain, transformers.Qwen3_5ForCausalLM)
    assert (plain.config.linear_num_value_heads, plain.config.linear_num_key_heads) == (6, 3)
    again = load_model(tmp_path / "m", torch.bfloat16)
    for name, value in half.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
