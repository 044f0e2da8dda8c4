"""Canonical forms against transformers' own models, and what is refused."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from saap_edge.errors import SaapError
from saap_edge.exporting.refusal import GGUF_WRITERS, ONNX_WRITERS, export_refusal
from saap_edge.exporting.settings import FORMATS
from saap_edge.families import FAMILIES, Refusal, family_of
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.classes import TRANSFORMERS_4
from saap_edge.model.folder import load_model, spec_of
from saap_edge.model.spec import canonical_config, spec_from_config
from tests.conftest import AS_LLAMA, raw_model, skip_without
from tests.families.support import saved

IDS = torch.arange(1, 60).view(1, -1)
DOCS = Path(__file__).parents[2] / "docs" / "families.md"


@pytest.mark.parametrize("tied", [True, False])
def test_loaded_models_answer_as_transformers_do(family, tied, tmp_path):
    raw = raw_model(family, tied)
    loaded = load_model(saved(raw, tmp_path))
    torch.testing.assert_close(loaded(IDS).logits, raw(IDS).logits, atol=1e-5, rtol=1e-5)
    assert spec_of(loaded).layers == read_spec(tmp_path).layers
    assert (loaded.config.model_type == "llama") == (family in ("llama", *AS_LLAMA))


BIASES = [{"attention_bias": True}, {"mlp_bias": True}, {"attention_bias": True, "mlp_bias": True}]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("biases", BIASES, ids=" ".join)
@pytest.mark.parametrize("name", ["llama", "granite", "smollm3"])
def test_biases_are_part_of_the_model(name, biases, tied, tmp_path):
    raw = raw_model(name, tied, **biases)
    loaded, spec = load_model(saved(raw, tmp_path)), read_spec(tmp_path)
    assert spec.o_bias == spec.qkv_bias == ("attention_bias" in biases)
    assert spec.gate_up_bias == spec.down_bias == ("mlp_bias" in biases)
    layer = loaded.model.layers[0]
    assert {part for _, part in spec.family.projections(layer) if layer.get_submodule(part).bias is not None} == (
        spec.biased
    )
    torch.testing.assert_close(loaded(IDS).logits, raw(IDS).logits, atol=1e-5, rtol=1e-5)
    again = load_model(saved(loaded, tmp_path / "again"))
    torch.testing.assert_close(again(IDS).logits, raw(IDS).logits, atol=1e-5, rtol=1e-5)


def test_biases_of_granite_4_and_ernie(tmp_path):
    """Granite 4's MLP never has one; ERNIE has all or none, and those of q and k change places with their rows."""
    cases = {"granitemoehybrid": {"attention_bias": True, "mlp_bias": True}, "ernie4_5": {"use_bias": True}}
    for name, words in cases.items():
        raw = raw_model(name, **words)
        loaded, spec = load_model(saved(raw, tmp_path / name)), read_spec(tmp_path / name)
        assert spec.qkv_bias and spec.o_bias and spec.gate_up_bias == spec.down_bias == (name == "ernie4_5")
        torch.testing.assert_close(loaded(IDS).logits, raw(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mistral", "phi3", "qwen2", "qwen3", "gemma2"])
def test_mlp_bias_means_nothing_where_the_class_has_none(name, tmp_path):
    """As in transformers; but biases that are stored have no place, and are not passed over."""
    raw = raw_model(name)
    folder = saved(raw, tmp_path, mlp_bias=True)
    assert not read_spec(folder).gate_up_bias
    torch.testing.assert_close(load_model(folder)(IDS).logits, raw(IDS).logits, atol=1e-5, rtol=1e-5)
    tensors = load_file(folder / "model.safetensors") | {"model.layers.0.mlp.down_proj.bias": torch.ones(64)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SaapError, match=r"'model\.layers\.0\.mlp\.down_proj\.bias' has no place"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "spelling"), [("llama", "swish"), ("gemma2", "gelu_new"), ("gemma3_text", "gelu_fast")]
)
def test_activations_have_several_names(name, spelling, tmp_path):
    raw = raw_model(name)
    folder = saved(raw, tmp_path, **{"hidden_act" if name == "llama" else "hidden_activation": spelling})
    torch.testing.assert_close(load_model(folder)(IDS).logits, raw(IDS).logits, atol=1e-5, rtol=1e-5)


def test_granite_in_half_precision_is_folded_in_float32(tmp_path):
    raw = raw_model("granite").to(torch.bfloat16)
    loaded = load_model(saved(raw, tmp_path))
    expected = raw.model.embed_tokens.weight.float() * 3.0
    torch.testing.assert_close(loaded.model.embed_tokens.weight, expected, atol=0, rtol=0)


WINDOWS = [
    ("mistral", {"sliding_window": 64}, 64),
    ("mistral", {"sliding_window": None}, 128),
    ("phi3", {"sliding_window": 64}, 64),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, 64),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3}, 128),
    ("qwen2", {"use_sliding_window": False, "sliding_window": 64}, 128),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}, 64),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 64}, 64),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 64, "no_rope_layers": [1, 1, 1]}, 128),
]


