"""Runs the examples in docstrings. Those of saap_edge.api are run by test_api.py."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "saap_edge"
EXAMPLE = re.compile(r"^\s*>>> ", re.MULTILINE)


def modules() -> list[str]:
    """Names of the package's modules with examples in their source."""
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if not path.is_relative_to(PACKAGE / "api")]
    having = [path for path in paths if EXAMPLE.search(path.read_text(encoding="utf-8"))]
    parts = [path.relative_to(PACKAGE.parent).with_suffix("").parts for path in having]
    return [".".join(part).removesuffix(".__init__") for part in parts]


def test_there_are_examples():
    assert len(modules()) > 20


@pytest.mark.parametrize("name", modules())
def test_examples(name, capsys):
    module = importlib.import_module(name)
    failed, run = doctest.testmod(module)
    assert not failed, capsys.readouterr().out
    # doctest overlooks functions that some decorators make.
    assert run == len(EXAMPLE.findall(Path(module.__file__).read_text(encoding="utf-8")))
