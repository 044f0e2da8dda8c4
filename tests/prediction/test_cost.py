"""What an artifact reads per token, from its header alone, is what the exporter counted as it wrote."""

import struct

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saap_edge.engines import gguf_header
from saap_edge.engines.llama_cpp import LlamaCppEngine
from saap_edge.engines.onnxruntime import OnnxRuntimeEngine
from saap_edge.errors import SaapError
from saap_edge.exporting.write import export_artifacts
from saap_edge.model.folder import build_pruned
from saap_edge.prediction.cost import artifact_cost
from tests.conftest import WIDTHS, randomise_projections, tiny_model, write_folder

FORMATS = (
    "gguf-f32", "gguf-f16", "gguf-q8_0", "gguf-q4_0", "gguf-q4_1", "onnx-fp32", "onnx-fp16", "onnx-int8", "onnx-int4",
    "onnx-int4-full",
)  # fmt: skip


@pytest.fixture(scope="module", params=[("llama", True), ("qwen2", False)], ids=["tied", "untied"])
def export(request, tmp_path_factory):
    """(manifest, folder, parameters) of a model with other widths in every layer; qwen2 has biases."""
    family, tied = request.param
    root = tmp_path_factory.mktemp("cost")
    model = randomise_projections(build_pruned(tiny_model(family, tied), WIDTHS))
    (root / "out").mkdir()
    manifest = export_artifacts(
        write_folder(model, root / "model"), root / "out", FORMATS, "pruned", {}, lambda _: None
    )
    return manifest, root / "out", sum(parameter.numel() for parameter in model.parameters())


def test_bytes_and_parameters_are_the_exporters(export):
    manifest, folder, parameters = export
    for artifact in manifest.artifacts:
        cost = artifact_cost(folder / artifact.path)
        assert cost == artifact_cost(folder, artifact.format), artifact.format
        assert (cost.format, cost.projection_bytes) == (artifact.format, artifact.projection_bytes)
        assert cost.file_bytes == artifact.bytes
        # Norms that GGUF and the graphs fold away or add are a few vectors.
        assert parameters * 0.99 <= cost.parameters <= parameters * 1.02, artifact.format


def test_kv_bytes_are_the_engines(export):
    manifest, folder, _ = export
    paths = {artifact.format: folder / artifact.path for artifact in manifest.artifacts}
    for name, engine in (("gguf-q8_0", LlamaCppEngine), ("onnx-int4", OnnxRuntimeEngine)):
        assert artifact_cost(paths[name]).kv_bytes_per_token == engine(paths[name], 1, 16).kv_bytes_per_token()


def test_block_sizes_are_ggmls():
    for code, (name, block, size) in gguf_header._TYPES.items():
        kind = gguf.GGMLQuantizationType(code)
        assert (kind.name.lower(), block, size) == (name, *gguf.GGML_QUANT_SIZES[kind])


def test_errors_say_what_to_give(export, tmp_path):
    _, folder, _ = export
    for path, asked, expected in [
        (folder, None, "--format is needed: .* has gguf-f16, gguf-f32"), (folder, "gguf-q5_0", "--format gguf-q5_0"),
        (folder / "gguf" / "model-q8_0.gguf", "onnx-int4", "is a GGUF artifact"),
        (tmp_path / "none.gguf", None, "is no artifact"), (tmp_path, None, "is no artifact: give a .gguf"),
    ]:  # fmt: skip
        with pytest.raises(SaapError, match=expected):
            artifact_cost(path, asked)


def test_a_mixture_of_experts_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "moe.gguf", "llama")
    writer.add_block_count(1)
    writer.add_tensor("blk.0.ffn_up_exps.weight", np.zeros((2, 4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SaapError, match="mixture of experts"):
        artifact_cost(tmp_path / "moe.gguf")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_never_ends_in_a_traceback(export, tmp_path, data):
    manifest, folder, _ = export
    for artifact in manifest.artifacts:
        if artifact.format not in ("gguf-q4_0", "onnx-int4"):
            continue
        source = folder / artifact.path
        source = source if source.is_file() else source / "model.onnx"
        whole = source.read_bytes()[: 6000 if source.suffix == ".gguf" else None]
        cut = data.draw(st.integers(0, len(whole)))
        at, value = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
        damaged = bytearray(whole[:cut])
        if at < cut:
            damaged[at] = value
        target = tmp_path / source.name
        target.write_bytes(damaged)
        try:
            artifact_cost(target)
        except SaapError as error:
            assert "\n" not in str(error)


def test_a_lying_length_is_refused(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 2**62) + b"ab")
    with pytest.raises(SaapError, match="damaged"):
        artifact_cost(tmp_path / "x.gguf")
    words = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 2) + struct.pack("<Q", 2**63)
    (tmp_path / "y.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + words)
    with pytest.raises(SaapError, match="damaged"):
        artifact_cost(tmp_path / "y.gguf")
