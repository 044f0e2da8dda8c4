"""Which versions of ONNX Runtime run our ONNX folders, and whether they answer alike.

    python benchmarks/onnx_runtimes.py --out benchmarks/results/onnx_runtimes.json

Exports the bundled model, installs each version with pip into a folder of its own, and runs 24 tokens there through a
plain session. "error" is the RMS of the difference from the version that saap-edge is tested with, over the RMS of the
centred logits; other versions may choose other kernels, and activations then round otherwise (onnx-int4, onnx-int8).
Needs an index with the old wheels; takes two minutes; ends with one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from result import publish

from saap_edge.evaluation.parity import relative_error
from saap_edge.exporting.onnx import WRITER, write_onnx
from saap_edge.formats import written_by
from saap_edge.machine.facts import machine_facts
from saap_edge.recipe import bundled_model

OLDER = ("1.18.1", "1.19.2", "1.20.1", "1.21.1", "1.22.1", "1.23.2")
RUN = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
session = onnxruntime.InferenceSession(sys.argv[2] + "/model.onnx", options, providers=["CPUExecutionProvider"])
feeds = {"input_ids": np.arange(1, 25)[None], "attention_mask": np.ones((1, 24), np.int64)}
for value in session.get_inputs():
    if value.name.startswith("past"):
        feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
np.save(sys.argv[3], session.run(["logits"], feeds)[0][0])
"""


def install(version: str, out: Path) -> Path:
    """The version and what it needs, in a folder that no other package is in."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(out), f"onnxruntime=={version}"]
    subprocess.run(command, check=True, capture_output=True)
    return out


def answer(packages: Path, folder: Path, out: Path) -> np.ndarray | str:
    """Logits [24, vocab], or the last line of what the runtime says against the folder."""
    command = [sys.executable, "-S", "-c", RUN, str(packages), str(folder), str(out)]
    result = subprocess.run(command, capture_output=True, text=True)
    return np.load(out) if result.returncode == 0 else result.stderr.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", default=OLDER)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    tested, rows = importlib.metadata.version("onnxruntime"), []
    with tempfile.TemporaryDirectory() as name:
        scratch, truth = Path(name), {}
        for quantisation in written_by(WRITER):
            write_onnx(bundled_model(), scratch / quantisation, quantisation)
        for version in (tested, *options.versions):
            packages = install(version, scratch / version)
            for quantisation in written_by(WRITER):
                got = answer(packages, scratch / quantisation, scratch / "logits.npy")
                truth.setdefault(quantisation, got)
                row: dict[str, Any] = {"onnxruntime": version, "format": f"onnx-{quantisation}", "runs": True}
                if isinstance(got, str):
                    row |= {"runs": False, "says": got.replace(str(scratch), "")[:240]}
                else:
                    row["error"] = relative_error(got, truth[quantisation])
                rows.append(row)
                print(row, file=sys.stderr)
    publish({"benchmark": "onnx_runtimes", "machine": machine_facts(), "tested": tested, "rows": rows}, options.out)


if __name__ == "__main__":
    main()
