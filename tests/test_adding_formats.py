"""The examples of docs/adding.md run as they stand, in a process of their own: nothing stays registered here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from saap_edge.model.folder import build_pruned
from tests.conftest import WIDTHS, randomise_projections, tiny_model, write_folder

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
RUN = """
import sys
from pathlib import Path
from saap_edge.evaluation.parity import require
from saap_edge.evaluation.verify import verify_folder
from saap_edge.exporting.write import export_artifacts
from saap_edge.artifacts import code_of_others, engine_of
from saap_edge.engines.worker import Worker
from saap_edge.recipe import Recipe
from tests.conftest import TEXT
{imports}
folder, out, names = Path(sys.argv[1]), Path(sys.argv[2]), tuple(sys.argv[3:])
assert Recipe(model=str(folder), export={{"formats": names}}).export.formats == names
manifest = export_artifacts(folder, out, names, "dense", {{}}, lambda name: None)
require(verify_folder(out, folder, TEXT, 1, lambda: None))
assert code_of_others(names[:1]) == {{}}
assert code_of_others(names).keys() == {{*names[1:], "torch_bf16", "torch_half"}}
for artifact in manifest.artifacts:
    with Worker(engine_of(artifact.format), out / artifact.path, 1, 64) as worker:
        assert len(worker.time([1, 2, 3], 4)["decode_s"]) == 4
        kv_bytes = worker.loaded["kv_bytes_per_token"]
    print(worker.engine, artifact.bytes, artifact.projection_bytes, kv_bytes)
"""


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.fixture
def folder(tmp_path):
    return write_folder(randomise_projections(build_pruned(tiny_model("llama"), WIDTHS)), tmp_path / "model")


@pytest.fixture
def modules(tmp_path):
    """A folder with the examples as modules."""
    place = tmp_path / "modules"
    place.mkdir()
    for code in (code for code in blocks("python") if code.startswith("# ")):
        (place / re.match(r"# (\w+\.py)\n", code)[1]).write_text(code)
    return place


def run(modules, folder, out, names, imports=""):
    out.mkdir()
    path = os.pathsep.join([str(modules), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(imports=imports), str(folder), str(out), *names], capture_output=True,
        text=True, env=os.environ | {"PYTHONPATH": path}, cwd=modules,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = [line.split() for line in done.stdout.splitlines()]
    return [(engine, *map(int, sizes)) for engine, *sizes in words]


def test_a_format_and_an_engine(modules, folder, tmp_path):
    """The format as a module that is imported, the engine as an installed package has it: by entry points."""
    [table] = blocks("toml")
    info = modules / "examples-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: examples\nVersion: 1\n")
    points = re.sub(r'\[project\.entry-points\."(.*)"\]', r"[\1]", table).replace('"', "")
    (info / "entry_points.txt").write_text(points)
    names = ("torch-f32", "torch-bf16", "torch-half")
    plain, narrow, half = run(modules, folder, tmp_path / "out", names, "import torch_bf16")
    assert (plain[0], narrow[0], half[0]) == ("torch", "torch", "torch-half")
    assert plain[1] > narrow[1] and plain[2:] == narrow[2:], "a smaller file, that runs as the other does"
    assert plain[2:] == tuple(2 * size for size in half[2:])


LAY_OUT = """
import sys
from pathlib import Path
import llamafile_layout
from saap_edge.layouts.registry import LAYOUTS, Given
model, out = Path(sys.argv[1]), Path(sys.argv[2])
print(LAYOUTS.find("llamafile").write()(Given("gguf-q8_0", model, model.parent, model.parent), out))
"""


def test_a_layout(modules, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "out").mkdir()
    path = os.pathsep.join([str(modules), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", LAY_OUT, str(tmp_path / "model.gguf"), str(tmp_path / "out")], capture_output=True,
        text=True, env=os.environ | {"PYTHONPATH": path}, cwd=modules,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "zipalign" in done.stdout and (tmp_path / "out" / "model.gguf").read_bytes() == b"GGUF"
    assert (tmp_path / "out" / ".args").read_text().split() == ["-m", "model.gguf", "--temp", "0"]
