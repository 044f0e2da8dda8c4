"""A pruned folder reloads through AutoModel, with saap-edge and without it."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from saap_edge.errors import SaapError
from saap_edge.model.folder import build_pruned, load_model, save_model
from saap_edge.model.spec import LayerShape, read_spec
from tests.conftest import WIDTHS, randomise_projections, tiny_model, write_folder

ALONE = """
import sys, torch
sys.modules["saap_edge"] = None  # as if it were not installed
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = torch.arange(1, 12).view(1, -1)
torch.save(model(ids).logits, sys.argv[2])
print(model.generate(ids, max_new_tokens=4, do_sample=False).tolist())
"""


def test_reloads_with_the_same_logits(pruned_folder):
    model = AutoModelForCausalLM.from_pretrained(pruned_folder)
    again = load_model(pruned_folder)
    ids = torch.arange(1, 12).view(1, -1)
    assert [(layer.heads, layer.kv_heads, layer.ffn) for layer in read_spec(pruned_folder).layers] == [
        (layer.heads, layer.kv_heads, layer.ffn) for layer in WIDTHS
    ]
    torch.testing.assert_close(model(ids).logits, again(ids).logits)


def test_reloads_where_saap_edge_is_not_installed(pruned_folder, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", ALONE, str(pruned_folder), str(tmp_path / "logits.pt")],
        capture_output=True, text=True, cwd=tmp_path, env={"HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    ids = torch.arange(1, 12).view(1, -1)
    expected = load_model(pruned_folder)(ids).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected)


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
    assert json.loads((folder / "config.json").read_text())["model_type"] == family
    assert type(load_model(folder)) is type(dense)
    assert read_spec(folder).uniform


def test_untied_head_is_kept(family, tmp_path):
    dense = tiny_model(family, tied=False)
    model = randomise_projections(build_pruned(dense, WIDTHS))
    save_model(model, tmp_path, tmp_path)
    torch.testing.assert_close(load_model(tmp_path).lm_head.weight, dense.lm_head.weight)


def test_weights_that_no_device_holds_are_an_error(dense_folder, tmp_path, monkeypatch):
    """accelerate would move them in and out of a GPU: nothing here could read or change them."""
    monkeypatch.chdir(tmp_path)
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{index}": "disk" if index == 2 else "cpu" for index in range(3)}
    with pytest.raises(SaapError, match="do not hold"):
        load_model(dense_folder, device_map=places)
