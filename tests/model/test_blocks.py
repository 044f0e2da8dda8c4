"""Codes, scales and offsets against gguf-py and ONNX Runtime's packer, bit for bit."""

import gguf
import numpy as np
import pytest
import torch
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits

from saap_edge.model.blocks import BLOCK_FORMATS, dequantise, quantise


@pytest.fixture(params=[0, 1, 2])
def weight(request):
    rng = np.random.default_rng(request.param)
    weight = rng.normal(0, 10.0 ** rng.integers(-3, 2, (64, 1)), (64, 160)).astype(np.float32)
    weight[0] = 0
    weight[1, :32] = np.arange(32) / 2 - 8  # halves and a tie of magnitudes
    weight[2], weight[3] = np.abs(weight[2]) + 1e-3, -np.abs(weight[3]) - 1e-3  # all on one side of zero
    return weight


def nibbles(packed):
    """GGUF's 16 bytes a block as 32 codes: code i is low, code i + 16 high."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q8_0"])
def test_equals_gguf(weight, name):
    kind = gguf.GGMLQuantizationType[name.upper()]
    raw = gguf.quants.quantize(weight, kind)
    fields = raw.reshape(64, 5, -1)
    head = 4 if name == "q4_1" else 2
    parameters = np.ascontiguousarray(fields[..., :head]).view(np.float16)
    blocks = quantise(torch.from_numpy(weight), BLOCK_FORMATS[name])
    codes = blocks.codes.numpy().reshape(64, 5, 32)
    theirs = fields[..., head:]
    np.testing.assert_array_equal(theirs.view(np.int8).astype(int) + 128 if name == "q8_0" else nibbles(theirs), codes)
    np.testing.assert_array_equal(parameters[..., 0], blocks.scales.numpy())
    if name == "q4_1":
        np.testing.assert_array_equal(parameters[..., 1], blocks.offsets.numpy())
    np.testing.assert_array_equal(gguf.quants.dequantize(raw, kind), dequantise(blocks).numpy())


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("name", ["q4_0", "int4_zp", "int8_zp"])
def test_equals_onnxruntime(weight, name, group):
    format = BLOCK_FORMATS[name]
    rows, columns = weight.shape
    count = -(-columns // group)
    packed = np.zeros((rows, count, group * format.bits // 8), np.uint8)
    scales = np.zeros((rows, count), np.float32)
    zeros = np.zeros((rows, -(-count * format.bits // 8)), np.uint8)
    pack = quantize_matmul_4bits if format.bits == 4 else quantize_matmul_8bits
    transposed = np.ascontiguousarray(weight.T)
    pack(packed, transposed, scales, zeros, group, rows, columns, format.offset == "none")

    def unpack(figures):
        return np.stack([figures & 15, figures >> 4], -1).reshape(rows, -1) if format.bits == 4 else figures

    blocks = quantise(torch.from_numpy(weight), format, group)
    np.testing.assert_array_equal(unpack(packed).reshape(rows, -1)[:, :columns], blocks.codes.numpy())
    np.testing.assert_array_equal(scales.astype(np.float16), blocks.scales.numpy())
    if blocks.offsets is not None:
        np.testing.assert_array_equal(unpack(zeros)[:, :count], blocks.offsets.numpy())


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_error_is_within_half_a_step(name):
    """A group of 64 over 160 columns, the last one short."""
    weight = torch.randn(8, 160)
    blocks = quantise(weight, BLOCK_FORMATS[name], 64)
    assert blocks.scales.shape == (8, 3) and blocks.codes.shape == (8, 160)
    step = blocks.scales.float().abs().repeat_interleave(64, 1)[:, :160]
    # Symmetric 4 bits lack the code at one end; a scale rounded to float16 shifts codes far from zero.
    bound = {"q4_0": 1.01, "q4_1": 0.51, "int4_zp": 0.51, "q8_0": 0.57, "int8_zp": 0.57}[name]
    assert ((dequantise(blocks) - weight).abs() <= step * bound).all()


def test_off_grid_is_refused():
    with pytest.raises(ValueError, match="multiples of 32"):
        quantise(torch.zeros(2, 44), BLOCK_FORMATS["q4_0"])