@pytest.mark.parametrize(("name", "window", "context"), WINDOWS)
def test_a_sliding_window_bounds_the_context_and_within_it_nothing_changes(name, window, context, tmp_path):
    raw = raw_model(name, **window)
    loaded = load_model(saved(raw, tmp_path))
    assert read_spec(tmp_path).context == spec_of(loaded).context == context
    ids = torch.randint(1, 320, (1, context))
    torch.testing.assert_close(loaded(ids).logits, raw(ids).logits, atol=1e-5, rtol=1e-5)
    longer = torch.randint(1, 320, (1, 128))
    same = torch.allclose(loaded(longer).logits, raw(longer).logits, atol=1e-3)
    assert same == (context == 128)


@pytest.mark.parametrize("name", [name for name in AS_LLAMA if name != "ministral3"])  # whose rope is never plain
def test_rope_theta_where_older_folders_keep_it(name, tmp_path):
    raw = raw_model(name, rope_parameters={"rope_type": "default", "rope_theta": 777.0})
    folder = saved(raw, tmp_path, rope_parameters=..., rope_theta=777.0, rope_scaling=None)
    assert read_spec(folder).rope_theta == 777.0
    torch.testing.assert_close(load_model(folder)(IDS).logits, raw(IDS).logits, atol=1e-5, rtol=1e-5)


# Granite 4's defaults are those of a hybrid, Nemotron-H's those of a mixture of experts, whose blocks are counted.
SAID = {
    "granitemoehybrid": {
        "layer_types": ["attention"] * 32, "num_local_experts": 0, "position_embedding_type": "rope",
    },
    "nemotron_h": {"layers_block_type": ["linear_attention", "full_attention", "mlp"]},
}  # fmt: skip


def test_what_config_json_leaves_out_is_what_transformers_assumes(family):
    """Hub folders leave out what is default; a spec read from such a folder must be transformers' own."""
    skip_without(family)
    said = SAID.get(family, {})
    config = AutoConfig.for_model(family, **said).to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    kept = {name: config[name] for name in ("model_type", *names, *said) if name in config}
    full, read = spec_from_config(config), spec_from_config(kept)
    same = (
        "layers", "head_dim", "tied", "context", "rms_norm_eps", "qkv_bias", "o_bias", "rope_theta", "gemma",
        "unrotated",
    )  # fmt: skip
    assert {name: getattr(read, name) for name in same} == {name: getattr(full, name) for name in same}


ALPHA = {"rope_type": "dynamic", "rope_theta": 100.0, "alpha": 5.0, "factor": 1.0}


@pytest.mark.parametrize("rope", [ALPHA, ALPHA | {"factor": 2.0}, ALPHA | {"alpha": None}])
def test_alpha_of_hunyuan_is_a_larger_rotary_base_at_any_length(rope, tmp_path):
    """Beside it the factor means nothing. Without it, dynamic scaling is that of all families."""
    raw = raw_model("hunyuan_v1_dense", rope_parameters=dict(rope))
    loaded, ids = load_model(saved(raw, tmp_path)), torch.randint(1, 320, (1, 300))  # more than the model's 128
    ids = ids[:, :128] if TRANSFORMERS_4 else ids  # whose class scales by the length beyond it
    torch.testing.assert_close(loaded(ids).logits, raw(ids).logits, atol=1e-5, rtol=1e-5)
    scaled = 100 * 5.0 ** (16 / 14)
    assert loaded.config.rope_parameters["rope_theta"] == pytest.approx(scaled if rope["alpha"] else 100.0)


