"""A board has a runtime and numpy: what runs there must not import what only the compiling machine has."""

import pkgutil
import subprocess
import sys

import saap_edge

# Whole folders.
PACKAGES = (
    "chat", "documents", "machine", "engines", "probe", "prediction", "measuring", "gating", "remote", "report",
)  # fmt: skip
MODULES = (
    "artifacts", "bundle.archive", "bundle.check", "bundle.schema", "cache", "cli", "files", "formats", "recipe",
    "targets",
)  # fmt: skip
ELSEWHERE = ("engines.optimum",)  # its runtime needs torch
# cache only asks whether safetensors is there.
HEAVY = ("torch", "transformers", "gguf", "onnx", "onnx_ir", "optuna", "ray")


def test_board_modules_import_no_training_library():
    folders = {package: [f"{path}/{package}" for path in saap_edge.__path__] for package in PACKAGES}
    found = [f"{package}.{module.name}" for package in PACKAGES for module in pkgutil.iter_modules(folders[package])]
    assert len(found) > 20
    code = "import sys\n" + "".join(
        f"import saap_edge.{name}\n" for name in (*found, *MODULES) if name not in ELSEWHERE
    )
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
