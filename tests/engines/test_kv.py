"""Keys and values in blocks: as large as llama.cpp says, off by what rounding does, refused where they do not fit."""

import ctypes
from dataclasses import replace

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from scipy.linalg import hadamard
from transformers import DynamicCache

from saap_edge.api.judging import predict_document
from saap_edge.engines import llama_cpp as module
from saap_edge.engines.llama_cpp import LlamaCppEngine
from saap_edge.engines.options import KV_TYPES, EngineOptions, check_options
from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError
from saap_edge.exporting.gguf import write_gguf
from saap_edge.model.folder import build_pruned
from saap_edge.prediction.cost import artifact_cost, cached_as, savings
from saap_edge.prediction.predict import predict
from saap_edge.targets import load_target
from tests.conftest import WIDTHS, randomise_projections, tiny_model, write_folder

TOKENS = [int(token) for token in np.random.default_rng(0).integers(3, 300, 48)]
GGML = {name: gguf.GGMLQuantizationType[name.upper()] for name in KV_TYPES}


@pytest.fixture(scope="module", params=[32, 64])
def made(request, tmp_path_factory):
    """(torch model, its file): layers of different widths, with heads as wide as one block and as two."""
    folder = tmp_path_factory.mktemp("kv")
    model = randomise_projections(build_pruned(tiny_model("llama", head_dim=request.param), WIDTHS))
    write_gguf(write_folder(model, folder / "model"), folder / "m.gguf", "f32")
    return model, folder / "m.gguf"


def state_bytes(engine, count):
    """Bytes of the state that llama.cpp would save of so many tokens."""
    engine.reset()
    engine.forward(TOKENS[:count])
    size = llama_cpp.llama_state_seq_get_size
    size.restype = ctypes.c_size_t
    return size(engine._context, 0)


def test_bytes_a_token_are_llama_cpps_own(made):
    engines = {name: LlamaCppEngine(made[1], 1, 64, name) for name in KV_TYPES}
    grown = {name: (state_bytes(engine, 40) - state_bytes(engine, 8)) / 32 for name, engine in engines.items()}
    told = {name: engine.kv_bytes_per_token() for name, engine in engines.items()}
    # What a saved token has besides (its position and sequences) is the same whatever the type.
    assert {name: grown[name] - grown["f16"] for name in told} == {name: told[name] - told["f16"] for name in told}
    for name, kind in GGML.items():
        block, size = gguf.GGML_QUANT_SIZES[kind]
        assert told[name] * block == sum(2 * layer.kv_heads for layer in WIDTHS) * made[0].config.head_dim * size
        assert cached_as(artifact_cost(made[1]), name).kv_bytes_per_token == told[name]


class Rounded(DynamicCache):
    """A cache that rounds what it takes with gguf-py's quantisation.

    As in llama.cpp, keys come in the order of GGUF files, the two numbers of every rotation side by side, and heads of
    64 are turned by a Hadamard matrix before, and back after.
    """

    kind = None

    def update(self, keys, values, *args, **more):
        side_by_side = torch.arange(keys.shape[-1]).reshape(2, -1).T.reshape(-1)
        keys = self.rounded(keys[..., side_by_side])[..., side_by_side.argsort()]
        return super().update(keys, self.rounded(values), *args, **more)

    def rounded(self, tensor):
        wide = tensor.shape[-1]
        turn = torch.tensor(hadamard(64) / 8, dtype=torch.float32) if wide == 64 else torch.eye(wide)
        turned = (tensor @ turn).detach().numpy()
        return torch.tensor(dequantize(quantize(turned, self.kind), self.kind)) @ turn.T


def emulated(model, kind):
    cache = type("Of", (Rounded,), {"kind": kind})() if kind is not None else DynamicCache()
    with torch.inference_mode():
        return model(torch.tensor([TOKENS]), past_key_values=cache).logits[0].numpy()


def off(first, second):
    """Relative RMS error of centred logits."""
    centred = second - second.mean(axis=1, keepdims=True)
    difference = (first - first.mean(axis=1, keepdims=True)) - centred
    return float(np.sqrt(np.square(difference).mean() / np.square(centred).mean()))


def test_answers_are_off_by_what_rounding_keys_and_values_does(made):
    exact = emulated(made[0], None)
    found, left = {}, {}
    for name, kind in GGML.items():
        engine = LlamaCppEngine(made[1], 1, 64, name)
        answers = engine.forward(TOKENS, all_logits=True).copy()
        found[name], left[name] = off(answers, exact), off(answers, emulated(made[0], kind))
    assert found["f16"] < 0.002 < found["q8_0"] < 0.02 and 5 * found["q8_0"] < found["q4_0"]
    assert left["q4_0"] < 0.2 * found["q4_0"], "what is left is the rounding of queries, to 8 bits"


def test_step_by_step_is_the_same_cache(made):
    engine = LlamaCppEngine(made[1], 1, 64, "q4_0")
    whole = engine.forward(TOKENS, all_logits=True).copy()
    engine.reset()
    steps = np.concatenate([engine.forward([token]).copy() for token in TOKENS])
    engine.truncate(20)
    again = np.concatenate([engine.forward([token]).copy() for token in TOKENS[20:]])
    assert off(steps, whole) < 0.05 and off(again, steps[20:]) < 1e-4


