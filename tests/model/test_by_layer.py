"""Widths per layer in the forms of others: read as the model they mean, or refused by name; and written beside ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from saap_edge.errors import SaapError
from saap_edge.families import FAMILIES
from saap_edge.model.checkpoint import open_checkpoint, read_spec
from saap_edge.model.classes import TRANSFORMERS_4
from saap_edge.model.folder import build_pruned, load_model
from saap_edge.model.spec import LayerShape
from tests.conftest import WIDTHS, randomise_projections, raw_model, tiny_model, write_folder
from tests.model.test_folder import ALONE

IDS = torch.arange(1, 30).view(1, -1)
# The dense model has 8 heads, 4 KV heads and 128 channels.
PLAN = [LayerShape(8, 4, 96), LayerShape(0, 0, 64), LayerShape(4, 2, 0)]
SPARSE = {
    "0": {"intermediate_size": 96}, "1": {"skip": ["attention"], "intermediate_size": 64},
    "2": {"num_attention_heads": 4, "num_key_value_heads": 2, "skip": ["mlp"]},
}  # fmt: skip
# Plain families whose tensors lie as in Llama.
READ = [name for name, family in FAMILIES.items() if not (family.uniform_only or family.source)]
NOT_READ = sorted(set(FAMILIES) - set(READ))


def rewritten(folder: Path, **changes: Any) -> Path:
    """The folder with other fields in config.json; ... leaves one out."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}), encoding="utf-8")
    return folder


def foreign(name: str, folder: Path, tied: bool = True, **changes: Any) -> tuple[Path, Any]:
    """A folder of the family's own type whose tensors are those of PLAN, and the model that they are."""
    dense = tiny_model(name, tied)
    model = randomise_projections(build_pruned(dense, PLAN))
    write_folder(model, folder)
    config = raw_model(name, tied).config.to_dict() | {"sliding_window": None} | changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "modeling_saap_edge.py").unlink()
    return folder, model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", READ)
def test_the_field_of_transformers_is_read(name: str, tied: bool, tmp_path: Path) -> None:
    folder, model = foreign(name, tmp_path, tied, per_layer_config=SPARSE)
    assert read_spec(folder).layers == tuple(PLAN)
    torch.testing.assert_close(load_model(folder)(IDS).logits, model(IDS).logits)


