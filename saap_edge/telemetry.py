"""Runtimes send usage events to their makers unless they are told not to before they load.

ONNX Runtime and onnxruntime-genai read a variable. OpenVINO has none: its Python package sends an event as it is
imported, through the package openvino_telemetry, and goes on without where that cannot be imported. Importing
`saap_edge` sees to both: every module of saap-edge has it before it imports such a library, and every process that
saap-edge starts imports `saap_edge` first. A program without saap_edge (run.py of a bundle) has the same lines.
"""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["OPENVINO", "OPT_IN", "SWITCH", "turn_telemetry_off"]

SWITCH = "ORT_DISABLE_TELEMETRY"  # read by both ONNX libraries as they are loaded: their Privacy.md
OPENVINO = "openvino_telemetry"  # the package; None in sys.modules: importing it fails
OPT_IN = "SAAP_EDGE_TELEMETRY"  # "1" leaves the libraries their own default


def turn_telemetry_off() -> None:
    """Set SWITCH in this process and keep OPENVINO out of it, unless the user opted in or has decided himself."""
    if os.environ.get(OPT_IN) != "1":
        os.environ.setdefault(SWITCH, "1")
        modules: dict[str, Any] = sys.modules
        modules.setdefault(OPENVINO, None)
