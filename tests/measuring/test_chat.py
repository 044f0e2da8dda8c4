"""Chats in a run: bench asks every artifact, the gate judges, and what cannot be asked is refused before any work."""

from __future__ import annotations

import contextlib
import io

import pytest
from llama_cpp import Llama
from rich.console import Console

import saap_edge as se
from saap_edge.chat.instructions import ANSWER_TOKENS, read_instructions
from saap_edge.errors import SaapError
from saap_edge.report.bench import render_bench
from tests.conftest import tiny_model, write_folder
from tests.test_cli import write_recipe

ASKED = 5
TEMPLATE = "{% for m in messages %}{{ m['content'] }}\\n{% endfor %}"
QUICK = {"prune": {"ratio": 0.3, "method": "saap"}, "recover": {"tokens": 0}, "export": {"formats": ["gguf-q8_0"]}}


def recipe(folder, template=TEMPLATE, context=1024, chat=ASKED, limits=(), **more):
    model = write_folder(tiny_model("llama", max_position_embeddings=context), folder / "dense")
    if template:
        (model / "chat_template.jinja").write_text(template)
    bench = {"threads": 1, "prompt_tokens": 8, "decode_tokens": 4, "rounds": 3, "perplexity_windows": 1, "chat": chat}
    return write_recipe(folder, model, **(QUICK | {"bench": bench, "budget": {"limits": list(limits)}} | more))


def test_a_run_with_chats(tmp_path):
    limits = [{"metric": "chat_followed_pct", "max": 100}, {"metric": "chat_ends_drop_points", "max": 0}]
    run, own = se.compile(recipe=recipe(tmp_path, limits=limits), out=tmp_path / "out"), read_instructions(limit=ASKED)
    told = run.bench.conditions
    asked = (told.chat_instructions, told.chat_answer_tokens, told.chat_sha256)
    assert asked == (ASKED, ANSWER_TOKENS, own.sha256[:12])
    assert [len(entry.metrics.chat.followed) for entry in run.bench.artifacts] == [ASKED] * 2
    words = {(each.metric, each.kind): each.verdict for each in run.gate.verdicts}
    assert words == {("chat_followed_pct", "sampled"): "pass", ("chat_ends_drop_points", "sampled"): "inconclusive"}
    assert run.exit_code == 3 and run.bench.artifacts[1].name == "pruned gguf-q8_0"
    # The pruned GGUF file, asked by hand.
    llama = Llama(str(run.files["gguf-q8_0"]), n_ctx=1024, n_threads=1, verbose=False, flash_attn=True)
    found, whole = run.bench.artifacts[1].metrics.chat, 0
    for number, row in enumerate(own.rows):
        llama.reset()
        said = None
        with contextlib.suppress(
            RuntimeError
        ):  # bytes that are no characters: the answer ran on until the context was full
            said = llama.create_chat_completion(
                row.messages, temperature=0.0, repeat_penalty=1.0, max_tokens=ANSWER_TOKENS
            )
        if said is None or said["usage"]["completion_tokens"] > ANSWER_TOKENS:
            assert found.ended[number] is False  # ours ends at the limit all the same
            continue
        [choice], whole = said["choices"], whole + 1
        assert (choice["finish_reason"] == "stop") is found.ended[number]
        assert all(row.followed(choice["message"]["content"], None)) is found.followed[number]
    assert whole > 1
    llama.close()
    shown = Console(width=250, record=True, file=io.StringIO())
    shown.print(*render_bench(run.bench))
    assert "chat followed %" in shown.export_text()


@pytest.mark.parametrize(("changes", "reason"), [
    ({"template": None}, "has no chat template: a base model follows no instructions; leave it out"),
    ({"context": 128}, r"a prompt of \d+ tokens and an answer of 160 do not fit into the model's context of 128"),
    ({"chat": 0, "limits": [{"metric": "chat_ends_pct", "min": 50}]}, "limits chat_ends_pct, but bench.chat is 0"),
    ({"chat": 81}, "bench.chat: Input should be less than or equal to 80"),
    ({"template": "{{ raise_exception('no') }}"}, "the chat template of .* fails: no"),
])  # fmt: skip
def test_what_cannot_be_asked_is_refused_at_once(changes, reason, tmp_path):
    with pytest.raises(SaapError, match=reason):
        se.compile(recipe=recipe(tmp_path, **changes), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
