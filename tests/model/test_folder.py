"""A pruned folder reloads through AutoModel, with saap-edge and without it."""

import json
import subprocess
import sys
import tempfile

import pytest
import torch
from transformers import AutoModelForCausalLM

from saap_edge.errors import SaapError
from saap_edge.families import FAMILIES
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import build_pruned, load_model
from saap_edge.model.spec import LayerShape
from tests.conftest import MADE_HERE, WIDTHS, randomise_projections, raw_model, tiny_model, write_folder

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip

ALONE = """
import sys, torch
sys.modules["saap_edge"] = None  # as if it were not installed
from transformers import AutoModelForCausalLM
ids = torch.arange(1, 12).view(1, -1)
for folder in sys.argv[1:]:
    attention = "eager" if "gemma2" in folder else None  # the default of transformers 4 drops its cap on scores
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, attn_implementation=attention)
    torch.save(model(ids).logits, folder + "/logits.pt")
    assert model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False).shape == (1, 15)
"""


def test_reloads_with_the_same_logits(pruned_folder):
    model = AutoModelForCausalLM.from_pretrained(pruned_folder)
    again = load_model(pruned_folder)
    ids = torch.arange(1, 12).view(1, -1)
    assert [(layer.heads, layer.kv_heads, layer.ffn) for layer in read_spec(pruned_folder).layers] == [
        (layer.heads, layer.kv_heads, layer.ffn) for layer in WIDTHS
    ]
    torch.testing.assert_close(model(ids).logits, again(ids).logits)


def test_every_family_reloads_where_saap_edge_is_not_installed(tmp_path):
    """Per-layer widths with a first layer without attention, where that can be, and uniform ones."""
    plans = {"uniform": [LayerShape(4, 2, 64)] * 3, "widths": [LayerShape(0, 0, 96), *WIDTHS[1:]]}
    folders = {}
    for name in MADE_HERE:
        for kind, widths in plans.items():
            if kind == "uniform" or not FAMILIES[name].uniform_only:
                if kind == "widths" and FAMILIES[name].no_depth:
                    widths = WIDTHS
                model = randomise_projections(build_pruned(tiny_model(name), widths))
                folders[write_folder(model, tmp_path / f"{name}-{kind}")] = model
    result = subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, folders)],
        capture_output=True, text=True, cwd=tmp_path, env={"HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    ids = torch.arange(1, 12).view(1, -1)
    for folder, model in folders.items():
        torch.testing.assert_close(torch.load(folder / "logits.pt"), model(ids).logits, msg=str(folder))


def test_step_by_step_equals_prefill(pruned_folder):
    model = load_model(pruned_folder)
    ids = torch.arange(1, 12).view(1, -1)
    whole = model(ids).logits
    cache = None
    for position in range(ids.shape[1]):
        step = model(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        torch.testing.assert_close(step.logits[:, 0], whole[:, position], atol=1e-5, rtol=1e-4)


def test_uniform_shape_is_saved_as_the_plain_class(family, tmp_path):
    dense = tiny_model(family)
    model = randomise_projections(build_pruned(dense, [LayerShape(4, 2, 64)] * 3))
    folder = write_folder(model, tmp_path)
    saved_as = family if FAMILIES[family].plain else dense.config.model_type
    assert json.loads((folder / "config.json").read_text())["model_type"] == saved_as
    assert type(load_model(folder)) is type(dense)
    assert read_spec(folder).uniform
    ids = torch.arange(1, 12).view(1, -1)
    attention = model.config._attn_implementation
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)
    torch.testing.assert_close(plain(ids).logits, model(ids).logits)


def test_uniform_shape_that_the_plain_class_refuses(tmp_path):
    """transformers wants the number of heads to divide the hidden size."""
    model = randomise_projections(build_pruned(tiny_model("llama"), [LayerShape(6, 3, 64)] * 3))
    folder = write_folder(model, tmp_path)
    ids = torch.arange(1, 12).view(1, -1)
    torch.testing.assert_close(load_model(folder)(ids).logits, model(ids).logits)
    with pytest.raises(SaapError, match=r"Gemma 2 is saved as its plain class only.*divides the hidden size 64"):
        build_pruned(tiny_model("gemma2"), [LayerShape(6, 3, 64)] * 3)


def test_untied_head_is_kept(family, tmp_path):
    dense = tiny_model(family, tied=False)
    widths = [LayerShape(4, 2, 64)] * 3 if FAMILIES[family].uniform_only else WIDTHS
    model = randomise_projections(build_pruned(dense, widths))
    write_folder(model, tmp_path)
    torch.testing.assert_close(load_model(tmp_path).lm_head.weight, dense.lm_head.weight)


def test_half_precision_keeps_its_rotary_tables_in_float32(family):
    dense = tiny_model(family)
    with tempfile.TemporaryDirectory() as folder:
        dense.save_pretrained(folder)
        half = load_model(folder, torch.bfloat16)
    pruned = build_pruned(half, [LayerShape(4, 2, 64)] * 3)
    for model in (half, pruned):
        assert model.model.norm.weight.dtype == torch.bfloat16
        tables = [value for name, value in model.named_buffers() if name.endswith("inv_freq")]
        assert tables and all(table.dtype == torch.float32 for table in tables)


def test_weights_that_no_device_holds_are_an_error(dense_folder, tmp_path, monkeypatch):
    """accelerate would move them in and out of a GPU: nothing here could read or change them."""
    monkeypatch.chdir(tmp_path)
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{index}": "disk" if index == 2 else "cpu" for index in range(3)}
    with pytest.raises(SaapError, match="do not hold"):
        load_model(dense_folder, device_map=places)


@pytest.mark.parametrize("name", ["llama", "granite"])
def test_a_device_map_changes_nothing_but_the_place(name, tmp_path):
    """One family that transformers places, one that is rebuilt in its canonical form and placed here."""
    raw_model(name).save_pretrained(tmp_path)
    ids = torch.arange(1, 12).view(1, -1)
    torch.testing.assert_close(load_model(tmp_path, device_map="auto")(ids).logits, load_model(tmp_path)(ids).logits)


@pytest.mark.parametrize("pruned", [False, True], ids=["plain", "widths"])
@pytest.mark.parametrize("scaling", [{}, LLAMA3], ids=["theta", "llama3"])
def test_every_version_of_transformers_reads_the_same_rope(scaling, pruned, tmp_path):
    """4 has rope_theta and rope_scaling, 5 rope_parameters; 4 does not look at those."""
    rope = {"rope_type": "default", "rope_theta": 777.0} | scaling
    model = tiny_model("llama", rope_parameters=rope)
    if pruned:
        model = randomise_projections(build_pruned(model, WIDTHS))
    folder = write_folder(model, tmp_path)
    ids = torch.arange(1, 40).view(1, -1)
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, model(ids).logits)
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == 777.0
    assert (config.get("rope_scaling") or {}) == scaling
    # As transformers 5 itself saves it.
    config = {name: value for name, value in config.items() if name not in ("rope_theta", "rope_scaling")}
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    torch.testing.assert_close(load_model(folder)(ids).logits, model(ids).logits)


def test_the_type_in_config_json_decides_nothing(family, tmp_path):
    """Gemma's factor of embeddings is a buffer: made in the type that config.json names, it would be rounded to it."""
    raw, ids = raw_model(family, hidden_size=96), torch.arange(1, 25).view(1, -1)  # of 64 the root is exact
    raw.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "bfloat16"}))
    torch.testing.assert_close(load_model(tmp_path)(ids).logits, raw(ids).logits, atol=1e-5, rtol=1e-5)
