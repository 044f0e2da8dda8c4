"""How every benchmark ends: one JSON line, and the same in a file where one is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["publish", "save"]


def save(result: dict[str, Any], out: Path | None) -> None:
    """Write the result for people to read, where a file is named."""
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def publish(result: dict[str, Any], out: Path | None) -> None:
    """Save the result and print its line."""
    save(result, out)
    print(json.dumps(result))
