"""Every benchmark starts: its imports hold and `--help` teaches what it shows and how to run it."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from saap_edge.exporting.onnx import write_onnx
from tests.conftest import tiny_model, write_folder

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = [path for path in sorted(FOLDER.glob("*.py")) if "__main__" in path.read_text(encoding="utf-8")]


# All in one process: each alone would import torch anew.
HELP = """
import contextlib, io, json, runpy, sys
sys.path.insert(0, sys.argv.pop(1))
scripts, told = sys.argv[1:], {}
for script in scripts:
    sys.argv, out = [script, "--help"], io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            told[script] = [stop.code, out.getvalue()]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told():
    command = [sys.executable, "-c", HELP, str(FOLDER), *map(str, SCRIPTS)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help(script, told):
    code, text = told[str(script)]
    assert code == 0 and f"python benchmarks/{script.name}" in text


def test_rivals_names_a_dense_file_for_every_pruned_one():
    """On random weights: files of both kinds are written, timed and paired by the rules that need no perplexity."""
    command = [sys.executable, str(FOLDER / "rivals.py"), "--shape", "tiny", "--ratios", "0.35", "--rounds", "2"]
    result = subprocess.run([*command, "--types", "q2_k"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    shape = json.loads(result.stdout.splitlines()[-1])["shape"]
    rows = {(row["model"], row["type"]): row for row in shape["rows"]}
    assert rows["pruned 35%", "q4_0"]["bits_per_weight"] == rows["dense", "q4_0"]["bits_per_weight"] == 4.5
    assert rows["pruned 35%", "q4_0"]["bits_per_dense_weight"] < 4.5 * 0.7
    assert rows["dense", "q2_k"]["fallbacks"] == 0 < rows["pruned 35%", "q2_k"]["fallbacks"]
    size, speed = shape["pairs"]
    assert (size["rule"], size["dense"], size["qualifies"]) == ("size: nearest", "q2_k", True)
    assert speed["qualifies"] == (speed["decode_ratio"][1] >= 0.99 * speed["decode_ratio"][0])


def test_runtimes_counts_the_bytes_that_a_token_reads(tmp_path, monkeypatch):
    """As the exporter counts them, from the graph alone; packed, one float32 more for every group."""
    monkeypatch.syspath_prepend(FOLDER)
    from runtimes import graph_bytes

    folder = write_folder(tiny_model("qwen2"), tmp_path / "model")
    summary = write_onnx(folder, tmp_path / "out", "int4")
    file, packed = graph_bytes(tmp_path / "out")
    assert file == summary["projection_bytes"]
    assert packed - file == summary["initializers"]["float"] - plain_bytes(tmp_path / "out")


def plain_bytes(out):
    """float32 bytes that are no scales: norms, biases, rotary tables."""
    tensors = onnx.load(out / "model.onnx").graph.initializer
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in tensors}
    return sum(a.nbytes for name, a in arrays.items() if a.dtype == "float32" and not name.endswith(".scales"))
