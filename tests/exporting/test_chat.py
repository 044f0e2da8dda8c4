"""What is not weights arrives: ends, templates, BOS and defaults, judged by each stock runtime's chat entry point."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import onnxruntime_genai as og
import pytest
from transformers import AutoTokenizer

from saap_edge.bundle.launch import launch_files
from saap_edge.errors import ParityError, SaapError
from saap_edge.evaluation.verify import verify_folder
from saap_edge.exporting.gguf import write_gguf
from saap_edge.exporting.gguf_special import _ENDS, _FILL, llama_cpp_ends, special_ids
from saap_edge.exporting.gguf_tokenizer import write_vocabulary
from saap_edge.exporting.onnx import write_onnx
from saap_edge.exporting.write import export_artifacts
from saap_edge.model.chat import Chat, read_chat
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import load_model, save_model
from tests.conftest import TEXT
from tests.exporting.chat_support import (
    ROWS,
    SPECIAL,
    TEMPLATE,
    TOKENS,
    Turn,
    chat_tokenizer,
    ends_of,
    in_genai,
    in_llama_cpp,
    in_transformers,
    prompt_of,
    speaking,
)

ID = {name: index for index, name in enumerate(SPECIAL)}
WORDS, LATER = [300, 310], [290, 291, 292, 293, 294, 295]  # what the model says before its end, and where it goes on
EOS, STOP, MORE = ID["</turn>"], ID["<|stop|>"], ID["<|more|>"]
SPOKEN = chat_tokenizer().decode(WORDS)


def says(
    folder: Path, end: int, tokenizer_config: dict | None = None, generation: dict | None = None, **more: Any
) -> Path:
    """A model that answers every prompt with WORDS and `end`, and goes on with LATER where that does not end it."""
    chain = [ID["<|assistant|>"], *WORDS, end, *(word for word in LATER if word != end)]
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</turn>", "chat_template": TEMPLATE}
    config = None if tokenizer_config == {} else named | (tokenizer_config or {})
    bos = more.pop("bos", False)
    return speaking(folder, chat_tokenizer(bos=bos), chain, config, generation, **more)


def exported(folder: Path, out: Path) -> tuple[Path, Path, Path]:
    """The model as we write it: Hugging Face folder, GGUF, ONNX folder; each made from the one before, as in a run."""
    (out / "hf").mkdir(parents=True)
    save_model(load_model(folder), folder, out / "hf")
    write_gguf(out / "hf", out / "m.gguf", "f32")
    write_onnx(out / "hf", out / "onnx", "fp32")
    return out / "hf", out / "m.gguf", out / "onnx"


def turns(folder: Path, out: Path) -> list[Turn]:
    hf, gguf_file, onnx = exported(folder, out)
    return [in_transformers(hf), in_llama_cpp(gguf_file), in_genai(onnx)]


# What ends the answer; the tokenizer's eos is EOS. generation_config.json, config.json.
ENDS: dict[str, tuple[int, dict | None, Any]] = {
    "the tokenizer alone": (EOS, None, None),
    "the tokenizer, another in generation_config": (EOS, {"eos_token_id": STOP}, STOP),
    "generation_config": (STOP, {"eos_token_id": STOP}, EOS),
    "a list in generation_config": (MORE, {"eos_token_id": [EOS, STOP, MORE]}, EOS),
    "numbers as text": (STOP, {"eos_token_id": [str(EOS), str(STOP)]}, None),
    "config, no generation_config": (STOP, None, STOP),
    "config, another in generation_config": (STOP, {"eos_token_id": EOS}, STOP),
    "a list in config": (MORE, None, [STOP, MORE]),
    "ids outside the vocabulary beside it": (STOP, {"eos_token_id": [-1, STOP, ROWS, 10**6]}, EOS),
    "an ordinary piece of text": (290, {"eos_token_id": [290]}, None),
    "a row without a token": (TOKENS + 5, {"eos_token_id": TOKENS + 5}, None),
    "four, none known to llama.cpp": (ID["<|five|>"], {"eos_token_id": [STOP, MORE, ID["<|five|>"]]}, None),
}


@pytest.mark.parametrize("case", ENDS)
def test_an_answer_ends_at_the_same_token_everywhere(case: str, tmp_path: Path) -> None:
    end, generation, config = ENDS[case]
    folder = says(tmp_path / "model", end, None, generation, eos_token_id=config)
    prompt = prompt_of(folder)
    assert turns(folder, tmp_path / "out") == [Turn(prompt, SPOKEN, True)] * 3


@pytest.mark.parametrize("generation", [{"eos_token_id": STOP}, None])
def test_what_ends_nothing_ends_nothing(generation: dict | None, tmp_path: Path) -> None:
    folder = says(tmp_path / "model", MORE, None, generation)
    for turn in turns(folder, tmp_path / "out"):
        assert (turn.answer, turn.ended) == (SPOKEN + chat_tokenizer().decode(LATER[:5]), False)


def test_left_out_ids_are_told(tmp_path: Path) -> None:
    folder = says(tmp_path, STOP, None, {"eos_token_id": [-1, STOP, ROWS]}, eos_token_id=290)
    chat = read_chat(folder)
    assert chat.ends == (EOS, STOP)
    assert [line.rpartition("/")[2] for line in chat.warnings] == [
        f"generation_config.json: token id -1 left out: the model has ids 0 to {ROWS - 1}",
        f"generation_config.json: token id {ROWS} left out: the model has ids 0 to {ROWS - 1}",
        "config.json: eos_token_id 290 left out: it is an ordinary piece of text",
    ]


MALFORMED: dict[str, Any] = {"text": "</turn>", "true": True, "a part": 1.5, "an object": {"id": 1}, "lists": [[1]]}


@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_id_is_refused(case: str, place: str, tmp_path: Path) -> None:
    folder = says(tmp_path / "model", STOP, None, {})
    document = json.loads((folder / place).read_text()) | {"eos_token_id": MALFORMED[case]}
    (folder / place).write_text(json.dumps(document))
    with pytest.raises(SaapError, match=rf"{place}: .*(is no token id: give a whole number|Input should be)") as caught:
        read_chat(folder)
    assert "\n" not in str(caught.value)


# Templates: every form that transformers reads.

TOOLS = "tools: " + TEMPLATE
NAMED = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": TOOLS}]


def jinja(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def additional(folder: Path) -> None:
    jinja(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TOOLS)


FORMS: dict[str, tuple[Any, Callable[[Path], None]]] = {
    "a text": (TEMPLATE, lambda folder: None),
    "a list": (NAMED, lambda folder: None),
    "a file": (None, jinja),
    "a file over a text": ("other: " + TEMPLATE, jinja),
    "files with names": (None, additional),
    "files over a list": ([{"name": "default", "template": "other"}], additional),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_template(form: str, tmp_path: Path) -> None:
    template, write = FORMS[form]
    folder = says(tmp_path / "model", EOS, {"chat_template": template})
    write(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    prompt = prompt_of(folder)
    hf, gguf_file, onnx = exported(folder, tmp_path / "out")
    assert [turn.prompt for turn in (in_transformers(hf), in_llama_cpp(gguf_file), in_genai(onnx))] == [prompt] * 3
    for written in (hf, onnx):
        assert AutoTokenizer.from_pretrained(written).chat_template == theirs.chat_template
    fields = gguf.GGUFReader(gguf_file).fields
    named = theirs.chat_template if isinstance(theirs.chat_template, dict) else {}
    assert ("tokenizer.chat_templates" in fields) == bool(named)
    if named:
        assert fields["tokenizer.chat_template.tool_use"].contents() == named["tool_use"]
        assert fields["tokenizer.chat_templates"].contents() == ["tool_use"]


def test_a_template_that_only_processors_read(tmp_path: Path) -> None:
    folder = says(tmp_path / "model", EOS, {"chat_template": None})
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    _, gguf_file, onnx = exported(folder, tmp_path / "out")
    assert in_llama_cpp(gguf_file) == in_genai(onnx)
    assert in_genai(onnx).answer == SPOKEN


def test_a_model_without_a_template(tmp_path: Path) -> None:
    hf, gguf_file, onnx = exported(says(tmp_path / "model", EOS, {"chat_template": None}), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(hf).chat_template is None
    assert "tokenizer.chat_template" not in gguf.GGUFReader(gguf_file).fields
    og.Tokenizer(og.Model(str(onnx)))


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden"])
def test_names_that_are_no_file_names_are_refused(name: str, tmp_path: Path) -> None:
    templates = [*NAMED, {"name": name, "template": TOOLS}]
    with pytest.raises(SaapError, match="is no text with a plain name"):
        read_chat(says(tmp_path / "model", EOS, {"chat_template": templates}))


# BOS, and what else a template may name.

WRITES_BOS = "{{ bos_token }}" + TEMPLATE


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(("template", "bos"), [
    (TEMPLATE, "<s>"), (WRITES_BOS, "<s>"), (WRITES_BOS, None), ("{{ pad_token }}" + WRITES_BOS, "<s>"),
    ("{% set first = bos_token %}{{ first }}" + TEMPLATE + "{{ unk_token }}", None),
])  # fmt: skip
def test_bos_comes_as_often_as_in_transformers(template: str, bos: str | None, added: bool, tmp_path: Path) -> None:
    """`added`: plain texts begin with it; prompts of a chat have what the template writes, everywhere."""
    config = {"chat_template": template, "bos_token": bos, "pad_token": "<pad>"}
    folder = says(tmp_path / "model", EOS, config, None, bos=added, bos_token_id=ID["<s>"])
    prompt = prompt_of(folder)
    assert prompt.count(ID["<s>"]) == ("bos_token" in template and bos is not None)
    assert [turn.prompt for turn in turns(folder, tmp_path / "out")] == [prompt] * 3


def test_no_tokenizer_config(tmp_path: Path) -> None:
    """transformers does without; in our folders and genai there is one that says the same."""
    folder = says(tmp_path / "model", STOP, {}, {"eos_token_id": STOP})
    jinja(folder)
    assert not (folder / "tokenizer_config.json").exists()
    theirs = AutoTokenizer.from_pretrained(folder)
    prompt = prompt_of(folder)
    assert turns(folder, tmp_path / "out") == [Turn(prompt, SPOKEN, True)] * 3
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "hf").special_tokens_map == theirs.special_tokens_map


@pytest.mark.parametrize("name", ["OwnTokenizer", "OwnTokenizerFast", "LlamaTokenizerFast", "TokenizersBackend", None])
def test_tokenizer_classes(name: str | None, tmp_path: Path) -> None:
    folder = says(tmp_path / "model", EOS, {"tokenizer_class": name, "model_max_length": None})
    prompt = prompt_of(folder)
    hf, _, onnx = exported(folder, tmp_path / "out")
    assert in_genai(onnx) == in_transformers(hf) == Turn(prompt, SPOKEN, True)


@pytest.mark.parametrize("pad", ["</turn>", "<s>", "<pad>", None])
def test_a_prompt_that_ends_with_the_padding_token(pad: str | None, tmp_path: Path) -> None:
    """genai takes padding ids at the end of a prompt for padding, and answers another prompt."""
    template = "{{ '<|user|>' + messages[0]['content'] + '<|assistant|>' + pad }}".replace(
        "pad", repr(pad or "</turn>")
    )
    folder = says(tmp_path / "model", EOS, {"chat_template": template, "pad_token": pad, "bos_token": "<s>"})
    hf, _, onnx = exported(folder, tmp_path / "out")
    config = json.loads((onnx / "genai_config.json").read_text())
    assert config["model"]["pad_token_id"] == (ID["<pad>"] if pad == "<pad>" else -1)
    if pad != "<pad>":
        assert in_genai(onnx).answer == in_transformers(hf).answer


# llama.cpp ends at names too.


def vocabulary(names: list[str], folder: Path) -> tuple[Path, list[str]]:
    special = ("<s>", "</turn>", *names)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</turn>"}
    speaking(folder, chat_tokenizer(special), [1, 2], config, None)
    write_gguf(folder, folder / "m.gguf", "f16")
    return folder / "m.gguf", list(gguf.GGUFReader(folder / "m.gguf").fields["tokenizer.ggml.tokens"].contents())


@pytest.mark.parametrize("seed", range(6))
def test_we_know_where_llama_cpp_ends(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    fill = [draw.choice(names) for names in _FILL.values()]
    names = draw.sample(sorted(_ENDS), draw.randint(1, 12)) + draw.sample(fill, seed % 4)
    names += [name for name in ("<|end|>", "</s>") if name not in names]  # those that others silence
    path, tokens = vocabulary(names, tmp_path)
    assert ends_of(path) == llama_cpp_ends(tokens, special_ids(read_chat(tmp_path), tokens))


def test_each_name_that_ends(tmp_path: Path) -> None:
    path, tokens = vocabulary([*sorted(_ENDS), "<|eot|>", "<|turn_end|>", "<|end_of_turn|>"], tmp_path)
    silenced = {"<|end|>", "</s>"}
    assert {tokens[index] for index in ends_of(path)} == {"</turn>", *_ENDS} - silenced


def test_several_that_fill_one_role_end_one(tmp_path: Path) -> None:
    path, tokens = vocabulary(["<|fim_pad|>", "<PAD>"], tmp_path)
    sure = llama_cpp_ends(tokens, special_ids(read_chat(tmp_path), tokens))
    assert len(ends_of(path) - sure) == 1
    assert sure <= ends_of(path)


def test_names_that_end_elsewhere_are_told(tmp_path: Path) -> None:
    vocabulary(["<|endoftext|>", "<|file_sep|>"], tmp_path)
    assert write_vocabulary(tmp_path, read_spec(tmp_path), tmp_path / "v.gguf") == ["<|endoftext|>", "<|file_sep|>"]


def test_verify_asks_llama_cpp(tmp_path: Path) -> None:
    """A file from elsewhere, or a llama.cpp that ends at other names."""
    folder = says(tmp_path / "model", STOP, None, {"eos_token_id": STOP})
    (tmp_path / "artifacts").mkdir()
    export_artifacts(folder, tmp_path / "artifacts", ("gguf-f32",), "dense", {}, lambda _: None)
    verify_folder(tmp_path / "artifacts", folder, TEXT, 1, lambda: None)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [STOP, MORE]}))
    with pytest.raises(ParityError, match=rf"dense gguf-f32: llama.cpp goes on at token ids \[{MORE}\]"):
        verify_folder(tmp_path / "artifacts", folder, TEXT, 1, lambda: None)


def chat_of(ends: list[int], **tokens: int) -> Chat:
    return Chat(tokens, None, None, tuple(ends), {}, {}, {}, "", ())


def test_names_leave_room_for_others() -> None:
    tokens = ["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "a", "b", "c", "d", "e", "<|fim_pad|>"]
    assert special_ids(chat_of([0, 1, 2, 3, 4, 5], eos=0), tokens) == {
        "bos": 0,
        "eos": 0,
        "eot": 3,
        "eom": 4,
        "fim_pad": 5,
    }
    with pytest.raises(SaapError, match=r"llama.cpp would not end at 'e' \(7\), which end a text"):
        special_ids(chat_of([3, 4, 5, 6, 7], eos=3), tokens)
    # The one that fills a role by its name would be lost were the role given to another.
    with pytest.raises(SaapError, match=r"would not end at 'd' \(6\)"):
        special_ids(chat_of([3, 4, 5, 6, 8], eos=3), tokens)


def test_no_end_at_all(tmp_path: Path) -> None:
    """llama.cpp would take id 11, whatever token that is."""
    folder = says(tmp_path / "model", EOS, {"eos_token": None}, None)
    write_onnx(folder, tmp_path / "onnx", "fp32")
    with pytest.raises(SaapError, match="nothing says which token ends a text"):
        write_gguf(folder, tmp_path / "m.gguf", "f16")
    assert not (tmp_path / "m.gguf").exists()
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    write_gguf(folder, tmp_path / "m.gguf", "f16")
    assert ends_of(tmp_path / "m.gguf") == {ID["<pad>"]}


def test_an_end_that_only_llama_cpp_knows(tmp_path: Path) -> None:
    speaking(tmp_path, chat_tokenizer(("<s>", "a", "<|im_end|>")), [1, 2], {"bos_token": "<s>"}, None)
    write_gguf(tmp_path, tmp_path / "m.gguf", "f16")
    assert ends_of(tmp_path / "m.gguf") == {2}


# Vocabularies: the model has rows for more tokens in all tests above.


def test_an_added_token_without_a_row(tmp_path: Path) -> None:
    """Gemma 3's text models have one, and models that got a padding token later."""
    tokenizer = chat_tokenizer()
    tokenizer.add_special_tokens(["<|late|>"])
    chain = [ID["<|assistant|>"], *WORDS, EOS]
    config = {"eos_token": "</turn>", "pad_token": "<|late|>", "chat_template": TEMPLATE}
    folder = speaking(tmp_path / "model", tokenizer, chain, config, None, vocab_size=TOKENS)
    chat = read_chat(folder)
    assert chat.pad is None
    assert chat.warnings == (f"the tokenizer's '<|late|>' (id {TOKENS}) left out: the model has {TOKENS} rows",)
    assert turns(folder, tmp_path / "out") == [Turn(prompt_of(folder), SPOKEN, True)] * 3


