"""Predictions: by hand, in what direction they move, what widens them, and that what ships is what the data gives."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saap_edge.prediction import predict as module
from saap_edge.prediction.formulas import lanes, load_fit, weights_of
from saap_edge.prediction.predict import ArtifactCost, Estimate, predict
from saap_edge.targets import Bandwidth, Core, Figure, Kernel, Target, list_targets, load_target

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import prediction  # noqa: E402
import published  # noqa: E402

LLAMA = ArtifactCost("gguf-q4_0", 1_900_000_000, 114_688, 2_000_000_000, 3_213_000_000)
BOARDS = {name: load_target(name) for name in ("rpi4", "rpi5", "rk3566", "n100", "steam-deck", "graviton3")}
FIT = {
    "decode": {"copy": 0.5, "theory": 0.4, "dot": 0.25, "plain": 2.0, "layer_us": 100.0},
    "prefill": {"4": 0.5, "8": 1.0, "16": 2.0, "plain": 4.0}, "accelerator": {"theory": 0.25},
    "boards": {"known": {"decode": {"factor": 2.0, "sources": 2}, "prefill": {"factor": 4.0, "sources": 1}}},
    "intervals": {
        "decode-known": [0.9, 1.1], "decode-new": [0.5, 2.0], "prefill": [0.25, 4.0], "accelerator": [0.1, 10.0],
    },
    "memory": {
        "gguf": {"base_mib": 50, "of_file": 1.0, "low": 0.9, "high": 1.2},
        "gguf-repacked": {"base_mib": 60, "of_file": 1.1, "low": 0.9, "high": 1.2},
        "gguf-mapped": {"base_mib": 60, "of_file": 2.0, "low": 0.9, "high": 1.2},
        "onnx-codes": {"base_mib": 70, "of_file": 1.5, "low": 0.9, "high": 1.2},
    },
    "evidence": {"smallest_bytes": 10},
}  # fmt: skip


def figure(value, **more):
    return Figure(value=value, source="by hand here", **more)


def board(name="new", copy=20.0, theory=None, isa=("neon", "dotprod"), **more):
    """Four cores: 2 GHz times 256 bits are 4 vectors a nanosecond each, 1 GHz times 128 one."""
    cores = [
        Core(kind="small", count=2, clock_ghz=figure(1.0), simd_bits=figure(128)),
        Core(kind="big", count=2, clock_ghz=figure(2.0), simd_bits=figure(256)),
    ]
    known = Bandwidth(copy_measured=copy and figure(copy), theoretical=theory and figure(theory))
    return Target(**{
        "name": name, "title": name, "cpu": "", "cores": cores, "isa": list(isa), "ram_mib": [1000, 4000],
        "system_ram_mib": figure(200), "bandwidth_gb_s": known, "threads": 2, "source": "by hand here",
    } | more)  # fmt: skip


@pytest.fixture
def by_hand(monkeypatch):
    monkeypatch.setattr(module, "load_fit", lambda: FIT)


# 27e6 weights of 8.5 bits: the cube root over 30 is 10.
SMALL = ArtifactCost("gguf-q8_0", 28_687_500, 1000, 30 * 2**20, 27_000_000)


def test_decode_by_hand(by_hand):
    seconds = (28_687_500 + 500 * 1000) / 10e9 + 27e6 * 0.25 / 8e9 + 10 * 100e-6 / 2
    found = predict(SMALL, board(), 100, 500).decode_tok_s
    assert found.value == pytest.approx(1 / seconds) and found.low == pytest.approx(0.5 / seconds)
    plain = (28_687_500 + 500 * 1000) / 8e9 + 27e6 * 2 / 8e9 + 10 * 100e-6 / 2
    found = predict(SMALL, board(copy=None, theory=20.0, isa=("neon",)), 100, 500).decode_tok_s
    assert found.value == pytest.approx(1 / plain)
    known = (28_687_500 + 500 * 1000) / 20e9 + 27e6 * 0.25 / 8e9 + 10 * 100e-6 / 2
    assert predict(SMALL, board("known"), 100, 500).decode_tok_s == Estimate(
        pytest.approx(1 / known), pytest.approx(0.9 / known), pytest.approx(1.1 / known)
    )


def test_fewer_threads_by_hand(by_hand):
    # One of two threads: 1 / (1 + 1) of the queue that two fill to 2 / (2 + 1), and one core's vectors.
    seconds = (28_687_500 + 500 * 1000) / (10e9 * 0.75) + 27e6 * 0.25 / 4e9 + 10 * 100e-6 / 2
    found = predict(SMALL, board(), 100, 500, threads=1).decode_tok_s
    assert found.value == pytest.approx(1 / seconds) and found.low == pytest.approx(0.25 / seconds)


def test_prefill_and_memory_by_hand(by_hand):
    found = predict(SMALL, board(), 100, 500)
    seconds = 100 * 27e6 * 1.0 / 8e9
    assert found.ttft_ms.value == pytest.approx(1000 * seconds)
    assert (found.ttft_ms.low, found.ttft_ms.high) == (pytest.approx(250 * seconds), pytest.approx(4000 * seconds))
    assert found.prefill_tok_s.value == pytest.approx(100 / seconds)
    assert predict(SMALL, board("known"), 100, 500).ttft_ms.value == pytest.approx(250 * seconds)
    cached = 500 * 1000 / 2**20
    assert found.ram_mib == Estimate(80 + cached, pytest.approx(72 + cached), pytest.approx(96 + cached))
    repacked = ArtifactCost("gguf-q4_0", 15_187_500, 0, 30 * 2**20, 27_000_000)
    found = predict(repacked, board(), 100, 500)
    assert (found.ram_mib.value, found.ram_mapped_mib.value) == (93, 120)
    found = predict(repacked, board(isa=("neon",)), 100, 500)  # nothing to repack for
    assert (found.ram_mib.value, found.ram_mapped_mib) == (80, None)


def test_a_prompt_of_one_token_reads_all_weights_once(by_hand):
    found = predict(SMALL, board(), 1, 500)
    once = 28_687_500 / 10e9 + 27e6 * 0.25 / 8e9 + 10 * 100e-6 / 2
    assert found.ttft_ms.value == pytest.approx(1000 * once)


def test_a_probed_kernel_is_believed(by_hand):
    kernels = {"gguf-q8_0": Kernel(gemv_gb_s=figure(5), gemm_gmac_s=figure(9))}
    found = predict(SMALL, board(kernels=kernels), 100, 500)
    assert found.decode_tok_s.value == pytest.approx(1 / ((28_687_500 + 500_000) / 5e9 + 10 * 100e-6 / 2))
    assert found.ttft_ms.value == pytest.approx(1000 * 100 * 27e6 / 9e9) and "probe" in found.basis


@pytest.mark.parametrize(("high", "low", "ram", "expected"), [
    (700, 600, None, (True, 1000)), (900, 700, None, (None, 4000)), (5000, 3900, None, (False, None)),
    (5000, 3700, None, (None, None)), (900, 700, 1200, (True, 1200)), (900, 850, 1000, (False, None)),
])  # fmt: skip
def test_what_fits(high, low, ram, expected):
    assert module._fits(Estimate(low, low, high), board(), ram) == expected


@given(
    st.sampled_from(list(BOARDS)), st.floats(1.001, 50),
    st.sampled_from(["projection_bytes", "parameters", "kv_bytes_per_token", "file_bytes"]),
)  # fmt: skip
def test_more_work_is_never_faster_nor_smaller(name, times, what):
    target = BOARDS[name]
    more = ArtifactCost(**(vars(LLAMA) | {what: round(getattr(LLAMA, what) * times)}))
    small, large = predict(LLAMA, target, 200, 1000), predict(more, target, 200, 1000)
    assert large.decode_tok_s.value <= small.decode_tok_s.value
    assert large.ttft_ms.value >= small.ttft_ms.value and large.ram_mib.value >= small.ram_mib.value
    for estimate in (large.decode_tok_s, large.prefill_tok_s, large.ttft_ms, large.ram_mib):
        assert 0 < estimate.low <= estimate.value <= estimate.high


@given(st.floats(1, 300), st.floats(1.01, 10), st.integers(1, 3))
def test_a_better_board_is_faster(copy, times, threads):
    slow, fast = board(copy=copy), board(copy=copy * times)
    assert predict(LLAMA, fast, 100, 500).decode_tok_s.value > predict(LLAMA, slow, 100, 500).decode_tok_s.value
    few, many = (predict(LLAMA, board(), 100, 500, count) for count in (threads, threads + 1))
    assert many.decode_tok_s.value > few.decode_tok_s.value and many.ttft_ms.value < few.ttft_ms.value


def width(estimate):
    return estimate.high / estimate.low


def test_what_no_row_covers_widens():
    usual = width(predict(LLAMA, load_target("rpi5"), 128, 512).decode_tok_s)
    onnx = ArtifactCost(**(vars(LLAMA) | {"format": "onnx-int4"}))
    tiny = ArtifactCost(**(vars(LLAMA) | {"projection_bytes": 1_000_000}))
    for cost, threads, word in ((onnx, None, "ONNX"), (LLAMA, 2, "2 threads"), (tiny, None, "less than")):
        found = predict(cost, load_target("rpi5"), 128, 512, threads)
        assert width(found.decode_tok_s) == pytest.approx(usual**2) and word in found.basis
    probed = load_target("rpi5").model_copy(update={"kernels": {
        "gguf-q4_0": Kernel(gemv_gb_s=figure(9), gemm_gmac_s=figure(60)),
        "onnx-int8": Kernel(gemv_gb_s=figure(8), gemm_gmac_s=figure(50)),
    }})  # fmt: skip
    own = predict(onnx, probed, 128, 512)
    assert width(own.decode_tok_s) == pytest.approx(usual) and "ONNX" not in own.basis and "probe" in own.basis
    assert "probe" not in predict(LLAMA, probed, 128, 512, threads=2).basis
    # One source of a board is no proof of another: its interval is that of boards nobody measured.
    one = predict(LLAMA, load_target("rk3566"), 128, 512)
    assert width(one.decode_tok_s) == pytest.approx(
        width(predict(LLAMA, load_target("orin-nano"), 128, 512).decode_tok_s)
    )
    assert width(one.decode_tok_s) > usual and "nobody" in predict(LLAMA, load_target("orin-nano"), 128, 512).basis


def test_what_cannot_be_told_says_why():
    phone = predict(LLAMA, load_target("pixel8"), 128, 512)
    assert phone.decode_tok_s is phone.prefill_tok_s is phone.ttft_ms is None and phone.ram_mib
    assert "states no memory bandwidth" in phone.reasons["decode_tok_s"] and "target probe" in phone.reasons["ttft_ms"]
    gpu = predict(LLAMA, load_target("orin-nano-gpu"), 128, 512)
    assert gpu.decode_tok_s and gpu.prefill_tok_s is gpu.ram_mib is gpu.fits is None and "on the CPU" in gpu.basis
    assert width(gpu.decode_tok_s) > 4
    cores = [Core(kind="odd", count=4)]
    assert "x86" in predict(LLAMA, load_target("n100"), 128, 512).basis
    assert "clock_ghz" in predict(LLAMA, board(cores=cores), 128, 512).reasons["decode_tok_s"]


def test_every_board_is_predicted_or_says_why():
    for name in list_targets():
        found = predict(LLAMA, load_target(name), 128, 512)
        for what in ("decode_tok_s", "prefill_tok_s", "ttft_ms", "ram_mib"):
            assert getattr(found, what) or found.reasons[what], (name, what)


def test_threads_take_the_fastest_cores():
    assert [lanes(board(), count) for count in (1, 2, 3, 4)] == [4, 8, 9, 10]


def test_weights_leave_a_table_out():
    untied = ArtifactCost("gguf-q8_0", 850, 0, 1000, 1200)
    assert weights_of(untied) == 800 and weights_of(ArtifactCost("gguf-q8_0", 850, 0, 1000, 700)) == 700


def line(**more):
    plain = dict.fromkeys(("note", "pp_tps", "threads"), "") | {
        "board": "rpi5", "model": "llama3.1:8b", "quant": "Q4_K_M", "file_bytes": "4917737553", "tg_tps": "2.17",
        "bytes_basis": "blob", "engine": "Ollama", "bw_theo_GBs": "17.07", "in_stats": "y", "source": "https://a.b/c",
    }  # fmt: skip
    return plain | more


def test_bytes_of_published_rows_by_hand():
    import csv

    boards = published.read_boards([published.DATA / "boards"])
    with (published.DATA / "models.csv").open() as file:
        models = {name: model for model in csv.DictReader(file) for name in model["names"].split("|")}

    def row(**more):
        return published._row(line(**more), boards, models)

    untied = row()
    assert untied.bytes == 4917737553 - 128256 * 4096 * 4.5 / 8 and untied.weights == 8.03e9 - 128256 * 4096
    assert row(model="llama3.2:3b", file_bytes="2019347660").bytes == 2019347660  # the table is the head
    estimate = row(model="Qwen3 0.6B", quant="Q4_0", bytes_basis="EST params*4.5bpw")
    head = 151936 * 1024
    assert estimate.bytes == pytest.approx((596e6 - head) * 4.5 / 8 + head * 6.5625 / 8)
    gemma = row(model="Gemma3 1B", quant="Q4_0", bytes_basis="EST params*bpw")
    head = 262144 * 1152  # 1152 is no multiple of 256: Q8_0
    assert gemma.bytes == pytest.approx((1e9 - head) * 4.5 / 8 + head * 8.5 / 8)
    assert [row(in_stats="n"), row(board="rk3588_npu"), row(engine="rustllm"), row(model="unheard")] == [
        "in_stats", "npu", "engine", "model",
    ]  # fmt: skip
    assert row(board="pixel8") == "bandwidth"


def test_what_ships_is_what_the_data_gives():
    data = published.DATA / "measurements.csv"
    shipped = load_fit()
    assert shipped["evidence"]["data_sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()
    rows, _ = published.read_rows(data, published.read_boards([published.DATA / "boards"]))
    assert len(rows) == shipped["evidence"]["rows"]
    for name, kind in prediction.KINDS.items():
        unknowns, factors = prediction.fit(kind, [row for row in rows if kind.observed(row)])
        assert unknowns == pytest.approx(shipped[name], rel=0.02)
        what = "prefill" if name == "prefill" else "decode"
        for target, factor in factors.items():
            if target in list_targets():
                assert shipped["boards"][target][what]["factor"] == pytest.approx(factor, rel=0.02)
    assert prediction.memory_fit() == shipped["memory"]


def test_the_published_result_meets_the_goals():
    result = json.loads((ROOT / "benchmarks/results/prediction.json").read_text())
    assert result["fit"] == load_fit()
    errors = result["errors"]["decode"]
    assert errors["Arm CPUs with dotprod"]["source"]["median"] <= 0.10
    assert errors["all CPUs"]["source"]["median"] <= 0.20


def test_the_page_shows_the_result():
    page = (ROOT / "docs" / "prediction.md").read_text(encoding="utf-8")
    result = json.loads((ROOT / "benchmarks/results/prediction.json").read_text())
    rows = [
        line.strip("| ").split(" | ")
        for line in page.splitlines()
        if line.startswith(("| decode", "| prefill", "| acc"))
    ]
    assert len(rows) == 10
    for what, boards, way, *figures in rows:
        found = result["errors"][what][boards][way]
        shown = [*(f"{found[key]:.1%}" for key in ("median", "p80", "worst")), f"{found['inside']:.0%}"]
        assert figures == [str(found["rows"]), str(found["boards"]), str(found["sources"]), *shown], (what, boards, way)
    for rule, count in result["dropped"].items():
        assert re.search(rf"^\| `{rule}`: .* \| {count} \|$", page, re.MULTILINE), rule
    for low, high in result["fit"]["intervals"].values():
        assert re.search(rf"{low:.2f}\s+to\s+{high:.2f}", page), (low, high)
    here = json.loads((ROOT / "benchmarks/results/prediction-here.json").read_text())
    for row in here["rows"]:
        cells = []
        for what in ("decode_tok_s", "ttft_ms"):
            ways = [row[f"{what} {way}"] for way in ("probed", "bandwidth")]
            cells += [f"{row[what]:.1f}", *(f"{each['ratio']:.2f}{'' if each['inside'] else '*'}" for each in ways)]
        assert f"| {row['format']} | {' | '.join(cells)} |" in page


def test_intervals_hold_what_they_say():
    rows = [prediction.Left(None, log / 100, True, str(log % 7)) for log in range(-50, 51)]
    low, high = prediction.interval(rows)
    inside = sum(low <= 2.718281828 ** (log / 100) <= high for log in range(-50, 51))
    assert 0.75 <= inside / 101 <= 0.85


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "saap_edge", "predict", *arguments], capture_output=True, text=True, env=os.environ
    )


def test_the_command(tmp_path):
    from saap_edge.probe.gguf_model import write_probe_model

    path = tmp_path / "model.gguf"
    write_probe_model(path, "q8_0", 1)
    done = run(str(path), "--target", "rpi4", "--json", "--ram", "1024")
    assert done.returncode == 0 and "predicted, not measured" in done.stderr
    document = json.loads(done.stdout)
    assert document["predicted"] is True and document["fits"] is True
    assert document["decode_tok_s"]["low"] < document["decode_tok_s"]["value"] < document["decode_tok_s"]["high"]
    for arguments, expected in [
        ([str(path), "--target", "toaster"], "unknown target 'toaster'"),
        ([str(tmp_path / "x.gguf"), "--target", "rpi4"], "is no artifact"),
        ([str(path), "--target", "rpi4", "--threads", "99"], "'rpi4' has 4 cores"),
    ]:  # fmt: skip
        failed = run(*arguments)
        assert failed.returncode == 2 and expected in failed.stderr and not failed.stdout
