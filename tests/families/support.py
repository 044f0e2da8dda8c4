"""What tests of families share: folders that say other things, and models that answer step by step as at once."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from saap_edge.model.folder import load_model
from tests.conftest import write_folder


def saved(model: PreTrainedModel, folder: Path, **changes: Any) -> Path:
    """The model's folder, with other fields in config.json; `...` takes one out."""
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return folder


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
