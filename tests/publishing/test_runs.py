"""What is published runs: in transformers, llama.cpp, onnxruntime-genai and transformers.js, by the card's lines."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from llama_cpp import Llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from saap_edge.artifacts import engine_of
from saap_edge.engines.registry import engine_named
from saap_edge.engines.worker import Worker
from saap_edge.publishing.contents import find_contents
from saap_edge.publishing.write import lay_out
from tests.layouts.javascript_support import node_folder
from tests.publishing.conftest import compiled

TEXT, TOKENS, REPO = "The quick brown fox jumps", 12, "me/small"


def laid_out(run, out, **options):
    out.mkdir(parents=True)
    lay_out(find_contents(run, **options), REPO, out, (), lambda steps, what: None)
    return out


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    return laid_out(run, tmp_path_factory.mktemp("hub") / REPO)


@pytest.fixture(scope="module")
def uniform(tmp_path_factory):
    """A run with the same widths in every layer: its folder is one of transformers' own class."""
    return compiled(tmp_path_factory.mktemp("uniform"), ("gguf-q4_0", "onnx-fp32"), "uniform")


def greedy(folder, tokens=TOKENS, **options):
    """The text that transformers writes."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = tokenizer(TEXT, return_tensors="pt")
    ids = model.generate(**given, max_new_tokens=tokens, do_sample=False, repetition_penalty=1.0)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def test_transformers(folder, run):
    assert greedy(folder, trust_remote_code=True) == greedy(run / "model", trust_remote_code=True)


def test_transformers_needs_our_file_only_by_layer(uniform, tmp_path):
    out = laid_out(uniform, tmp_path / REPO)
    assert greedy(out) == greedy(uniform / "model")
    assert "trust_remote_code" not in (out / "README.md").read_text()


def test_llama_cpp(folder, run):
    """The bytes are those that were verified; here they are loaded once."""
    model = Llama(str(folder / "small-Q4_0.gguf"), n_ctx=64, n_threads=1, verbose=False)
    assert model.create_completion(TEXT, max_tokens=4, temperature=0)["choices"][0]["text"]
    assert (folder / "small-Q4_0.gguf").samefile((run / "gguf").resolve() / "model-q4_0.gguf"), "no second copy"


def test_onnxruntime_genai(folder, run):
    import onnxruntime_genai as og

    model = og.Model(str(folder / "onnx"))
    tokenizer, params = og.Tokenizer(model), og.GeneratorParams(model)
    given = tokenizer.encode(TEXT)
    params.set_search_options(max_length=len(given) + TOKENS, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(given)
    while not generator.is_done():
        generator.generate_next_token()
    found = [int(token) for token in generator.get_sequence(0)][len(given) :]
    path = (run / "onnx").resolve() / "int4"
    with Worker(engine_named(engine_of("onnx-int4")).verifying, path, 1, 64) as worker:
        assert found == worker.generate([int(token) for token in given], TOKENS)[: len(found)] and found


def by_node(folder, dtype, config=None):
    modules = node_folder()
    script = shutil.copyfile(Path(__file__).with_name("pipeline.mjs"), modules / "pipeline.mjs")
    root = folder.parents[1]
    command = ["node", str(script), str(root), REPO, dtype, TEXT, str(TOKENS), *([str(config)] if config else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_transformers_js(folder, uniform, tmp_path):
    wanted = greedy(folder, trust_remote_code=True)
    assert by_node(folder, "fp32", folder / "onnx" / "config.json") == wanted
    assert by_node(folder, "q4", folder / "onnx" / "config.json").startswith(TEXT)
    plain = laid_out(uniform, tmp_path / "all" / REPO)
    assert by_node(plain, "fp32") == greedy(plain), "its own config.json is one that transformers.js knows"
    assert "onnx/config.json" not in (plain / "README.md").read_text()
    alone = laid_out(uniform, tmp_path / "alone" / REPO, formats=("onnx-fp32",), with_model=False)
    assert by_node(alone, "fp32") == greedy(plain) and not list(alone.glob("*.safetensors"))


def test_modelfiles(folder, run):
    """Form: what Ollama's parser takes, and that it says what the hub's own two files say."""
    given = json.loads((folder / "params").read_text())
    template = (folder / "template").read_text()
    for tag in ("F16", "BF16", "Q4_0"):
        text = (folder / f"Modelfile.{tag}").read_text()
        commands = re.findall(r"^([A-Z]+) ", text, re.MULTILINE)
        assert commands[0] == "FROM" and set(commands) == {"FROM", "TEMPLATE", "PARAMETER", "LICENSE"}
        assert f"FROM ./small-{tag}.gguf" in text and (folder / f"small-{tag}.gguf").is_file()
        assert f'TEMPLATE """{template}"""' in text
        said = re.findall(r"^PARAMETER (\w+) (.+)$", text, re.MULTILINE)
        assert [value.strip('"') for name, value in said if name == "stop"] == given["stop"]
        assert {name: float(value) for name, value in said if name != "stop"} == {
            name: float(value) for name, value in given.items() if name != "stop"
        }


def test_one_gguf_has_a_modelfile_of_the_usual_name(run, tmp_path):
    out = laid_out(run, tmp_path / REPO, formats=("gguf-q4_0",), with_model=False)
    assert (out / "Modelfile").is_file() and "FROM ./small-Q4_0.gguf" in (out / "Modelfile").read_text()
    assert not (out / "config.json").exists() and not (out / "onnx").exists()
    assert not list(out.glob("Modelfile.*"))
