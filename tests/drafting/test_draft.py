"""Drafts in llama.cpp's own loop: real files, whose draft is the parent itself, a part of it, or another model."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from llama_cpp.llama_speculative import LlamaDraftModel
from tokenizers import Tokenizer

import saap_edge as se
from saap_edge.documents.draft import Draft
from saap_edge.drafting.acceptance import Answer
from saap_edge.drafting.measure import Setting, measure, steps_of
from saap_edge.drafting.speed import passes
from saap_edge.engines.llama_cpp import LlamaCppEngine
from saap_edge.engines.llama_draft import DraftFile
from saap_edge.engines.options import EngineOptions
from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError
from saap_edge.exporting.gguf import write_gguf
from saap_edge.model.folder import build_pruned
from saap_edge.targets import Figure, Kernel, dump_yaml, load_target, this_machine
from tests.conftest import WIDTHS, randomise_projections, tiny_model, write_folder
from tests.test_cli import call

QUICK = {"prompts": 2, "tokens": 12, "threads": 1}
DRAFTED = "llama.cpp draft"
CHATTY = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}> {% endif %}"
)


def gguf(model, folder, name, template=None):
    source = write_folder(model, folder / f"{name}-model")
    if template:
        (source / "chat_template.jinja").write_text(template)
    write_gguf(source, folder / f"{name}.gguf", "f16")
    return folder / f"{name}.gguf"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("draft")


@pytest.fixture(scope="module")
def parent(folder):
    return gguf(tiny_model("llama", max_position_embeddings=512), folder, "parent", CHATTY)


@pytest.fixture(scope="module")
def pruned(folder):
    """Random: its layers are narrower, and it knows nothing of the parent."""
    model = build_pruned(tiny_model("llama", seed=7, max_position_embeddings=512), WIDTHS)
    return gguf(randomise_projections(model, 9), folder, "pruned")


@pytest.fixture(scope="module")
def near(folder):
    """The parent with noise in its weights: it knows a part."""
    model, dice = tiny_model("llama", max_position_embeddings=512), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "_proj" in name:
                weight += 0.03 * torch.randn(weight.shape, generator=dice)
    return gguf(model, folder, "near")


@pytest.fixture(scope="module")
def deep(folder):
    """(a parent of 8 layers of which all but the first add nothing, that first layer alone): they say the same."""
    model = tiny_model("llama", max_position_embeddings=512, num_hidden_layers=8)
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    whole = gguf(model, folder, "deep")
    small = tiny_model("llama", max_position_embeddings=512, num_hidden_layers=1)
    kept = {name: value for name, value in model.state_dict().items() if name in small.state_dict()}
    small.load_state_dict(kept)
    return whole, gguf(small, folder, "shallow")


@pytest.fixture(scope="module")
def fast_board():
    """A board whose kernels were probed, and where a further token of a prompt costs next to nothing."""
    board = load_target("rpi5")
    kernel = Kernel(
        gemv_gb_s=Figure(value=10.0, source="made up for a test"),
        gemm_gmac_s=Figure(value=100_000.0, source="made up for a test"),
    )
    return board.model_copy(update={"kernels": {"gguf-f16": kernel}, "threads": 1})


def test_a_draft_that_is_its_parent(parent, fast_board):
    """Every token is accepted, text is as before, passes are as few as can be; and it cannot pay, by the formula."""
    found = se.draft(parent, fast_board, model=parent, measure=True, rounds=3, longest=3, **QUICK)
    [result] = found.drafts
    whole, told = result.kinds[0], result.measured
    assert (result.bytes_ratio, whole.acceptance.value, whole.acceptance.low) == (1, 1, 1)
    assert [kind.kind for kind in result.kinds] == ["all", "text", "chat", "code"] and not found.notes
    assert told.lossless and told.passes == told.counted_passes and told.speedup.rounds == 3
    assert told.passes >= whole.positions / (told.gamma + 1)
    assert [length.geometric for length in whole.lengths] == [2, 3, 4] and whole.runs == [1, 1, 1]
    assert (found.verdict, found.exit_code, found.best) == ("does not pay", 0, None)
    assert result.speedup.high < 1
    assert Draft.parse(found.as_dict(), "x").as_dict() == found.as_dict()


def test_a_draft_that_knows_nothing(parent, pruned):
    """About one token in 320 by chance: text is still the parent's own, one token a pass."""
    found = se.draft(pruned, "rpi5", model=parent, measure=True, rounds=3, **QUICK)
    [result] = found.drafts
    assert result.kinds[0].acceptance.value < 0.1 and result.bytes_ratio < 1
    assert result.measured.lossless and result.measured.passes == result.measured.counted_passes
    assert result.kinds[0].lengths[0].tokens_per_pass.value < 1.1
    assert (found.verdict, found.exit_code, result.gamma) == ("does not pay", 0, 1)


