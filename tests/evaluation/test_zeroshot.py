"""Zero-shot: likelihoods of plain transformers, of lm-eval's own model, of every engine; accuracies counted by hand."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from saap_edge.errors import SaapError
from saap_edge.evaluation.likelihood import ArtifactScorer, Request, TorchScorer, window_perplexity
from saap_edge.evaluation.subjects import Settings, evaluate_path, find_subjects
from saap_edge.evaluation.tasks import load_tasks, read_rows
from saap_edge.evaluation.zeroshot import ScorerLM, run_tasks
from saap_edge.exporting.write import export_artifacts
from saap_edge.model.folder import build_pruned, load_model
from saap_edge.model.perplexity import perplexity, text_hash
from saap_edge.model.tokenizer import load_tokenizer
from tests.conftest import TEXT, VOCABULARY, WIDTHS, randomise_projections, tiny_model, write_folder
from tests.test_cli import call

CONTEXT = 128
# Braces, a digit string and a lone number: text that a template engine would take for something else.
CHOICES = [
    {"query": "The quick brown", "choices": ["fox jumps", "dog", "lazy fox {{gold}}"], "gold": 0},
    {"query": "Pack my box with {{query}}", "choices": ["five dozen", "12345"], "gold": 1, "ignored": None},
    {"query": "12345", "choices": ["times!", "liquor jugs", "the lazy dog", "over"], "gold": 2},
    {"query": "jumps over the", "choices": ["lazy dog", "quick brown fox jumps over the lazy"], "gold": 0},
]
PIQA = [row | {"query": row["query"] + "\n"} for row in CHOICES]
SCHEMAS = [
    {"context_options": ["The fox jumps so the fox", "The fox, so the dog"], "continuation": "runs away.", "gold": 1},
    {"context_options": ["Pack my box", "Pack the quick"], "continuation": "with jugs.", "gold": 0},
    {"context_options": ["lazy dog", "quick fox"], "continuation": "jumps over.", "gold": 1},
]  # fmt: skip
LAST_WORDS = [
    {"context": "The quick brown fox jumps over the lazy", "continuation": "dog"},
    {"context": "Pack my box with five dozen", "continuation": "liquor"},
    {"context": "The quick brown", "continuation": "fox"},
]
FILES: dict[str, list[dict]] = {
    "choices.jsonl": CHOICES,
    "piqa.jsonl": PIQA,
    "schemas.jsonl": SCHEMAS,
    "words.jsonl": LAST_WORDS,
}


@contextlib.contextmanager
def no_bar(what, total):
    yield lambda count: None


def ignore(count):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pruned model whose layers all differ."""
    model = randomise_projections(build_pruned(tiny_model("llama"), WIDTHS))
    return write_folder(model, tmp_path_factory.mktemp("zeroshot-model"))


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("zeroshot-export")
    export_artifacts(folder, out, ("gguf-f16", "onnx-fp32"), "pruned", {"model": "x"}, lambda name: None)
    return out


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    base = tmp_path_factory.mktemp("tasks")
    for name, rows in FILES.items():
        (base / name).write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    return base


@pytest.fixture(scope="module")
def reference(folder):
    return load_model(folder)