def test_what_is_read_is_saved_in_our_form(tmp_path: Path) -> None:
    folder, model = foreign("qwen3", tmp_path / "theirs", per_layer_config=SPARSE)
    ours = write_folder(load_model(folder), tmp_path / "ours")
    result = subprocess.run([sys.executable, "-c", ALONE, str(ours)], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    torch.testing.assert_close(torch.load(ours / "logits.pt"), model(IDS[:, :11]).logits)


def test_norms_before_sublayers_that_are_skipped_may_be_there(tmp_path: Path) -> None:
    folder, model = foreign("llama", tmp_path, per_layer_config=SPARSE)
    tensors = load_file(folder / "model.safetensors")
    tensors |= {"model.layers.2.post_attention_layernorm.weight": torch.full((64,), 7.0)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(load_model(folder)(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("name", READ)
def test_a_model_with_all_its_weights_is_not_one_that_skips(name: str, tmp_path: Path) -> None:
    """transformers' own classes of these families build the whole model, and say nothing."""
    sparse = {"1": {"skip": ["mlp"]}}
    raw = raw_model(name, **({} if TRANSFORMERS_4 else {"per_layer_config": sparse}))
    assert all(layer.mlp is not None for layer in raw.model.layers)
    raw.save_pretrained(tmp_path)
    with pytest.raises(SaapError, match=r"layers\.1\.mlp\.\w+\.weight' and 2 more has no place"):
        load_model(rewritten(tmp_path, per_layer_config=sparse))


def test_an_empty_field_means_nothing(tmp_path: Path) -> None:
    raw = raw_model("llama")
    raw.save_pretrained(tmp_path)
    assert type(load_model(rewritten(tmp_path, per_layer_config={}))) is type(raw)


def block(heads_in_group: int | None, ffn: dict[str, Any]) -> dict[str, Any]:
    attention = {"n_heads_in_group": heads_in_group, "no_op": heads_in_group is None, "replace_with_linear": False,
                 "window_length": None, "num_sink_tokens": None, "sparsify": None}  # fmt: skip
    return {"attention": attention, "ffn": {"no_op": not ffn, "replace_with_linear": False, "sparsify": None} | ffn}


@pytest.mark.parametrize("model_type", ["nemotron-nas", "llama"])
def test_blocks_are_read(model_type: str, tmp_path: Path) -> None:
    """Widths of the FFN as llama.cpp's converter computes them (conversion/deci.py): int(2 * 5 * 64 / 3) is 213."""
    plan = [LayerShape(8, 4, 256), LayerShape(0, 0, 64), LayerShape(8, 1, 0)]
    model = randomise_projections(build_pruned(tiny_model("llama", head_dim=8), plan))
    folder = write_folder(model, tmp_path)
    rewritten(
        folder, model_type=model_type, layer_widths=..., per_layer_config=..., auto_map=..., intermediate_size=None,
        num_key_value_heads=None, head_dim=..., architectures=["DeciLMForCausalLM"],
        block_configs=[block(2, {"ffn_mult": 5.0}), block(None, {"intermediate_size": 64}), block(8, {})],
    )  # fmt: skip
    assert read_spec(folder).layers == tuple(plan)
    torch.testing.assert_close(load_model(folder)(IDS).logits, model(IDS).logits)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"per_layer_config": {"3": {}}}, "names a layer '3', and there are layers 0 to 2"),
    ({"per_layer_config": {"one": {}}}, "names a layer 'one'"),
    ({"per_layer_config": {"1": {}, "01": {}}}, "names a layer twice"),
    ({"per_layer_config": [1]}, "no object"),
    ({"per_layer_config": {"1": {"sliding_window": 8}}}, "layer 1 has a sliding_window of its own"),
    ({"per_layer_config": {"1": {"head_dim": 8}}}, "layer 1 has a head_dim of its own"),
    ({"per_layer_config": {"1": {"skip": ["moe"]}}}, r"layer 1 skips \['moe'\] \(known: attention, mlp\)"),
    ({"per_layer_config": {"1": {"skip": "mlp"}}}, "layer 1 skips 'mlp'"),
    ({"per_layer_config": {"1": {"intermediate_size": 0}}}, "intermediate_size is 0"),
    ({"per_layer_config": {"1": {"intermediate_size": True}}}, "intermediate_size is True"),
    ({"per_layer_config": {"1": {"num_key_value_heads": 3}}}, "layer 1: 8 query heads cannot be shared by 3"),
    ({"per_layer_config": {"1": {"num_attention_heads": 4}}, "head_dim": ...}, "has no head_dim"),
    ({"per_layer_config": {"1": {"skip": ["mlp"]}}, "vocab_size": ...}, "needs vocab_size beside it"),
    ({"per_layer_config": {"1": {"skip": ["mlp"]}}, "block_configs": [{}]}, "both per_layer_config and block_configs"),
    ({"block_configs": [block(1, {"ffn_mult": 1.0})]}, "no list of 3 layers"),
    ({"block_configs": [block(1, {"ffn_mult": "1"})] * 3}, "layer 0: ffn_mult is '1'"),
    ({"block_configs": [block(0, {"ffn_mult": 1.0})] * 3}, "layer 0: n_heads_in_group is 0"),
    ({"block_configs": [{"attention": {}}] * 3}, "layer 0: n_heads_in_group is None|layer 0 does not say its ffn"),
    (
        {"block_configs": [block(1, {"ffn_mult": 1.0, "replace_with_linear": True})] * 3},
        "its ffn has replace_with_linear",
    ),
    ({"block_configs": [block(1, {"ffn_mult": 1.0, "gated": False})] * 3}, "an FFN without gate"),
    ({"model_type": "nemotron-nas"}, "'nemotron-nas' model without block_configs"),
    (
        {"model_type": "gemma3n_text", "per_layer_config": {"1": {"head_dim": 8}}},
        "family 'gemma3n_text' is not supported",
    ),
]


@pytest.mark.parametrize(("change", "reason"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_not_known_is_refused_by_name(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    raw_model("llama").save_pretrained(tmp_path)
    with pytest.raises(SaapError, match=reason):
        open_checkpoint(rewritten(tmp_path, **change))


@pytest.mark.parametrize("name", NOT_READ)
def test_families_whose_layers_are_alike_or_packed_are_refused(name: str, tmp_path: Path) -> None:
    raw_model(name).save_pretrained(tmp_path)
    # Gemma 4's own class reads the field, but nothing to skip in it.
    told = "layer 1 has a skip of its own" if FAMILIES[name].by_layer else "per_layer_config gives its layers widths"
    with pytest.raises(SaapError, match=f"this {FAMILIES[name].title} model.*{told}"):
        open_checkpoint(rewritten(tmp_path, per_layer_config={"1": {"skip": ["mlp"]}}))


def test_our_folders_say_it_in_the_field_of_transformers_too(tmp_path: Path) -> None:
    """And the class needs no other field."""
    model = randomise_projections(build_pruned(tiny_model("llama"), PLAN))
    folder = write_folder(model, tmp_path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["per_layer_config"] == SPARSE
    rewritten(folder, layer_widths=...)
    assert AutoConfig.from_pretrained(folder).layer_widths == config["layer_widths"]
    for read in (load_model, AutoModelForCausalLM.from_pretrained):
        torch.testing.assert_close(read(folder)(IDS).logits, model(IDS).logits)


def test_fields_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    folder = write_folder(randomise_projections(build_pruned(tiny_model("llama"), WIDTHS)), tmp_path)
    rewritten(folder, per_layer_config=SPARSE)
    with pytest.raises(SaapError, match="layer_widths and per_layer_config say different widths"):
        open_checkpoint(folder)
    with pytest.raises(ValueError, match="say different widths"):
        AutoConfig.from_pretrained(folder)
