"""A board has a runtime and numpy: what runs there must not import what only the compiling machine has."""

import subprocess
import sys

BOARD = (
    "engines.child", "engines.worker", "engines.llama_cpp", "engines.onnxruntime", "bench.measure", "bench.machine",
    "bench.artifacts", "bench.statistics", "bench.probe", "bench.probe_model", "bench.probe_onnx", "bench.cost",
    "bench.predict", "gate", "targets", "report.data", "report.terminal", "report.html", "report.prediction",
    "report.write", "recipe", "pipeline", "bundle.schema", "bundle.archive", "bundle.check", "evaluate.answers",
)  # fmt: skip
# pipeline only asks whether safetensors is there.
HEAVY = ("torch", "transformers", "gguf", "onnx", "onnx_ir")


def test_board_modules_import_no_training_library():
    code = "import sys\n" + "".join(f"import saap_edge.{name}\n" for name in BOARD)
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
