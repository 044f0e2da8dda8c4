"""How every benchmark ends: one JSON line, the same in a file where one is named, and tables in pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["fill", "publish", "save"]


def save(result: dict[str, Any], out: Path | None) -> None:
    """Write the result for people to read, where a file is named."""
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def publish(result: dict[str, Any], out: Path | None) -> None:
    """Save the result and print its line."""
    save(result, out)
    print(json.dumps(result))


def fill(page: Path, mark: str, lines: list[str]) -> None:
    """Put tables between a page's two comments, `<!-- MARK: begin -->` and `<!-- MARK: end -->`."""
    first, last = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    before, begin, rest = page.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    if not (begin and end):
        raise SystemExit(f"'{page}' has no place for the tables: {first} and {last}")
    page.write_text("\n\n".join([before + begin, "\n".join(lines), end + after]), encoding="utf-8")
