"""Gemma 4: two sizes of heads, borrowed keys and values, embeddings of every layer's own. Reading, caches, refusals."""

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
from saap_edge.pruning.space import Cost, Space
from saap_edge.pruning.surgery import cut, zero_removed
from tests.conftest import randomise_projections, raw_model, tiny_model, write_folder
from tests.families.support import assert_refused, assert_steps_as_it_reads, saved

pytestmark = pytest.mark.skipif(TRANSFORMERS_4, reason="transformers 4 does not have Gemma 4")
FAMILY = "gemma4_text"
IDS = torch.arange(1, 40).view(1, -1)  # more than the window of 8
FULL, SLIDING = "full_attention", "sliding_attention"
ALL = {"attention": np.arange(4), "slots": np.arange(2), "ffn": np.arange(128)}
# As E2B and E4B: the last layers borrow, with FFNs twice as wide. Layers 2 and 3 lend.
LENT = {
    "num_hidden_layers": 6, "layer_types": [SLIDING, FULL, SLIDING, FULL, SLIDING, FULL], "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
}  # fmt: skip
# As 31B: no embeddings of layers, keys that are values too, and fewer KV heads in layers without window.
LARGE = {
    "hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 2,
    "final_logit_softcapping": None,
}  # fmt: skip
SHAPES = {
    "plain": {}, "lent": LENT, "large": LARGE, "untied": {"tied": False, "num_hidden_layers": 4},
    "one size": {"global_head_dim": 16},
    "plain rope": {
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": 100.0}, FULL: {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "half": {
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
            FULL: {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.55},
        },
    },
    "by layer": {
        "per_layer_config": {
            "0": {"num_key_value_heads": 2}, "1": {"num_key_value_heads": 2},
            "2": {"head_dim": 64, "num_key_value_heads": 1},
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_answers_are_transformers(shape, tmp_path):
    """Whole texts, and steps of 1, 3 and 20 tokens, past the window."""
    raw = raw_model(FAMILY, **SHAPES[shape])
    loaded = load_model(saved(raw, tmp_path))
    ids = torch.randint(1, 320, (2, 40), generator=torch.Generator().manual_seed(0))
    expected = raw(ids).logits
    torch.testing.assert_close(loaded(ids).logits, expected, atol=1e-5, rtol=1e-4)
    for sizes in ([1] * 12, [3] * 5, [20, 1, 1, 18]):
        cache, other = DynamicCache(config=loaded.config), DynamicCache(config=raw.config)
        for part in ids[:, : sum(sizes)].split(sizes, dim=1):
            found = loaded(part, past_key_values=cache, use_cache=True).logits
            told = raw(part, past_key_values=other, use_cache=True).logits
            torch.testing.assert_close(found, told, atol=1e-5, rtol=1e-4)
    assert spec_of(loaded) == read_spec(tmp_path)


def test_fields_of_older_folders(tmp_path):
    """Sizes of all layers without window in two fields, as in published folders; and layers that it does not name."""
    raw = raw_model(FAMILY, **LARGE, num_hidden_layers=6, layer_types=None)
    older = {"global_head_dim": 32, "num_global_key_value_heads": 2, "per_layer_config": ..., "layer_types": ...}
    folder = saved(raw, tmp_path, **older)
    assert [layer.head_dim for layer in read_spec(folder).layers] == [0] * 5 + [32]
    assert [layer.kv_heads for layer in read_spec(folder).layers] == [4] * 5 + [2]
    torch.testing.assert_close(load_model(folder)(IDS).logits, raw(IDS).logits, atol=1e-5, rtol=1e-4)


def test_what_borrowing_layers_store_is_left_out(tmp_path):
    """Published folders have keys and values of layers that borrow them; transformers drops these too."""
    raw = raw_model(FAMILY, **LENT)
    folder = saved(raw, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    for name in ("k_proj", "v_proj", "k_norm"):
        tensors[f"model.layers.5.self_attn.{name}.weight"] = tensors[f"model.layers.3.self_attn.{name}.weight"] + 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(load_model(folder)(IDS).logits, raw(IDS).logits, atol=1e-5, rtol=1e-4)


def test_the_text_part_of_a_whole_model(tmp_path):
    text = raw_model(FAMILY, **LENT).config
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "position_embedding_size": 16,
    }  # fmt: skip
    audio = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 32}
    config = transformers.Gemma4Config(text_config=text, vision_config=vision, audio_config=audio)
    torch.manual_seed(0)
    model = transformers.Gemma4ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    warnings = open_checkpoint(tmp_path).warnings
    for part in ("vision_tower", "audio_tower", "embed_vision", "embed_audio"):
        told = f"'model.{part}.*' are no part of the text model: they are left out"
        assert any(told in line for line in warnings)
    loaded = load_model(tmp_path)
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-4)
    save_model(loaded, write_folder(tiny_model(FAMILY), tmp_path / "t"), tmp_path / "m")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert isinstance(plain, transformers.Gemma4ForCausalLM)
    torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-4)


