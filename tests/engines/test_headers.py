"""What a header says is checked against its file: damage is refused in one line, or gives the same figure."""

import json
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from saap_edge import cli
from saap_edge.artifacts import context_of, vocab_size_of
from saap_edge.engines.gguf_header import read_header, read_strings
from saap_edge.engines.llama_cpp import LlamaCppEngine
from saap_edge.errors import SaapError
from saap_edge.exporting.write import export_artifacts
from saap_edge.model.folder import build_pruned
from saap_edge.prediction.cost import artifact_cost
from tests.conftest import VOCABULARY, WIDTHS, randomise_projections, tiny_model, write_folder

QUIET = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    root = tmp_path_factory.mktemp("headers")
    model = randomise_projections(build_pruned(tiny_model("llama"), WIDTHS))
    (root / "out").mkdir()
    formats = ("gguf-f16", "gguf-q4_0", "onnx-int4", "onnx-fp16")
    export_artifacts(write_folder(model, root / "model"), root / "out", formats, "pruned", {}, lambda _: None)
    return root / "out"


@pytest.fixture
def model(export, tmp_path):
    """A GGUF file to damage."""
    return Path(shutil.copy(export / "gguf/model-q4_0.gguf", tmp_path / "model.gguf"))


@pytest.fixture
def folder(export, tmp_path):
    """An ONNX folder to damage."""
    return Path(shutil.copytree(export / "onnx/int4", tmp_path / "onnx"))


def figures(path):
    """All that a prediction rests on, or None where the file is refused in one line that names it."""
    try:
        cost = artifact_cost(path)
    except SaapError as error:
        assert "\n" not in str(error) and str(path.parent) in str(error), error
        return None
    return cost.projection_bytes, cost.kv_bytes_per_token, cost.file_bytes, cost.parameters


def predict(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["saap-edge", "predict", *map(str, arguments), "--target", "rpi5", "--json"])
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    told = capsys.readouterr()
    return code, told.out, told.err


# ---- GGUF


def edit_gguf(path, data):
    """Change a number of the header in place, as drawn."""
    reader = gguf.GGUFReader(path, "r+")
    number = st.sampled_from([0, 1, 2, 3, 8, 31, 32, 64, 100, 2**16, 2**31 - 1])
    if data.draw(st.booleans(), "metadata"):
        fields = [field for field in reader.fields.values() if field.types[-1] != gguf.GGUFValueType.STRING]
        field = data.draw(st.sampled_from(fields))
        place = data.draw(st.sampled_from(field.data or [len(field.parts) - 1]))
        part = field.parts[place]
    else:
        field = data.draw(st.sampled_from(reader.tensors)).field
        part = field.parts[data.draw(st.sampled_from([2, 3, 4, 5]))]  # dimensions, shape, type, offset
    at = data.draw(st.integers(0, part.size - 1))
    part[at] = data.draw(number)
    reader.data.flush()


@QUIET
@given(data=st.data())
def test_a_changed_gguf_is_refused_or_the_same(export, tmp_path, data):
    source = export / "gguf/model-q4_0.gguf"
    path, expected = tmp_path / "model.gguf", figures(source)
    shutil.copy(source, path)
    if data.draw(st.booleans(), "cut"):
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole) - 1))
        path.write_bytes(whole[:cut])
        # The last tensor may do without the padding behind it.
        assert figures(path) is None or len(whole) - cut < 32
    else:
        edit_gguf(path, data)
        assert figures(path) in (None, expected)