@pytest.mark.parametrize("write", [lambda *paths: write_gguf(*paths, "f16"), lambda *paths: write_onnx(*paths, "fp32")])
def test_pieces_of_text_without_a_row_are_refused(write: Callable[..., Any], tmp_path: Path) -> None:
    folder = speaking(
        tmp_path / "model", chat_tokenizer(), [1, 2], {"eos_token": "</turn>"}, None, vocab_size=TOKENS - 1
    )
    with pytest.raises(SaapError, match=f"has {TOKENS} tokens and the model {TOKENS - 1}: they do not belong together"):
        write(folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_special_tokens_of_a_class(name: str, tmp_path: Path) -> None:
    """transformers has a BOS, or padding, for these where tokenizer_config.json names none."""
    special = ("<s>", "</turn>", "<|user|>", "<|assistant|>", "<|endoftext|>")
    template = "{{ bos_token }}{{ pad_token }}" + TEMPLATE
    config = {"tokenizer_class": name, "eos_token": "</turn>", "chat_template": template}
    folder = speaking(tmp_path / "model", chat_tokenizer(special), [ID["<|assistant|>"], *WORDS, EOS], config, None)
    prompt = prompt_of(folder)
    assert prompt[0] == 4
    assert [turn.prompt for turn in turns(folder, tmp_path / "out")] == [prompt] * 3


# Defaults of generation.

SAMPLED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.25}


