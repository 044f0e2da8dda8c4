"""Ministral 3: the context within which queries are not scaled, the text part of whole models, refusals."""

import pytest
import torch
import transformers

from saap_edge.errors import SaapError
from saap_edge.model.checkpoint import open_checkpoint, read_spec
from saap_edge.model.classes import TRANSFORMERS_4
from saap_edge.model.folder import load_model
from tests.conftest import EXTRAS, raw_model
from tests.families.support import saved

pytestmark = pytest.mark.skipif(TRANSFORMERS_4, reason="transformers 4 does not have Ministral 3")
CONTEXT = EXTRAS["ministral3"]["rope_parameters"]["original_max_position_embeddings"]


def test_the_context_ends_where_queries_begin_to_grow(tmp_path):
    raw = raw_model("ministral3")
    loaded, spec = load_model(saved(raw, tmp_path)), read_spec(tmp_path)
    assert spec.context == loaded.config.max_position_embeddings == CONTEXT
    assert raw.config.max_position_embeddings == 2 * CONTEXT
    ids = torch.randint(1, 320, (1, 2 * CONTEXT))
    ours, theirs = loaded(ids).logits, raw(ids).logits
    torch.testing.assert_close(ours[:, :CONTEXT], theirs[:, :CONTEXT], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours[:, CONTEXT:], theirs[:, CONTEXT:], atol=1e-3)


def test_a_window_shorter_than_that_counts(tmp_path):
    assert read_spec(saved(raw_model("ministral3", sliding_window=32), tmp_path)).context == 32


def test_the_text_part_of_a_vision_model(tmp_path):
    text = raw_model("ministral3").config.to_dict()
    vision = {"model_type": "pixtral", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "head_dim": 16}  # fmt: skip
    config = transformers.Mistral3Config(text_config=text, vision_config=vision, image_token_index=1)
    torch.manual_seed(0)
    model = transformers.Mistral3ForConditionalGeneration(config).eval()
    folder, ids = saved(model, tmp_path), torch.arange(2, 60).view(1, -1)
    torch.testing.assert_close(load_model(folder)(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-4)
    told = open_checkpoint(folder).warnings
    for part in ("vision_tower", "multi_modal_projector"):
        assert any(part in line and "no part of the text model" in line for line in told)
    saved(model, tmp_path, text_config=text | {"model_type": "mistral"})
    with pytest.raises(SaapError, match="whose text_config is no 'ministral3'"):
        read_spec(tmp_path)


@pytest.mark.parametrize(("rope", "lacking"), [
    ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}, "llama_4_scaling_beta"),
    ({"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.1}, "original_max_position_embeddings"),
])  # fmt: skip
def test_what_transformers_needs_is_there_or_named(rope, lacking, tmp_path):
    with pytest.raises(SaapError, match=f"rope_parameters lacks {lacking}, by which"):
        read_spec(saved(raw_model("ministral3"), tmp_path, rope_parameters=rope))
