"""Training: the loss is the textbook one, a killed run resumes to the same result, and worse is never kept."""

import copy
import math

import pytest
import torch
from safetensors.torch import load_file

from saap_edge.errors import SaapError
from saap_edge.model import head
from saap_edge.model.blocks import BLOCK_FORMATS, dequantise
from saap_edge.model.folder import spec_of
from saap_edge.model.perplexity import perplexity
from saap_edge.pruning.surgery import cut
from saap_edge.recovery.heldout import Heldout, with_answers
from saap_edge.recovery.start import in_blocks
from saap_edge.recovery.teacher import CachedTeacher, DenseTeacher, write_cache
from saap_edge.recovery.train import Training, _arguments, _Student, train
from tests.conftest import tiny_model
from tests.pruning.test_surgery import random_kept

TRAINING = Training(tokens=32 * 4 * 16, batch=4, learning_rate=1e-2, distillation=1.0)


@pytest.fixture(scope="module")
def dense():
    return tiny_model("llama").requires_grad_(False)


@pytest.fixture(scope="module")
def texts(dense):
    """Windows to learn from, and others to be judged on: what the teacher itself says can be learnt from it."""
    torch.manual_seed(0)
    said = dense.generate(torch.randint(1, 320, (32, 1)), max_new_tokens=31, do_sample=True, pad_token_id=0)
    said = torch.nn.functional.pad(said, (0, 32 - said.shape[1]))
    return said[:24], Heldout(said[24:])


def student(dense, seed=0):
    model = cut(dense, random_kept(0))
    torch.manual_seed(seed)
    return in_blocks(model, spec_of(model).family, BLOCK_FORMATS["q4_0"], rank=4)


