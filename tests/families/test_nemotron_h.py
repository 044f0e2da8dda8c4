"""Nemotron-H: blocks of Mamba-2, attention or FFN. Reading, names, caches, padding, pruning, and what is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache

from saap_edge.errors import SaapError
from saap_edge.families.nemotron_h import source
from saap_edge.model.checkpoint import open_checkpoint, read_spec
from saap_edge.model.classes import TRANSFORMERS_4
from saap_edge.model.folder import build_pruned, load_model, save_model, spec_of
from saap_edge.model.spec import LayerShape
from saap_edge.pruning.kept import uniform_widths
from saap_edge.pruning.repair import repair
from saap_edge.pruning.space import Space, plain_cost
from saap_edge.pruning.surgery import cut, zero_removed
from tests.conftest import randomise_projections, raw_model, tiny_model, write_folder
from tests.families.support import (
    assert_refused,
    assert_steps_as_it_reads,
    assert_widths_of_others_refused,
    saved,
)

pytestmark = pytest.mark.skipif(TRANSFORMERS_4, reason="transformers 4 does not have Nemotron-H")
IDS = torch.arange(1, 40).view(1, -1)
MAMBA, ATTENTION, FFN = "linear_attention", "full_attention", "mlp"
BLOCKS = [MAMBA, FFN, ATTENTION, FFN, MAMBA, ATTENTION, FFN]
NOTHING = np.arange(0)
OF_ATTENTION = {"attention": np.arange(4), "slots": np.arange(2), "ffn": NOTHING}
OF_FFN = {"attention": NOTHING, "slots": NOTHING, "ffn": np.arange(128)}
OF_MAMBA = {"attention": NOTHING, "slots": NOTHING, "ffn": NOTHING}
WHOLE = [{MAMBA: OF_MAMBA, ATTENTION: OF_ATTENTION, FFN: OF_FFN}[block] for block in BLOCKS]
# Other groups, states and taps, heads that do not fill the hidden size, biases; in the order of published models.
SHAPES = [
    {},
    {"mamba_num_heads": 6, "mamba_head_dim": 16, "n_groups": 3, "ssm_state_size": 8, "conv_kernel": 2},
    {"n_groups": 1, "use_conv_bias": False, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32},
    {"mlp_bias": True, "n_groups": 8, "conv_kernel": 6, "layer_norm_epsilon": 1e-3, "chunk_size": 128},
]


def model(**shape):
    return tiny_model("nemotron_h", **{"layers_block_type": BLOCKS} | shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_answers_are_transformers(shape, tmp_path):
    """Whole texts, more than a chunk of the scan, and steps of 1, 3 and 70 tokens."""
    raw = raw_model("nemotron_h", layers_block_type=BLOCKS, **shape)
    loaded = load_model(saved(raw, tmp_path))
    ids = torch.randint(1, 320, (2, 100), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(ids).logits, raw(ids).logits, atol=1e-4, rtol=1e-4)
    for sizes in ([1] * 12, [3] * 5, [70, 1, 1, 28]):
        cache, other = DynamicCache(config=loaded.config), DynamicCache(config=raw.config)
        for part in ids[:, : sum(sizes)].split(sizes, dim=1):
            found = loaded(part, past_key_values=cache, use_cache=True).logits
            told = raw(part, cache=other, use_cache=True).logits
            torch.testing.assert_close(found, told, atol=1e-4, rtol=1e-4)


def test_time_steps_are_bounded_in_prompts_only_as_in_transformers(tmp_path):
    """Biases so low that all time steps fall below the bound: a prompt takes the bound, a single step does not."""
    raw = raw_model("nemotron_h", time_step_min=0.5)
    with torch.no_grad():
        raw.model.layers[0].mixer.dt_bias.fill_(-6.0)
    loaded = load_model(saved(raw, tmp_path))
    torch.testing.assert_close(loaded(IDS).logits, raw(IDS).logits, atol=1e-5, rtol=1e-4)
    stepped = []
    for each, name in ((loaded, "past_key_values"), (raw, "cache")):
        cache = DynamicCache(config=each.config)
        parts = [each(part, use_cache=True, **{name: cache}).logits for part in IDS.split([30] + [1] * 9, dim=1)]
        stepped.append(torch.cat(parts, dim=1))
    torch.testing.assert_close(*stepped, atol=1e-5, rtol=1e-4)
    assert (stepped[0][:, 30:] - loaded(IDS).logits[:, 30:]).abs().max() > 0.05


def test_names_of_fields_and_tensors_in_the_checkpoints_of_nvidia(tmp_path):
    """A pattern of letters in the place of a list, names that begin with backbone, a head for several tokens beside."""
    raw = raw_model("nemotron_h", layers_block_type=BLOCKS)
    folder = saved(
        raw, tmp_path, layers_block_type=..., hybrid_override_pattern="M-*-M*-", num_hidden_layers=7, rms_norm_eps=1e-5,
        attention_head_dim=16, residual_in_fp32=False, time_step_limit=[0.0, {"__float__": "Infinity"}],
    )  # fmt: skip
    tensors = load_file(folder / "model.safetensors")
    names = {f"backbone.{name.removeprefix('backbone.').removeprefix('model.')}": name for name in tensors}
    renamed = {name if kept != "lm_head.weight" else kept: tensors[kept] for name, kept in names.items()}
    save_file(renamed | {"mtp.layers.0.norm.weight": torch.zeros(64)}, folder / "model.safetensors", {"format": "pt"})
    assert "1 tensors 'mtp.*' are no part of the text model: they are left out" in open_checkpoint(folder).warnings
    spec = read_spec(folder)
    assert [layer.mamba for layer in spec.layers] == [block == MAMBA for block in BLOCKS]
    torch.testing.assert_close(load_model(folder)(IDS).logits, raw(IDS).logits, atol=1e-5, rtol=1e-4)


def test_older_words_for_blocks(tmp_path):
    raw = raw_model("nemotron_h")
    folder = saved(raw, tmp_path, layers_block_type=["mamba", "attention", "mlp"], conv_kernel=..., mamba_d_conv=4)
    torch.testing.assert_close(load_model(folder)(IDS).logits, raw(IDS).logits, atol=1e-5, rtol=1e-4)


REFUSED = [
    ({"layers_block_type": [MAMBA, "moe", ATTENTION]}, "mixtures of experts are not supported"),
    ({"layers_block_type": ..., "hybrid_override_pattern": "ME*"}, "mixtures of experts are not supported"),
    ({"layers_block_type": ...}, "mixtures of experts are not supported"),  # as transformers assumes
    ({"layers_block_type": [MAMBA, FFN, FFN]}, "it has no block with attention"),
    ({"layers_block_type": [ATTENTION, ATTENTION, FFN]}, "it has no block with a Mamba-2"),
    ({"layers_block_type": [MAMBA, ATTENTION, "sliding_attention"]}, "layers_block_type has 'sliding_attention'"),
    ({"layer_types": [MAMBA, FFN, ATTENTION]}, "layers_block_type and layer_types say different blocks"),
    ({"mlp_hidden_act": "silu"}, "mlp_hidden_act 'silu' is not supported"),
    ({"mamba_hidden_act": "gelu"}, "mamba_hidden_act 'gelu' is not supported"),
    ({"use_bias": True}, r"Mamba-2 blocks whose projections have biases \(use_bias\)"),
    ({"tie_word_embeddings": True}, "transformers' class has a head of its own"),
    ({"conv_kernel": 1}, "convolutions of 1 token"),
    ({"n_groups": 3}, "8 heads of a Mamba-2 .* cannot share 3 groups"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSED)
def test_what_cannot_be_carried_is_refused(change, reason, tmp_path):
    assert_refused("nemotron_h", change, reason, tmp_path)


@pytest.mark.parametrize("field", ["per_layer_config", "block_configs"])
def test_widths_by_layer_that_others_wrote_are_refused(field, tmp_path):
    assert_widths_of_others_refused("nemotron_h", field, tmp_path)


# By block: what of it stays.
PLANS = {
    "channels": {1: {"ffn": np.arange(32, 96)}, 6: {"ffn": np.arange(32)}},
    "kv groups": {2: {"attention": np.array([0, 3])}, 5: {"slots": np.array([1])}},
    "both": {1: {"ffn": np.arange(64)}, 2: {"attention": np.array([2]), "slots": np.array([1])}},
    "blocks": {1: {"ffn": NOTHING}, 2: {"attention": NOTHING}, 6: {"ffn": NOTHING}},
    "all ffns": {index: {"ffn": NOTHING} for index in (1, 3, 6)},
    "alike": {
        **{index: {"ffn": np.arange(0, 128, 2)} for index in (1, 3, 6)},
        **{index: {"slots": np.array([0])} for index in (2, 5)},
    },
}  # fmt: skip


@pytest.mark.parametrize("plan", PLANS)
def test_removed_equals_zeroed_and_steps_as_it_reads(plan, tmp_path):
    dense = model(mlp_bias=plan == "channels")
    kept = [block | PLANS[plan].get(index, {}) for index, block in enumerate(WHOLE)]
    pruned = cut(dense, kept)
    zero_removed(dense, kept)
    torch.testing.assert_close(pruned(IDS).logits, dense(IDS).logits, atol=1e-5, rtol=1e-4)
    found = assert_steps_as_it_reads(pruned, tmp_path, IDS, atol=2e-5)
    assert (type(found).__name__ == "NemotronHForCausalLM") == (plan in ("blocks", "all ffns", "alike"))


def test_padding_does_not_reach_the_states(tmp_path):
    raw = raw_model("nemotron_h")
    loaded = load_model(saved(raw, tmp_path))
    ids = torch.randint(1, 320, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    expected, found = raw(ids, attention_mask=mask).logits, loaded(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1, 5:], expected[1, 5:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1, 5:], loaded(ids[1:, 5:]).logits[0], atol=1e-5, rtol=1e-4)


def test_mamba_stays_and_one_attention_has_to():
    dense = model()
    gone = [block | {"attention": NOTHING, "ffn": NOTHING} for block in WHOLE]
    pruned = cut(dense, [*gone[:2], WHOLE[2], *gone[3:]])
    assert spec_of(pruned).layers == (
        LayerShape(0, 0, 0, mamba=True), LayerShape(8, 4, 0), LayerShape(0, 0, 0, mamba=True)
    )  # fmt: skip
    with pytest.raises(SaapError, match="no layer with attention would be left"):
        cut(dense, gone)


def test_what_is_counted():
    dense = model(mamba_num_heads=4, mamba_head_dim=16, n_groups=2, ssm_state_size=8, conv_kernel=5)
    spec = spec_of(dense)
    channels = 64 + 2 * 2 * 8
    assert spec.state_bytes() == 2 * (4 * channels + 64 * 8) * 4
    assert spec.kv_bytes_per_token(2) == 2 * 2 * 4 * 16 * 2  # in both blocks with attention
    sizes = {name: parameter.numel() for name, parameter in dense.named_parameters() if "_proj" in name}
    mamba = sum(size for name, size in sizes.items() if ".mamba." in name)
    assert spec.mixer_weights() == mamba and spec.layer_parameters() == sum(sizes.values()) - mamba
    cost = plain_cost(spec)
    assert sum(cost.layer(layer, spec.hidden, spec.head_dim) for layer in spec.layers) == spec.layer_parameters()


def test_a_uniform_plan_cuts_attention_and_ffns_alike():
    spec = spec_of(model(intermediate_size=256))
    space = Space(spec.layers, spec.hidden, spec.head_dim, plain_cost(spec))
    widths = uniform_widths(space, 0.3)
    assert space.met(widths, 0.3)
    found = [space.shape(layer) for layer in widths]
    assert {layer.ffn for layer in found if layer.ffn} < set(range(32, 256, 32))
    assert {layer.kv_heads for layer in found if layer.heads} <= {2, 3, 4}


def test_repair_of_ffns_without_gates():
    """Closer to the dense model than the cut alone; biases that it adds are saved with our own class."""
    dense, windows = model(), torch.randint(1, 320, (16, 32), generator=torch.Generator().manual_seed(1))
    kept = [block | ({"ffn": np.arange(0, 128, 2)} if len(block["ffn"]) else {}) for block in WHOLE]
    expected, errors = dense(windows).logits, []
    for bias in (None, False, True):
        other = model()
        if bias is not None:
            repair(other, kept, windows, bias=bias)
        pruned = cut(other, kept)
        errors.append(float((pruned(windows).logits - expected).norm()))
    assert errors[0] > 1.2 * errors[1] > 1.2 * 0.9 * errors[2]
    assert spec_of(pruned).down_bias and pruned.config.model_type == "saap_edge"


def test_a_folder_of_ours_says_its_blocks(tmp_path):
    """Also in transformers' own field; and a contradiction is refused."""
    model = randomise_projections(build_pruned(tiny_model("nemotron_h"), [LayerShape(4, 2, 96)] * 3))
    assert spec_of(model).layers == (LayerShape(0, 0, 0, mamba=True), LayerShape(4, 2, 0), LayerShape(0, 0, 96))
    folder = tmp_path / "m"
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["mamba_layers"] == [1, 0, 0] and config["per_layer_config"]["0"] == {"skip": ["mlp"]}
    lone = {name: value for name, value in config.items() if name != "layer_widths"}
    (folder / "config.json").write_text(json.dumps(lone))
    assert read_spec(folder) == spec_of(model)
    for change, reason in (
        ({"mamba_layers": [1, 0]}, "mamba_layers is of 2 layers"), ({"mamba_layers": [1, 1, 0]}, "no two of them"),
        ({"gated_mlp": True}, "gated_mlp is False in base_model_type 'nemotron_h'"),
        ({"base_model_type": "llama"}, "gated_mlp is True in base_model_type 'llama'"),
        ({"conv_kernel": 3}, r"mamba\.conv1d\.weight is \(128, 1, 4\), config\.json says \(128, 1, 3\)"),
    ):  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(SaapError, match=reason):
            read_spec(folder)


def test_a_uniform_plan_is_saved_as_transformers_class_in_half_precision(tmp_path):
    half = randomise_projections(build_pruned(model(), [LayerShape(4, 2, 64)] * 7)).to(torch.bfloat16)
    save_model(half, write_folder(model(), tmp_path / "t"), tmp_path / "m")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    assert type(plain).__name__ == "NemotronHForCausalLM" and plain.config.layers_block_type == BLOCKS
    ours, theirs = dict(half.named_parameters()), dict(plain.named_parameters())
    assert len(ours) == len(theirs) and all(value.dtype == torch.bfloat16 for value in theirs.values())
    for name, value in ours.items():
        assert torch.equal(theirs[source({}, name).name], value), name
