"""Errors in YAML files name file, line and field."""

import pytest

from saap_edge.errors import SaapError
from saap_edge.recipe import Recipe
from saap_edge.yaml_lines import load_yaml_model


@pytest.mark.parametrize(("text", "expected"), [
    ("prune:\n  ratio: 2\n", r"r\.yaml:2: prune\.ratio: Input should be less than 1"),
    ("prune:\n  ratoi: 0.3\n", r"r\.yaml:2: prune\.ratoi: unknown field, did you mean 'ratio'\?"),
    ("seed: 1\nmodle: x\n", r"r\.yaml:2: modle: unknown field, did you mean 'model'\?"),
    ("export:\n  formats:\n    - gguf-f16\n    - gguf-q5\n", r"r\.yaml:4: export\.formats\.1"),
    ("budget:\n  limits:\n    - {metric: ttft_ms}\n", r"r\.yaml:3: .*needs a min or a max"),
    ("a: b: c\n", r"r\.yaml:1: not valid YAML"), ("- 1\n", r"r\.yaml:1: fields as"),
    ("score: {samples: 4, batches: 8}\n", r"r\.yaml:1: score: batches must not exceed samples"),
])  # fmt: skip
def test_errors(tmp_path, text, expected):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(SaapError, match=expected) as error:
        load_yaml_model(tmp_path / "r.yaml", Recipe)
    assert "\n" not in str(error.value)


def test_empty_file_is_all_defaults(tmp_path):
    (tmp_path / "r.yaml").write_text("# nothing\n")
    assert load_yaml_model(tmp_path / "r.yaml", Recipe) == Recipe()


def test_unreadable(tmp_path):
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SaapError, match="not a text file"):
        load_yaml_model(tmp_path / "b.yaml", Recipe)
    with pytest.raises(SaapError, match="cannot read"):
        load_yaml_model(tmp_path, Recipe)