def adapters(model):
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("distillation", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("pieces", [1 << 24, 320 * 10])
def test_loss_and_gradient_are_the_textbook_ones(dense, texts, distillation, pieces, monkeypatch):
    monkeypatch.setattr(head, "LOGITS", pieces)
    model, ids = student(dense), texts[0][:3]
    trained = [value for value in model.parameters() if value.requires_grad]
    loss = _Student(model, DenseTeacher(dense), distillation).train()(ids, torch.arange(3))["loss"]
    actual = torch.autograd.grad(loss, trained)
    logits, target = (m(input_ids=ids).logits[:, :-1].flatten(0, 1) for m in (model, dense))
    text = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    taught = (target.softmax(-1) * (target.log_softmax(-1) - logits.log_softmax(-1))).sum(-1).mean()
    expected = (1 - distillation) * text + distillation * taught
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for found, wanted in zip(actual, torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)


def test_held_out_loss_without_answers_is_of_the_text_alone(dense, texts):
    model = student(dense)
    value = _Student(model, DenseTeacher(dense), 1.0).eval()(texts[1].windows, torch.arange(8))["loss"]
    assert float(value) == pytest.approx(perplexity(model, texts[1].windows).nll, rel=1e-5)


@pytest.mark.parametrize("distillation", [0.3, 1.0])
def test_what_is_learnt_from_the_dense_model_is_judged_by_it(dense, texts, tmp_path, distillation):
    heldout = with_answers(texts[1], lambda: dense, tmp_path / "answers.safetensors")
    model, ids = student(dense), heldout.windows
    found = heldout.measure(model)
    with torch.no_grad():
        mine, theirs = (m(input_ids=ids).logits[:, :-1].log_softmax(-1) for m in (model, dense))
    apart = (theirs.exp() * (theirs - mine)).sum(-1).mean()
    assert found.perplexity.nll == pytest.approx(perplexity(model, ids).nll, rel=1e-5)
    assert found.divergence == pytest.approx(float(apart), rel=0.03)  # of 256 tokens of 320, in half precision
    training = Training(TRAINING.tokens, TRAINING.batch, 1e-2, distillation)
    recovery = train(model, DenseTeacher(dense), texts[0], heldout, training, tmp_path / "work")
    assert recovery.start == pytest.approx(found.loss(distillation)) and recovery.best_step
    assert heldout.measure(model).loss(distillation) == pytest.approx(recovery.best, rel=1e-4)
    assert recovery.best < recovery.start


def test_answers_are_written_once(dense, texts, tmp_path):
    path, asked = tmp_path / "new" / "answers.safetensors", []
    for _ in range(2):
        heldout = with_answers(Heldout(texts[1].windows[:2]), lambda: asked.append(1) or dense, path)
    assert asked == [1] and heldout.measure(dense).divergence == pytest.approx(0, abs=1e-3)


class Killed(Exception):
    pass


@pytest.mark.parametrize("half_written", [False, True])
def test_a_killed_run_resumes_to_the_same_result(dense, texts, tmp_path, half_written):
    whole = student(dense)
    wanted = train(whole, DenseTeacher(dense), *texts, TRAINING, tmp_path / "whole")

    def kill(step, loss, heldout):
        if step == 9:
            raise Killed

    broken = student(dense)
    with pytest.raises(Killed):
        train(broken, DenseTeacher(dense), *texts, TRAINING, tmp_path / "work", kill)
    assert (tmp_path / "work" / "checkpoint-8").is_dir()
    if half_written:
        (tmp_path / "work" / "checkpoint-10").mkdir()
        (tmp_path / "work" / "checkpoint-10" / "model.safetensors").write_bytes(b"half")
    steps = []
    resumed = student(dense)
    got = train(resumed, DenseTeacher(dense), *texts, TRAINING, tmp_path / "work", lambda step, *_: steps.append(step))
    assert min(steps) == 9 and got == wanted
    for name, value in adapters(whole).items():
        assert torch.equal(value, adapters(resumed)[name]), name


def test_the_best_is_what_is_kept(dense, texts, tmp_path):
    model, heldout = student(dense), texts[1].windows
    recovery = train(model, DenseTeacher(dense), *texts, TRAINING, tmp_path)
    assert recovery.best < recovery.start == recovery.history[0][1]
    assert (recovery.best_step, recovery.best) == min(recovery.history, key=lambda entry: entry[1])
    assert perplexity(model, heldout).nll == pytest.approx(recovery.best, rel=1e-5)
    assert recovery.tokens == TRAINING.tokens and recovery.steps == 16


@pytest.mark.parametrize("rate", [1e2, 1e30])
def test_a_hostile_learning_rate_gives_back_what_came_in(dense, texts, tmp_path, rate):
    model = student(dense)
    before = adapters(model)
    hostile = Training(TRAINING.tokens, TRAINING.batch, rate, 1.0)
    recovery = train(model, DenseTeacher(dense), *texts, hostile, tmp_path)
    assert recovery.best == recovery.start and recovery.best_step == 0
    assert all(torch.equal(value, before[name]) for name, value in adapters(model).items())
    assert (recovery.diverged_at is None) == (rate == 1e2)
    if recovery.diverged_at:  # nothing leads back: the rest of the tokens is saved
        assert recovery.tokens == recovery.diverged_at * 4 * 32 < TRAINING.tokens
        assert all(math.isfinite(loss) for _, loss in recovery.history)


def test_patience_stops_early(dense, texts, tmp_path):
    hopeless = Training(TRAINING.tokens, TRAINING.batch, 10.0, 1.0, patience=2)
    recovery = train(student(dense), DenseTeacher(dense), *texts, hopeless, tmp_path)
    assert len(recovery.history) <= 5 and recovery.tokens < TRAINING.tokens


def test_checkpointing_changes_nothing_and_bfloat16_little(dense, texts, tmp_path):
    results = {}
    for name, settings in {"plain": {}, "checkpointing": {"checkpointing": True}, "bf16": {"bfloat16": True}}.items():
        model = student(dense)
        training = Training(TRAINING.tokens, TRAINING.batch, 1e-2, 1.0, **settings)
        results[name] = train(model, DenseTeacher(dense), *texts, training, tmp_path / name)
    assert results["checkpointing"] == results["plain"] != results["bf16"]
    assert results["bf16"].history[-1][1] == pytest.approx(results["plain"].history[-1][1], rel=0.01)


def test_scales_are_those_that_ship_whatever_the_precision(dense):
    model = student(dense)
    layer = model.model.layers[0].mlp.up_proj
    layer.block_u.data.normal_(0, 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(torch.eye(64)).T
    assert torch.equal(found, dequantise(layer.blocks()).bfloat16())


def kept_bytes(model, ids):
    """Of what autograd keeps of a forward, parameters left out."""
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor  # the tensor too: or its address would be used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train().model(input_ids=ids, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


@pytest.mark.parametrize("pruned", [False, True])
def test_checkpointing_keeps_less_in_both_classes(dense, texts, tmp_path, pruned, monkeypatch):
    """What training sees: the bytes autograd keeps while the Trainer runs."""
    model = student(dense) if pruned else in_blocks(
        copy.deepcopy(dense), spec_of(dense).family, BLOCK_FORMATS["q4_0"], rank=4
    )  # fmt: skip
    assert (type(model) is type(dense)) == (not pruned)
    seen, genuine = {}, _Student.forward

    def noted(self, input_ids, number, return_loss=True):
        if self.training:
            seen[self.model.is_activation_checkpointing] = kept_bytes(self.model, input_ids)
        return genuine(self, input_ids, number, return_loss)

    monkeypatch.setattr(_Student, "forward", noted)
    for wanted in (False, True):
        training = Training(32 * 4, 4, 1e-2, 0.0, checkpointing=wanted)
        train(model, None, *texts, training, tmp_path / str(wanted))
    assert 0 < seen[True] < seen[False] / 4
    assert not model.is_activation_checkpointing


def test_held_out_text_is_measured_the_same_in_pieces(dense, texts, tmp_path, monkeypatch):
    heldout, model = with_answers(texts[1], lambda: dense, tmp_path / "answers.safetensors"), student(dense)
    whole = heldout.measure(model)
    monkeypatch.setattr(head, "LOGITS", 320 * 10)
    monkeypatch.setattr(head, "CACHED", 320 * 3)
    found = heldout.measure(model)
    assert found.perplexity.nll == pytest.approx(whole.perplexity.nll, rel=1e-6)
    assert found.perplexity.nll == pytest.approx(perplexity(model, texts[1].windows).nll, rel=1e-5)
    assert found.divergence == pytest.approx(whole.divergence, rel=1e-5)


def test_a_halved_teacher_says_the_same_under_mixed_precision(texts):
    model, ids, logits = tiny_model("llama").requires_grad_(False), texts[0][:2], torch.randn(62, 320)
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    found = []
    for halved in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(float(DenseTeacher(model, halved)(ids, torch.arange(2))(logits, slice(0, 62))))
    assert found[0] == found[1]
    assert model.model.embed_tokens.weight.dtype == model.model.norm.weight.dtype == torch.float32
    assert model.model.layers[0].mlp.up_proj.weight.dtype == model.lm_head.weight.dtype == torch.bfloat16 and tied


@pytest.mark.parametrize("halved", [False, True])
def test_a_teacher_that_is_asked_again_says_the_same_without_a_pass(texts, halved, monkeypatch):
    ids, logits = texts[0][:2], torch.randn(62, 320)
    asked, passes = DenseTeacher(tiny_model("llama").requires_grad_(False), halved, again=True), []
    whole = asked.model.model.forward
    monkeypatch.setattr(asked.model.model, "forward", lambda **given: passes.append(1) or whole(**given))
    with torch.autocast("cpu", torch.bfloat16, enabled=halved):
        first, second = (float(asked(ids, torch.tensor([5, 3]))(logits, slice(0, 62))) for _ in range(2))
        turned = float(
            asked(ids.flip(0), torch.tensor([3, 5]))(logits.view(2, 31, 320).flip(0).flatten(0, 1), slice(0, 62))
        )
        assert len(passes) == 1
        asked(ids, torch.tensor([5, 4]))
    assert len(passes) == 2
    assert first == second == pytest.approx(turned, rel=1e-6)


def test_a_teacher_remembers_no_more_than_its_weights_take(texts):
    model = tiny_model("llama").requires_grad_(False)
    asked, room = DenseTeacher(model, again=True), sum(weight.nbytes for weight in model.parameters())
    window = torch.randint(1, 320, (1, 101))
    fits = room // (100 * 4 * model.config.hidden_size)
    for number in range(fits + 3):
        asked(window, torch.tensor([number]))
    assert [asked._known.read([number]) is not None for number in (0, fits - 1, fits)] == [True, True, False]


def test_a_cache_of_all_tokens_is_the_teacher(dense, texts, tmp_path):
    windows = texts[0]
    write_cache(dense, windows, 320, tmp_path / "all.safetensors")
    numbers = torch.tensor([3, 17])
    ids, logits = windows[numbers], torch.randn(62, 320)
    exact = DenseTeacher(dense)(ids, numbers)(logits, slice(0, 62))
    cached = CachedTeacher(tmp_path / "all.safetensors")(ids, numbers)
    with torch.autocast("cpu", torch.bfloat16):  # is read in training's precision too
        again = CachedTeacher(tmp_path / "all.safetensors")(ids, numbers)
    assert float(again(logits, slice(0, 62))) == float(cached(logits, slice(0, 62)))
    assert float(cached(logits, slice(0, 62))) == pytest.approx(float(exact), rel=1e-2)
    parts = sum(float(cached(logits[rows], rows)) for rows in (slice(0, 10), slice(10, 62)))
    assert parts == pytest.approx(float(cached(logits, slice(0, 62))), rel=1e-5)


@pytest.mark.parametrize("held", [1 << 18, 320 * 3])
def test_the_gradient_of_a_cache_is_that_of_its_formula(dense, texts, tmp_path, held, monkeypatch):
    monkeypatch.setattr(head, "CACHED", held)
    write_cache(dense, texts[0], 5, tmp_path / "top.safetensors")
    logits = torch.randn(31, 320, requires_grad=True)
    with torch.no_grad():
        logits[0, 7] = 60.0  # nothing is left for the rest
    found = CachedTeacher(tmp_path / "top.safetensors")(texts[0][:1], torch.tensor([0]))(logits, slice(0, 31))
    file = load_file(tmp_path / "top.safetensors")
    theirs, mine = file["logs"][0].float(), logits.log_softmax(-1).gather(1, file["tokens"][0].long())
    rest, my_rest = ((1 - part.exp().sum(-1)).clamp_min(1e-5) for part in (theirs, mine))
    wanted = (theirs.exp() * (theirs - mine)).sum() + (rest * (rest / my_rest).log()).sum()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(value / 31, logits)[0] for value in (found, wanted)))