REFUSED = [
    (
        "hunyuan_v1_dense",
        {"rope_scaling": {"rope_type": "dynamic", "factor": 1.0, "alpha": -1.0}},
        ".*has alpha -1.0",
    ),
    ("hunyuan_v1_dense", {"rope_scaling": {"rope_type": "dynamic"}}, "rope scaling 'dynamic' lacks factor"),
    ("hunyuan_v1_dense", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, "rope scaling 'longrope'"),
    ("phi3", {"rope_scaling": {"type": "su"}, "rope_parameters": None}, "rope scaling 'longrope' lacks short_factor"),
    (
        "phi3",
        {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 5, "long_factor": [1.0] * 5}},
        "rope scaling 'longrope' has 5 figures as short_factor, not 8",
    ),
    ("llama", {"rope_parameters": {"rope_type": "proportional"}}, "rope scaling 'proportional'.*supported: default"),
    ("phi3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope scaling 'linear'.*default, longrope"),
    ("granite", {"rope_parameters": {"rope_type": "linear"}}, "rope scaling 'linear' lacks factor"),
    ("qwen2", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75}}, "partial rotary"),
    ("llama", {"rope_parameters": None, "partial_rotary_factor": 0.5}, "partial rotary"),
    ("granitemoehybrid", {"layer_types": ["attention", "mamba", "attention"]}, "layers of type 'mamba'.*take a Gran"),
    ("granitemoehybrid", {"layer_types": ...}, "layers of type 'mamba'"),
    ("granitemoehybrid", {"num_local_experts": 4}, "experts are not.*num_local_experts is 4.*take a Granite 4"),
    ("granitemoehybrid", {"position_embedding_type": "nope"}, "position_embedding_type is 'nope'.*take a Granite 4"),
    ("granitemoehybrid", {"position_embedding_type": ...}, "position_embedding_type is None"),
    ("granitemoehybrid", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported.*silu"),
    ("ernie4_5", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial rotary"),
    ("mistral", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported.*silu"),
    ("gemma2", {"hidden_activation": "silu"}, "hidden_act 'silu'.*gelu_pytorch_tanh"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "bidirectional"),
    (
        "gemma3_text",
        {"rope_parameters": {"full_attention": {"rope_type": "linear"}, "sliding_attention": {}}},
        "rope scaling 'linear'",
    ),
]


@pytest.mark.parametrize(("name", "change", "reason"), REFUSED)
def test_what_a_family_cannot_carry_is_refused(name, change, reason, tmp_path):
    folder = saved(raw_model(name), tmp_path, **change)
    for read in (read_spec, load_model):
        with pytest.raises(SaapError, match=f"this {FAMILIES[name].title} model cannot be handled: {reason}"):
            read(folder)


def test_a_missing_or_short_fused_tensor_is_named(tmp_path):
    saved(raw_model("phi3"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.self_attn.qkv_proj.weight"
    tensors[name] = tensors[name][:200].clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SaapError, match=rf"{re.escape(name)} is \(200, 64\), config\.json says \(256, 64\)"):
        load_model(tmp_path)
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SaapError, match=rf"tensor '{re.escape(name)}' is missing"):
        load_model(tmp_path)


def test_canonical_form_is_its_own(family):
    config = canonical_config(raw_model(family).config.to_dict())
    assert canonical_config(config) == config


def test_every_format_is_carried_or_refused_with_a_remedy(family):
    spec = spec_of(raw_model(family))
    for name in FORMATS:
        for per_layer in (False, True):
            refusal = export_refusal(spec, name, per_layer)
            assert refusal is None or (refusal.startswith(FAMILIES[family].title) and f"leave {name} out" in refusal)
    if family in ("llama", "qwen2", *AS_LLAMA):
        assert not any(export_refusal(spec, name, True) for name in FORMATS)


def test_unknown_family():
    with pytest.raises(SaapError, match=r"model family 'mamba' is not supported.*gemma2.*phi3"):
        family_of("mamba")


def test_the_documented_table_is_the_code():
    """docs/families.md: one row a family, its declared architectures named, its refusals not passed over."""
    table = DOCS.read_text(encoding="utf-8").partition("## Canonical form")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", table, re.MULTILINE))
    assert set(rows) == set(FAMILIES)
    for name, family in FAMILIES.items():
        cells = [cell.strip() for cell in rows[name].split("|")]
        assert family.covers == cells[0]
        assert ("uniform" in cells[2]) == bool(family.uniform_only)
        exports = family.exports
        for carrier, cell in ((exports.gguf_uniform, cells[4]), (exports.gguf_layers, cells[5])):
            assert "refused" in cell if isinstance(carrier, Refusal) else f"`{carrier}`" in cell
            assert ("no writer yet" in cell) == (not isinstance(carrier, Refusal) and carrier not in GGUF_WRITERS)
        onnx = "refused" if isinstance(exports.onnx, Refusal) else "yes"
        assert cells[6] == (onnx if onnx == "refused" or exports.onnx in ONNX_WRITERS else "no writer yet")
