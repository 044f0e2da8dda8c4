"""transformers.js runs the layout: the tokens are those of ONNX Runtime in Python, and the embedding is the same."""

from __future__ import annotations

import json
import shutil
import subprocess

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from transformers import AutoTokenizer

from saap_edge.engines.onnxruntime import OnnxRuntimeEngine
from saap_edge.exporting.onnx import WRITER
from saap_edge.exporting.write import write_artifact
from saap_edge.families import FAMILIES
from saap_edge.formats import written_by
from saap_edge.layouts.onnx_graph import KEEP, rewrite, standard_embedding, unpacked_bytes, unpacked_products
from saap_edge.layouts.registry import Given
from saap_edge.layouts.transformers_js import dtype_of, write
from saap_edge.model.folder import build_pruned, load_model
from saap_edge.recipe import bundled_model
from tests.conftest import STATEFUL, WIDTHS, randomise_projections, tiny_model, write_folder
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
        if family in (*STATEFUL, "gemma4_text"):  # refused (tests/layouts/test_write.py)
            continue
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
    assert rewrite(tmp_path / "onnx" / "model.onnx", path, standard_embedding) == "model_q4.onnx_data"
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


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [32, 80, 96])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_an_unpacked_product(bits, columns, zeros, bias):
    """Against MatMulNBits itself, without rounded activations; 80 columns leave the last block of 32 half empty."""
    random, rows, block = np.random.default_rng(0), 24, 32
    count = -(-columns // block)
    arrays = {
        "codes": random.integers(0, 256, (rows, count, block * bits // 8), dtype=np.uint8),
        "scales": random.uniform(0.5, 1.5, (rows, count)).astype(np.float32),
        "zeros": random.integers(0, 256, (rows, -(-count * bits // 8)), dtype=np.uint8),
        "bias": random.normal(size=rows).astype(np.float32),
    }
    inputs = ["x", "codes", "scales", "zeros" * zeros, "", "bias" * bias]
    node = helper.make_node(
        "MatMulNBits", inputs, ["y"], domain="com.microsoft", K=columns, N=rows, bits=bits, block_size=block,
        accuracy_level=1,
    )  # fmt: skip
    x, y = (helper.make_tensor_value_info(name, 1, ["n", width]) for name, width in (("x", columns), ("y", rows)))
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items() if name in inputs]
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "g", [x], [y], constants), opset_imports=sets, ir_version=10)
    given = random.normal(size=(5, columns)).astype(np.float32)
    [expected] = ort.InferenceSession(model.SerializeToString()).run(None, {"x": given})
    unpacked_products(model.graph)
    assert "MatMulNBits" not in {each.op_type for each in model.graph.node}
    [found] = ort.InferenceSession(model.SerializeToString()).run(None, {"x": given})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("quantisation", ["int4", "int8", "fp32"])
def test_a_whole_graph_unpacked(per_layer, quantisation, tmp_path):
    """Logits of the page's graph against those of the exported one without rounded activations."""
    write_artifact(per_layer, tmp_path / "onnx", f"onnx-{quantisation}")
    source, path = tmp_path / "onnx" / "model.onnx", tmp_path / "onnx" / "new.onnx"
    shutil.copyfile(tmp_path / "onnx" / "model.onnx.data", tmp_path / "onnx" / rewrite(source, path, unpacked_products))
    assert (unpacked_bytes(source) > 0) == (quantisation != "fp32") and unpacked_bytes(path) == 0
    exact = onnx.load(source, load_external_data=False)
    for node in exact.graph.node:
        for entry in node.attribute:
            if entry.name == "accuracy_level":
                entry.i = 1
    (tmp_path / "onnx" / "exact.onnx").write_bytes(exact.SerializeToString())
    old, new = (ort.InferenceSession(str(each)) for each in (tmp_path / "onnx" / "exact.onnx", path))
    ids = np.array([[1, 5, 9, 200, 319, 3, 3, 0, 7, 100]])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for value in old.get_inputs():
        if value.name.startswith("past"):
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    expected, found = old.run(["logits"], feeds)[0], new.run(["logits"], feeds | {KEEP: np.array(0)})[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_its_config(root, cases):
    config = json.loads((root / "layers-int4" / "config.json").read_text())
    assert config["model_type"] == "llama" and "layer_widths" not in config
    assert config["transformers.js_config"] == {"dtype": "q4", "use_external_data_format": True}
    assert (root / "layers-int4" / "chat_template.jinja").read_text() == TEMPLATE
    assert not (root / "layers-int4" / "genai_config.json").exists()