def test_a_cache_of_some_tokens_counts_the_rest_as_one(dense, texts, tmp_path):
    windows = texts[0][:2]
    write_cache(dense, windows, 5, tmp_path / "some.safetensors")
    target = dense(windows).logits[:, :-1].flatten(0, 1).softmax(-1)
    logits = torch.randn(62, 320)
    top = target.topk(5).indices

    def folded(p):
        known = p.gather(1, top)
        return torch.cat([known, 1 - known.sum(1, keepdim=True)], 1)

    p, q = folded(target), folded(logits.softmax(-1))
    expected = float((p * (p / q).log()).sum())
    cached = CachedTeacher(tmp_path / "some.safetensors")(windows, torch.arange(2))
    assert float(cached(logits, slice(0, 62))) == pytest.approx(expected, rel=1e-2)


def test_a_batch_that_cannot_be_shared_out_is_refused(tmp_path, monkeypatch):
    from transformers import TrainingArguments

    monkeypatch.setattr(TrainingArguments, "world_size", 3)
    with pytest.raises(SaapError, match=r"recover\.batch 4 cannot be shared out over 3 processes"):
        _arguments(TRAINING, 4, 1, tmp_path)


def test_windows_are_left_alone_when_there_is_nothing_to_train(dense, texts, tmp_path):
    model = student(dense)
    before = copy.deepcopy(adapters(model))
    recovery = train(model, None, *texts, Training(0, 4, 1e-2, 1.0), tmp_path)
    assert recovery.steps == recovery.tokens == 0 and recovery.best == recovery.start
    assert all(torch.equal(value, before[name]) for name, value in adapters(model).items())
