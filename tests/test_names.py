"""No code compares the names of formats or engines: it asks their records (formats.py, engines/registry.py)."""

import ast
import re
from pathlib import Path

import pytest

from saap_edge.engines.registry import ENGINES
from saap_edge.formats import FORMATS

PACKAGE = Path(__file__).parents[1] / "saap_edge"
# Where the names are at home: the records, and each engine's own module, which registers it.
HOMES = {
    "formats.py", "engines/registry.py", "engines/llama_cpp.py", "engines/onnxruntime.py", "engines/optimum.py",
    "engines/torch.py", "engines/vocabularies.py",
}  # fmt: skip
# Words that mean something else there: (file, word) and why.
EXEMPT = {
    ("targets.py", "gguf"): "a key of target files: which quantisation the board wants in GGUF, data of the board",
    ("targets.py", "onnx"): "as above",
    ("probe/gguf_model.py", "f16"): "number, weights and bytes of a block of a tensor's type: facts of GGUF files",
    ("probe/gguf_model.py", "q8_0"): "as above",
    ("probe/gguf_model.py", "q4_0"): "as above",
    ("gguf_file/reader.py", "f32"): "the type of one tensor of a file, as gguf-py names it, not a format",
    ("gguf_file/reader.py", "f16"): "as above",
    ("gguf_file/reader.py", "bf16"): "as above",
}
KINDS = {format.kind for format in FORMATS.values()}
NAMES = {*FORMATS, *(format.quantisation for format in FORMATS.values()), *ENGINES, *KINDS}
BEGINNINGS = tuple(f"{kind}-" for kind in KINDS)
METHODS = {"startswith", "endswith", "removeprefix", "removesuffix", "partition", "rpartition", "split"}
ABOUT = re.compile(r"format|engine")  # variables whose names say that they hold a name of one


def texts(node: ast.AST | None) -> set[str]:
    """String constants that an expression is, or holds: of tuples, f-strings and sums, not what a call is given."""
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) else set()
    if isinstance(node, ast.Tuple | ast.List | ast.Set | ast.JoinedStr | ast.BinOp | ast.Starred | ast.IfExp):
        return set().union(*map(texts, ast.iter_child_nodes(node)))
    if isinstance(node, ast.MatchValue | ast.MatchOr):
        return set().union(*map(texts, ast.iter_child_nodes(node)))
    return set()


def named(node: ast.AST | None) -> set[str]:
    """The names of formats and engines among them."""
    return {text for text in texts(node) if text in NAMES or text.startswith(BEGINNINGS)}


def comparisons(node: ast.AST) -> set[str]:
    """Names of formats and engines that a node compares, cuts or looks up by."""
    if isinstance(node, ast.Compare):
        return set().union(*(named(side) for side in (node.left, *node.comparators)))
    if isinstance(node, ast.Dict):
        return set().union(*(named(key) for key in node.keys if key is not None))
    if isinstance(node, ast.match_case):
        return named(node.pattern)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
        given = set().union(*map(texts, node.args))
        cut = "-" in given and ABOUT.search(ast.unparse(node.func.value))
        return set().union(*map(named, node.args)) | ({node.func.attr} if cut else set())
    return set()


def found(source: str) -> set[tuple[int, str]]:
    return {
        (node.lineno, name)
        for node in ast.walk(ast.parse(source))
        for name in comparisons(node)
        if hasattr(node, "lineno")
    }


def test_no_code_compares_names():
    strange = [
        f"{path.relative_to(PACKAGE)}:{line}: '{name}'"
        for path in sorted(PACKAGE.rglob("*.py"))
        if str(path.relative_to(PACKAGE)) not in HOMES
        for line, name in sorted(found(path.read_text(encoding="utf-8")))
        if (str(path.relative_to(PACKAGE)), name) not in EXEMPT
    ]
    assert strange == []


def test_every_exemption_is_needed():
    for file, name in EXEMPT:
        assert name in {word for _, word in found((PACKAGE / file).read_text(encoding="utf-8"))}, (file, name)
    assert all((PACKAGE / home).is_file() for home in HOMES)


@pytest.mark.parametrize("code", [
    "name.startswith('gguf')", "name == 'onnx-optimum'", "artifact_format.partition('-')", "engine == 'llama.cpp'",
    "entry['format'].partition('-')", "T = {'gguf-f16': 0.005}", "{'q4_0': 4.5}.get(q)", "name in ('f32', 'f16')",
    "name != f'gguf-{floats}'", "name.removeprefix('gguf-')", "'llama.cpp' == worker.engine",
    "x = name.split('-') if format else name.startswith('onnx')", "{'llama.cpp': 'llama_cpp'}.get(engine)",
])  # fmt: skip
def test_what_counts_as_a_comparison(code):
    assert found(code)


@pytest.mark.parametrize("code", [
    "Worker('llama.cpp', path, 1, 1)", "format_of('gguf-f16').path", "target.quantisation['gguf']",
    "text.partition('-')", "formats=('gguf-q4_0', 'onnx-int4')", "record.kind == other.kind",
])  # fmt: skip
def test_what_does_not(code):
    assert not found(code)