ROPE = {SLIDING: {"rope_type": "default", "rope_theta": 1e4}, FULL: {"rope_type": "default", "rope_theta": 1e4}}
REFUSED = [
    ({"attention_bias": True}, "attention with biases"),
    ({"enable_moe_block": True, "num_experts": 2, "top_k_experts": 1, "moe_intermediate_size": 32}, "mixtures of exp"),
    ({"use_bidirectional_attention": "all"}, "bidirectional attention"),
    ({"layer_types": [SLIDING, "linear_attention", FULL]}, "layer_types has 'linear_attention'"),
    ({"vocab_size_per_layer_input": 100}, "a table of 100 tokens for layers .*, and 320 for the model"),
    (LENT | {"hidden_size_per_layer_input": 0}, "borrowed keys and values without embeddings of every layer's own"),
    ({"num_kv_shared_layers": 1}, "no layer of type 'full_attention' has keys and values of its own"),
    ({"rope_parameters": ROPE | {FULL: {"rope_type": "yarn", "factor": 4.0}}}, "rope scaling 'yarn' is not supported"),
    ({"rope_parameters": ROPE | {SLIDING: {"rope_type": "proportional"}}}, "'proportional' of 'sliding_attention'"),
    ({"rope_parameters": {FULL: ROPE[FULL]}}, "rope_parameters has nothing for 'sliding_attention'"),
    ({"hidden_activation": "silu"}, "hidden_act 'silu' is not supported"),
    ({"per_layer_config": {"1": {"intermediate_size": 64}}}, "layer 1 has a intermediate_size of its own"),
    ({"per_layer_config": {"7": {"head_dim": 64}}}, "names a layer '7', and there are layers 0 to 2"),
    ({"per_layer_config": {"0": {"head_dim": 64}}}, "layers of type 'sliding_attention' differ in the number or the"),
    ({"per_layer_config": {"1": {"num_key_value_heads": 2}}}, "layers of type 'sliding_attention' differ in"),
    (
        {"per_layer_config": {str(index): {"num_key_value_heads": 3} for index in range(3)}},
        "8 attention heads cannot share 3 key-value heads",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), REFUSED, ids=str)
def test_what_cannot_be_carried_is_refused(change, reason, tmp_path):
    assert_refused(FAMILY, change, f".*{reason}", tmp_path)


def kept_of(spec, changes):
    """All structures of a model's layers, but for what `changes` says of some."""
    space = Space(spec.layers, spec.hidden, spec.head_dim)
    dense = [{kind: np.arange(width) for kind, width in layer.items()} for layer in space.dense()]
    return [layer | changes.get(index, {}) for index, layer in enumerate(dense)]


KINDS = {
    "kv groups": {0: {"attention": np.array([0, 2])}, 1: {"attention": np.array([3])}},
    "slots": {index: {"slots": np.array([index % 2])} for index in range(6)},
    "channels": {0: {"ffn": np.arange(32, 96)}, 3: {"ffn": np.arange(64)}, 5: {"ffn": np.arange(96, 256)}},
}  # fmt: skip
KINDS["all"] = {index: KINDS["slots"][index] | KINDS["channels"].get(index, {}) for index in range(6)}
KINDS["all"][0] |= KINDS["kv groups"][0]


@pytest.mark.parametrize("kind", KINDS)
def test_removed_equals_zeroed_and_steps_as_it_reads(kind, tmp_path):
    """Also where layers borrow: a slot goes in each layer alone, and KV groups of layers that nobody borrows of."""
    dense = tiny_model(FAMILY, **LENT)
    kept = kept_of(spec_of(dense), KINDS[kind])
    pruned = cut(dense, kept)
    zero_removed(dense, kept)
    torch.testing.assert_close(pruned(IDS).logits, dense(IDS).logits, atol=2e-5, rtol=1e-4)
    model = assert_steps_as_it_reads(pruned, tmp_path, IDS, atol=2e-5)
    assert isinstance(model, transformers.Gemma4ForCausalLM) == (kind == "slots")
    cache = DynamicCache(config=model.config)
    model(IDS, past_key_values=cache, use_cache=True)
    held = [layer.keys.shape for layer in cache.layers if getattr(layer, "keys", None) is not None]
    shapes = spec_of(pruned).layers
    assert [shape[1] for shape in held] == [layer.kv_heads for layer in shapes if layer.caches] and len(held) == 4


