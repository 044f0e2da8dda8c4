"""transformers.js runs the layout: the tokens are those of ONNX Runtime in Python, and the embedding is the same."""

from __future__ import annotations

import json
import shutil
import subprocess

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from transformers import AutoTokenizer

from saap_edge.engines.onnxruntime import OnnxRuntimeEngine
from saap_edge.exporting.onnx import WRITER
from saap_edge.exporting.write import write_artifact
from saap_edge.families import FAMILIES
from saap_edge.formats import written_by
from saap_edge.layouts.onnx_graph import KEEP, rewrite
from saap_edge.layouts.registry import Given
from saap_edge.layouts.transformers_js import dtype_of, write
from saap_edge.model.folder import build_pruned, load_model
from saap_edge.recipe import bundled_model
from tests.conftest import WIDTHS, randomise_projections, tiny_model, write_folder
from tests.layouts.javascript_support import NODE, QUIET, chromium, needs_chromium, node_folder, served

TEXT = "The quick brown fox jumps over 12 lazy dogs."
TOKENS = 32
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}assistant: "


def laid_out(folder, root, name, format):
    """The layout of a model in a format, and the exported folder that it was made of."""
    exported, out = root / "exported" / name, root / name
    exported.parent.mkdir(exist_ok=True)
    out.mkdir()
    write_artifact(folder, exported, format)
    return Given(format, exported, folder, folder), out, write(Given(format, exported, folder, folder), out)


def greedy(exported, ids, tokens=TOKENS):
    """The tokens of a greedy answer by ONNX Runtime in Python."""
    engine = OnnxRuntimeEngine(exported, 1, len(ids) + tokens)
    ends = json.loads((exported / "generation_config.json").read_text()).get("eos_token_id")
    ends, new, answer = ends if isinstance(ends, list) else [ends], ids, []
    while len(answer) < tokens:
        answer.append(int(engine.forward(new)[-1].argmax()))
        new = answer[-1:]
        if new[0] in ends:
            break
    return answer


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("javascript")


@pytest.fixture(scope="module")
def per_layer(root):
    folder = write_folder(randomise_projections(build_pruned(tiny_model("llama"), WIDTHS)), root / "models" / "layers")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def cases(root, per_layer):
    """(exported folder, case) of all formats of one model, of the bundled model, and of every family."""
    found = []

    def add(folder, name, format, **more):
        given, _, _ = laid_out(folder, root, name, format)
        found.append((given.path, {"folder": name, "text": TEXT, "tokens": TOKENS, **more}))

    for record in written_by(WRITER).values():
        add(per_layer, f"layers-{record.quantisation}", record.name, dtype=dtype_of(record)[0])
    add(per_layer, "chat", "onnx-int4", chat=CHAT)
    add(bundled_model(), "bundled", "onnx-int4")
    for family in FAMILIES:
        folder = write_folder(tiny_model(family), root / "models" / family)
        add(folder, family, "onnx-fp32")
    return found


def test_every_format_and_family_in_node(root, cases):
    modules = node_folder()
    script = shutil.copyfile(NODE / "generate.mjs", modules / "generate.mjs")
    command = ["node", str(script), str(root), json.dumps([case for _, case in cases])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    for (exported, case), answer in zip(cases, answers, strict=True):
        prompt = answer["prompt"]
        assert answer["ids"][len(prompt) :] == greedy(exported, prompt), case["folder"]
        assert answer["logits"][:2] == [1, len(prompt)], case["folder"]
        tokenizer = AutoTokenizer.from_pretrained(exported)
        told = {"tokenize": False, "add_generation_prompt": True}
        text = tokenizer.apply_chat_template(CHAT, **told) if "chat" in case else TEXT
        assert prompt == tokenizer(text, add_special_tokens="chat" not in case)["input_ids"], case["folder"]


def test_torch_says_the_same(per_layer, root, cases):
    """What the exported folder answers is what torch answers: `greedy` is no circle."""
    import torch

    exported = next(path for path, case in cases if case["folder"] == "layers-fp32")
    ids = list(range(5, 20))
    with torch.no_grad():
        out = load_model(per_layer).generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)
    assert out[0, len(ids) :].tolist() == greedy(exported, ids, 8)


@needs_chromium
def test_quantised_in_a_browser(root, per_layer, cases):
    """onnxruntime-web's build for WebGPU, which transformers.js takes, on a CPU."""
    from playwright.sync_api import sync_playwright

    site = root / "site"
    site.mkdir()
    (site / "node_modules").symlink_to(node_folder() / "node_modules")
    (site / "models").symlink_to(root)
    shutil.copyfile(NODE / "browser.html", site / "index.html")
    asked = []
    with served(site) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        answer = page.evaluate("([folder, text, n]) => window.answer(folder, text, n)", ["layers-int4", TEXT, 16])
        browser.close()
    exported = next(path for path, case in cases if case["folder"] == "layers-int4")
    assert answer["ids"][len(answer["prompt"]) :] == greedy(exported, answer["prompt"], 16)
    assert all(url.startswith((address, "blob:")) for url in asked)


@pytest.mark.parametrize("quantisation", ["int4", "int8", "int4-full", "fp32"])
def test_the_embedding_is_the_same(root, per_layer, quantisation, tmp_path):
    """Logits of the rewritten graph against those of the exported one; and no operator is left that browsers lack."""
    write_artifact(per_layer, tmp_path / "onnx", f"onnx-{quantisation}")
    path = tmp_path / "new" / "model_q4.onnx"
    assert rewrite(tmp_path / "onnx" / "model.onnx", path, standard=True) == "model_q4.onnx_data"
    shutil.copyfile(tmp_path / "onnx" / "model.onnx.data", path.with_name("model_q4.onnx_data"))
    operators = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    assert "GatherBlockQuantized" not in operators
    old, new = (ort.InferenceSession(str(each)) for each in (tmp_path / "onnx" / "model.onnx", path))
    ids = np.array([[1, 5, 9, 200, 319], [3, 3, 0, 7, 100]])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for value in old.get_inputs():
        if value.name.startswith("past"):
            feeds[value.name] = np.zeros((2, value.shape[1], 0, value.shape[3]), np.float32)
    expected = old.run(["logits"], feeds)[0]
    for keep, part in ((0, slice(None)), (1, slice(-1, None)), (3, slice(-3, None))):
        found = new.run(["logits"], feeds | {KEEP: np.array(keep)})[0]
        np.testing.assert_allclose(found, expected[:, part], atol=2e-6)


def test_its_config(root, cases):
    config = json.loads((root / "layers-int4" / "config.json").read_text())
    assert config["model_type"] == "llama" and "layer_widths" not in config
    assert config["transformers.js_config"] == {"dtype": "q4", "use_external_data_format": True}
    assert (root / "layers-int4" / "chat_template.jinja").read_text() == TEMPLATE
    assert not (root / "layers-int4" / "genai_config.json").exists()
