"""Child processes: the same answers as in this process, and a death that does not spread."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from saap_edge.engines.child import Server
from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError
from saap_edge.exporting.gguf import write_gguf
from saap_edge.exporting.onnx import write_onnx
from saap_edge.model.folder import load_model
from saap_edge.model.perplexity import perplexity

IDS = list(range(1, 25))


@pytest.fixture(scope="module", params=["llama.cpp", "onnxruntime"])
def artifact(request, pruned_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifact")
    if request.param == "llama.cpp":
        write_gguf(pruned_folder, folder / "m.gguf", "f16")
        return request.param, folder / "m.gguf"
    write_onnx(pruned_folder, folder / "onnx", "fp32")
    return request.param, folder / "onnx"


@pytest.fixture(scope="module")
def worker(artifact):
    with Worker(*artifact, 1, 64) as worker:
        yield worker


@pytest.mark.parametrize("mode", ["prefill", "steps", "mixed"])
def test_logits(worker, pruned_folder, mode):
    with torch.no_grad():
        expected = load_model(pruned_folder)(torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(worker.logits(IDS, mode), expected, atol=0.02 * np.abs(expected).max())


def test_nll_is_the_perplexity_of_torch(worker, pruned_folder):
    windows = torch.tensor([IDS, IDS[::-1]])
    total, count = worker.nll(windows.tolist())
    expected = perplexity(load_model(pruned_folder), windows)
    assert count == expected.tokens and total / count == pytest.approx(expected.nll, rel=2e-3)


class CountingEngine:
    """Notes what is run; logits of token t are 10 at t + 1."""

    vocab_size = 50

    def __init__(self):
        self.sequence, self.runs = [], []

    def reset(self):
        self.truncate(0)

    def truncate(self, length):
        assert length <= len(self.sequence)
        del self.sequence[length:]

    def forward(self, tokens, all_logits=False):
        self.sequence += tokens
        self.runs.append((len(self.sequence), len(tokens)))
        return (
            np.float32(10)
            * np.eye(self.vocab_size, dtype=np.float32)[1:][np.array(tokens if all_logits else tokens[-1:])]
        )


def test_score_runs_a_shared_question_once():
    server = Server()
    server._engine = engine = CountingEngine()
    question = [3, 4, 5, 6]
    answers = server.score([([*question, 7, 8], 4), ([*question, 9], 4), ([3, 4, 5, 20, 21], 4)])
    # (length of the sequence, tokens run): the question but for its last token, then what differs.
    assert engine.runs == [(3, 3), (5, 2), (4, 1), (4, 1)]
    norm = np.log(np.exp(10) + 49)
    np.testing.assert_allclose(answers[0][0], [10 - norm, 10 - norm], rtol=1e-6)
    np.testing.assert_allclose(answers[1][0], [-norm], rtol=1e-6)
    assert [greedy for _, greedy in answers] == [[True, True], [False], [True]]


def test_generate_is_greedy(worker, pruned_folder):
    with torch.no_grad():
        expected = load_model(pruned_folder).generate(
            torch.tensor([IDS]), max_new_tokens=3, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
    assert worker.generate(IDS, 3) == expected[0, len(IDS) :].tolist()


def test_timing_and_memory(worker):
    timing = worker.time(IDS, 5)
    assert timing["ttft_s"] > 0 and len(timing["decode_s"]) == 5
    assert 0 < sum(timing["decode_cpu_s"]) < 1.5 * sum(timing["decode_s"]), "one thread"
    memory = worker.memory()
    assert memory["peak"] >= memory["now"] >= memory["pss"] > 2**20


def test_steps_at_a_depth_leave_no_trace(worker):
    worker.fill(IDS)
    first, again = worker.time_steps(7, 3), worker.time_steps(7, 64 - len(IDS))
    assert len(first["decode_s"]) == 3 and len(again["decode_cpu_s"]) == 64 - len(IDS), (
        "the whole rest of the context is free again"
    )
    with pytest.raises(SaapError, match="fit into a context"):
        worker.time_steps(7, 65 - len(IDS))


def test_a_sequence_filled_in_pieces_is_the_same(monkeypatch):
    monkeypatch.setattr("saap_edge.engines.child.PIECE", 5)
    server = Server()
    server._engine = engine = CountingEngine()
    server.fill(IDS[:12])
    assert engine.sequence == IDS[:12] and [count for _, count in engine.runs] == [5, 5, 2]
    server.time_steps(20, 4)
    assert engine.sequence == IDS[:12] and len(engine.runs) == 7


def test_errors_come_back_in_words(worker):
    with pytest.raises(SaapError, match="fit into a context"):
        worker.generate(IDS * 4, 1)
    assert len(worker.generate(IDS, 1)) == 1, "the child goes on after an error"


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGKILL])
def test_death_of_the_child_is_an_error_here(artifact, number):
    with Worker(*artifact, 1, 64) as worker:
        os.kill(worker._process.pid, number)
        worker._process.wait()
        with pytest.raises(SaapError, match=f"died in 'generate'.*{number.name}") as died:
            worker.generate(IDS, 1)
    killed = number == signal.SIGKILL
    assert ("MiB are free here" in str(died.value) and "Take fewer bits" in str(died.value)) == killed


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="the kernel has no order of killing")
def test_the_kernel_takes_the_child_before_its_parent(worker):
    child, own = (Path(f"/proc/{number}/oom_score_adj") for number in (worker._process.pid, "self"))
    assert int(child.read_text()) == 1000 > int(own.read_text())


def test_what_cannot_be_loaded_is_named(artifact, tmp_path):
    with pytest.raises(SaapError, match="none"):
        Worker(artifact[0], tmp_path / "none", 1, 64)
