"""The graph of an ONNX folder in MNN, through its own converter.

The converter is called within its library: the program `mnnconvert` installs packages by itself
(findings/mnnconvert-installs-packages-elsewhere.sh).
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import _tools

asked = json.loads(sys.argv[1])
with tempfile.TemporaryDirectory() as folder:
    out = Path(folder, "model.mnn")
    model = asked["path"] + "/model.onnx"
    _tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--modelFile", model, "--MNNModel", str(out), "--bizCode", "x"])
    if not out.exists():
        raise SystemExit(1)
    raise SystemExit(f"MNN {version('mnn')} converts this graph: it is not run yet")
