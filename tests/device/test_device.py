"""What a board gets by `pip install saap-edge[device]`: no torch, and all that boards are for. `make test-device`.

The environment is DEVICE_PYTHON's, with our wheel installed; what it works on is made here, where torch is.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from saap_edge.bundle.write import write_bundle
from saap_edge.model.folder import build_pruned
from tests.bundle.conftest import FORMATS, write_run
from tests.conftest import WIDTHS, randomise_projections, tiny_model, write_folder

PYTHON = os.environ.get("DEVICE_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="needs the environment of a board: make test-device")
NOT_THERE = (
    "torch",
    "transformers",
    "gguf",
    "onnx",
    "onnx-ir",
    "safetensors",
    "tokenizers",
    "accelerate",
    "matplotlib",
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("device")
    dense = tiny_model("llama")
    base = write_folder(dense, root / "base")
    pruned = write_folder(randomise_projections(build_pruned(dense, WIDTHS)), root / "pruned")
    run = write_run(root / "out", base, pruned)
    made = {}
    for name in FORMATS:
        made[name] = root / f"{name}.tar.zst"
        write_bundle(run, made[name], name)
    return made


def there(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command in the board's environment, with nothing of this one."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    command = [str(PYTHON), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def saap(folder: Path, *arguments: object, code: int = 0) -> Any:
    """saap-edge with --json in the board's environment: its document."""
    result = there(folder, "-m", "saap_edge", *arguments, "--json")
    assert result.returncode == code, result.stderr
    return json.loads(result.stdout)


def test_it_is_the_installed_wheel_and_has_no_torch(tmp_path):
    where = there(tmp_path, "-c", "import saap_edge; print(saap_edge.__file__)").stdout
    assert "site-packages" in where
    found = json.loads(there(tmp_path, "-m", "pip", "list", "--format", "json").stdout)
    names = {package["name"].lower().replace("_", "-") for package in found}
    assert {"saap-edge", "numpy", "llama-cpp-python", "onnxruntime", "zstandard"} <= names
    assert not names & set(NOT_THERE)
    missing = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    assert there(tmp_path, "-c", missing, *(name.replace("-", "_") for name in NOT_THERE)).stdout.strip() == "[]"


def test_targets(tmp_path):
    assert "rpi5" in [board["name"] for board in saap(tmp_path, "targets")]


@pytest.mark.parametrize("name", FORMATS)
def test_verify_passes_and_fails(bundles, tmp_path, name):
    assert saap(tmp_path, "verify", bundles[name])["problems"] == []
    damaged = tmp_path / "damaged.tar.zst"
    damaged.write_bytes(bundles[name].read_bytes()[:-100])
    assert saap(tmp_path, "verify", damaged, code=2)["problems"]


def test_bench_then_gate(bundles, tmp_path):
    options = ("--threads", 1, "--prompt", 8, "--decode", 4, "--rounds", 3)
    document = saap(
        tmp_path, "bench", bundles["gguf-q4_0"], "--against", bundles["onnx-int4"], *options, "--out", "b.json"
    )
    formats = {artifact["format"]: artifact["metrics"]["decode_tok_s"]["median"] for artifact in document["artifacts"]}
    assert set(formats) == set(FORMATS) and min(formats.values()) > 0
    for limit, code in (({"min": 0.001}, 0), ({"min": 1e9}, 1)):
        (tmp_path / "budget.yaml").write_text(yaml.safe_dump({"limits": [{"metric": "decode_tok_s", **limit}]}))
        verdict = saap(tmp_path, "gate", "b.json", "--budget", "budget.yaml", "--target", "host", code=code)
        assert verdict["exit_code"] == code


def test_predict(bundles, tmp_path):
    predicted = saap(tmp_path, "predict", bundles["gguf-q4_0"], "--target", "rpi5")
    assert predicted["decode_tok_s"]["value"] > 0


def test_what_needs_torch_says_so(tmp_path):
    result = there(tmp_path, "-m", "saap_edge", "score", "--out", "out")
    assert result.returncode == 2 and "saap-edge[compile]" in result.stderr and "Traceback" not in result.stderr
