"""Records of formats and engines: what they name is there, and what nobody knows is refused by name."""

import io
import re
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest
from rich.console import Console

from saap_edge import registry
from saap_edge.api.judging import predict_document
from saap_edge.artifacts import slow_ones
from saap_edge.chain.context import open_context
from saap_edge.documents.bench import Bench
from saap_edge.engines.registry import ENGINES, engine_named
from saap_edge.errors import SaapError
from saap_edge.exporting.write import write_artifact
from saap_edge.formats import FORMATS, Format, Kind, described, format_of, register_format
from saap_edge.model.blocks import BLOCK_FORMATS
from saap_edge.recipe import Recipe, bundled_model
from saap_edge.registry import Registry, resolve
from saap_edge.report.bench import render_bench
from saap_edge.report.prediction import render_prediction
from tests.gating.support import artifact, bench


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_record_names_is_there(name):
    format = format_of(name)
    for entry in filter(None, (format.writer, format.refusal, format.token_check, format.shipped, format.launch)):
        assert resolve(entry) is not None
    engine = engine_named(format.engine)
    assert engine.entry and resolve(engine.entry).name and engine.kind == format.kind
    assert set(format.blocks) <= BLOCK_FORMATS.keys() and format.table_block in BLOCK_FORMATS
    assert bool(format.dtype) + bool(format.blocks) + bool(format.made_from) == 1, "floats, blocks, or llama.cpp's own"
    assert all(source in FORMATS for source in format.made_from) and format.writes() is resolve(format.writer)


def test_sizes_before_anything_is_written():
    assert format_of("gguf-q4_0").weight_bits(64) == (4.5, 8.5)
    assert format_of("onnx-int4").weight_bits(64) == (4.5, 8.25)
    assert format_of("gguf-q2_k").weight_bits(32) == (2.94, 8.5)
    with pytest.raises(SaapError, match="the size of 'onnx-optimum' is not known"):
        format_of("onnx-optimum").weight_bits(32)


@pytest.mark.parametrize(("name", "bits", "engine"), [
    ("gguf-q5_k", 5.5, "llama.cpp"), ("gguf-iq1_s", 1.5, "llama.cpp"), ("gguf-mxfp4", None, "llama.cpp"),
    ("onnx-None", None, "onnxruntime"), ("onnx-fp16", 32.0, "onnxruntime"),
])  # fmt: skip
def test_files_of_others_have_the_bits_that_their_names_tell(name, bits, engine):
    format = described(name)
    assert (format.kernel_bits, format.engine) == (bits, engine)


def test_a_name_that_nobody_knows():
    for find, name, near in (
        (format_of, "gguf-q4km", "did you mean 'gguf-q4_k_m'"),
        (described, "tensorrt-int8", "unknown format 'tensorrt-int8'"),
        (engine_named, "llama.ccp", "did you mean 'llama.cpp'"),
    ):  # fmt: skip
        with pytest.raises(SaapError, match=near):
            find(name)


def test_a_name_is_given_once():
    own = format_of("gguf-q4_0")
    assert register_format(own) is own
    with pytest.raises(SaapError, match="there is another format 'gguf-q4_0' already"):
        register_format(Format("gguf-q4_0", "gguf", "llama.cpp", "elsewhere"))
    assert set(ENGINES) >= {format.engine for format in FORMATS.values()}


def test_a_package_that_does_not_load(monkeypatch):
    broken = EntryPoint("mine", "no_such_module:RECORD", "saap_edge.tests")
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    found: Registry[Kind] = Registry("kind", "saap_edge.tests")
    with pytest.raises(SaapError, match=r"the kind 'mine' cannot be loaded \(no_such_module:RECORD\)"):
        found.find("other")


def test_a_format_that_is_slow_says_so_wherever_it_is_chosen(tmp_path, monkeypatch):
    """To whoever exports, benches or predicts it, by its record, and with formats that are not slow themselves."""
    [line] = slow_ones(["gguf-q4_0", "gguf-q4_1", "onnx-int4"])
    better = re.findall(r"gguf-\w+", line.partition(":")[2])
    assert len(better) == 2 and not slow_ones(better) and all(name in FORMATS for name in better)
    exported = Recipe.model_validate({"export": {"formats": ["gguf-q4_1", "gguf-q4_0"]}})
    assert open_context(exported, None, bar=None).warnings.count(line) == 1
    assert line not in open_context(Recipe(), None, bar=None).warnings
    for name, notes in (("q4_1", [line]), ("q4_0", [])):
        write_artifact(bundled_model(), tmp_path / f"{name}.gguf", f"gguf-{name}")
        document = predict_document(tmp_path / f"{name}.gguf", "rpi5")
        assert document["notes"] == notes and (line in shown(render_prediction(document, "a board"))) == bool(notes)
        benched = Bench.of(bench([artifact(format=f"gguf-{name}")]))
        assert (line in shown(render_bench(benched))) == bool(notes)
    other = replace(format_of("gguf-q4_0"), name="gguf-other", slow="it waits")
    monkeypatch.setattr("saap_edge.artifacts.described", lambda name: other)
    assert slow_ones(["gguf-other"]) == ["gguf-other: it waits"]


def shown(parts):
    console = Console(width=400, record=True, file=io.StringIO())
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))
    return console.export_text()
