"""A model writes text: as a chat or plain, the same for a seed, on where a killed run stopped, and fit to use."""

import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer

from saap_edge.engines.llama_writer import sample
from saap_edge.errors import SaapError
from saap_edge.model.tokenizer import load_tokenizer
from saap_edge.recipe import bundled_model
from saap_edge.writing.filters import LOOPING, repetition
from saap_edge.writing.forms import QUESTION, read_form
from saap_edge.writing.saved import load_tokens
from saap_edge.writing.write import write_text
from tests.conftest import tiny_model, write_folder

TEMPLATE = (
    "{% for message in messages %}<|end|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|end|>assistant\n{% endif %}"
)
TOKENS = 1500


def write(model, folder, seed=0, tokens=TOKENS, **given):
    folder.mkdir(parents=True, exist_ok=True)
    return write_text(model, folder, folder / "work", tokens=tokens, seed=seed, threads=1, **given)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The bundled model with a short context, so that its documents are short, too."""
    folder = tmp_path_factory.mktemp("bundled")
    shutil.copytree(bundled_model(), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 96}))
    return folder


@pytest.fixture(scope="module")
def plain(model, tmp_path_factory):
    """That model's text: (folder, record, what progress was told)."""
    folder, heard = tmp_path_factory.mktemp("plain"), []
    record = write(model, folder, progress=lambda tokens, note: heard.append(tokens))
    return folder, record, heard


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A random model that chats."""
    folder = write_folder(tiny_model("llama", max_position_embeddings=256), tmp_path_factory.mktemp("chat"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def test_the_record_is_that_of_the_text(plain):
    folder, record, heard = plain
    tokens = load_tokens(folder)
    assert record == json.loads((folder / "write.json").read_text())
    assert record["form"] == "text" and record["tokens"] == len(tokens) >= TOKENS
    assert record["drafted"] == record["documents"] + sum(record["dropped"].values())
    assert sum(record["temperatures"].values()) == record["documents"] and len(record["temperatures"]) == 3
    assert all(each >= 0 for each in heard) and sum(heard) == pytest.approx(TOKENS)


def test_documents_are_closed_by_the_end_and_say_nothing_twice(model, plain):
    folder, record, _ = plain
    tokens, end = load_tokens(folder).tolist(), read_form(model).close[0]
    assert tokens.count(end) == record["documents"] and tokens[-1] == end
    documents = [[]]
    for token in tokens:
        documents.append([]) if token == end else documents[-1].append(token)
    assert all(repetition(document) <= LOOPING for document in documents)
    text = (folder / "text.txt").read_text()
    assert load_tokenizer(model).decode(documents[0]) in text


def test_the_same_seed_gives_the_same_text_and_another_gives_another(model, plain, tmp_path):
    again, other = write(model, tmp_path / "again"), write(model, tmp_path / "other", seed=1)
    assert torch.equal(load_tokens(tmp_path / "again"), load_tokens(plain[0]))
    assert again["dropped"] == plain[1]["dropped"] and other["seed"] == 1
    assert not torch.equal(load_tokens(tmp_path / "other"), load_tokens(plain[0]))


def test_a_killed_run_goes_on_and_ends_with_the_same_text(model, tmp_path, monkeypatch):
    """It is stopped in its third round, and half of a line of the second was on the disk."""
    monkeypatch.setattr("saap_edge.writing.write.ROUND", 8)
    write(model, tmp_path / "whole")
    rounds = tmp_path / "work" / "rounds.jsonl"

    def stop(tokens, note):
        if rounds.is_file() and len(rounds.read_text().splitlines()) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(model, tmp_path, progress=stop)
    first, second = rounds.read_text().splitlines(keepends=True)
    rounds.write_text(first + second[: len(second) // 2])
    write(model, tmp_path)
    assert torch.equal(load_tokens(tmp_path), load_tokens(tmp_path / "whole"))
    again = [json.loads(line)["documents"] for line in rounds.read_text().splitlines()]
    whole = (tmp_path / "whole" / "work" / "rounds.jsonl").read_text().splitlines()
    assert len(again) >= 3 and again == [json.loads(line)["documents"] for line in whole]


def test_a_chat_is_that_of_the_template(chat, tmp_path):
    """Every document is what transformers renders of its question and its answer, special tokens as such."""
    record = write(chat, tmp_path, tokens=1500)
    form, tokenizer = read_form(chat), AutoTokenizer.from_pretrained(str(chat))
    assert record["form"] == form.kind == "chat" and form.parts[0][1] == QUESTION
    ids, (first, second), end = load_tokens(tmp_path).tolist(), (part[0] for part in form.parts), form.ends[0]
    assert first[0] == second[0] == end == tokenizer.eos_token_id
    checked = 0
    for line in (tmp_path / "work" / "rounds.jsonl").read_text().splitlines():
        for _, start, written, _ in json.loads(line)["documents"]:
            if len(written) < 2 or not all(written[1:]):
                continue
            whole = form.whole(start, written)
            question, answer = (tokenizer.decode(part) for part in ([*start, *written[0]], written[1]))
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            assert tokenizer.decode(whole) == tokenizer.apply_chat_template(messages, tokenize=False)
            checked += 1
    assert checked >= record["documents"] > 0 and ids[: len(first)] == list(first)


@pytest.mark.parametrize(
    "template",
    [None, "{% for message in messages %}{{ message['content'] }}{% endfor %}", "{{ raise_exception('no') }}", "hello"],
    ids=["none", "contents only", "raises", "no places"],
)
def test_a_template_that_is_no_chat_gives_plain_text(chat, tmp_path, template):
    shutil.copytree(chat, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    if template:
        (tmp_path / "model" / "chat_template.jinja").write_text(template)
    form = read_form(tmp_path / "model")
    assert form.kind == "text" and len(form.parts) == 1 and form.close == form.ends[:1]


def test_a_template_longer_than_the_context_is_refused(chat, tmp_path):
    shutil.copytree(chat, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("word " * 200 + TEMPLATE)
    with pytest.raises(SaapError, match="leaves no room for an answer in a context of 256 tokens"):
        read_form(tmp_path / "model")


def test_a_model_that_says_one_word_for_ever_is_refused(tmp_path):
    """Its layers add nothing and its head is its embedding: after every token, the same one is likeliest."""
    model = tiny_model("llama", max_position_embeddings=256)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(30.0)
    folder = write_folder(model, tmp_path / "model")
    with pytest.raises(SaapError, match=r"wrote \d+ documents, and 0 are fit .*repetition.*data\.calibration"):
        write(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "text.txt").exists()


def test_tokens_are_drawn_as_often_as_they_are_likely():
    """Against the softmax in float64, with the tail left out; and the first and last of a row can be drawn."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1, 12, generator=generator)
    for temperature in (0.5, 1.0, 2.0):
        expected = torch.softmax(logits.double() / temperature, dim=1)[0]
        expected = torch.where(expected < 0.02 * expected.max(), 0.0, expected)
        draws = (torch.arange(20_000, dtype=torch.float64) / 20_000).tolist()
        rows = logits.expand(len(draws), -1).numpy()
        chosen = torch.tensor(sample(rows, [temperature] * len(draws), 0.02, draws))
        found = torch.bincount(chosen, minlength=12) / len(draws)
        assert torch.allclose(found.double(), expected / expected.sum(), atol=2e-4)


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(SaapError, match="not finite"):
        sample(torch.full((1, 4), torch.nan).numpy(), [1.0], 0.02, [0.5])