def test_sampling_defaults_arrive(tmp_path: Path) -> None:
    hf, gguf_file, onnx = exported(says(tmp_path / "model", EOS, None, SAMPLED), tmp_path / "out")
    assert json.loads((hf / "generation_config.json").read_text()) == SAMPLED | {"eos_token_id": EOS}
    search = json.loads((onnx / "genai_config.json").read_text())["search"]
    assert {name: search[name] for name in SAMPLED} == SAMPLED
    fields = gguf.GGUFReader(gguf_file).fields
    values = {name: fields[f"general.sampling.{name}"].contents() for name in ("temp", "top_p", "top_k", "min_p")}
    assert values == pytest.approx({"temp": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.0})
    assert fields["general.sampling.penalty_repeat"].contents() == pytest.approx(1.25)
    og.GeneratorParams(og.Model(str(onnx)))


@pytest.mark.parametrize(("generation", "temperature"), [
    ({}, None), ({"temperature": 0.3, "top_k": 7}, None), ({"do_sample": False, "temperature": 0.3}, 0.0),
    ({"do_sample": True}, 1.0), ({"do_sample": True, "top_k": 10**6, "temperature": 0.5}, 0.5),
])  # fmt: skip
def test_sampling_where_the_file_says_less(generation: dict, temperature: float | None, tmp_path: Path) -> None:
    """transformers samples only where do_sample is true; some of these it loads and would not save."""
    hf, gguf_file, onnx = exported(says(tmp_path / "model", EOS, None, generation), tmp_path / "out")
    field = gguf.GGUFReader(gguf_file).fields.get("general.sampling.temp")
    assert (field and field.contents()) == temperature
    search = json.loads((onnx / "genai_config.json").read_text())["search"]
    assert search["do_sample"] == generation.get("do_sample", False)
    if not search["do_sample"]:
        assert in_genai(onnx).answer == in_transformers(hf).answer == SPOKEN
    og.GeneratorParams(og.Model(str(onnx)))


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", "hot"), ("top_k", [1]), ("do_sample", "yes"), ("top_p", True)]
)
def test_defaults_that_are_no_numbers_are_refused(name: str, value: Any, tmp_path: Path) -> None:
    folder = says(tmp_path / "model", EOS, None, {name: value})
    with pytest.raises(SaapError, match=rf"generation_config.json: {name} is "):
        read_chat(folder)


