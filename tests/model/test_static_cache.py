"""transformers' static caches with KV heads per layer: `generate` and torch.export give what a growing cache gives."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

from saap_edge.model.classes import TRANSFORMERS_4
from saap_edge.model.folder import build_pruned
from saap_edge.model.spec import LayerShape
from tests.conftest import WIDTHS, randomise_projections, tiny_model, write_folder

IDS = torch.arange(1, 12).view(1, -1)
PLANS = {"widths": WIDTHS, "no first attention": [LayerShape(0, 0, 96), *WIDTHS[1:]]}
only_5 = pytest.mark.skipif(TRANSFORMERS_4, reason="transformers 4 makes static caches of another size by itself")


@pytest.fixture(params=PLANS)
def model(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    made = randomise_projections(build_pruned(tiny_model("qwen3"), PLANS[request.param]))
    return AutoModelForCausalLM.from_pretrained(write_folder(made, tmp_path / "model"))


def test_generate_with_a_static_cache(model: Any) -> None:
    model.generation_config.eos_token_id = None
    grown, fixed = (
        model.generate(IDS, max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True, **kind)
        for kind in ({}, {"cache_implementation": "static"})
    )
    assert isinstance(fixed.past_key_values, StaticCache) and not isinstance(grown.past_key_values, StaticCache)
    assert fixed.sequences.tolist() == grown.sequences.tolist()
    torch.testing.assert_close(torch.stack(fixed.logits), torch.stack(grown.logits), atol=1e-5, rtol=1e-4)


@only_5
def test_a_cache_has_a_place_for_each_layer_with_attention(model: Any) -> None:
    cached = [layer.self_attn for layer in model.model.layers if layer.self_attn is not None]
    rows = [attention.k_proj.out_features // attention.head_dim for attention in cached]
    assert [config.num_key_value_heads for config in model.config.per_layer_config] == rows
    assert [attention.layer_idx for attention in cached] == list(range(len(rows)))


@only_5
def test_transformers_own_export(model: Any) -> None:
    """The module that its integration of ExecuTorch exports, with a prompt and then single tokens."""
    from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

    expected = model(IDS).logits
    model.generation_config.cache_implementation, model.generation_config.use_cache = "static", True
    module = TorchExportableModuleWithStaticCache(model, batch_size=1, max_cache_len=16).eval()
    tokens = torch.export.Dim("tokens", min=1, max=15)
    with torch.no_grad():
        exported = torch.export.export(
            module, (), {"input_ids": IDS[:, :3], "cache_position": torch.arange(3)}, strict=False,
            dynamic_shapes={"input_ids": {1: tokens}, "cache_position": {0: tokens}},
        )  # fmt: skip
    run = exported.module()
    for start, end in ((0, 7), (7, 8), (8, 11)):
        logits = run(input_ids=IDS[:, start:end], cache_position=torch.arange(start, end))
        torch.testing.assert_close(logits, expected[:, start:end], atol=1e-5, rtol=1e-4)


def shape_of(config: Any) -> tuple[int, int, int]:
    return config.num_attention_heads, config.num_key_value_heads, config.intermediate_size


def plan_of(model: Any) -> str:
    return "widths" if model.config.layer_widths[0][0] else "no first attention"


def test_a_saved_folder_is_read_again(model: Any, tmp_path: Any) -> None:
    """config.json has `per_layer_config` in transformers' form, and not as it is in memory."""
    model.save_pretrained(tmp_path / "again")
    stored = json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))
    assert stored["layer_widths"] == model.config.layer_widths
    assert stored["per_layer_config"]["2"] == {
        "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32,
    }  # fmt: skip
    again = AutoConfig.from_pretrained(tmp_path / "again")
    assert [shape_of(config) for config in again.per_layer_config] == [
        (shape.heads, shape.kv_heads, shape.ffn) for shape in PLANS[plan_of(model)] if shape.heads
    ]
