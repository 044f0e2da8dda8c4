"""What a run is told to take, before it begins."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from saap_edge.chain.ahead import GIB, check_memory, plan_lines
from saap_edge.chain.chains import ORDER
from saap_edge.chain.estimate import ESTIMATED, HIGH, LOW, Estimate, Rates, estimate_stages, measure_rates
from saap_edge.errors import SaapError
from saap_edge.exporting.settings import FORMATS
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.spec import LayerShape
from saap_edge.recipe import Recipe, bundled_model

RESULTS_FOLDER = Path(__file__).parents[2] / "benchmarks" / "results"
RESULTS = sorted(RESULTS_FOLDER.glob("estimate*.json"))
RATES = Rates(1e11, 1e10)
MEASURED = {
    stage: times["cpu"]
    for stage, times in json.loads((RESULTS_FOLDER / "compile-time.json").read_text())["times"]["this"].items()
    if stage != "recover"
}


@pytest.fixture(scope="module")
def spec():
    return read_spec(bundled_model())


@pytest.fixture(scope="module")
def smollm(spec):
    return replace(spec, hidden=576, head_dim=64, vocab_size=49152, layers=(LayerShape(9, 3, 1536),) * 30, tied=True)


def estimated(spec, rates=RATES, **recipe):
    return estimate_stages(ORDER, spec, Recipe.model_validate(recipe), rates)


def seconds(spec, rates=RATES, **recipe):
    return {name: estimate.seconds for name, estimate in estimated(spec, rates, **recipe).items()}


def test_every_stage_that_takes_time_has_an_estimate(spec):
    recipe = Recipe.model_validate({"data": {"calibration": "self"}})
    found = estimate_stages(("write", *ORDER), spec, recipe, RATES)
    assert set(found) == ESTIMATED == {"write", *ORDER} - {"gate", "report"}
    assert all(estimate.seconds > 0 and estimate.bytes > 0 for estimate in found.values())


def test_writing_grows_with_what_is_written_and_with_the_model(spec, smollm):
    def write(spec, **data):
        recipe = Recipe.model_validate({"data": {"calibration": "self"} | data})
        return estimate_stages(("write",), spec, recipe, RATES)["write"]

    assert write(smollm).seconds > 10 * write(spec).seconds
    assert write(smollm, self_tokens=80_000).seconds == pytest.approx(write(smollm).seconds / 3, rel=0.1)
    assert write(smollm, calibration=["self", "a.txt"]).seconds == pytest.approx(write(smollm).seconds / 2, rel=0.1)
    # 32 documents of 768 tokens in SmolLM2's KV cache, 23040 bytes a token, beside 8 bits a weight.
    assert 32 * 768 * 23_040 < write(smollm).bytes < 2 * 32 * 768 * 23_040 + 800 * 2**20


MORE = {
    "samples": ({"score": {"samples": 128}}, {"score", "bank", "recover"}),
    "repaired": ({"prune": {"samples": 256}}, {"prune"}),
    "window": ({"score": {"window": 512}}, {"score", "bank", "plan", "prune"}),
    "tokens": ({"recover": {"tokens": 2_000_000}}, {"recover"}),
    "no repair": ({"prune": {"repair": False}}, set()),
    "evaluations": ({"prune": {"evaluations": 1000}}, {"plan"}),
    "checkpointing": ({"score": {"checkpointing": True}}, {"score"}),
    "formats": (
        {"export": {"formats": ["gguf-f32", *FORMATS]}},
        {"dense", "export", "verify", "bench"},
    ),
    "rounds": ({"bench": {"rounds": 100}}, {"bench"}),
}  # fmt: skip


@pytest.mark.parametrize("change", MORE)
def test_more_work_takes_longer(spec, change):
    recipe, longer = MORE[change]
    before, after = seconds(spec), seconds(spec, **recipe)
    for name in before:
        if name in longer:
            assert after[name] > 1.01 * before[name], name
        elif not longer:
            assert after[name] <= before[name], name
        else:
            assert after[name] >= 0.999 * before[name], name


def test_a_larger_model_takes_longer_and_more_memory(spec, smollm):
    small, deep, large = (estimated(each) for each in (spec, replace(spec, layers=spec.layers * 4), smollm))
    for name in small:
        assert small[name].seconds < deep[name].seconds < large[name].seconds, name
        assert small[name].bytes <= deep[name].bytes < large[name].bytes, name


def test_a_faster_machine_takes_less(spec):
    slow, fast = seconds(spec), seconds(spec, Rates(2e11, 2e10))
    assert all(fast[name] < slow[name] for name in slow)


@pytest.mark.parametrize("bfloat16", [True, False])
def test_methods_and_efforts_differ_as_they_do(smollm, bfloat16):
    """Of SmolLM2-135M in bfloat16: CPU seconds of one thread, from benchmarks/results/compile-time.json."""
    rates, precision = Rates(8.7e10, 1.3e10), "bfloat16" if bfloat16 else "float32"
    kfac, normal, thorough = (
        seconds(smollm, rates, prune={"ratio": 0.2} | prune, score={"precision": precision})
        for prune in ({"method": "kfac"}, {}, {"effort": "thorough"})
    )
    if bfloat16:
        for name, measured in MEASURED.items():
            assert LOW * normal[name] < measured < HIGH * normal[name], (name, normal[name])
    else:
        assert normal["score"] > 1.3 * MEASURED["score"]
    assert kfac["plan"] < normal["plan"] < thorough["plan"] / 3


def test_methods_that_learn_take_time_and_memory_by_what_they_do(smollm):
    kfac, forward, gates, longer = (
        estimated(smollm, prune={"method": method, "evaluations": steps})["plan"]
        for method, steps in (("kfac", 200), ("policy-gradient", 200), ("compresso", 200), ("compresso", 400))
    )
    assert kfac.seconds < gates.seconds < longer.seconds and kfac.seconds < forward.seconds
    assert kfac.bytes == forward.bytes < gates.bytes == longer.bytes  # gradients need activations
    less = estimated(smollm, prune={"method": "compresso"}, score={"checkpointing": True})["plan"]
    assert less.bytes < gates.bytes


def test_memory_follows_what_the_recipe_says_of_it(smollm):
    plain = estimated(smollm)
    half = estimated(smollm, score={"dtype": "bfloat16", "checkpointing": True}, recover={"top": 64})
    assert half["score"].bytes < 0.7 * plain["score"].bytes and half["recover"].bytes < plain["recover"].bytes
    added, multiplied, whole = (
        estimated(smollm, recover={"adapter": name})["recover"].bytes for name in ("lora", "spp", "all")
    )
    assert whole == plain["recover"].bytes  # a small model
    weights = 4 * 30 * (576 * 576 * 8 // 3 + 3 * 576 * 1536)
    assert 0.6 * weights * 4 < whole - added < weights * 5  # gradients, two moments, and two copies
    assert 2 * 4 * 576 * 1536 < multiplied - added < 0.05 * added  # a few matrices of weights, for the gradient


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_what_was_measured_lies_within(path, spec):
    """Estimated anew, from the rates and the shape that `benchmarks/estimate.py` noted beside what it measured."""
    result = json.loads(path.read_text())
    shape = dict(result["shape"])
    layers = (LayerShape(*shape.pop("widths")),) * shape.pop("layers")
    measured = {row["stage"]: row for row in result["stages"]}
    rates = Rates(result["gflops"] * 1e9, result["gbytes"] * 1e9)
    found = estimate_stages(measured, replace(spec, layers=layers, **shape), Recipe(**result["recipe"]), rates)
    assert set(found) == set(measured) >= {"score"}
    for name, row in measured.items():
        assert LOW < row["seconds"] / found[name].seconds < HIGH, (name, found[name].seconds)
        assert 0.7 < row["peak_mib"] * 2**20 / found[name].bytes < 1.3, (name, found[name].bytes)


def test_rates_are_those_of_a_machine():
    rates = measure_rates()
    assert 1e8 < rates.flops < 1e14 and 1e8 < rates.bytes < 1e13


def test_memory_that_never_suffices_is_refused_and_too_little_of_it_is_told():
    found = {"score": Estimate(1, 3 * GIB), "recover": Estimate(1, 5 * GIB)}
    assert check_memory(found, 8 * GIB, 6 * GIB) is None
    note = check_memory(found, 8 * GIB, 4 * GIB)
    assert "recover needs about 5.0 GiB of memory, of which 4.0 GiB are free" in note
    with pytest.raises(
        SaapError, match=r"recover needs about 5\.0 GiB of memory, and there are 4\.5 GiB here.*recover\.top"
    ):
        check_memory(found, int(4.5 * GIB), 4 * GIB)


def test_the_announcement_in_words():
    found = {"bank": Estimate(20, GIB), "plan": Estimate(400, 2 * GIB)}
    lines = plan_lines({"score": True, "bank": False, "plan": False, "gate": False}, found, "x", 8 * GIB, 6 * GIB)
    assert lines == [
        "to do:", "  score    already there", "  bank     12 to 34 s, 1.0 GiB", "  plan     4 to 11 min, 2.0 GiB",
        "  gate     seconds",
        "  in all   about 4 to 12 min and 2.0 GiB of memory (6.0 of 8.0 GiB are free); an estimate, from x",
    ]  # fmt: skip
    [line] = plan_lines({"bank": False}, {"bank": found["bank"]}, "x", 8 * GIB, 6 * GIB)
    assert line.startswith("bank: about 12 to 34 s and 1.0 GiB of memory")