def test_the_worker_passes_it_on(made):
    with Worker("llama.cpp", made[1], 1, 32, EngineOptions(kv="q8_0")) as worker:
        assert worker.loaded["kv_type"] == "q8_0"
        assert worker.loaded["kv_bytes_per_token"] == LlamaCppEngine(made[1], 1, 32, "q8_0").kv_bytes_per_token()


def test_heads_that_no_block_divides(tmp_path, monkeypatch):
    model = tiny_model("llama", head_dim=48)
    write_gguf(write_folder(model, tmp_path / "model"), tmp_path / "m.gguf", "f32")
    with pytest.raises(SaapError, match=r"blocks of 32 numbers, and the heads of this model have 48: take f16"):
        LlamaCppEngine(tmp_path / "m.gguf", 1, 32, "q8_0")
    with pytest.raises(SaapError, match="take f16"):
        cached_as(artifact_cost(tmp_path / "m.gguf"), "q4_0")
    assert LlamaCppEngine(tmp_path / "m.gguf", 1, 32, "f16").forward([5]).shape[0] == 1
    monkeypatch.setattr(module, "kv_refusal", lambda *_: None)
    with pytest.raises(SaapError, match="cannot open a context"):  # llama.cpp itself refuses it, too
        LlamaCppEngine(tmp_path / "m.gguf", 1, 32, "q8_0")


@pytest.mark.parametrize("engine", ["onnxruntime", "onnxruntime chat", "optimum", "torch"])
def test_engines_with_one_type_say_so(engine, tmp_path):
    with pytest.raises(SaapError, match=rf"KV cache q8_0: {engine.removesuffix(' chat')} cannot: .*llama\.cpp"):
        Worker(engine, tmp_path / "never-opened", 1, 32, EngineOptions(kv="q8_0"))
    check_options(engine, EngineOptions())


def test_an_unknown_type_is_refused(made):
    with pytest.raises(SaapError, match="'q5_1' is none of f16, q8_0, q4_0"):
        LlamaCppEngine(made[1], 1, 32, "q5_1")


def test_a_micro_batch_is_as_asked_and_answers_stay(made, monkeypatch):
    asked = []
    opened = LlamaCppEngine._open_context
    monkeypatch.setattr(
        LlamaCppEngine, "_open_context", lambda self, told: (asked.append(told.n_ubatch), opened(self, told))[1]
    )
    whole = LlamaCppEngine(made[1], 1, 64).forward(TOKENS, all_logits=True).copy()
    engine = LlamaCppEngine(made[1], 1, 64, ubatch=8)
    assert off(engine.forward(TOKENS, all_logits=True), whole) < 0.002
    assert asked == [64, 8] and llama_cpp.llama_n_ubatch(engine._context) == 8
    with Worker("llama.cpp", made[1], 1, 64, EngineOptions(ubatch=16)) as worker:
        assert worker.loaded["ubatch"] == 16
    for engine_name, number in (("torch", 16), ("llama.cpp", 0)):
        with pytest.raises(SaapError, match=f"micro-batch of {number}"):
            Worker(engine_name, made[1], 1, 64, EngineOptions(ubatch=number))


def test_predicted_work_space_follows_the_micro_batch(made):
    cost, board = artifact_cost(made[1]), load_target("rpi5")
    told = [predict(cost, board, 128, 128, ubatch=number).ram_mib.value for number in (512, 96, 64, 8)]
    assert told[0] > told[1] > told[2] == told[3], "the fit's own prompts are 64 tokens long"
    assert told[0] == predict(cost, board, 128, 128).ram_mib.value
    widest = max(layer.ffn for layer in WIDTHS)
    assert (told[0] - told[1]) * 2**20 == pytest.approx(32 * (14 * widest + 6 * 64 + 6 * 128), rel=1e-6)


def test_a_prediction_with_a_rounded_cache_takes_less_memory_and_is_less_sure(made):
    cost, board = artifact_cost(made[1]), load_target("rpi5")
    plain, asked, small = (predict(cached_as(cost, kv), board, 64, 128) for kv in (None, "f16", "q8_0"))
    assert asked.decode_tok_s == plain.decode_tok_s and asked.basis == plain.basis
    less = (plain.ram_mib.value - small.ram_mib.value) * 2**20
    assert less == pytest.approx(128 * cost.kv_elements * (2 - 34 / 32), rel=1e-6)
    assert "KV cache in q8_0" in small.basis
    for before, after in ((plain.decode_tok_s, small.decode_tok_s), (plain.prefill_tok_s, small.prefill_tok_s)):
        assert after.high / after.low > before.high / before.low


def test_what_does_not_surely_fit_is_told_what_takes_less(made):
    asked = {"prompt_tokens": 128, "context": 128}
    assert predict_document(made[1], "rpi5", **asked)["notes"] == [], "it fits"
    assert predict_document(made[1], "rpi5", **asked, ram_mib=1)["notes"] == [], "nothing takes a MiB less"
    large = replace(artifact_cost(made[1]), kv_elements=100_000, kv_bytes_per_token=200_000, batch_bytes=100_000)
    [kv, ubatch] = savings(large, 128, 128, None)
    assert kv == f"--kv q8_0 {128 * (200_000 - 106_250) / 2**20:.1f} MiB"
    assert ubatch == f"--ubatch 64 {64 * (100_000 + 6 * 128) / 2**20:.1f} MiB"
    assert savings(cached_as(large, "q4_0"), 128, 128, 32) == []
