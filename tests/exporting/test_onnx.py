"""The ONNX file against transformers: values, logits, and what other runtimes make of the folder."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import onnxruntime_genai as og
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from saap_edge.engines.onnxruntime import OnnxRuntimeEngine
from saap_edge.errors import SaapError
from saap_edge.evaluation.arithmetic import runtime_arithmetic
from saap_edge.evaluation.parity import shipped_model
from saap_edge.exporting.genai import MAX_LENGTH
from saap_edge.exporting.onnx import write_onnx
from saap_edge.exporting.refusal import export_refusal
from saap_edge.exporting.rope import rope_frequencies
from saap_edge.exporting.weights import ExportWeights
from saap_edge.model.blocks import BLOCK_FORMATS, Blocks
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import build_pruned, load_model
from saap_edge.model.spec import LayerShape, spec_from_config
from saap_edge.model.tokenizer import load_tokenizer
from tests.arithmetic_support import assert_as_predicted
from tests.conftest import (
    AS_LLAMA,
    TEXT,
    VOCABULARY,
    WIDTHS,
    cut_short,
    randomise_projections,
    raw_model,
    tiny_model,
    write_folder,
)
from tests.exporting.codes_support import tune
from tests.exporting.onnx_support import PlainSession, random_tokens, reference

TOKENS = random_tokens(VOCABULARY, 24)
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


@pytest.fixture(params=["dense", "pruned"])
def folder(request: pytest.FixtureRequest, dense_folder: Path, pruned_folder: Path) -> Path:
    """Every family of conftest, dense and with a different width in every layer."""
    return dense_folder if request.param == "dense" else pruned_folder


def arrays(out: Path) -> dict[str, np.ndarray]:
    """The initializers, read back by the onnx library; of products made of several projections, each one's rows."""
    graph = onnx.load(out / "model.onnx").graph
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    heads = [
        [{a.name: a.i for a in node.attribute}[name] for name in ("num_heads", "kv_num_heads", "kv_num_heads")]
        for node in graph.node if node.op_type == "GroupQueryAttention"
    ]  # fmt: skip
    for name in [name for name in found if re.search("qkv|gate_up", name)]:
        joint, parts = ("qkv", "qkv") if "qkv" in name else ("gate_up", ("gate", "up"))
        shares = heads[int(name.split(".")[2])] if joint == "qkv" else [1, 1]
        whole = found.pop(name)
        starts = np.cumsum(shares)[:-1] * len(whole) // sum(shares)
        found |= {name.replace(joint, part): rows for part, rows in zip(parts, np.split(whole, starts), strict=True)}
    return found