def plain(model, tokens, start):
    """Log-probabilities and greedy flags, one unpadded sequence, the whole of its logits."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens[:-1]])).logits[0]
    wanted = tokens[start:]
    rows = torch.log_softmax(logits, -1)[start - 1 :]
    return [float(row[token]) for row, token in zip(rows, wanted, strict=True)], (
        rows.argmax(-1) == torch.tensor(wanted)
    ).tolist()


def requests(seed=0):
    """Lengths from 2 tokens to one more than the context; neighbours that share much, all or nothing."""
    rng = np.random.default_rng(seed)

    def ids(count):
        return rng.integers(1, VOCABULARY, count).tolist()

    question = ids(20)
    found = [Request(question + ids(count), 20) for count in (1, 5, 3)]
    found += [Request(question[:12] + ids(4), 12), found[-1], Request(ids(2), 1), Request(ids(CONTEXT + 1), 100)]
    return [Request([7, 8, 9], 1), Request([7, 8, 9, 10, 11], 4), *found]


def scorers(reference, exported):
    return {
        "torch": TorchScorer(reference, CONTEXT),
        "gguf-f16": ArtifactScorer("llama.cpp", exported / "gguf" / "model-f16.gguf", 1, CONTEXT),
        "onnx-fp32": ArtifactScorer("onnxruntime", exported / "onnx" / "fp32", 1, CONTEXT),
    }


@pytest.mark.parametrize(("engine", "tolerance"), [("torch", 1e-4), ("onnx-fp32", 1e-4), ("gguf-f16", 3e-2)])
def test_scores_are_those_of_plain_logits(reference, exported, engine, tolerance, monkeypatch):
    monkeypatch.setattr("saap_edge.evaluation.likelihood.BATCH_TOKENS", 100)  # batches of one and of several
    asked, done = requests(), []
    scores = scorers(reference, exported)[engine].score(asked, done.append)
    assert sum(done) == len(asked)
    for request, score in zip(asked, scores, strict=True):
        values, greedy = plain(reference, *request)
        np.testing.assert_allclose(score.values, values, atol=tolerance)
        if engine != "gguf-f16":
            assert score.greedy == greedy


@pytest.mark.parametrize("engine", ["gguf-f16", "onnx-fp32"])
def test_greedy_flags(reference, exported, engine):
    """What a model itself writes is greedy, token by token, and one other token is not."""
    scorer = scorers(reference, exported)[engine]
    with torch.no_grad():
        text = reference.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=6, do_sample=False, eos_token_id=-1)[0]
    ids = text.tolist()
    wrong = [*ids[:5], (ids[5] + 1) % VOCABULARY, *ids[6:]]
    own, other = scorer.score([Request(ids, 3), Request(wrong, 3)], ignore)
    assert own.greedy == [True] * 6
    assert other.greedy[:3] == [True, True, False]


def test_ids_outside_the_vocabulary_are_refused(reference, exported):
    for name, scorer in scorers(reference, exported).items():
        if name != "torch":
            with pytest.raises(SaapError, match="token ids must be in 0 to"):
                scorer.score([Request([1, 2, VOCABULARY], 2)], ignore)


def instances(pairs):
    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]


@pytest.fixture(scope="module")
def both(reference, folder):
    """(ours, lm-eval's own model class) on the same weights and tokenizer."""
    tokenizer = load_tokenizer(folder)
    ours = ScorerLM(TorchScorer(reference, CONTEXT), tokenizer, no_bar, "x")
    # Its cache of logits mixes up two requests of the same ids that are cut into context and answer elsewhere.
    return ours, HFLM(pretrained=reference, tokenizer=tokenizer, max_length=CONTEXT, batch_size=1, logits_cache=False)


def test_likelihoods_are_those_of_lm_eval(both):
    """Empty contexts, spaces at the border, a BOS in the text, and contexts that have to be cut."""
    ours, theirs = both
    pairs = [
        ("The quick", " brown fox"), ("The quick ", "brown fox"), ("", "The lazy dog"), ("<|end|>The", " lazy dog"),
        ("Zürich 🙂 " * 30 + TEXT[:300], " jumps over"), ("Pack my box\n", "with jugs"),
    ]  # fmt: skip
    expected = theirs.loglikelihood(instances(pairs), disable_tqdm=True)
    actual = ours.loglikelihood(instances(pairs))
    np.testing.assert_allclose([value for value, _ in actual], [value for value, _ in expected], atol=1e-3)
    assert [greedy for _, greedy in actual] == [greedy for _, greedy in expected]
    assert ours.shortened == 1


def test_rolling_likelihoods_are_those_of_lm_eval(both):
    texts = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate([TEXT[:900] + "é" * 200, "a"])]
    expected = both[1].loglikelihood_rolling(texts, disable_tqdm=True)
    np.testing.assert_allclose(both[0].loglikelihood_rolling(texts), expected, rtol=1e-4)


def test_what_cannot_be_scored_says_so(both):
    with pytest.raises(SaapError, match=r"answer of .* tokens does not fit into the model's context of 128"):
        both[0].loglikelihood(instances([("a", " 🙂" * 100)]))
    with pytest.raises(SaapError, match="generated text"):
        both[0].generate_until([])


def likelihood(model, tokenizer, context, continuation):
    """By hand: the text as a whole, the continuation's tokens those after the context's (space moved over)."""
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    ids = tokenizer(stripped + continuation)["input_ids"]
    values, greedy = plain(model, ids, len(tokenizer(stripped)["input_ids"]))
    return sum(values), all(greedy)