def test_a_small_draft_that_knows_all_pays(deep, fast_board):
    whole, small = deep
    found = se.draft([small, whole], fast_board, model=whole, **QUICK)
    assert (found.verdict, found.exit_code, found.best) == ("pays", 0, "shallow.gguf")
    first, second = found.drafts
    assert (first.verdict, second.verdict) == ("pays", "does not pay")
    assert first.kinds[0].acceptance.value == 1 and first.bytes_ratio < 0.6
    said, costs = first.kinds[0].lengths[first.gamma - 1], first.costs
    by_hand = said.tokens_per_pass.value / (first.gamma * costs.draft + 1 + first.gamma * costs.further.value)
    assert first.speedup.value == pytest.approx(by_hand) and first.speedup.low > 1
    assert found.notes == ["'deep.gguf' has no chat template: no chats were drafted"]


def test_wide_predictions_decide_nothing(deep):
    """A board whose prefill is known to a factor of two or three."""
    found = se.draft(deep[1], "rpi5", model=deep[0], **QUICK)
    assert (found.verdict, found.exit_code) == ("undecided", 3)
    assert found.drafts[0].speedup.low < 1 < max(each.predicted.high for each in found.drafts[0].kinds[0].lengths)


def test_acceptance_is_what_the_loop_accepts(parent, near):
    """A draft that is right and wrong by turns: passes of llama.cpp's loop are those counted beforehand."""
    found = se.draft(near, "rpi5", model=parent, measure=True, rounds=3, **(QUICK | {"prompts": 4, "tokens": 40}))
    share, told = found.drafts[0].kinds[0].acceptance.value, found.drafts[0].measured
    assert 0.2 < share < 0.9 and told.lossless and told.passes == told.counted_passes
    with (
        Worker(DRAFTED, parent, 1, 128) as alone,
        Worker(DRAFTED, parent, 1, 128, EngineOptions(draft=str(near))) as two,
        Worker("llama.cpp", near, 1, 128) as draft,
    ):
        ids = alone.tokenize("The quick brown fox", True, False)
        said = alone.speculate(ids, 41, 0)["ids"]
        [(_, known)] = draft.score([(ids + said, len(ids) + 1)])
        for gamma in (1, 2, 5):
            other = two.speculate(ids, 41, gamma)
            assert other["ids"] == said and other["passes"] == passes(known, gamma)
        assert two.speculate(ids, 21, 0)["passes"] == 20, "a draft that says nothing"
        with pytest.raises(SaapError, match="do not fit into a context of 128"):
            two.speculate(ids, 128, 4)


def test_a_draft_forgets_what_it_is_not_given_again(near):
    """Whatever it was asked before, it says what a fresh engine says, and never more than its context holds."""
    engine, fresh = LlamaCppEngine(near, 1, 32), LlamaCppEngine(near, 1, 64)
    draft = DraftFile(engine)
    draft.begin([5, 6, 7, 8], 4)
    for asked in ([5, 6, 7, 8, 9], [5, 6, 40, 41, 42, 43], [5, 6], [5, 60, 61], list(range(1, 31)), list(range(1, 33))):
        said = draft(np.array(asked, dtype=np.intc)).tolist()
        assert len(said) == min(4, 32 - len(asked) + 1)
        fresh.reset()
        wanted, run = [], asked
        for _ in said:
            wanted.append(int(fresh.forward(run)[-1].argmax()))
            run = wanted[-1:]
        assert said == wanted
    assert draft.calls == 6 and isinstance(draft, LlamaDraftModel)


