"""Answers of every stock runtime: what it says, where it ends, tools, files of answers, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai
import pytest

from saap_edge.chat.answers import Answer, ask, kept_answers
from saap_edge.chat.figures import agreement, figures
from saap_edge.chat.instructions import read_instructions
from saap_edge.engines.chat import AGREED, GenaiChat, check_chat, form_of_tools, template_of
from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError
from saap_edge.exporting.gguf import write_gguf
from saap_edge.exporting.onnx import write_onnx
from saap_edge.exporting.write import export_artifacts
from tests.chat.support import CALL, SPOKEN, TOOLS, WORDS, instruction, speaker, written
from tests.exporting.chat_support import TEMPLATE, in_genai, in_llama_cpp, in_transformers
from tests.test_cli import call

ENGINES = ("llama.cpp", "onnxruntime", "torch")
STOCK = {"llama.cpp": in_llama_cpp, "onnxruntime": in_genai, "torch": in_transformers}
ROWS = [
    instruction("said", {"check": "words", "least": 1}),
    instruction("not said", {"check": "uppercase"}, {"check": "exclude", "words": ["xyz"]}),
    instruction("call", {"check": "tool_call", "name": "g", "arguments": ["a"]}, tools=TOOLS),
]


def places(folder: Path, out: Path) -> dict[str, Path]:
    """What each engine opens: the folder as GGUF and as ONNX, and itself."""
    out.mkdir(parents=True, exist_ok=True)
    write_gguf(folder, out / "m.gguf", "f32")
    write_onnx(folder, out / "onnx", "fp32")
    return {"llama.cpp": out / "m.gguf", "onnxruntime": out / "onnx", "torch": folder}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A model that says WORDS and ends; its template takes no tools."""
    root = tmp_path_factory.mktemp("plain")
    return places(speaker(root / "model"), root / "out")


@pytest.fixture(scope="module")
def instructions(tmp_path_factory):
    return written(tmp_path_factory.mktemp("own") / "own.jsonl", ROWS)


def asked(engine: str, path: Path, file: Path, count: int = 8, **more: Any):
    return ask((engine, engine, path), read_instructions(file), count, 1, 1024, lambda steps: None, **more)


@pytest.mark.parametrize("engine", ENGINES)
def test_answers_are_those_of_the_stock_runtime(engine, plain, instructions):
    told, answers = asked(engine, plain[engine], instructions)
    assert told.tools is None and answers[2] is None, "a template without tools: the call is left out"
    turn = STOCK[engine](plain[engine])
    for answer in answers[:2]:
        assert (answer.text, answer.ended, answer.ids) == (turn.answer, turn.ended, WORDS) == (SPOKEN, True, WORDS)
    assert [answer.followed for answer in answers[:2]] == [[True], [False, True]]
    found = figures(read_instructions(instructions), answers, answers)
    assert (found["n"], found["skipped"], found["followed"]["count"], found["ends"]["share"]) == (2, 1, 1, 1.0)
    assert {kind: share["count"] for kind, share in found["checks"].items()} == {
        "exclude": 1,
        "uppercase": 0,
        "words": 1,
    }
    assert found["agreement"]["share"] == 1.0 and found["lost"]["followed"]["difference"] == 0.0


def test_genai_takes_a_prompt_in_pieces_and_answers_the_same(plain):
    def two_prompts(chat: GenaiChat) -> None:
        batch = genai.GeneratorParams(chat._model)
        batch.set_search_options(batch_size=2, max_length=16)
        genai.Generator(chat._model, batch).append_tokens(np.ones((2, 8), dtype=np.int32))

    whole, pieces = (GenaiChat(plain["onnxruntime"], 1, 1024, number) for number in (1000, 3))
    for chat in (whole, pieces):
        assert chat.chat([{"role": "user", "content": "Say what you know"}], [], 8)["ids"] == WORDS
    two_prompts(whole)
    with pytest.raises(RuntimeError):  # what genai cannot do in pieces: so it does the prompt above in pieces
        two_prompts(pieces)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_answer_without_end_and_the_call_of_a_tool(engine, tmp_path, instructions):
    """The template ends a prompt with another token if it is given tools. The model's own defaults are to sample."""
    sampled = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 3.0}
    folder = speaker(tmp_path / "model", loops=True, tools=True, generation=sampled)
    told, [first, second, called] = asked(engine, places(folder, tmp_path)[engine], instructions, count=40)
    assert (first.ended, first.tokens, first.ids) == (False, 40, (WORDS * 20)[:AGREED])
    assert (second.text, second.ids) == (first.text, first.ids)
    assert told.tools == "" and (called.text, called.ended, called.followed) == (CALL, True, [True])
    found = figures(read_instructions(instructions), [first, second, called])
    assert (found["repeats"]["count"], found["ends"]["count"], found["n"], found["skipped"]) == (2, 1, 3, 0)


def test_forms_of_calls():
    assert form_of_tools(TEMPLATE) is None
    assert form_of_tools("{% if tools %}<tool_call>{% endif %}") == "<tool_call>"


def test_answers_are_kept_and_a_run_goes_on(plain, instructions, tmp_path, monkeypatch):
    file, calls, chat = tmp_path / "answers.jsonl", [], Worker.chat
    monkeypatch.setattr(Worker, "chat", lambda worker, *rest: calls.append(1) or chat(worker, *rest))

    def run(count=8, sha256="a"):
        with kept_answers(file) as kept:
            return asked("llama.cpp", plain["llama.cpp"], instructions, count, kept=kept, sha256=sha256)[1]

    first = run()
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(calls) == len(lines) == 2 and Answer.model_validate_json(lines[0]) == first[0]
    file.write_bytes(lines[0] + lines[1][:20])  # killed in the middle of a line
    assert run() == first and len(calls) == 3
    assert file.read_bytes() == b"".join(lines)
    assert run() == first and len(calls) == 3, "nothing is asked twice"
    for change in ({"count": 9}, {"sha256": "b"}):
        with pytest.raises(SaapError, match=r"holds answers of 'llama.cpp' under other conditions .*name another file"):
            run(**change)
    assert file.read_bytes() == b"".join(lines)