def by_hand(model, tokenizer):
    """{(file, metric): value} from plain logits and a plain count."""

    def ll(context, continuation):
        return likelihood(model, tokenizer, context, continuation)[0]

    counts: dict = {}
    for name, space in (("choices.jsonl", " "), ("piqa.jsonl", "")):
        rows = FILES[name]
        values = [[ll(row["query"], space + choice) for choice in row["choices"]] for row in rows]
        counts[name, "acc"] = np.mean([np.argmax(v) == row["gold"] for v, row in zip(values, rows, strict=True)])
        counts[name, "acc_norm"] = np.mean([
            np.argmax([x / len(choice) for x, choice in zip(v, row["choices"], strict=True)]) == row["gold"]
            for v, row in zip(values, rows, strict=True)
        ])  # fmt: skip
    picks = [np.argmax([ll(option, " " + row["continuation"]) for option in row["context_options"]]) for row in SCHEMAS]
    counts["schemas.jsonl", "acc"] = np.mean([p == row["gold"] for p, row in zip(picks, SCHEMAS, strict=True)])
    found = [likelihood(model, tokenizer, row["context"], " " + row["continuation"]) for row in LAST_WORDS]
    counts["words.jsonl", "acc"] = np.mean([greedy for _, greedy in found])
    counts["words.jsonl", "perplexity"] = math.exp(-np.mean([value for value, _ in found]))
    return counts


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The model after a few steps on TEXT: it knows some last words, so that no accuracy is 0 or 1 by chance alone."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    ids = torch.tensor([tokenizer(TEXT[:99])["input_ids"]])
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(25):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return write_folder(model.eval(), tmp_path_factory.mktemp("zeroshot-trained"))