def test_no_speed_up_where_an_answer_differs(parent, pruned):
    """The loop runs as it is; what it is held to was changed."""
    with Worker(DRAFTED, parent, 1, 128) as worker:
        ids = worker.tokenize("The quick brown fox", True, False)
        said = worker.speculate(ids, 8, 0)["ids"]
    right = Answer("text-1", "text", ids, said, (False,) * 7)
    wrong = replace(right, id="text-2", ids=[*said[:5], said[5] + 1, *said[6:]])
    setting, steps = Setting(parent, pruned, DRAFTED, 1, 128, 2, 3), []
    assert measure(setting, [right], lambda count: None).speedup
    found = measure(setting, [right, wrong], steps.append)
    assert not found.lossless and found.speedup is None is found.speedup_cpu and found.drafted_tok_s is None
    assert {(each.prompt, each.position, each.alone) for each in found.differences} == {("text-2", 5, said[5] + 1)}
    assert sum(steps) == steps_of(setting, [right, wrong])


def swapped(folder, name):
    """The parent's folder with two tokens that have changed their ids."""
    source = write_folder(tiny_model("llama", max_position_embeddings=512), folder / name)
    document = json.loads((source / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (source / "tokenizer.json").write_text(json.dumps(document))
    assert Tokenizer.from_file(str(source / "tokenizer.json")).encode("a").ids == [vocabulary["a"]]
    write_gguf(source, folder / f"{name}.gguf", "f16")
    return folder / f"{name}.gguf"


def test_other_tokenizers_are_refused(parent, folder):
    fewer = gguf(tiny_model("llama", vocab_size=300, max_position_embeddings=512), folder, "fewer")
    for other, what in ((swapped(folder, "swapped"), r"tokens \d+ is '[ab]' and '[ab]'"), (fewer, "320 tokens and 300"),
                        (gguf(tiny_model("qwen2"), folder, "qwen"), "tokenizer.ggml")):  # fmt: skip
        with pytest.raises(SaapError, match=f"is no draft of .*: their tokenizers differ .*{what}"):
            se.draft(other, "rpi5", model=parent, **QUICK)


def test_what_is_no_draft(parent, pruned, folder, tmp_path):
    for wrong, what in (
        ({"drafts": tmp_path / "none"}, "no .gguf file, no run's --out folder"),
        ({"drafts": pruned, "model": None}, "--model is needed"), ({"drafts": [], "model": parent}, "no draft"),
        ({"drafts": pruned, "model": tmp_path}, "is no file"), ({"drafts": pruned, "tokens": 1}, "--tokens 1"),
        ({"drafts": pruned, "tokens": 600}, "smaller --tokens"), ({"drafts": pruned, "prompts": 1}, "--prompts 1"),
        ({"drafts": pruned, "threads": 99}, "has 4 cores"),
        ({"drafts": folder / "parent-model" / "config.json"}, "no engine opens"),
    ):  # fmt: skip
        with pytest.raises(SaapError, match=what):
            se.draft(**{"target": "rpi5", "model": parent, **QUICK, **wrong})


def test_the_command(parent, pruned, monkeypatch, capsys, tmp_path):
    small = ("--prompts", "2", "--tokens", "8", "--threads", "1")
    code, out, err = call(
        monkeypatch, capsys, "draft", pruned, "--model", parent, "--target", "rpi5", *small, "--json", "--out",
        tmp_path / "draft.json",
    )  # fmt: skip
    assert code == 0 and json.loads(out) == json.loads((tmp_path / "draft.json").read_text())
    assert "does not pay on this board" in err and "tokens a pass" in err
    board = this_machine().model_copy(update={"threads": 1, "name": "unknown", "title": "A board nobody knows"})
    (tmp_path / "board.yaml").write_text(dump_yaml(board))
    code, _, err = call(monkeypatch, capsys, "draft", pruned, "--model", parent, "--target", tmp_path / "board.yaml",
                        *small)  # fmt: skip
    assert code == 3 and "nothing can be predicted" in err
    code, _, err = call(monkeypatch, capsys, "draft", pruned, "--target", "rpi5", "--model", parent, "--out", tmp_path)
    assert code == 2 and "--out" in err
