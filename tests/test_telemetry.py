"""Nothing leaves the board: the libraries that report to their maker are told not to, wherever we load them."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from saap_edge.bundle.launch import OPENVINO, launch_files
from saap_edge.exporting.onnx import write_onnx
from tests.network import Watched, bare_environment

ROOT = Path(__file__).parents[1]
REPORTING = ("onnxruntime", "onnxruntime_genai", "optimum", "openvino", "openvino_genai", "openvino_tokenizers")
# Both libraries make these as they are imported, and send from half a minute later on.
IDENTITY = {"deviceid", "onnxruntime.db", "onnxruntime-genai.db"}
GUARDS = ('os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")', 'sys.modules["openvino_telemetry"] = None')
RUN = """
import json, sys
from pathlib import Path
from saap_edge.engines.worker import Worker
with Worker("onnxruntime", Path(sys.argv[1]), 1, 32) as worker:
    worker.time([1, 2, 3], 4)
    told = Path(f"/proc/{worker._process.pid}/environ").read_bytes().decode().split("\\0")
print(json.dumps(dict(line.split("=", 1) for line in told if line)))
"""
BENCH = """
import sys
from saap_edge.probe.onnx_model import measure_onnx_kernel
measure_onnx_kernel("int4", 1, 2**20, 1)
"""


@pytest.fixture(scope="module")
def onnx_folder(pruned_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    write_onnx(pruned_folder, folder, "fp32")
    return folder


@pytest.fixture
def watched(tmp_path):
    return Watched(tmp_path)


def python(code, environment, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True,
                          env=environment, cwd=ROOT)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_engine_opens_no_socket_and_leaves_no_identity(watched, onnx_folder):
    child = json.loads(python(RUN, watched.environment, onnx_folder))
    assert child["ORT_DISABLE_TELEMETRY"] == "1"
    python(BENCH, watched.environment)
    assert watched.network() == [] and not IDENTITY & set(watched.in_home())


def test_the_check_can_fail(watched, onnx_folder):
    """The same run by someone who opted in leaves an identity; and a socket, by number or name, is seen."""
    child = json.loads(python(RUN, watched.environment | {"SAAP_EDGE_TELEMETRY": "1"}, onnx_folder))
    assert "ORT_DISABLE_TELEMETRY" not in child
    assert {"deviceid", "onnxruntime.db"} <= set(watched.in_home())
    python("import socket; socket.socket().connect_ex(('127.0.0.1', 9))", watched.environment)
    assert watched.network() == ["socket internet", "connect internet"]
    python("import socket; socket.getaddrinfo('localhost', 80)", watched.environment)
    assert watched.network()[0] == "name localhost"


@pytest.mark.parametrize(("given", "expected"), [
    ({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0"), ({"SAAP_EDGE_TELEMETRY": "1"}, "None"),
    ({"SAAP_EDGE_TELEMETRY": "0"}, "1"), ({"SAAP_EDGE_TELEMETRY": "1", "ORT_DISABLE_TELEMETRY": "1"}, "1"),
])  # fmt: skip
@pytest.mark.parametrize("start", ["import saap_edge.engines.worker as w; e = w.child_environment()", "own"])
def test_the_user_has_the_last_word(given, expected, start):
    """In our processes and their children, and in the run.py of a bundle, up to where it loads the library."""
    own = launch_files("onnx-int4", "model", 1, 64, "x")["run.py"].split("import onnxruntime_genai")[0]
    code = (own if start == "own" else start + "; import os; assert e.get('ORT_DISABLE_TELEMETRY') == "
            "os.environ.get('ORT_DISABLE_TELEMETRY')") + "\nprint(os.environ.get('ORT_DISABLE_TELEMETRY'))"  # fmt: skip
    assert python(code, bare_environment(**given)).strip() == expected


@pytest.mark.parametrize(("given", "expected"), [
    ({}, "True"), ({"SAAP_EDGE_TELEMETRY": "1"}, "False"), ({"SAAP_EDGE_TELEMETRY": "0"}, "True"),
])  # fmt: skip
@pytest.mark.parametrize("start", ["import saap_edge, sys", "own"])
def test_openvino_finds_no_package_to_report_with(given, expected, start):
    pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")
    own = launch_files("openvino-int4", "model", 1, 64, "x")["run.py"].split("import openvino_genai")[0]
    code = own if start == "own" else start
    assert (
        python(code + "\nprint(sys.modules.get('openvino_telemetry', 1) is None)", bare_environment(**given)).strip()
        == expected
    )


def imports(tree):
    """(line, package) of every import, those inside functions and by name too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            yield from (
                (node.lineno, name) for name in REPORTING for part in ast.walk(node)
                if isinstance(part, ast.Constant) and str(part.value).partition(".")[0] == name
            )  # fmt: skip


def guarded(text):
    """Whether a program sets the switch, or imports our package, before it imports a library that reports."""
    found = list(imports(ast.parse(text)))
    reporting = [line for line, name in found if name in REPORTING]
    at = [line for line, name in found if name == "saap_edge"]
    at += [number for number, line in enumerate(text.splitlines(), 1) if line.strip() in GUARDS]
    return not reporting or (bool(at) and min(at) < min(reporting))


def test_whatever_loads_such_a_library_sets_the_switch_before():
    """Modules of the package do: importing any of them runs saap_edge/__init__.py first."""
    inside = [path for path in sorted((ROOT / "saap_edge").rglob("*.py")) if reports(path)]
    assert {"onnxruntime.py", "vocabularies.py", "optimum.py"} <= {path.name for path in inside}
    first = ast.parse((ROOT / "saap_edge/__init__.py").read_text()).body
    assert "turn_telemetry_off()" in map(ast.unparse, first)
    outside = [path for path in sorted((ROOT / "benchmarks").rglob("*.py")) if reports(path)]
    assert "contestant.py" in {path.name for path in outside}
    assert [path.name for path in outside if not guarded(path.read_text())] == []
    assert guarded(launch_files("onnx-int4", "model", 1, 64, "x")["run.py"]) and guarded(OPENVINO)


def reports(path):
    return any(name in REPORTING for _, name in imports(ast.parse(path.read_text())))


def test_the_scan_can_fail():
    assert not guarded("import onnxruntime")
    assert not guarded("def f():\n    import onnxruntime_genai\n    import saap_edge")
    assert not guarded("m = importlib.import_module('onnxruntime.capi')\nimport saap_edge")
    assert not guarded("import sys\nimport openvino_genai\nsys.modules['openvino_telemetry'] = None")
    assert guarded("import saap_edge\nimport onnxruntime") and guarded("import onnx")