@pytest.mark.parametrize("index", [2, 3, 4, 5])
def test_kv_groups_of_shared_layers_stay(index):
    dense = tiny_model(FAMILY, **LENT)
    spec = spec_of(dense)
    assert [layer.kv for layer in spec.layers] == ["", "", "lent", "lent", "borrowed", "borrowed"]
    assert Space(spec.layers, spec.hidden, spec.head_dim).options(index, "attention") == [4]
    with pytest.raises(SaapError, match=f"layer {index}: its KV heads stay"):
        cut(dense, kept_of(spec, {index: {"attention": np.array([0, 2])}}))


def test_repair_nears_what_layers_gave():
    dense = tiny_model(FAMILY, **LENT)
    kept, windows = kept_of(spec_of(dense), KINDS["all"]), torch.randint(1, 320, (24, 32))
    with torch.no_grad():
        target = dense(windows).logits
        before = float((cut(dense, kept)(windows).logits - target).square().mean())
        repair(dense, kept, windows)
        pruned = cut(dense, kept)(windows).logits
        torch.testing.assert_close(dense(windows).logits, pruned, atol=1e-4, rtol=1e-3)
        assert float((pruned - target).square().mean()) < 0.9 * before


def test_padding(tmp_path):
    raw = raw_model(FAMILY, **LENT)
    loaded = load_model(saved(raw, tmp_path))
    ids = torch.randint(1, 320, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    expected, found = raw(ids, attention_mask=mask).logits, loaded(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[1, 5:], expected[1, 5:], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found[0], expected[0], atol=2e-5, rtol=1e-4)


def test_what_it_holds(tmp_path):
    raw = raw_model(FAMILY, **LENT, tied=False)
    spec = read_spec(saved(raw, tmp_path))
    weights = {name: p.numel() for name, p in raw.named_parameters()}
    assert spec.layer_parameters() == sum(size for name, size in weights.items() if "_proj." in name)
    assert spec.per_layer_table() == weights["model.embed_tokens_per_layer.weight"]
    assert spec.per_layer_projection() == weights["model.per_layer_model_projection.weight"]
    own = ("per_layer_input_gate.weight", "per_layer_projection.weight")
    assert spec.per_layer_weights() == sum(size for name, size in weights.items() if name.endswith(own))
    counted = sum(Cost().layer(layer, spec.hidden, spec.head_dim) for layer in spec.layers)
    assert counted == spec.layer_parameters()
    cache = DynamicCache(config=raw.config)
    raw(IDS[:, :5], past_key_values=cache, use_cache=True)
    held = [part for layer in cache.layers[:4] for part in (layer.keys, layer.values)]
    assert spec.kv_bytes_per_token(4) == sum(part.numel() for part in held) // 5 * 4


def test_a_folder_of_ours_says_its_widths(tmp_path):
    widths = [LayerShape(4, 2, 96), LayerShape(8, 4, 64), *[LayerShape(4, 4, 128)] * 2, *[LayerShape(4, 4, 160)] * 2]
    model = randomise_projections(build_pruned(tiny_model(FAMILY, **LENT), widths))
    folder = write_folder(model, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["per_layer_config"]["0"] == {
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
    }  # fmt: skip
    lone = {name: value for name, value in config.items() if name != "layer_widths"}
    (folder / "config.json").write_text(json.dumps(lone))
    assert read_spec(folder) == spec_of(model)
    loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, atol=2e-5, rtol=1e-4)
    labelled = loaded(IDS, labels=IDS)
    expected = torch.nn.functional.cross_entropy(model(IDS).logits[0, :-1], IDS[0, 1:])
    torch.testing.assert_close(labelled.loss, expected)


@pytest.mark.parametrize("wide", [64, 128])
def test_layers_that_transformers_can_say_are_saved_as_its_class(wide, tmp_path):
    """In half precision, with all factors; FFNs of borrowing layers are as wide as the others, or twice."""
    widths = [*[LayerShape(4, 4, 64)] * 4, *[LayerShape(4, 4, wide)] * 2]
    half = randomise_projections(build_pruned(tiny_model(FAMILY, tied=False, **LENT), widths)).to(torch.bfloat16)
    save_model(half, write_folder(tiny_model(FAMILY), tmp_path / "t"), tmp_path / "m")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    assert isinstance(plain, transformers.Gemma4ForCausalLM) and plain.config.use_double_wide_mlp == (wide == 128)
    assert plain.config.per_layer_config[5].head_dim == 32
    again = load_model(tmp_path / "m", torch.bfloat16)
    for name, value in half.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
