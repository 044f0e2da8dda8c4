"""The whole chain by the command line, on models off the beaten path, and every kind of bad input."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from saap_edge import cli
from saap_edge.api.recipes import recipe_of
from saap_edge.cache import read_stage
from saap_edge.chain.chains import COMPILE, ORDER
from saap_edge.chain.context import open_context
from saap_edge.chain.stages.bench import conditions_of
from saap_edge.cli import base
from saap_edge.exporting.settings import ExportSettings
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import build_pruned
from saap_edge.model.spec import LayerShape
from saap_edge.recipe import Recipe
from tests.conftest import TEXT, randomise_projections, tiny_model, write_folder
from tests.exporting.test_families import GEMMA, gemma_folder
from tests.exporting.tokenizer_texts import TEKKEN
from tests.families.test_gemma4 import LENT

SMALL = {
    "score": {"samples": 8, "batches": 4, "window": 32},
    "prune": {"ratio": 0.3},
    "recover": {"tokens": 1024, "batch": 4, "rank": 4},
    # One thread: two of a runtime's spin while they wait for each other, which on a busy machine takes minutes.
    "bench": {"threads": 1, "prompt_tokens": 8, "decode_tokens": 4, "rounds": 3, "perplexity_windows": 2},
}
# The 260K Llama of the wild: FFN off the grid, heads so narrow that one kv group is half a block.
ODD = {"hidden_size": 64, "intermediate_size": 172, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}


def call(monkeypatch, capsys, *arguments):
    """Run the command line in this process: (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["saap-edge", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


@pytest.fixture
def saap(monkeypatch, capsys):
    return lambda *arguments: call(monkeypatch, capsys, *arguments)


def write_recipe(folder: Path, model: Path, **changes) -> Path:
    data = folder / "text.txt"
    data.write_text(TEXT * 3)
    texts = dict.fromkeys(("calibration", "heldout", "test"), str(data))
    recipe = {"model": str(model), "data": texts, **SMALL, **changes}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module", params=["llama-off-grid", "qwen2"])
def compiled(request, tmp_path_factory):
    """A whole run in a process of its own, as a user starts it: (out, recipe, stdout document)."""
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny_model("llama", **ODD) if request.param == "llama-off-grid" else tiny_model("qwen2")
    recipe = write_recipe(
        folder, write_folder(model, folder / "dense"), prune={"ratio": 0.3, "method": "saap"},
        budget={"limits": [{"metric": "kv_bytes_per_token", "max": 10_000}]},
    )  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-m", "saap_edge", "compile", str(recipe), "--out", str(folder / "out"), "--json"],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / "out", recipe, json.loads(result.stdout)


def test_compile_gives_verified_files(compiled):
    out, _, document = compiled
    assert [stage["stage"] for stage in document["stages"]][-1] == "report"
    assert (out / "report.html").stat().st_size > 10_000
    report = json.loads((out / "report.json").read_text())
    assert report["schema_version"] == 2
    plan = json.loads((out / "plan.json").read_text())
    assert plan["achieved_ratio"] >= 0.3
    verify = json.loads(next((out / "stages").glob("verify-*/verify.json")).read_text())["artifacts"]
    assert len(verify) == 10 and all(entry["passed"] for entry in verify)
    assert AutoModelForCausalLM.from_pretrained(out / "model") is not None


def test_a_whole_run_gives_a_bundle(compiled, saap, tmp_path):
    out, _, _ = compiled
    for name in ("gguf-q4_0", "onnx-int4"):
        code, _, stderr = saap("bundle", out, "--format", name, "--out", tmp_path / name)
        assert code == 0, stderr
        code, stdout, _ = saap("verify", tmp_path / name, "--json")
        assert code == 0
        document = json.loads(stdout)
        assert (document["format"], document["problems"], document["notes"]) == (name, [], [])
        assert {"score", "plan", "prune", "recover", "export"} <= set(document["lineage"])


COMPILED = {
    "qwen3": ("openelm", ["gguf-f16", "gguf-q4_0", "onnx-int4", "onnx-int8"]),
    "gemma3_text": ("gemma3", ["gguf-f16", "gguf-q4_1", "onnx-int4"]),
    "gemma4_text": ("gemma4", ["gguf-q4_0", "onnx-int4"]),  # some layers of which borrow keys and values
}


@pytest.mark.parametrize("family", list(COMPILED))
def test_compile_of_families_with_their_own_writers(family, saap, tmp_path):
    """The default method: per layer where the runtimes take that, uniform in Gemma."""
    architecture, formats = COMPILED[family]
    folder = (
        gemma_folder(family, tmp_path / "m")
        if family in GEMMA
        else write_folder(tiny_model(family, **(LENT if family == "gemma4_text" else {})), tmp_path / "m")
    )
    recipe = write_recipe(tmp_path, folder, export={"formats": formats, "group": 64})
    code, _, stderr = saap("compile", recipe, "--out", tmp_path / "out")
    assert code == 0, stderr
    verify = json.loads(next((tmp_path / "out" / "stages").glob("verify-*/verify.json")).read_text())["artifacts"]
    assert len(verify) == 2 * len(formats) and all(entry["passed"] for entry in verify)
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["achieved_ratio"] >= 0.3
    for role in ("dense", "export"):
        manifest = json.loads(next((tmp_path / "out" / "stages").glob(f"{role}-*/manifest.json")).read_text())
        assert manifest["group"] == 64
    assert manifest["artifacts"][0]["details"]["architecture"] == architecture


def stages_of(recipe):
    context = open_context(recipe, None, bar=None)
    return {rule.name: rule.stage(context) for rule in COMPILE}


def test_another_group_exports_anew():
    """Both roles: speed is compared at equal groups."""
    small_stages, large_stages = (
        stages_of(Recipe(export=ExportSettings(formats=("onnx-int4",), group=group))) for group in (32, 128)
    )
    for name in ("dense", "export"):
        assert small_stages[name].settings != large_stages[name].settings
    with pytest.raises(ValidationError, match=r"32, 64, 128 or 256"):
        ExportSettings(group=48)


def test_second_run_does_nothing(compiled, saap):
    out, recipe, _ = compiled
    code, stdout, stderr = saap("compile", recipe, "--out", out, "--json")
    ran = [stage for stage in json.loads(stdout)["stages"] if not stage["cached"]]
    # Both records of a stage that ran again, to see what it took for another.
    assert ran == [], [read_stage(path) for stage in ran for path in (out / "stages").glob(f"{stage['stage']}-*")]
    assert code == 0 and "nothing to do" in stderr


def test_a_machine_whose_memory_grows_is_the_same_machine(compiled, monkeypatch):
    """Virtual machines are given memory while they run: nothing is measured anew for that."""
    recipe = Recipe.model_validate(yaml.safe_load(compiled[1].read_text()))
    before, grown = psutil.virtual_memory(), psutil.virtual_memory()._replace(total=2**30)
    keys = []
    for memory in (before, grown):
        monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
        stages = stages_of(recipe)
        keys.append([stages[name].settings for name in ORDER])
    assert keys[0] == keys[1]


def test_stock_runtimes_run_the_files(compiled):
    """llama_cpp.Llama, a plain InferenceSession and onnxruntime-genai, each as its users call it."""
    import llama_cpp
    import onnxruntime
    import onnxruntime_genai

    out = compiled[0]
    llama = llama_cpp.Llama(str(out / "gguf" / "model-q4_0.gguf"), n_ctx=64, verbose=False, flash_attn=True)
    prompt = llama.tokenize(b"The quick brown")
    assert len(list(itertools.islice(llama.generate(prompt, temp=0.0), 4))) == 4
    session = onnxruntime.InferenceSession(out / "onnx" / "int4" / "model.onnx", providers=["CPUExecutionProvider"])
    feeds = {"input_ids": np.array([[1, 2, 3]]), "attention_mask": np.ones((1, 3), dtype=np.int64)}
    for entry in session.get_inputs():
        if entry.name.startswith("past"):
            feeds[entry.name] = np.zeros((1, entry.shape[1], 0, entry.shape[3]), dtype=np.float32)
    assert np.isfinite(session.run(["logits"], feeds)[0]).all()
    model = onnxruntime_genai.Model(str(out / "onnx" / "int4"))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=8, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens([5, 6, 7])
    generator.generate_next_token()
    assert len(generator.get_sequence(0)) == 4


def test_each_stage_alone(compiled, saap):
    """A new ratio from the saved scores, then on from its folder."""
    out = compiled[0]
    folder = next((out / "stages").glob("score-*"))
    for name, options in (
        ("plan", ("--ratio", "0.4", "--method", "llm-pruner-element")),
        ("prune", ()),
        ("recover", ("--tokens", "0")),
    ):
        code, stdout, stderr = saap(name, folder, *options, "--json")
        assert code == 0, stderr
        folder = Path(json.loads(stdout)["stages"][-1]["folder"])
        assert folder.name.startswith(name)
    shapes = read_spec(folder / "model").layers
    assert len(shapes) == 3 and shapes != read_spec(out / "model").layers


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lie(path: Path) -> None:
    path.write_text(path.read_text().replace('"sha256": "', '"sha256": "0'))


DAMAGES = {
    "a flipped bit": ("gguf/model-q4_0.gguf", flip),
    "a truncated file": ("onnx/int4/model.onnx.data", lambda path: os.truncate(path, path.stat().st_size - 1)),
    "a missing file": ("gguf/model-f16.gguf", Path.unlink),
    "another tokenizer": ("onnx/fp32/tokenizer.json", flip),
    "another manifest": ("manifest.json", lie),
    "half a manifest": ("manifest.json", lambda path: os.truncate(path, 100)),
}  # fmt: skip


@pytest.mark.parametrize("role", ["export", "dense"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_refuses_files_that_were_good_once(compiled, saap, tmp_path, damage, role):
    shutil.copytree(compiled[0], tmp_path / "out", symlinks=True)
    export = next((tmp_path / "out" / "stages").glob("export-*"))
    name, harm = DAMAGES[damage]
    harm(next((tmp_path / "out" / "stages").glob(f"{role}-*")) / name)
    code, stdout, stderr = saap("verify", next((tmp_path / "out" / "stages").glob("verify-*")))
    assert code == 2 and not stdout, stderr
    assert ("is not a manifest" if damage == "half a manifest" else "is missing or was changed since export") in stderr
    assert "Traceback" not in stderr
    if role == "export":
        code, _, again = saap("verify", export)
        assert code == 2 and again == stderr


def test_gate_fails_with_exit_1_and_says_why(compiled, saap, tmp_path):
    bench = next((compiled[0] / "stages").glob("bench-*"))
    (tmp_path / "budget.yaml").write_text("limits:\n  - {metric: file_mib, max: 0.001, artifact: gguf-q4_0}\n")
    code, _, stderr = saap("gate", bench, "--budget", tmp_path / "budget.yaml")
    assert code == 1 and "file_mib" in stderr


def test_edited_plan_is_used(compiled, saap, tmp_path):
    out = compiled[0]
    plan = json.loads((out / "plan.json").read_text())
    plan["layers"][0]["ffn"][1] = 32
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code, stdout, stderr = saap(
        "plan", next((out / "stages").glob("score-*")), "--plan", tmp_path / "plan.json", "--json"
    )
    assert code == 0, stderr
    code, stdout, _ = saap("prune", json.loads(stdout)["stages"][-1]["folder"], "--json")
    assert read_spec(Path(json.loads(stdout)["stages"][-1]["folder"]) / "model").layers[0].ffn == 32


# Bad input: one line, exit 2, nothing left behind.


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_folder(tiny_model("llama"), tmp_path_factory.mktemp("tiny"))


def refused(saap, tmp_path, *arguments):
    out = tmp_path / "deep" / "out"
    code, stdout, stderr = saap("compile", *arguments, "--out", out)
    assert code == 2, stderr
    assert stderr.count("\n") == 1 and stderr.startswith("error: ") and not stdout
    assert not (tmp_path / "deep").exists()
    return stderr


def test_missing_model(saap, tmp_path):
    assert "no model folder" in refused(saap, tmp_path, "--model", tmp_path / "none")


def test_a_tokenizer_that_gguf_cannot_hold(saap, tmp_path):
    """Known from the model's folder: not to be found out after hours of recovery."""
    folder = write_folder(tiny_model("llama"), tmp_path / "m")
    document = json.loads((folder / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": TEKKEN}, "behavior": "Isolated", "invert": False}
    document["pre_tokenizer"] = split
    (folder / "tokenizer.json").write_text(json.dumps(document))
    message = refused(saap, tmp_path, write_recipe(tmp_path, folder, export={"formats": ["gguf-q4_0", "onnx-int4"]}))
    assert "that of Mistral Nemo" in message and "leave gguf-q4_0 out (export.formats)" in message
    open_context(Recipe(model=str(folder), export={"formats": ["onnx-int4"]}, score={"window": 64}), None, bar=None)


def test_unsupported_family_is_named_with_the_list(saap, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    message = refused(saap, tmp_path, "--model", tmp_path / "m")
    assert "'mamba'" in message and "llama, ministral3, mistral, " in message


def test_what_a_family_cannot_have_is_refused_before_anything_is_written(saap, tmp_path):
    folder = write_folder(tiny_model("gemma2"), tmp_path / "scaled")
    assert "cannot go to gguf-f16: llama.cpp divides" in refused(saap, tmp_path, "--model", folder)
    folder = write_folder(tiny_model("gemma2", query_pre_attn_scalar=16), tmp_path / "gemma")
    recipe = write_recipe(tmp_path, folder, export={"formats": ["gguf-f16"]}, prune={"bias": True})
    assert "prune.bias: Gemma 2" in refused(saap, tmp_path, recipe)
    recipe = write_recipe(tmp_path, folder, export={"formats": ["gguf-f16"]}, prune={"depth": True})
    assert "prune.depth: whole sublayers" in refused(saap, tmp_path, recipe)
    tied = write_folder(tiny_model("qwen3"), tmp_path / "tied")
    recipe = write_recipe(tmp_path, tied, export={"formats": ["gguf-f16"]}, prune={"bias": True})
    assert "'openelm' does not read all of the biases; leave gguf-f16 out" in refused(saap, tmp_path, recipe)
    untied = write_folder(tiny_model("qwen3", tied=False), tmp_path / "qwen3")
    recipe = write_recipe(tmp_path, untied, export={"formats": ["gguf-f16"]})
    assert "use --method uniform, or leave gguf-f16 out" in refused(saap, tmp_path, recipe)
    assert "at most" in refused(saap, tmp_path, recipe, "--method", "uniform", "--ratio", "0.97")  # else accepted


def test_what_a_model_cannot_have_is_refused_before_anything_is_written(saap, tmp_path):
    biased = write_folder(tiny_model("llama", attention_bias=True), tmp_path / "biased")
    recipe = write_recipe(tmp_path, biased, prune={"depth": True})
    assert "prune.depth" in refused(saap, tmp_path, recipe)
    shallow = build_pruned(tiny_model("llama"), [LayerShape(0, 0, 64), LayerShape(8, 4, 64), LayerShape(8, 4, 0)])
    folder = write_folder(randomise_projections(shallow), tmp_path / "shallow")
    assert "prune the dense model it was made from" in refused(saap, tmp_path, "--model", folder)


@pytest.mark.parametrize("ratio", ["0", "1", "-0.2", "1.5", "nan"])
def test_ratio_out_of_range(saap, tmp_path, tiny, ratio):
    assert "--ratio" in refused(saap, tmp_path, "--model", tiny, "--ratio", ratio)


def test_ratio_beyond_the_grid(saap, tmp_path, tiny):
    assert "at most" in refused(saap, tmp_path, "--model", tiny, "--ratio", "0.97")


def test_unknown_target(saap, tmp_path, tiny):
    message = refused(saap, tmp_path, "--model", tiny, "--target", "toaster")
    assert "toaster" in message and "rpi5" in message


@pytest.mark.parametrize(("line", "expected"), [
    ("  ratio: [much]", "recipe.yaml:3"), ("  ratoi: 0.3", "ratoi"), ("  ratio: 0.3\n bad: : yaml", "recipe.yaml:4"),
    ("  method: magic", "prune.method"),
])  # fmt: skip
def test_malformed_recipe_names_field_and_line(saap, tmp_path, tiny, line, expected):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {tiny}\nprune:\n{line}\n")
    message = refused(saap, tmp_path, recipe)
    assert expected in message and "recipe.yaml" in message


def test_a_plan_that_breaks_a_rule(saap, tmp_path, tiny):
    layer = {"heads": [8, 5], "kv_heads": [4, 2], "ffn": [128, 64]}
    plan = {
        "method": "mine", "order": "saap", "ratio": 0.3, "achieved_ratio": 0.3, "parameters": [1, 1],
        "layers": [{"layer": i, **layer} for i in range(3)],
    }  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert "aborts" in refused(saap, tmp_path, "--model", tiny, "--plan", tmp_path / "plan.json")


def test_contexts_of_a_recipe():
    """Each once, ascending: what the bench stage measures, and report.html draws."""
    context = open_context(Recipe.model_validate({"bench": {"contexts": [256, 64, 64]}}), None, bar=None)
    assert conditions_of(context).contexts == (64, 256)


def test_contexts_that_the_model_does_not_hold(saap, tmp_path, tiny):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"model": str(tiny), "score": {"window": 32}, "bench": {"contexts": [64, 512]}}))
    message = refused(saap, tmp_path, recipe)
    assert "sequences of 544 tokens" in message and "context is 128" in message


@pytest.mark.parametrize(("formats", "asked", "message"), [
    (["gguf-q8_0", "onnx-int8"], {"kv": "q8_0"}, "bench.kv, onnx-int8: KV cache q8_0: onnxruntime cannot"),
    (["gguf-q8_0"], {"kv": "q8_0"}, "the heads of this model have 16: take f16"),
    (["gguf-q8_0"], {"kv": "q8"}, "'q8' is none of f16, q8_0, q4_0"),
    (["openvino-int8"], {"ubatch": 64}, "openvino-int8: micro-batch of 64: openvino takes no such number"),
    (["gguf-q8_0"], {"ubatch": 0}, "bench.ubatch: Input should be greater than or equal to 1"),
])  # fmt: skip
def test_caches_and_micro_batches_that_cannot_be(saap, tmp_path, tiny, formats, asked, message):
    recipe = tmp_path / "recipe.yaml"
    text = {"model": str(tiny), "score": {"window": 32}, "export": {"formats": formats}, "bench": asked}
    recipe.write_text(yaml.safe_dump(text))
    assert message in refused(saap, tmp_path, recipe)


def test_a_cache_that_the_recipe_asks_for():
    asked = Recipe.model_validate({"export": {"formats": ["gguf-q4_0"]}, "bench": {"kv": "q8_0"}})
    assert conditions_of(open_context(asked, None, bar=None)).options.given() == {"kv": "q8_0"}


@pytest.mark.parametrize("role", ["calibration", "heldout", "test"])
def test_text_that_fills_no_window(saap, tmp_path, tiny, role):
    for name in ("calibration", "heldout", "test"):
        (tmp_path / f"{name}.txt").write_text("short" if name == role else TEXT)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"model": str(tiny), "score": {"window": 32}}))
    assert f"{role}.txt' has 4 tokens" in refused(saap, tmp_path, recipe, "--data", tmp_path)


def test_a_context_that_verify_does_not_fit_into(saap, tmp_path):
    short = {"score": {"samples": 8, "batches": 4, "window": 16}, "bench": SMALL["bench"] | {"prompt_tokens": 4}}
    for context, fits in ((47, False), (48, True)):
        folder = write_folder(tiny_model("llama", max_position_embeddings=context), tmp_path / str(context))
        recipe = write_recipe(tmp_path, folder, **short)
        if fits:
            assert open_context(recipe_of(recipe), None, bar=None).spec.context == context
        else:
            assert "verify runs 48 tokens: the model's context is 47" in refused(saap, tmp_path, recipe)


def test_every_stage_of_a_log_has_lines(tiny, saap, tmp_path, monkeypatch):
    """And stdout still holds one document."""
    few = {"prune": {"method": "saap"}, "export": {"formats": ["gguf-q4_0"]}}
    recipe = write_recipe(tmp_path, tiny, **few)
    monkeypatch.setattr(base.bars, "waits", lambda: itertools.repeat(0.001))
    code, stdout, stderr = saap("compile", recipe, "--tokens", 512, "--out", tmp_path / "out", "--json")
    assert code == 0, stderr
    assert json.loads(stdout)["exit_code"] == 0
    told = {line.split(":")[0].split(" (")[0].strip() for line in stderr.splitlines() if line.startswith("  ")}
    assert set(ORDER) - {"gate"} <= told, told
    for part in ("score: calibration batches: 3 of 4 (75 %)", "bank: layers: 1 of 3", "prune: layers: "):
        assert part in stderr
    before = stderr[stderr.index("to do:\n") : stderr.index("score: calibration")].splitlines()
    assert [line.split()[0] for line in before[1 : len(ORDER) + 1]] == list(ORDER)
    assert "already there" not in stderr and before[len(ORDER) + 1].startswith("  in all   about ")


def test_a_second_run_says_what_is_already_there(compiled, saap):
    out, recipe, _ = compiled
    code, _, stderr = saap("compile", recipe, "--out", out)
    assert code == 0 and "nothing to do" in stderr and "in all" not in stderr
    code, _, stderr = saap("compile", recipe, "--tokens", 512, "--out", out)
    assert code == 0
    told = dict(line.split(maxsplit=1) for line in stderr[stderr.index("to do:\n") :].splitlines()[1 : len(ORDER) + 1])
    cached = {"score", "bank", "plan", "prune", "dense"}
    assert {name for name, words in told.items() if words == "already there"} == cached
    assert told["report"] == "seconds"


def test_a_model_that_the_memory_cannot_hold(saap, tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("saap_edge.chain.ahead.memory", lambda: (1 << 28, 1 << 28))
    assert "of memory, and there are 0.2 GiB here" in refused(saap, tmp_path, write_recipe(tmp_path, tiny))


def test_damaged_weights(saap, tmp_path, tiny):
    import shutil

    shutil.copytree(tiny, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"not safetensors at all")
    recipe = write_recipe(tmp_path, tmp_path / "m")
    assert "model" in refused(saap, tmp_path, recipe)


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from saap_edge import cli
sys.argv = ["saap-edge", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.parametrize(
    ("size", "told"), [(16384, "error: stage score: cannot write"), (1024, "error: cannot write a temporary file to")]
)
def test_full_disk(tmp_path, tiny, size, told):
    recipe = write_recipe(tmp_path, tiny)
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(size), "compile", str(recipe), "--out", str(tmp_path / "out")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert told in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_ctrl_c_is_told_and_leaves_nothing_half_written(tmp_path, tiny):
    recipe = write_recipe(tmp_path, tiny, prune={"method": "uniform", "ratio": 0.3})
    process = subprocess.Popen(
        [sys.executable, "-m", "saap_edge", "compile", str(recipe), "--out", str(tmp_path / "out")],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("score "):
            break
    process.send_signal(signal.SIGINT)
    told = process.stderr.read()
    assert process.wait() == 130 and "Traceback" not in told
    assert told.splitlines()[-1].startswith("error: interrupted; finished stages are kept")
    names = {path.name.partition("-")[0] for path in (tmp_path / "out" / "stages").iterdir()}
    assert "score" in names and names <= set(ORDER)


def test_a_reader_that_has_gone_is_no_failed_limit():
    """Whatever the size: what is printed last of all must not be lost without a word either."""
    for arguments in (["targets", "--json"], ["version"]):
        read, write = os.pipe()
        os.close(read)
        result = subprocess.run(
            [sys.executable, "-m", "saap_edge", *arguments], stdout=write, stderr=subprocess.PIPE, text=True
        )
        os.close(write)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
        assert "the program that reads stdout ended before all was written" in result.stderr


def test_help_teaches(saap):
    code, stdout, _ = saap("--help")
    assert code == 0 and "saap-edge compile --ratio 0.3 --out out" in stdout