def write_gguf(path, change=None, **more):
    """One llama layer with 4 heads, 2 for keys, of 16; `change` edits its tensors, `more` its metadata."""
    writer = gguf.GGUFWriter(path, "llama")
    known = {
        "block_count": 1, "context_length": 128, "embedding_length": 64, "feed_forward_length": 96,
        "attention.head_count": 4, "attention.head_count_kv": 2,
    }  # fmt: skip
    for name, value in (known | more).items():
        if isinstance(value, list):
            writer.add_array(f"llama.{name}", value)
        elif value is not None:
            writer.add_key_value(f"llama.{name}", value, gguf.GGUFValueType.INT32)
    tensors = {
        "token_embd.weight": (48, 64), "output_norm.weight": (64,), "blk.0.attn_norm.weight": (64,),
        "blk.0.attn_q.weight": (64, 64), "blk.0.attn_k.weight": (32, 64), "blk.0.attn_v.weight": (32, 64),
        "blk.0.attn_output.weight": (64, 64), "blk.0.ffn_norm.weight": (64,), "blk.0.ffn_gate.weight": (96, 64),
        "blk.0.ffn_up.weight": (96, 64), "blk.0.ffn_down.weight": (64, 96),
    }  # fmt: skip
    if change:
        change(tensors)
    for name, shape in tensors.items():
        writer.add_tensor(name, np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_widths_llama_cpp_takes_where_nothing_is_said(tmp_path):
    assert artifact_cost(write_gguf(tmp_path / "x.gguf")).kv_bytes_per_token == 2 * (16 + 16) * 2
    explicit = {"attention.key_length": 16, "attention.value_length": 16, "attention.head_count_kv": [2]}
    assert figures(write_gguf(tmp_path / "y.gguf", **explicit))[:2] == figures(tmp_path / "x.gguf")[:2]


@pytest.mark.parametrize("more, message", [
    ({"block_count": 0}, "block_count is 0"), ({"block_count": -1}, "block_count is -1"),
    ({"block_count": 2}, r"blk\.1 is missing"), ({"block_count": None}, "does not say its llama.block_count"),
    ({"attention.head_count": 0}, "head_count is 0"), ({"attention.head_count_kv": 0}, "head_count_kv is 0"),
    ({"attention.head_count_kv": [2, 2]}, "has 2 numbers"), ({"attention.head_count_kv": [-2]}, "from -2"),
    ({"attention.key_length": 0}, "key_length is 0"), ({"attention.key_length": -16}, "key_length is -16"),
    ({"attention.key_length": 32}, r"attn_k.weight gives \[32\] numbers, 64 by its heads"),
    ({"attention.value_length": 8}, r"attn_v.weight gives"), ({"attention.head_count_kv": 4}, r"attn_k.weight gives"),
    ({"embedding_length": 128}, "does not add up: embedding"), ({"context_length": 0}, "context_length is 0"),
    ({"context_length": None}, "does not say its llama.context_length"),
])  # fmt: skip
def test_absurd_metadata_are_refused(tmp_path, more, message):
    with pytest.raises(SaapError, match=message):
        artifact_cost(write_gguf(tmp_path / "x.gguf", **more))


@pytest.mark.parametrize("change, message", [
    (lambda t: t.pop("token_embd.weight"), "no token_embd.weight"),
    (lambda t: t.pop("output_norm.weight"), "no output_norm.weight"),
    (lambda t: t.update({"blk.1.attn_k.weight": (32, 64)}), r"block_count is 1, and blk\.1 is there too"),
    (lambda t: t.update({"output.weight": (40, 64)}), "does not add up"),
    (lambda t: t.update({"mystery.weight": (64, 64)}), "holds 'mystery.weight'"),
    (lambda t: [t.pop(name) for name in list(t) if name.startswith("blk")], "holds no layers"),
])  # fmt: skip
def test_tensors_that_do_not_go_with_the_metadata_are_refused(tmp_path, change, message):
    with pytest.raises(SaapError, match=message):
        artifact_cost(write_gguf(tmp_path / "x.gguf", change))


def test_a_layer_that_lost_a_tensor_is_refused(tmp_path):
    def two(tensors):
        tensors.update({f"blk.1{name[5:]}": shape for name, shape in tensors.items() if name.startswith("blk")})

    def less(tensors):
        two(tensors)
        del tensors["blk.1.ffn_up.weight"]

    def biased(tensors):
        two(tensors)
        tensors["blk.1.ffn_down.bias"] = (64,)

    assert figures(write_gguf(tmp_path / "x.gguf", two, block_count=2))
    assert figures(write_gguf(tmp_path / "z.gguf", biased, block_count=2)), "a bias may be in one layer alone"
    with pytest.raises(SaapError, match=r"blk\.1 has no ffn_up\.weight"):
        artifact_cost(write_gguf(tmp_path / "y.gguf", less, block_count=2))


@pytest.mark.parametrize("damage, message", [
    (lambda data: data[:-2000], "is cut short: tensor 'blk.2.*copy or download it again"),
    (lambda data: data + bytes(64), "has 64 bytes more than its header lists"),
    (lambda data: data + data, "bytes more than its header lists"),
    (lambda data: data[:4] + b"\1\0\0\0" + data[8:], "is GGUF version 1, versions 2 and 3"),
    (lambda data: data[:4] + b"\0\0\0\3" + data[8:], "big-endian"),
    (lambda data: data.replace(b"0.attn_k.weight", b"0.attn_q.weight", 1), "'blk.0.attn_q.weight' is there twice"),
    (lambda data: data.replace(b"deci.block_count", b"deci.blockXcount", 1), "does not say its deci.block_count"),
    (lambda data: b"GGML" + data[4:], "is not a GGUF file"), (lambda data: b"", "is not a GGUF file"),
])  # fmt: skip
def test_predict_refuses_a_damaged_file(model, monkeypatch, capsys, damage, message):
    model.write_bytes(damage(model.read_bytes()))
    code, out, err = predict(monkeypatch, capsys, model)
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    with pytest.raises(SaapError, match=message):
        artifact_cost(model)
    with pytest.raises(SaapError, match=message):  # so is it before llama.cpp sees it: evaluate and bench
        LlamaCppEngine(model, 1, 16)


def test_predict_refuses_more_than_the_context(export, monkeypatch, capsys):
    for path in (export / "gguf/model-q4_0.gguf", export / "onnx/int4"):
        for option in ("--context", "--prompt"):
            code, out, err = predict(monkeypatch, capsys, path, option, 129)
            assert code == 2 and out == "" and "holds sequences of 128 tokens, 129 are asked for" in err
            assert len(err.splitlines()) == 1
        code, out, _ = predict(monkeypatch, capsys, path)
        assert code == 0 and json.loads(out)["conditions"]["context"] == 128, "the default is no more than there is"


# ---- a GGUF in several files


@pytest.fixture(scope="module")
def split(export, tmp_path_factory):
    """The model in parts, as llama.cpp's own tools write it; by gguf-py."""
    folder = tmp_path_factory.mktemp("split")
    reader = gguf.GGUFReader(export / "gguf/model-f16.gguf")
    writer = gguf.GGUFWriter(folder / "m.gguf", reader.fields["general.architecture"].contents(), split_max_tensors=9)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            if field.types[0] == gguf.GGUFValueType.ARRAY:
                writer.add_array(name, field.contents())
            else:
                writer.add_key_value(name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(folder.iterdir())
    assert [part.name for part in parts] == [f"m-0000{number}-of-00004.gguf" for number in range(1, 5)]
    return parts


def test_any_part_stands_for_the_set(split, export):
    whole = export / "gguf/model-f16.gguf"
    for part in split:
        cost = artifact_cost(part)
        assert (cost.format, figures(part)[:2]) == ("gguf-f16", figures(whole)[:2])
        assert cost.file_bytes == sum(part.stat().st_size for part in split) and cost.parameters == figures(whole)[3]
        assert context_of(part) == 128 and vocab_size_of(part) == VOCABULARY
    expected = LlamaCppEngine(whole, 1, 16).forward([1, 2, 3]).copy()
    np.testing.assert_array_equal(LlamaCppEngine(split[2], 1, 16).forward([1, 2, 3]), expected)


@pytest.mark.parametrize("damage, message", [
    (lambda parts: parts[2].unlink(), r"cannot read '.*m-00003-of-00004\.gguf'"),
    (lambda parts: parts[3].write_bytes(parts[3].read_bytes()[:-500]), r"m-00004-of-00004.gguf' is cut short"),
    (lambda parts: parts[0].rename(parts[0].with_name("first.gguf")), "part 1 of a model in 4 files.*rename it"),
    (lambda parts: shutil.copy(parts[1], parts[2]), "is not part 3 of 4: its header says otherwise"),
    (lambda parts: edit_count(parts[0], 99), "should hold 99 tensors, its files list 2"),
])  # fmt: skip
def test_an_incomplete_set_is_refused(split, tmp_path, damage, message):
    parts = [Path(shutil.copy(part, tmp_path)) for part in split]
    damage(parts)
    for part in tmp_path.iterdir():
        with pytest.raises(SaapError) as refused:
            artifact_cost(part)
        assert "\n" not in str(refused.value)
    with pytest.raises(SaapError, match=message):
        artifact_cost(parts[0] if parts[0].exists() else tmp_path / "first.gguf")


def edit_count(path, count):
    reader = gguf.GGUFReader(path, "r+")
    reader.fields["split.tensors.count"].parts[-1][0] = count
    reader.data.flush()


def test_strings_are_read_on_request(export):
    words = read_strings(export / "gguf/model-f16.gguf", "tokenizer.ggml.tokens")
    reader = gguf.GGUFReader(export / "gguf/model-f16.gguf")
    assert words == reader.fields["tokenizer.ggml.tokens"].contents()
    assert read_header(export / "gguf/model-f16.gguf").lengths["tokenizer.ggml.tokens"] == VOCABULARY == len(words)
    assert read_strings(export / "gguf/model-f16.gguf", "none.such") is None


# ---- ONNX


@QUIET
@given(data=st.data(), form=st.sampled_from(["int4", "fp16"]))
def test_a_cut_graph_or_its_weights_are_refused(export, tmp_path, data, form):
    folder = tmp_path / "onnx"
    shutil.copytree(export / "onnx" / form, folder, dirs_exist_ok=True)
    path = folder / data.draw(st.sampled_from(["model.onnx", "model.onnx.data"]))
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert figures(folder) is None


def edit_onnx(path, data):
    """Change a number of the graph, as drawn; it stays a graph that onnx can read."""
    graph = onnx.load(path, load_external_data=False)
    number = data.draw(st.sampled_from([0, 1, 2, 3, 8, 31, 32, 64, 100, 2**16, 2**31 - 1]))
    what = data.draw(st.sampled_from(["shape", "outside", "node", "past"]))
    if what == "node":
        node = data.draw(st.sampled_from([node for node in graph.graph.node if node.op_type == "MatMulNBits"]))
        values = {attribute.name: attribute for attribute in node.attribute}
        name = data.draw(st.sampled_from(["K", "N", "bits", "block_size"]))
        blocks = -(-values["K"].i // values["block_size"].i)
        values[name].i = number
        assume(name != "K" or -(-number // values["block_size"].i) != blocks)  # the rest of the last block is not seen
    elif what == "past":
        values = [value for value in graph.graph.input if value.name.startswith("past")]
        shape = data.draw(st.sampled_from(values)).type.tensor_type.shape
        shape.dim[data.draw(st.sampled_from([1, 3]))].dim_value = number
    else:
        tensor = data.draw(st.sampled_from([tensor for tensor in graph.graph.initializer if tensor.dims]))
        if what == "shape" or not tensor.external_data:
            tensor.dims[data.draw(st.integers(0, len(tensor.dims) - 1))] = number
        else:
            entry = data.draw(st.sampled_from([e for e in tensor.external_data if e.key in ("offset", "length")]))
            entry.value = str(number)
    path.write_bytes(graph.SerializeToString())


@QUIET
@given(data=st.data())
def test_a_changed_graph_is_refused_or_the_same(export, tmp_path, data):
    """An offset to other bytes of the file is not seen: as many are read."""
    folder = tmp_path / "onnx"
    shutil.copytree(export / "onnx/int4", folder, dirs_exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(onnx.load(path, load_external_data=False).SerializeToString())
    expected = figures(folder)
    edit_onnx(path, data)
    found = figures(folder)
    assert found is None or (found[0], found[1], found[3]) == (expected[0], expected[1], expected[3])


@pytest.mark.parametrize("name, other", [
    ("model.layers.0.self_attn.o_proj.weight.codes", "model.layers.1.mlp.gate_up_proj.weight.codes"),
    ("model.layers.1.input_layernorm.weight", "model.layers.2.input_layernorm.weight"),
])  # fmt: skip
def test_a_weight_at_the_place_of_another_is_no_shared_one(folder, name, other):
    path = folder / "model.onnx"
    graph = onnx.load(path, load_external_data=False)
    places = {
        tensor.name: next(entry for entry in tensor.external_data if entry.key == "offset")
        for tensor in graph.graph.initializer if tensor.external_data
    }  # fmt: skip
    places[name].value = places[other].value
    path.write_bytes(graph.SerializeToString())
    assert figures(folder) is None


@pytest.mark.parametrize("damage, message", [
    (lambda folder: (folder / "model.onnx.data").unlink(), "weights in 'model.onnx.data', which is missing"),
    (lambda folder: cut(folder / "model.onnx.data"), "is cut short: it has .* bytes, the graph lists"),
    (lambda folder: config(folder, 256), "context_length is 256, the graph beside it holds 128"),
    (lambda folder: config(folder, 0), "context_length is 0"), (lambda folder: config(folder, "x"), "is 'x'"),
    (lambda folder: config(folder, 64, num_hidden_layers=2), "it has 2 layers, the graph beside it 3"),
    (lambda folder: (folder / "genai_config.json").write_text("{"), "genai_config.json' does not say its"),
    (lambda folder: elsewhere(folder / "model.onnx"), "outside its folder"),
])  # fmt: skip
def test_predict_refuses_a_damaged_folder(folder, monkeypatch, capsys, damage, message):
    damage(folder)
    code, out, err = predict(monkeypatch, capsys, folder)
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    with pytest.raises(SaapError, match=message):
        artifact_cost(folder)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def config(folder, length, **decoder):
    document = json.loads((folder / "genai_config.json").read_text())
    document["model"]["context_length"] = length
    document["model"]["decoder"] |= decoder
    (folder / "genai_config.json").write_text(json.dumps(document))


def elsewhere(path):
    graph = onnx.load(path, load_external_data=False)
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.external_data)
    tensor.external_data[0].value = "../model.onnx.data"
    path.write_bytes(graph.SerializeToString())


def test_a_width_that_the_graph_leaves_open_is_the_configurations(folder):
    """As onnxruntime-genai's builder writes it; the figure was that of heads of width 1."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    for value in [*graph.graph.input, *graph.graph.output]:
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.shape.dim[3].dim_param = "kv_cache_dim"
    expected = artifact_cost(folder).kv_bytes_per_token
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    assert artifact_cost(folder).kv_bytes_per_token == expected
    (folder / "genai_config.json").unlink()
    with pytest.raises(SaapError, match="does not say its head_size"):
        artifact_cost(folder)


def test_the_shorter_of_two_contexts_holds(folder):
    config(folder, 64)
    assert artifact_cost(folder).context == context_of(folder) == 64
