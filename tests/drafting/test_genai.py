"""onnxruntime-genai's own speculative decoding takes our folders, as docs/draft.md says."""

import json

import numpy as np
import pytest

from saap_edge.exporting.onnx import write_onnx
from saap_edge.model.folder import build_pruned
from tests.conftest import WIDTHS, randomise_projections, tiny_model, write_folder

genai = pytest.importorskip("onnxruntime_genai")
GAMMA, PROMPT, LENGTH = 3, [5, 6, 7, 8, 9, 10], 60


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("genai")
    pruned = randomise_projections(build_pruned(tiny_model("llama", seed=4), WIDTHS))
    for name, model in (("dense", tiny_model("llama")), ("pruned", pruned)):
        write_onnx(write_folder(model, root / f"{name}-model"), root / name, "fp32")
    return root


def answer(root, draft=None):
    """(the dense folder's greedy tokens, what genai says of its drafts)."""
    config = genai.Config(str(root / "dense"))
    if draft:
        own = json.loads((root / draft / "genai_config.json").read_text())["model"]["decoder"]
        own["filename"] = f"../{draft}/{own['filename']}"
        config.overlay(json.dumps({"model": {"draft": own}, "speculative": {"max_draft_tokens": GAMMA}}))
    model = genai.Model(config)
    search = genai.GeneratorParams(model)
    search.set_search_options(max_length=LENGTH, do_sample=False)
    generator = genai.Generator(model, search)
    generator.append_tokens(np.array([PROMPT], dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return generator.get_sequence(0).tolist(), generator.get_speculative_stats()


def test_drafts_change_passes_and_not_the_text(folders):
    alone, _ = answer(folders)
    itself, whole = answer(folders, "dense")
    other, nothing = answer(folders, "pruned")
    assert alone == itself == other and len(alone) > len(PROMPT) + 8
    assert whole["acceptance_rate"] == 1 and nothing["acceptance_rate"] < 0.1
    said = len(alone) - len(PROMPT)
    assert whole["target_verify_forward_passes"] == -(-said // (GAMMA + 1))
    assert nothing["target_verify_forward_passes"] > 0.8 * said
