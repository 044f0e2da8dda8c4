"""The probe runs the real kernels, counts their bytes right, and says what contradicts itself."""

import pytest

from saap_edge.probe import board as probe
from saap_edge.probe.board import (
    differences,
    implausible,
    measure_bandwidth,
    measure_kernel,
    read_bandwidth,
    unstated,
)
from saap_edge.probe.gguf_model import write_probe_model
from saap_edge.probe.onnx_model import measure_onnx_kernel, write_probe_graph
from saap_edge.targets import Bandwidth, Figure, Kernel, load_target


@pytest.mark.parametrize("quantisation", ["f16", "q8_0", "q4_0"])
def test_the_model_is_what_gguf_says_it_is(tmp_path, quantisation):
    gguf = pytest.importorskip("gguf")
    model = write_probe_model(tmp_path / "m.gguf", quantisation, 1)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(model.path).tensors}
    assert sum(tensor.n_bytes for tensor in tensors.values()) == model.bytes
    assert tensors["blk.1.ffn_down.weight"].tensor_type.name == quantisation.upper()
    matrices = [tensor for name, tensor in tensors.items() if name.startswith("blk.") and len(tensor.shape) == 2]
    last_ffn = sum(int(tensor.n_elements) for tensor in matrices if tensor.name.startswith("blk.1.ffn"))
    assert model.prompt_weights == sum(int(tensor.n_elements) for tensor in matrices) - last_ffn


@pytest.mark.parametrize("bits", [4, 8])
def test_the_graph_is_what_onnx_says_it_is(tmp_path, bits):
    onnx = pytest.importorskip("onnx")
    read, weights = write_probe_graph(tmp_path / "g.onnx", bits, 2**25)
    model = onnx.load(tmp_path / "g.onnx")
    onnx.checker.check_model(model)
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert sum(array.nbytes for array in arrays.values()) == read == (tmp_path / "g.bin").stat().st_size
    assert sum(array.size for name, array in arrays.items() if "codes" in name) * 8 // bits == weights


def test_kernels_and_bandwidth_are_measured():
    reading, macs = measure_kernel("q4_0", 1, size=1, rounds=1)
    assert 0.01 < reading < 1000 and 0.01 < macs < 100_000
    reading, macs = measure_onnx_kernel("int4", 1, 1, 1)
    assert 0.01 < reading < 1000 and 0.01 < macs < 100_000
    assert min(*measure_bandwidth(8, 2), read_bandwidth(2, 8, 2)) > 0.1


def test_a_probe_is_a_valid_target(monkeypatch):
    for name in ("measure_kernel", "measure_onnx_kernel"):
        monkeypatch.setattr(probe, name, lambda name, threads, size, rounds: (2.0, 3.0))
    monkeypatch.setattr(probe, "measure_bandwidth", lambda size: (5.0, 4.0))
    done = []
    probed = probe.probe_target(done.append)
    assert len(done) == probe.STEPS and "target probe" in probed.bandwidth_gb_s.read_measured.source
    assert set(probed.kernels) == {"gguf-f16", "gguf-q8_0", "gguf-q4_0", "onnx-int4", "onnx-int8"} and probed.conditions
    assert probed.kernels["onnx-int4"].gemv_gb_s.value == 2.0
    assert implausible(probed) == []


def figure(value):
    return Figure(value=value, source="by hand here")


def test_contradictions_are_named():
    target = load_target("rpi5")
    known = target.bandwidth_gb_s.model_copy(update={"read_all_threads": figure(20)})
    kernels = {"gguf-q4_0": Kernel(gemv_gb_s=figure(99), gemm_gmac_s=figure(1))}
    cores = [target.cores[0].model_copy(update={"clock_ghz": figure(2400)})]
    wrong = target.model_copy(update={"bandwidth_gb_s": known, "kernels": kernels, "cores": cores})
    lines = " ".join(implausible(wrong))
    assert "read_all_threads 20.0 is above" in lines and "gemv_gb_s 99.0" in lines and "cores.0.clock_ghz" in lines
    assert implausible(target) == []


def test_what_is_not_stated_is_no_contradiction():
    silent = load_target("rpi5").model_copy(update={"bandwidth_gb_s": Bandwidth()})
    assert implausible(silent) == [] and "bandwidth_gb_s" in unstated(silent)[0]
    assert unstated(load_target("rpi5")) == []


def test_only_what_is_measured_alike_is_compared():
    stated = load_target("rpi5")
    known = Bandwidth(copy_measured=figure(9.61 * 1.19), effective_decode=figure(1), theoretical=figure(99))
    rows = differences(stated, stated.model_copy(update={"bandwidth_gb_s": known}))
    assert [row["figure"] for row in rows if row["figure"] == "bandwidth_gb_s.copy_measured"]
    row = next(row for row in rows if row["figure"].endswith("copy_measured"))
    assert row["agrees"] and row["ratio"] == 1.19
    far = stated.model_copy(update={"bandwidth_gb_s": Bandwidth(copy_measured=figure(9.61 / 1.21))})
    assert not differences(stated, far)[0]["agrees"]
