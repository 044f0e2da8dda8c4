"""Codes and scales against gguf-py, bit for bit."""

import gguf
import numpy as np
import pytest

from saap_edge.model.blocks import dequantise_q4, dequantise_q8, quantise_q4, quantise_q8


@pytest.fixture(params=[0, 1, 2])
def weight(request):
    rng = np.random.default_rng(request.param)
    weight = rng.normal(0, 10.0 ** rng.integers(-3, 2, (64, 1)), (64, 160)).astype(np.float32)
    weight[0] = 0
    weight[1, :32] = np.arange(32) / 2 - 8  # halves and a tie of magnitudes
    return weight


def test_q4_equals_gguf(weight):
    raw = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q4_0).reshape(64, -1, 18)
    codes, scales = quantise_q4(weight)
    packed = codes.reshape(64, -1, 2, 16)
    np.testing.assert_array_equal(raw[..., 2:], packed[..., 0, :] | packed[..., 1, :] << 4)
    np.testing.assert_array_equal(raw[..., :2].copy().view(np.float16)[..., 0], scales)
    np.testing.assert_array_equal(
        gguf.quants.dequantize(raw.reshape(64, -1), gguf.GGMLQuantizationType.Q4_0), dequantise_q4(codes, scales)
    )


def test_q8_equals_gguf(weight):
    raw = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0).reshape(64, -1, 34)
    codes, scales = quantise_q8(weight)
    np.testing.assert_array_equal(raw[..., 2:].view(np.int8), codes.reshape(64, -1, 32))
    np.testing.assert_array_equal(raw[..., :2].copy().view(np.float16)[..., 0], scales)
    np.testing.assert_array_equal(
        gguf.quants.dequantize(raw.reshape(64, -1), gguf.GGMLQuantizationType.Q8_0), dequantise_q8(codes, scales)
    )
