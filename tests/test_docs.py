"""Tests that a document names as its evidence exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("document", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_evidence_exists(document):
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    paths = re.findall(r"(?:tests|benchmarks|saap_edge)/[\w/]+\.py", text)
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    names = re.findall(r"\b(test_\w+)(?![\w.])", text)
    assert [name for name in names if f"def {name}(" not in source and f"/{name}.py" not in text] == []