def stored_blocks(stored: dict[str, np.ndarray], name: str, expected: Blocks) -> None:
    """The initializers of one weight are these blocks, bit for bit, and nothing in what fills up the last one."""
    bits, (rows, columns) = expected.format.bits, expected.codes.shape

    def unpack(packed: np.ndarray) -> np.ndarray:
        packed = packed.reshape(rows, -1)
        return np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, -1) if bits == 4 else packed

    packed = stored[f"{name}.codes"]
    count = -(-columns // expected.group)
    assert packed.shape == (rows, count, expected.group * bits // 8)
    codes = unpack(packed)
    np.testing.assert_array_equal(codes[:, :columns], expected.codes.numpy())
    assert not codes[:, columns:].any()
    np.testing.assert_array_equal(stored[f"{name}.scales"], expected.scales.float().numpy())
    assert (f"{name}.zeros" in stored) == (expected.offsets is not None)
    if expected.offsets is not None:
        np.testing.assert_array_equal(unpack(stored[f"{name}.zeros"])[:, :count], expected.offsets.numpy())


def projections(folder: Path) -> list[str]:
    return [name for name, _ in load_model(folder).named_parameters() if name.endswith("_proj.weight")]


def check_fp32(folder: Path, out: Path) -> PlainSession:
    """Prefill, steps, and chunks on top of a past, all against transformers."""
    expected = reference(load_model(folder), TOKENS)
    session = PlainSession(out)
    np.testing.assert_allclose(session.forward(TOKENS), expected, atol=1e-4)
    session.reset()
    steps = np.concatenate([session.forward([token]) for token in TOKENS])
    np.testing.assert_allclose(steps, expected, atol=1e-4)
    session.reset()
    chunks = [TOKENS[:9], TOKENS[9:10], TOKENS[10:21], TOKENS[21:]]
    mixed = np.concatenate([session.forward(chunk) for chunk in chunks])
    np.testing.assert_allclose(mixed, expected, atol=1e-4)
    return session


def test_fp32_logits_equal_transformers(folder: Path, tmp_path: Path) -> None:
    write_onnx(folder, tmp_path, "fp32")
    check_fp32(folder, tmp_path)


@pytest.mark.parametrize(
    ("family", "tied", "overrides"),
    [
        ("llama", False, {}),
        ("llama", True, {"attention_bias": True}),
        ("llama", False, {"attention_bias": True, "mlp_bias": True}),
        ("granite", True, {"mlp_bias": True, "intermediate_size": 44}),
        ("llama", True, {"head_dim": 8}),  # rotary outside of the attention kernel
        ("llama", True, {"rope_parameters": LLAMA3}),
        ("qwen2", False, {"intermediate_size": 44}),
    ],
    ids=["untied", "attention-bias", "all-biases", "mlp-bias-ffn-44", "head-dim-8", "llama3-rope", "ffn-44"],
)
def test_fp32_variants(family: str, tied: bool, overrides: dict, tmp_path: Path) -> None:
    folder = write_folder(tiny_model(family, tied=tied, **overrides), tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    check_fp32(folder, tmp_path / "out")


@pytest.mark.parametrize("tied", [True, False])
def test_fp16_is_stored_in_half_and_computed_in_full(tied: bool, tmp_path: Path) -> None:
    """Answers are those of the rounded weights in float32; the runtime widens them as it loads, not at every token."""
    model = randomise_projections(build_pruned(tiny_model("qwen2", tied=tied), WIDTHS))
    folder = write_folder(model, tmp_path / "model")
    half, full = (write_onnx(folder, tmp_path / name, name) for name in ("fp16", "fp32"))
    assert half["projection_bytes"] == full["projection_bytes"] and half["data_bytes"] < 0.6 * full["data_bytes"]
    stored = arrays(tmp_path / "fp16")
    for name, parameter in load_model(folder).named_parameters():
        expected = parameter.detach().half() if parameter.ndim == 2 else parameter.detach()
        np.testing.assert_array_equal(stored[name], expected.numpy())
    expected = reference(shipped_model(folder, "onnx-fp16"), TOKENS)
    np.testing.assert_allclose(PlainSession(tmp_path / "fp16").forward(TOKENS), expected, atol=1e-4)
    engine = OnnxRuntimeEngine(tmp_path / "fp16", 1, 32)
    np.testing.assert_allclose(engine.forward(TOKENS, all_logits=True), expected, atol=1e-4)
    # genai takes ids that are the pad token's for padding: a prompt without.
    assert genai_tokens(tmp_path / "fp16", TOKENS[:7], 8, True)[7:] == [int(expected[6].argmax())]
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(str(tmp_path / "fp16" / "model.onnx"), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph.node
    assert {kind for node in nodes if node.op_type == "Cast" for kind in node.input} <= lengths(nodes)


def test_fp16_matrices_that_would_be_widened_at_every_token_are_refused(tmp_path: Path) -> None:
    spec = read_spec(write_folder(tiny_model("llama"), tmp_path / "model"))
    fits = replace(spec, vocab_size=(1 << 28) // spec.hidden)
    assert export_refusal(fits, "onnx-fp16") is None
    refusal = export_refusal(replace(fits, vocab_size=fits.vocab_size + 1), "onnx-fp16")
    assert refusal and "anew at every token; leave onnx-fp16 out" in refusal
    assert export_refusal(replace(fits, vocab_size=fits.vocab_size + 1), "onnx-fp32") is None
    wide = replace(spec, layers=(replace(spec.layers[0], ffn=(1 << 27) // spec.hidden + 32),))  # gate and up are one
    assert export_refusal(wide, "onnx-fp16") and not export_refusal(wide, "onnx-fp32")


def lengths(nodes: list) -> set[str]:
    """What the two casts of sequence lengths take."""
    return {name for node in nodes if node.op_type in ("Sub", "Gather", "ReduceSum") for name in node.output}


@pytest.mark.parametrize("gate_up_bias", [False, True])
def test_bias_on_down_from_repair(gate_up_bias: bool, tmp_path: Path) -> None:
    folder = write_folder(model_with_down_bias(gate_up_bias), tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    check_fp32(folder, tmp_path / "out")
    write_onnx(folder, tmp_path / "int4", "int4")
    check_blocks(folder, tmp_path / "int4")


def model_with_down_bias(gate_up_bias: bool = False) -> torch.nn.Module:
    """A pruned model whose o and down carry the bias that mean repair adds."""
    pruned = randomise_projections(build_pruned(tiny_model("llama"), WIDTHS))
    config = pruned.config
    config.o_bias = config.down_bias = True
    config.gate_up_bias = gate_up_bias
    model = randomise_projections(type(pruned)(config))
    return model.eval()


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_removed_sublayers_and_query_slots(family: str, tmp_path: Path) -> None:
    widths = [LayerShape(0, 0, 64), LayerShape(2, 2, 96), LayerShape(8, 4, 0)]
    folder = write_folder(randomise_projections(build_pruned(tiny_model(family), widths)), tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    check_fp32(folder, tmp_path / "out")
    write_onnx(folder, tmp_path / "int4", "int4")
    check_blocks(folder, tmp_path / "int4")


@pytest.mark.parametrize("family", AS_LLAMA)
def test_dense_models_in_other_layouts(family: str, tmp_path: Path) -> None:
    raw = raw_model(family)
    folder = write_folder(raw, tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    session = check_fp32(folder, tmp_path / "out")
    session.reset()
    np.testing.assert_allclose(session.forward(TOKENS), reference(raw, TOKENS), atol=1e-4)


def test_families_without_a_graph_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saap_edge.exporting.refusal.ONNX_WRITERS", ("llama",))
    folder = write_folder(tiny_model("gemma3_text"), tmp_path / "model")
    with pytest.raises(SaapError, match=r"Gemma 3.*no writer.*'gemma' yet; leave onnx-int4 out"):
        write_onnx(folder, tmp_path / "out", "int4")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("head_dim", [16, 8])
def test_batch_with_right_padding(head_dim: int, tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama", head_dim=head_dim), tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    session, short, step = PlainSession(tmp_path / "out"), TOKENS[:5], TOKENS[9]
    session.reset(batch=2)
    ids = np.array([TOKENS[:8], [*short, 0, 0, 0]])
    mask = np.array([[1] * 8, [1] * 5 + [0] * 3])
    model = load_model(folder)
    logits = session.run(ids, mask)
    np.testing.assert_allclose(logits[0], reference(model, TOKENS[:8]), atol=1e-4)
    np.testing.assert_allclose(logits[1, :5], reference(model, short), atol=1e-4)
    mask = np.array([[1] * 9, [1] * 6 + [0] * 3])
    logits = session.run(np.array([[step], [step]]), mask)
    np.testing.assert_allclose(logits[0, 0], reference(model, [*TOKENS[:8], step])[-1], atol=1e-4)
    np.testing.assert_allclose(logits[1, 0], reference(model, [*short, step])[-1], atol=1e-4)


def test_llama3_frequencies_equal_transformers(tmp_path: Path) -> None:
    model = tiny_model("llama", head_dim=64, rope_parameters=LLAMA3)
    (tmp_path / "config.json").write_text(model.config.to_json_string())
    config = LlamaConfig.from_pretrained(tmp_path)
    expected, scale = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    assert scale == 1.0
    np.testing.assert_allclose(rope_frequencies(spec_from_config(config.to_dict())), expected.numpy(), rtol=1e-6)


def test_int4_full_has_its_vocabulary_in_4_bits(folder: Path, tmp_path: Path) -> None:
    write_onnx(folder, tmp_path, "int4-full")
    weights, stored = ExportWeights(folder), arrays(tmp_path)
    layout = BLOCK_FORMATS["q4_0"], math.gcd(128, weights.spec.hidden)
    for name in ("model.embed_tokens.weight", *([] if weights.spec.tied else ["lm_head.weight"])):
        stored_blocks(stored, name, weights.blocks(name, *layout))
    check_blocks(folder, tmp_path, "int4-full")


def check_blocks(folder: Path, out: Path, quantisation: str = "int4", group: int = 32) -> None:
    """Logits as predicted from the weights of the file and the runtime's own arithmetic."""
    model, artifact_format = shipped_model(folder, f"onnx-{quantisation}", group), f"onnx-{quantisation}"
    exact = reference(model, TOKENS)
    with runtime_arithmetic(model, ExportWeights(folder), artifact_format, group):
        emulated = reference(model, TOKENS)
    assert_as_predicted(PlainSession(out).forward(TOKENS), emulated, exact)


def check_values(folder: Path, out: Path, quantisation: str = "int4", group: int = 32) -> None:
    """Every part of the file against what the folder rounds to, bit for bit."""
    weights, stored = ExportWeights(folder), arrays(out)
    format = BLOCK_FORMATS[{"int4": "q4_0", "int8": "q8_0"}[quantisation]]
    for name in projections(folder):
        stored_blocks(stored, name, weights.blocks(name, format, group))
    for name in ("model.embed_tokens.weight", *([] if weights.spec.tied else ["lm_head.weight"])):
        stored_blocks(stored, name, weights.blocks(name, BLOCK_FORMATS["q8_0"], math.gcd(128, weights.spec.hidden)))
    codes = stored["model.embed_tokens.weight.codes"]
    np.testing.assert_array_equal(stored["model.embed_tokens.weight.rows"].reshape(codes.shape), codes)


def test_int4_values_and_logits(folder: Path, tmp_path: Path) -> None:
    summary = write_onnx(folder, tmp_path, "int4")
    assert summary["blocks"] == {"format": "q4_0", "group": 32}
    check_values(folder, tmp_path)
    check_blocks(folder, tmp_path)


@pytest.mark.parametrize("overrides", [{}, {"intermediate_size": 44}], ids=["untied", "ffn-44"])
def test_int4_untied_and_padded(overrides: dict, tmp_path: Path) -> None:
    folder = write_folder(tiny_model("qwen2", tied=False, **overrides), tmp_path / "model")
    summary = write_onnx(folder, tmp_path / "out", "int4")
    assert summary["padded_layers"] == ({index: [44, 64] for index in range(3)} if overrides else {})
    check_values(folder, tmp_path / "out")
    check_blocks(folder, tmp_path / "out")


@pytest.mark.parametrize("hidden", [96, 128])
def test_the_vocabulary_has_the_coarsest_group_that_divides_its_rows(hidden: int, tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama", hidden_size=hidden, head_dim=16), tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "int4")
    check_values(folder, tmp_path / "out")
    check_blocks(folder, tmp_path / "out")


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("name", ["q4_0", "q8_0", "int4_zp", "int8_zp"])
def test_tuned_blocks_arrive(name: str, group: int, tmp_path: Path) -> None:
    pruned = randomise_projections(build_pruned(tiny_model("llama"), WIDTHS))
    folder = write_folder(pruned, tmp_path / "model")
    tuned = tune(folder, name, group)
    quantisation = f"int{BLOCK_FORMATS[name].bits}"
    summary = write_onnx(folder, tmp_path / "out", quantisation, 64)
    assert summary["blocks"] == {"format": name, "group": group}
    stored = arrays(tmp_path / "out")
    for weight, blocks in tuned.items():
        stored_blocks(stored, weight, blocks)
    check_blocks(folder, tmp_path / "out", quantisation)


@pytest.mark.parametrize("name", ["q4_0", "int4_zp"])
def test_tuned_blocks_of_an_ffn_off_the_grid(name: str, tmp_path: Path) -> None:
    """44 channels in a group of 128: the file's are 64, half a block, of which the last 20 count for nothing."""
    folder = write_folder(tiny_model("llama", intermediate_size=44), tmp_path / "model")
    tuned = tune(folder, name, 128)
    write_onnx(folder, tmp_path / "out", "int4")
    stored = arrays(tmp_path / "out")
    for weight, blocks in tuned.items():
        rows, columns = blocks.codes.shape
        packed = stored[f"{weight}.codes"]
        codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
        np.testing.assert_array_equal(codes[:rows, :columns], blocks.codes.numpy())
        np.testing.assert_array_equal(stored[f"{weight}.scales"][:rows], blocks.scales.float().numpy())
        assert not stored[f"{weight}.scales"][rows:].any()
    check_blocks(folder, tmp_path / "out")


@pytest.mark.parametrize("group", [32, 64, 256])
@pytest.mark.parametrize("quantisation", ["int4", "int8"])
def test_groups_of_rounded_blocks(quantisation: str, group: int, tmp_path: Path) -> None:
    folder = write_folder(randomise_projections(build_pruned(tiny_model("llama"), WIDTHS)), tmp_path / "model")
    write_onnx(folder, tmp_path / "out", quantisation, group)
    check_values(folder, tmp_path / "out", quantisation, group)
    check_blocks(folder, tmp_path / "out", quantisation, group)


def test_blocks_that_the_file_cannot_hold_are_rounded_anew(tmp_path: Path) -> None:
    """Codes with minimums, and codes of other bits, are no MatMulNBits of this format."""
    folder = write_folder(tiny_model("llama"), tmp_path / "model")
    tune(folder, "q4_1", 64)
    assert write_onnx(folder, tmp_path / "4", "int4")["blocks"] == {"format": "q4_0", "group": 32}
    check_values(folder, tmp_path / "4")
    tune(folder, "int4_zp", 64)
    assert write_onnx(folder, tmp_path / "8", "int8", 128)["blocks"] == {"format": "q8_0", "group": 128}
    check_values(folder, tmp_path / "8", "int8", 128)


def test_summary_counts_bytes(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path / "model")
    dense, small = (write_onnx(folder, tmp_path / name, name) for name in ("fp32", "int4"))
    for name, summary in (("fp32", dense), ("int4", small)):
        assert summary["data_bytes"] == (tmp_path / name / "model.onnx.data").stat().st_size
        assert summary["onnx_bytes"] == (tmp_path / name / "model.onnx").stat().st_size
        assert 0 <= summary["data_bytes"] - sum(summary["initializers"].values()) < 64 * 64  # alignment
    spec = read_spec(folder)
    norms, head, layers = 7 * 64 * 4, VOCABULARY * 64, spec.layer_parameters()
    assert dense["projection_bytes"] == 4 * (layers + head) + norms
    # 4 bits and a float32 scale for 32 weights in projections, 8 bits and one for 64 in the head
    assert small["projection_bytes"] == layers // 2 + layers // 8 + head + head // 16 + norms
    assert set(small["initializers"]) == {"float", "uint8"}
    # A tied table is stored once: its bytes, the projections', norms and two rotary tables are all there is.
    assert sum(small["initializers"].values()) == small["projection_bytes"] + 2 * 128 * 8 * 4


@pytest.mark.parametrize("shared", [True, False], ids=["shared-cache", "growing-cache"])
def test_genai_generates_the_same_tokens(folder: Path, shared: bool, tmp_path: Path) -> None:
    write_onnx(folder, tmp_path, "fp32")
    prompt = TOKENS[:7]
    expected = load_model(folder).generate(
        torch.tensor([prompt]), max_new_tokens=16, do_sample=False, pad_token_id=0
    )[0].tolist()  # fmt: skip
    assert genai_tokens(tmp_path, prompt, len(prompt) + 16, shared)[: len(expected)] == expected


def genai_tokens(out: Path, prompt: list[int], length: int, shared: bool) -> list[int]:
    model = og.Model(str(out))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=length, do_sample=False, past_present_share_buffer=shared)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array([prompt], dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]


def add_bos(folder: Path, token: str) -> None:
    """Make the tokenizer begin every text with `token` (genai confuses a BOS that is also the EOS: not that one)."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([token])
    special = [(token, tokenizer.token_to_id(token))]
    tokenizer.post_processor = TemplateProcessing(single=f"{token} $A", special_tokens=special)
    tokenizer.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": token}))


@pytest.mark.parametrize("bos", [False, True], ids=["plain", "adds-bos"])
def test_genai_tokenizer_gives_the_same_ids(bos: bool, tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path / "model")
    if bos:
        add_bos(folder, "Z")
    write_onnx(folder, tmp_path / "out", "fp32")
    tokenizer, theirs = load_tokenizer(folder), og.Tokenizer(og.Model(str(tmp_path / "out")))
    theirs.update_options(add_special_tokens="true")
    assert (len(tokenizer("")["input_ids"]) == 1) == bos
    for text in (TEXT[:90], "ünï, 😀 two  spaces\n\nend", "<|end|>The"):
        assert theirs.encode(text).tolist() == tokenizer(text)["input_ids"]


@pytest.mark.parametrize(
    ("generation", "overrides", "expected"),
    [
        ({"eos_token_id": [5, 7]}, {}, [0, 5, 7]),
        ({"eos_token_id": 9}, {"eos_token_id": 4}, [0, 9]),
        ({}, {"eos_token_id": [3, 4]}, [0, 3, 4]),
        ({}, {"eos_token_id": None, "bos_token_id": None}, 0),
    ],
)
def test_genai_knows_the_end_tokens(generation: dict, overrides: dict, expected: object, tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama", **overrides), tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps(generation))
    write_onnx(folder, tmp_path / "out", "int4")
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert config["model"]["eos_token_id"] == expected
    assert config["model"]["context_length"] == 128
    assert genai_tokens(tmp_path / "out", TOKENS[:3], 8, True)[:3] == TOKENS[:3]


@pytest.mark.parametrize(("context", "length"), [(128, 128), (4096, MAX_LENGTH)])
def test_genai_takes_memory_for_a_usual_text_and_for_more_when_asked(context: int, length: int, tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama", max_position_embeddings=context), tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    model = og.Model(str(tmp_path / "out"))
    for asked, room in ((None, length), (context, context)):
        parameters = og.GeneratorParams(model)
        if asked:
            parameters.set_search_options(max_length=asked)
        generator = og.Generator(model, parameters)
        generator.append_tokens(np.full((1, room - 1), 5, dtype=np.int32))
        with pytest.raises(Exception, match=str(room)):
            og.Generator(model, parameters).append_tokens(np.full((1, room + 1), 5, dtype=np.int32))


def test_the_engine_reads_int4(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "int4")
    engine = OnnxRuntimeEngine(tmp_path / "out", 1, 32)
    assert engine.describe()["quantisation"] == "int4"
    plain = PlainSession(tmp_path / "out").forward(TOKENS)
    np.testing.assert_allclose(engine.forward(TOKENS, all_logits=True), plain, atol=1e-5)


def test_refusals(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path / "model")
    with pytest.raises(SaapError, match="unknown ONNX quantisation 'int3'"):
        write_onnx(folder, tmp_path / "out", "int3")
    with pytest.raises(SaapError, match=r"config\.json"):
        write_onnx(tmp_path / "nothing", tmp_path / "out", "fp32")
    for group in (16, 96):
        with pytest.raises(SaapError, match=f"groups of {group} inputs: MatMulNBits takes powers of two from 32"):
            write_onnx(folder, tmp_path / "out", "int8", group)
    odd = write_folder(tiny_model("llama", head_dim=4), tmp_path / "odd")
    with pytest.raises(SaapError, match="head_dim 4 is not a multiple of 8"):
        write_onnx(odd, tmp_path / "out", "fp32")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"])
@pytest.mark.parametrize("quantisation", ["fp32", "int4", "int8"])
def test_weights_that_are_not_what_the_config_says(name: str, quantisation: str, tmp_path: Path) -> None:
    folder = cut_short(write_folder(tiny_model("llama"), tmp_path / "model"), name, 96)
    with pytest.raises(SaapError, match=rf"{name} is \(96, 64\), config.json says"):
        write_onnx(folder, tmp_path / "out", quantisation)


def test_damaged_generation_config(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path / "model")
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(SaapError, match=r"generation_config\.json: not valid JSON"):
        write_onnx(folder, tmp_path / "out", "fp32")


def test_one_layer_may_be_very_narrow(tmp_path: Path) -> None:
    widths = [LayerShape(2, 1, 32), LayerShape(8, 4, 128), LayerShape(6, 3, 64)]
    folder = write_folder(randomise_projections(build_pruned(tiny_model("llama"), widths)), tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    check_fp32(folder, tmp_path / "out")


@pytest.mark.parametrize("quantisation", ["fp32", "int4", "int8"])
def test_nothing_newer_than_onnx_runtime_1_18_reads(quantisation: str, tmp_path: Path) -> None:
    """It is built on ONNX 1.16 (docs/Versioning.md in its repository)."""
    write_onnx(write_folder(tiny_model("llama"), tmp_path / "model"), tmp_path / "out", quantisation)
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    known = {row[0]: row[1:3] for row in onnx.helper.VERSION_TABLE}
    ir_version, opset = known["1.16.0"]
    assert model.ir_version <= ir_version
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    assert opsets.keys() == {"", "com.microsoft"}
    assert opsets[""] <= opset and opsets["com.microsoft"] == 1
    assert {node.domain for node in model.graph.node} <= opsets.keys()
