"""ONNX Runtime and onnxruntime-genai send usage events to their maker unless a variable says no before they load.

Importing `saap_edge` sets the variable: every module of saap-edge has it before it imports such a library, and every
process that saap-edge starts inherits it. A program without saap_edge (run.py of a bundle) has the same lines.
"""

from __future__ import annotations

import os

__all__ = ["OPT_IN", "SWITCH", "turn_telemetry_off"]

SWITCH = "ORT_DISABLE_TELEMETRY"  # read by both libraries as they are loaded: their Privacy.md
OPT_IN = "SAAP_EDGE_TELEMETRY"  # "1" leaves the libraries their own default


def turn_telemetry_off() -> None:
    """Set SWITCH in this process, unless the user has set it himself or opted in."""
    if os.environ.get(OPT_IN) != "1":
        os.environ.setdefault(SWITCH, "1")