def test_a_generation_config_that_is_whole_is_a_copy(tmp_path: Path) -> None:
    text = '{"eos_token_id":  1, "temperature": 0.5}\n'
    folder = says(tmp_path / "model", EOS)
    (folder / "generation_config.json").write_text(text)
    write_onnx(folder, tmp_path / "onnx", "fp32")
    assert (tmp_path / "onnx" / "generation_config.json").read_text() == text


@pytest.mark.parametrize("kind", ["gguf-f32", "onnx-fp32"])
def test_a_bundle_ends_there_too(kind: str, tmp_path: Path) -> None:
    """Its run.py takes the likeliest tokens, whatever the model's own defaults are."""
    generation = {"eos_token_id": STOP, "do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0}
    folder = says(tmp_path / "model", STOP, None, generation)
    name = "m.gguf" if kind == "gguf-f32" else "onnx"
    write_gguf(folder, tmp_path / name, "f32") if name == "m.gguf" else write_onnx(folder, tmp_path / name, "fp32")
    (tmp_path / "run.py").write_text(launch_files(kind, name, 1, 128, "")["run.py"])
    text = "<|user|>The quick qu</turn><|assistant|>"
    done = subprocess.run(
        [sys.executable, "run.py", text, "8"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{text}{SPOKEN}\n"