def test_accuracies_are_a_hand_count_on_every_engine(trained, files, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained-export")
    export_artifacts(trained, out, ("gguf-f16", "onnx-fp32"), "pruned", {"model": "x"}, lambda name: None)
    expected = by_hand(load_model(trained), load_tokenizer(trained))
    assert expected["words.jsonl", "acc"] > 0
    settings = Settings(tasks=tuple(str(files / name) for name in FILES))
    for path, names in ((trained, ["torch"]), (out, ["gguf-f16", "onnx-fp32"])):
        document = evaluate_path(path, settings, no_bar)
        assert [entry["name"] for entry in document["artifacts"]] == names
        for name in names:
            entries = [entry for entry in document["tasks"] if entry["artifact"] == name]
            found = {(entry["task"], entry["metric"]): entry["value"] for entry in entries}
            assert found == pytest.approx(expected, rel=0.02 if name == "gguf-f16" else 1e-4)
            assert all(entry["n"] == len(FILES[entry["task"]]) for entry in entries)
            assert all(entry["sha256"] == text_hash(files / entry["task"]) for entry in entries)
            accuracy = next(entry for entry in entries if entry["task"] == "choices.jsonl")
            share = accuracy["value"]
            assert accuracy["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / 3)), "sample stderr of a share"
            words = next(e for e in entries if (e["task"], e["metric"]) == ("words.jsonl", "perplexity"))
            assert words["stderr"] > 0


def test_limit_and_figures_do_not_leak_between_runs(reference, folder, files):
    """The same task objects serve all artifacts."""
    tasks = load_tasks([str(files / "choices.jsonl"), str(files / "words.jsonl")])
    lm = ScorerLM(TorchScorer(reference, CONTEXT), load_tokenizer(folder), no_bar, "x")
    first = run_tasks(lm, tasks, None)
    limited = run_tasks(lm, tasks, 2)
    assert [figure.n for figure in limited] == [2] * 4
    assert run_tasks(lm, tasks, None) == first


def test_one_row_has_no_standard_error(reference, folder, files):
    tasks = load_tasks([str(files / name) for name in FILES])
    lm = ScorerLM(TorchScorer(reference, CONTEXT), load_tokenizer(folder), no_bar, "x")
    assert [figure.stderr for figure in run_tasks(lm, tasks, 1) if figure.metric != "perplexity"] == [None] * 6


def test_answers_that_are_not_finite_are_refused(folder):
    model = load_model(folder)
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(SaapError, match="not finite"):
        window_perplexity(TorchScorer(model, CONTEXT), torch.tensor([[1, 2, 3]]), ignore)


def test_window_perplexity(reference, exported):
    windows = torch.tensor([list(range(1, 25)), list(range(30, 54))])
    expected = perplexity(reference, windows)
    for name, scorer in scorers(reference, exported).items():
        found = window_perplexity(scorer, windows, ignore)
        assert (found.tokens, found.window) == (expected.tokens, expected.window)
        assert found.nll == pytest.approx(expected.nll, rel=2e-3 if name == "gguf-f16" else 1e-5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: a JSON object is wanted, got list"),
        ('{"query": "a", "choices": ["b", "c"]}', "line 2: field 'gold' is missing"),
        (
            '{"query": "a", "choices": ["b", "c"], "gold": 2}',
            "line 2: field 'gold' must be a number from 0 to 1, got 2",
        ),
        ('{"query": "a", "choices": ["b", "c"], "gold": true}', "line 2: field 'gold'"),
        ('{"query": "a", "choices": ["b", " "], "gold": 0}', "line 2: field 'choices' must be a list of at least two"),
        ('{"query": "a", "choices": "bc", "gold": 0}', "line 2: field 'choices'"),
        ('{"query": 5, "choices": ["b", "c"], "gold": 0}', "line 2: field 'query' must be text"),
        ('{"context": "a", "continuation": "b"}', "line 2: field 'query' is missing"),
    ],
)
def test_malformed_rows_are_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(CHOICES[0]) + "\n" + line + "\n")
    with pytest.raises(SaapError, match=message) as caught:
        read_rows(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_malformed_files_and_names(tmp_path, files):
    for content, message in (
        (b"\n\n", "has no rows"), (b"\xff\xfe", "not UTF-8"), (b'{"text": "a"}', "fields text are no task"),
    ):  # fmt: skip
        (tmp_path / "bad.jsonl").write_bytes(content)
        with pytest.raises(SaapError, match=message):
            read_rows(tmp_path / "bad.jsonl")
    with pytest.raises(SaapError, match=r"cannot read the task 'none.jsonl': No such file"):
        load_tasks(["none.jsonl"])
    (tmp_path / "words.jsonl").write_bytes((files / "words.jsonl").read_bytes())
    with pytest.raises(SaapError, match=r"words.jsonl is given twice"):
        load_tasks([str(files / "words.jsonl"), str(tmp_path / "words.jsonl")])


def test_a_line_separator_inside_text_is_text(tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text('{"context": "a\u2028b", "continuation": "c"}\r\n', encoding="utf-8")
    assert read_rows(path)[1] == [{"context": "a\u2028b", "continuation": "c"}]


def test_evaluate_command(folder, exported, files, tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text(TEXT[:600])
    options = ["--task", files / "choices.jsonl", "--limit", 3, "--text", text, "--window", 32, "--threads", 1]
    code, out, err = call(monkeypatch, capsys, "evaluate", exported, *options, "--json")
    document = json.loads(out)
    assert code == 0 and document["lm_eval"] and document["limit"] == 3
    assert [entry["artifact"] for entry in document["perplexity"]] == ["gguf-f16", "onnx-fp32"]
    assert text_hash(text) in err and text_hash(files / "choices.jsonl") in err and "windows of 32 tokens" in err
    model = load_model(folder)
    windows = torch.tensor(load_tokenizer(folder)(TEXT[:600])["input_ids"])
    windows = windows[: len(windows) // 32 * 32].view(-1, 32)
    assert document["perplexity"][1]["value"] == pytest.approx(perplexity(model, windows).value, rel=1e-4)
    assert document["perplexity"][1]["tokens"] == windows.shape[0] * 31

    code, out, _ = call(monkeypatch, capsys, "evaluate", folder, *options, "--json")
    torch_tasks = json.loads(out)["tasks"]
    onnx_tasks = [entry for entry in document["tasks"] if entry["artifact"] == "onnx-fp32"]
    assert code == 0 and [e["value"] for e in torch_tasks] == [e["value"] for e in onnx_tasks]


def test_one_file_or_one_format(exported, folder):
    gguf, onnx = exported / "gguf" / "model-f16.gguf", exported / "onnx" / "fp32"
    assert [subject.name for subject in find_subjects(exported, ("onnx-fp32",), 1)] == ["onnx-fp32"]
    for path in (gguf, onnx):
        [subject] = find_subjects(path, (), 1)
        scorer = subject.open()
        assert scorer.context == CONTEXT and len(scorer.score([Request([1, 2, 3], 1)], ignore)[0].values) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{exported}"], "nothing to measure"),
        (["{files}", "--text", "x"], "nothing to evaluate at"),
        (["{exported}", "--format", "gguf-q4_0", "--text", "x"], "--format gguf-q4_0: .* has gguf-f16, onnx-fp32"),
        (["{bare}", "--text", "{files}/words.jsonl"], "no tokenizer beside .*--tokenizer"),
        (["{folder}", "--text", "none.txt"], "cannot read --text 'none.txt': No such file"),
        (["{folder}", "--text", "{files}/words.jsonl", "--window", "9999"], "fewer than one window of 9999"),
        (
            ["{folder}", "--text", "{files}/words.jsonl", "--window", "129"],
            "--window 129 is more than .* of 128 tokens",
        ),
    ],
)
def test_bad_input_is_one_line(arguments, message, exported, folder, files, tmp_path, monkeypatch, capsys):
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*token*"))
    places = {"exported": exported, "folder": folder, "files": files, "bare": tmp_path / "bare"}
    code, out, err = call(monkeypatch, capsys, "evaluate", *(part.format(**places) for part in arguments))
    assert code == 2 and not out
    [line] = [line for line in err.splitlines() if "error:" in line]
    assert re.search(message, line)


def other_tokenizer(folder, count):
    """Of as many tokens, trained on other words."""
    words = " ".join(f"{number:x}" for number in range(3000))
    trainer = trainers.BpeTrainer(vocab_size=count, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([words], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("which", ["gguf/model-f16.gguf", "onnx/fp32", "torch"])
def test_what_does_not_go_with_the_file_is_said_before_it_runs(
    which, exported, folder, files, tmp_path, monkeypatch, capsys
):
    """A window beyond the context, and a tokenizer of another model: larger, or as large; also of a model in torch."""

    def never(*_):
        raise AssertionError("it was run")

    monkeypatch.setattr(ArtifactScorer, "score", never)
    monkeypatch.setattr(TorchScorer, "score", never)
    path = folder if which == "torch" else exported / which
    larger, as_large = other_tokenizer(tmp_path / "larger", 500), other_tokenizer(tmp_path / "same", VOCABULARY)
    text = ["--text", files / "words.jsonl", "--window", 32]
    for options, message in (
        ([*text[:3], 129, "--tokenizer", folder], "--window 129 is more than the model's context of 128 tokens"),
        ([*text, "--tokenizer", larger], "is another model's: it has 500 tokens"),
        (["--task", files / "words.jsonl", "--tokenizer", larger], "is another model's: it has 500 tokens"),
        ([*text, "--tokenizer", as_large], "tokens are called otherwise in"),
    ):
        code, out, err = call(monkeypatch, capsys, "evaluate", path, *options)
        assert (code, out) == (2, "") and message in err, err
        assert len([line for line in err.splitlines() if "error:" in line]) == 1


def test_a_file_that_is_cut_short_is_not_run(exported, folder, files, tmp_path, monkeypatch, capsys):
    shutil.copytree(exported, tmp_path / "out")
    model, weights = tmp_path / "out/gguf/model-f16.gguf", tmp_path / "out/onnx/fp32/model.onnx.data"
    for path in (model, weights):
        path.write_bytes(path.read_bytes()[:-100])
    for path in (model, weights.parent):
        code, out, err = call(
            monkeypatch, capsys, "evaluate", path, "--tokenizer", folder, "--text", files / "words.jsonl",
            "--window", 32,
        )  # fmt: skip
        assert (code, out) == (2, "") and "cut short" in err


@pytest.fixture
def offline(monkeypatch):
    """No network, and of lm-eval's thousands of task files only the ARC ones: reading all of them takes long."""
    import datasets
    import huggingface_hub
    import lm_eval.tasks

    arc = Path(lm_eval.tasks.__file__).parent / "arc"
    manager = lm_eval.tasks.TaskManager(include_path=str(arc), include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda: manager)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def test_own_tasks_by_name(folder, offline, monkeypatch, capsys):
    """A name lm-eval does not know, and one whose data set cannot be had."""
    for name, message in (
        ("no_such_task", "neither a .jsonl file nor a task of lm-eval"),
        ("arc_easy", "lm-eval cannot load its data set, which comes from the network"),
    ):
        code, out, err = call(monkeypatch, capsys, "evaluate", folder, "--task", name)
        assert (code, out) == (2, "")
        assert f"error: --task {name}" in err and message in err and len(err.splitlines()) == 1


def test_own_task_runs(reference, folder, offline, monkeypatch):
    """arc_easy as lm-eval defines it, its data set replaced by two rows."""
    import datasets

    row = {
        "id": "1",
        "question": "The quick",
        "choices": {"text": ["fox", "dog"], "label": ["A", "B"]},
        "answerKey": "B",
    }
    data = datasets.Dataset.from_list([row, row | {"answerKey": "A"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: dict.fromkeys(("train", "validation", "test"), data))
    tasks = load_tasks(["arc_easy"])
    lm = ScorerLM(TorchScorer(reference, CONTEXT), load_tokenizer(folder), no_bar, "x")
    figures = run_tasks(lm, tasks, None)
    assert [(f.task, f.metric, f.value, f.n, f.sha256) for f in figures] == [
        ("arc_easy", "acc", 0.5, 2, None), ("arc_easy", "acc_norm", 0.5, 2, None),
    ]  # fmt: skip
