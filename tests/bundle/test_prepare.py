"""ONNX bundles prepared on a board: the same answers and figures, the weights mapped, and refused elsewhere."""

import json
import shutil
from dataclasses import replace

import pytest

from saap_edge.bundle.check import check_bundle
from saap_edge.bundle.prepare import prepare_bundle
from saap_edge.bundle.schema import read_bundle
from saap_edge.engines.onnx_cost import onnx_cost
from saap_edge.engines.onnx_prepared import PREPARED_FILE
from saap_edge.engines.worker import Worker
from saap_edge.errors import ParityError
from tests.bundle.conftest import amend
from tests.test_cli import call

GIVEN = "onnx-int4"


@pytest.fixture(scope="module")
def prepared(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "bundle"
    prepare_bundle(made[GIVEN], out)
    return out


def test_it_answers_as_before(made, prepared):
    check = check_bundle(prepared)
    assert check.exit_code == 0 and check.error <= check.tolerance
    plain, packed = (onnx_cost(folder / "model-int4", GIVEN) for folder in (made[GIVEN], prepared))
    assert replace(packed, file_bytes=plain.file_bytes, prepared=False) == plain and packed.prepared
    answers = []
    for folder in (made[GIVEN], prepared):
        with Worker("onnxruntime", folder / "model-int4", 1, 64) as worker:
            answers.append(worker.generate(list(range(5, 20)), 24))
            assert worker.loaded["prepared"] == (folder == prepared)
    assert answers[0] == answers[1]


def test_what_is_packed_is_mapped(prepared):
    """Sizes of the tiny model are noise: the file must hold what the graph says that ONNX Runtime packed."""
    graph = (prepared / "model-int4" / "model.onnx").read_bytes()
    assert graph.count(b"prepacked_0") >= 3 * 4 and b"MatMulNBits" in graph


def test_run_sh(prepared, made):
    from tests.bundle.test_write import run_sh

    assert run_sh(prepared, "The river", "16") == run_sh(made[GIVEN], "The river", "16")


@pytest.mark.parametrize("change", [{"flags_sha256": "0" * 64}, {"version": "1.0.0"}, {"machine": "aarch64"}])
def test_another_machine_or_runtime_is_refused(prepared, tmp_path, change):
    folder = shutil.copytree(prepared, tmp_path / "bundle")
    path = folder / "model-int4" / PREPARED_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    amend(folder)
    [problem] = check_bundle(folder).problems
    assert "was prepared for" in problem and "saap-edge prepare" in problem


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cpu": 1}'])
def test_a_damaged_record_is_refused(prepared, tmp_path, text):
    folder = shutil.copytree(prepared, tmp_path / "bundle")
    (folder / "model-int4" / PREPARED_FILE).write_text(text)
    amend(folder)
    assert "prepare the bundle again" in check_bundle(folder).problems[0]


def test_bad_input(made, prepared, tmp_path, monkeypatch, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "model.tar.zst").write_bytes(b"x")
    damaged = shutil.copytree(made[GIVEN], tmp_path / "damaged")
    (damaged / "model-int4" / "model.onnx").write_bytes(b"x")
    for given, out, reason in (
        (made[GIVEN], "there", "in the way"), (made["gguf-q4_0"], "new", "only ONNX Runtime"),
        (prepared, "new", "prepared already"), (tmp_path / "model.tar.zst", "new", "unpack it first"),
        (tmp_path / "none", "new", "none"), (damaged, "new", "model.onnx"),
    ):  # fmt: skip
        code, _, told = call(monkeypatch, capsys, "prepare", given, "--out", tmp_path / out)
        assert code == 2 and reason in told, told
        assert not list(tmp_path.glob(".tmp-*")) and not (tmp_path / "new").exists()


def test_memory_of_another_board_is_not_predicted(prepared, monkeypatch, capsys):
    code, _, told = call(monkeypatch, capsys, "predict", prepared, "--target", "rpi5")
    assert code == 2 and "prepared for one machine" in told


def test_other_answers_leave_nothing(made, tmp_path):
    folder = shutil.copytree(made[GIVEN], tmp_path / "bundle")
    answers = json.loads((folder / "bundle.json").read_text())["answers"]
    amend(folder, answers=answers | {"likeliest": [(token + 1) % 300 for token in answers["likeliest"]]})
    with pytest.raises(ParityError, match="fails its check"):
        prepare_bundle(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".tmp-*"))


def test_by_the_command(made, tmp_path, monkeypatch, capsys):
    out = tmp_path / "prepared"
    code, printed, _ = call(monkeypatch, capsys, "prepare", made[GIVEN], "--out", out, "--json")
    document = json.loads(printed)
    assert code == 0 and document["bytes"] > document["bytes_before"] and document["bundle"] == str(out)
    assert read_bundle(out).lineage == read_bundle(made[GIVEN]).lineage
    code, printed, _ = call(monkeypatch, capsys, "bench", out, "--against", made[GIVEN], "--rounds", 3, "--prompt", 8,
                            "--decode", 4, "--json")  # fmt: skip
    assert code == 0 and [each["metrics"]["prepared"] for each in json.loads(printed)["artifacts"]] == [False, True]
