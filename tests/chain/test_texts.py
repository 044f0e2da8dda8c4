"""Texts that a stage would find too short are refused before any work, and tokens are those of the model."""

import json
import shutil

import pytest
import torch

from saap_edge.chain.texts import Corpus
from saap_edge.engines.answers import VERIFIED
from saap_edge.errors import SaapError
from saap_edge.model.perplexity import text_windows
from saap_edge.model.tokenizer import load_tokenizer, plain_ids
from tests.conftest import tiny_model, tiny_tokenizer, write_folder

WINDOW = 64
ROLES = ("calibration", "heldout", "test")
LEAST = {"calibration": 2 * WINDOW, "heldout": WINDOW, "test": WINDOW}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_folder(tiny_model("llama"), tmp_path_factory.mktemp("model"))


@pytest.fixture
def corpus(model, tmp_path):
    """Texts of given bytes, or of so many tokens: every `a` in a row is one of its own in this vocabulary."""

    def build(window=WINDOW, **given):
        for role in ROLES:
            content = given.get(role, 8 * WINDOW)
            text = b"a" * content if isinstance(content, int) else content
            if content is not None:
                (tmp_path / f"{role}.txt").write_bytes(text)
        return Corpus({role: tmp_path / f"{role}.txt" for role in ROLES}, model, window)

    return build


def tokens_of(text):
    return len(tiny_tokenizer()(text)["input_ids"])


@pytest.mark.parametrize("role", ROLES)
def test_one_token_too_few_is_refused_and_enough_is_not(corpus, role):
    assert tokens_of("a" * 100) == 100
    corpus(**{role: LEAST[role]}).check(2)
    with pytest.raises(
        SaapError, match=rf"data\.{role}: .* has {LEAST[role] - 1} tokens, and {LEAST[role]} are needed"
    ):
        corpus(**{role: LEAST[role] - 1}).check(2)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "has 0 tokens"), (None, "no text file"), (b"a \xff\xfe b" * 99, r"is not UTF-8 text \(byte 2\)")],
)
def test_what_is_no_text_is_refused(corpus, role, content, expected):
    with pytest.raises(SaapError, match=rf"data\.{role}: .*{expected}"):
        corpus(**{role: content}).check(2)


def test_tuning_alone_takes_one_window_of_calibration(corpus):
    corpus(calibration=WINDOW).check(1)
    with pytest.raises(SaapError, match="are needed"):
        corpus(calibration=WINDOW).check(2)


def test_verify_needs_its_tokens_where_windows_are_smaller(corpus):
    corpus(window=16, test=VERIFIED).check(2)
    with pytest.raises(SaapError, match=rf"has {VERIFIED - 1} tokens .* verify runs {VERIFIED}"):
        corpus(window=16, test=VERIFIED - 1).check(2)


def test_a_long_text_is_not_tokenised_to_find_that_it_is_long_enough(corpus, monkeypatch):
    seen = []
    genuine = Corpus._ids
    monkeypatch.setattr(Corpus, "_ids", lambda self, text: seen.append(len(text)) or genuine(self, text))
    corpus(calibration=b"a " * 250_000).check(2)
    assert max(seen) < 20_000
    # Long words of few tokens: more is taken until it is enough.
    corpus(calibration=b" " * 50_000 + b"a " * 4 * WINDOW).check(2)


def test_windows_are_the_models_own_and_tokenised_once(corpus, model, monkeypatch):
    texts = corpus(calibration=b"The quick brown fox, 12345 times. " * 60)
    expected = text_windows(load_tokenizer(model), texts.text("calibration"), WINDOW)
    assert torch.equal(texts.windows("calibration"), expected)
    monkeypatch.setattr("saap_edge.model.perplexity.text_windows", None)
    assert torch.equal(texts.windows("calibration", 3), expected[:3])


def test_tokens_that_the_model_has_no_embedding_for_are_refused(corpus, model, tmp_path):
    """A tokenizer of another model."""
    shutil.copytree(model, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["vocab"] = {token: index + 320 for token, index in document["model"]["vocab"].items()}
    path.write_text(json.dumps(document))
    corpus()
    other = Corpus({role: tmp_path / f"{role}.txt" for role in ROLES}, tmp_path / "other", WINDOW)
    for call in (lambda: other.check(1), lambda: other.windows("test")):
        with pytest.raises(SaapError, match=r"has token \d+, and the vocabulary of .* ends at 319"):
            call()


def test_names_of_special_tokens_are_plain_text(corpus, model):
    """WikiText has "<unk>": where a model calls a token so, the text has no such token, in windows and in verify."""
    name = "<|end|>"
    tokenizer = load_tokenizer(model)
    assert tokenizer(name, add_special_tokens=False)["input_ids"] == [0]
    text = f"the {name} fox" * 99
    windows = corpus(calibration=text.encode()).windows("calibration")
    assert 0 not in windows and tokenizer.decode(windows[0][:12]).startswith(f"the {name}")
    tokens = plain_ids(tokenizer, text)
    assert windows.flatten().tolist() == tokens[: windows.numel()]
    tokenizer.add_tokens(["<tool>"])  # one that is not special is one in plain text too, as in llama.cpp
    assert len(tokenizer) - 1 in plain_ids(tokenizer, "a <tool> b")
