"""What tests of families share: folders that say other things, refusals, models that answer step by step as at once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from saap_edge.errors import SaapError
from saap_edge.families import FAMILIES
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import load_model
from tests.conftest import raw_model, write_folder


def saved(model: PreTrainedModel, folder: Path, **changes: Any) -> Path:
    """The model's folder, with other fields in config.json; `...` takes one out."""
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return folder


def assert_refused(family: str, change: dict[str, Any], reason: str, folder: Path) -> None:
    """A tiny model of the family with other fields in config.json is neither read nor loaded, for that reason."""
    saved(raw_model(family), folder, **change)
    for read in (read_spec, load_model):
        with pytest.raises(SaapError, match=f"this {FAMILIES[family].title} model cannot be handled: {reason}"):
            read(folder)


def assert_widths_of_others_refused(family: str, field: str, folder: Path) -> None:
    """Widths by layer in `field`, per_layer_config or block_configs, are refused, as the family does not read them."""
    layers = {"1": {"intermediate_size": 64}} if field == "per_layer_config" else [{}] * 3
    assert_refused(family, {field: layers}, f"{field} gives its layers widths", folder)


def assert_steps_as_it_reads(pruned: PreTrainedModel, folder: Path, ids: torch.Tensor, atol: float) -> PreTrainedModel:
    """Single tokens, pieces after a prompt, beams and a static cache; in transformers alone, from `folder`.

    Writes the model there, and returns what transformers reads. `ids` [1, tokens].
    """
    write_folder(pruned, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    whole = model(ids).logits
    torch.testing.assert_close(whole, pruned(ids).logits, atol=atol, rtol=1e-4)
    torch.testing.assert_close(load_model(folder)(ids).logits, whole, atol=atol, rtol=1e-4)
    for size in (1, 2, 5):
        cache, steps = DynamicCache(config=model.config), []
        for part in ids.split(size, dim=1):
            steps.append(model(part, past_key_values=cache, use_cache=True).logits)
        torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1.5 * atol, rtol=1e-4)
    model.generation_config.eos_token_id = None
    plain = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    greedy = model.generate(ids[:, :6], use_cache=False, **plain)
    for kind in ({}, {"cache_implementation": "static"}):
        assert model.generate(ids[:, :6], **kind, **plain).tolist() == greedy.tolist()
    beams = [model.generate(ids[:, :6], num_beams=3, use_cache=cached, **plain) for cached in (True, False)]
    assert beams[0].tolist() == beams[1].tolist()
    return model