@pytest.mark.parametrize(("content", "reason"), [
    ("x\n", "line 1: no answer of saap-edge"),
    ('{"artifact": "a"}\n', r"line 1: no answer of saap-edge \(instruction: "),
])  # fmt: skip
def test_files_of_other_things_are_left_alone(content, reason, tmp_path):
    (tmp_path / "notes.jsonl").write_text(content)
    with pytest.raises(SaapError, match=reason), kept_answers(tmp_path / "notes.jsonl"):
        pass
    assert (tmp_path / "notes.jsonl").read_text() == content
    with pytest.raises(SaapError, match="cannot open --answers"), kept_answers(tmp_path):
        pass


@pytest.mark.parametrize("engine", ENGINES[:2])
def test_a_prompt_that_does_not_fit(engine, plain, tmp_path):
    long = written(tmp_path / "long.jsonl", [instruction("long", {"check": "title"}, prompt="quick brown fox " * 200)])
    with pytest.raises(SaapError, match=r"(do not fit into a context of|exceed context window).*instruction 'long'"):
        ask((engine, engine, plain[engine]), read_instructions(long), 8, 1, 64, lambda steps: None)


def test_a_base_model_is_refused_with_what_to_do(tmp_path):
    bare = places(speaker(tmp_path / "model", template=None), tmp_path)
    for engine, path in bare.items():
        with pytest.raises(SaapError, match=r"no chat template: a base model .*Give the instruct model, or measure"):
            check_chat(engine, path)
    with pytest.raises(SaapError, match="optimum has no chat entry point: GGUF files"):
        check_chat("optimum", bare["onnxruntime"])


def test_every_place_of_a_template(plain, tmp_path):
    assert [template_of(path) for path in plain.values()] == [TEMPLATE] * 3
    named = [{"name": "other", "template": "x"}, {"name": "default", "template": TEMPLATE}]
    for number, (name, content) in enumerate({
        "tokenizer_config.json": {"chat_template": named}, "chat_template.json": {"chat_template": TEMPLATE},
    }.items()):  # fmt: skip
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).write_text(json.dumps(content))
        assert template_of(tmp_path / str(number)) == TEMPLATE
    (tmp_path / "0" / "tokenizer_config.json").write_text("{")
    with pytest.raises(SaapError, match=r"tokenizer_config.json' cannot be read"):
        template_of(tmp_path / "0")


def test_agreement_by_hand():
    assert agreement([], [], 32) == 1.0 and agreement([1], [], 32) == 0.0
    assert agreement([1, 2, 3, 9], [1, 2, 4, 9], 32) == 0.5 and agreement(range(50), range(40), 32) == 1.0


def test_the_command(plain, instructions, tmp_path, monkeypatch, capsys):
    """An export folder beside its dense model: all artifacts, figures, and what was lost."""
    export_artifacts(plain["torch"], tmp_path, ("gguf-f16", "onnx-fp32"), "dense", {"model": "x"}, lambda name: None)
    told = ("evaluate", tmp_path, "--chat", "--instructions", instructions, "--answer-tokens", "9", "--threads", "1")
    code, out, err = call(monkeypatch, capsys, *told, "--dense", plain["torch"], "--json")
    document = json.loads(out)
    assert code == 0 and document["tasks"] == document["artifacts"] == []
    assert [entry["artifact"] for entry in document["chat"]] == ["dense torch", "gguf-f16", "onnx-fp32"]
    dense, gguf, onnx = document["chat"]
    assert dense["lost"] is None and gguf["dense"] == onnx["dense"] == "dense torch"
    for entry in document["chat"]:
        assert (entry["n"], entry["skipped"], entry["answer_tokens"], entry["followed"]["share"]) == (2, 1, 9, 0.5)
        assert (
            entry["instructions_sha256"] == read_instructions(instructions).sha256
            and len(entry["template_sha256"]) == 12
        )
    assert gguf["agreement"] == {"n": 2, "share": 1.0, "stderr": 0.0, "tokens": 32}
    low, high = (gguf["lost"]["followed"][name] for name in ("low", "high"))
    assert gguf["lost"]["followed"]["difference"] == 0 and low == -high < 0
    for words in (
        "instructions followed %",
        "50.0 [9.5, 90.5]",
        "0.0 [-69.3, 69.3]",
        "1 tool calls are left out",
        "uppercase",
    ):
        assert words in err


@pytest.mark.parametrize(("options", "reason"), [
    (("--text", "x", "--answers", "a.jsonl"), "--answers goes with --chat"), ((), "give --task, --text or --chat"),
    (("--chat", "--answer-tokens", "1024"), "--answer-tokens 1024: .* holds 1024 tokens, prompt and answer together"),
    (("--chat", "--instructions", "none.jsonl"), "cannot read the instructions 'none.jsonl'"),
    (("--chat", "--dense", "nowhere"), "no file or folder 'nowhere'"),
])  # fmt: skip
def test_the_command_refuses(options, reason, plain, monkeypatch, capsys):
    code, out, err = call(monkeypatch, capsys, "evaluate", plain["llama.cpp"], *options)
    assert code == 2 and not out and err.count("\n") == 1
    assert re.search(reason, err), err
