"""Publishing on a stand-in of the hub: all of it arrives or nothing, and every refusal is one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import _http

from saap_edge.documents.plan import load_plan
from saap_edge.documents.report import Report
from saap_edge.files import file_hash
from saap_edge.layouts.document import LAYOUT_FILE, Written
from saap_edge.publishing.names import found_by_llama_cpp
from tests.publishing.conftest import FORMATS
from tests.publishing.hub_support import READER, WRITER, Repository, running
from tests.test_cli import call

REPO = "me/small-GGUF"
FEW = ("--no-model", "--format", "gguf-q4_0")  # what is quick to lay out


@pytest.fixture
def hub(monkeypatch):
    with running() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in has large files by the older protocol
        monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # between tries
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield found


@pytest.fixture
def push(run, monkeypatch, capsys):
    """Calls the command: (exit code, its document or None, what it told in one line)."""

    def called(*arguments, repo=REPO):
        code, printed, told = call(monkeypatch, capsys, "push", run, "--repo", repo, "--json", *arguments)
        return code, json.loads(printed) if printed else None, " ".join(told.split())

    return called


def test_all_of_it_arrives(hub, push, run, tmp_path):
    code, document, told = push("--private")
    repository = hub.repositories[REPO]
    assert code == 0 and document["commit"] == repository.sha and document["private"] and "private" in told
    assert len(repository.commits) == 2 and repository.private and document["url"] == f"{hub.address}/{REPO}"
    assert {file["path"]: file["bytes"] for file in document["files"]} == {
        name: len(content) for name, content in repository.files.items() if name != ".gitattributes"
    }
    folder = hub.unpack(REPO, tmp_path)
    written = Written.read(folder / LAYOUT_FILE)
    assert written.layout == "hub" and written.format == ", ".join(FORMATS)
    assert {file.path for file in written.files} | {LAYOUT_FILE, ".gitattributes"} == set(repository.files)
    assert ModelCard.load(folder / "README.md").data.license == "apache-2.0" and (folder / "LICENSE").is_file()
    assert load_plan(folder) == load_plan(run / "plan.json")
    assert Report.read(folder / "report.json").lineage == Report.read(run / "report.json").lineage
    assert (folder / "model.safetensors").read_bytes() == (run / "model" / "model.safetensors").read_bytes()
    shas = {one.path: one.sha256 for one in Report.read(run / "report.json").artifacts if one.role == "pruned"}
    assert file_hash(folder / "small-Q4_0.gguf") == shas["gguf/model-q4_0.gguf"]
    names = sorted(repository.files)
    assert found_by_llama_cpp("Q4_0", names) == "small-Q4_0.gguf" and "codes.safetensors" not in names
    assert {"onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_q4.onnx", "onnx/model_q4.onnx_data"} < set(names)
    assert {f"Modelfile.{tag}" for tag in ("F16", "BF16", "Q4_0")} | {"template", "params"} < set(names)
    assert not [path.name for path in run.iterdir() if path.name.startswith(".tmp")]


def test_a_second_push_replaces_the_first(hub, push):
    push("--no-model", "--format", "gguf-q4_0", "--format", "gguf-f16")
    repository = hub.repositories[REPO]
    repository.files["mine.txt"] = b"mine"
    uploads = hub.calls.count("PUT upload")
    code, document, _ = push(*FEW)
    assert code == 0 and document["changed"] and hub.calls.count("PUT upload") == uploads, "the file was there"
    assert {"mine.txt", "small-Q4_0.gguf", "Modelfile"} < set(repository.files)
    assert not {"small-F16.gguf", "Modelfile.F16", "Modelfile.Q4_0"} & set(repository.files)
    commits = len(repository.commits)
    code, document, told = push(*FEW)
    assert code == 0 and not document["changed"] and "nothing changed" in told and len(repository.commits) == commits


@pytest.mark.parametrize("how", ["no token", "--dry-run"])
def test_a_dry_run_sends_nothing(hub, push, run, monkeypatch, how):
    if how == "no token":
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    code, document, told = push(*FEW, *([how] if how.startswith("--") else []))
    assert code == 0 and document["dry_run"] and document["commit"] is None and hub.calls == []
    names = {file["path"] for file in document["files"]}
    assert {"README.md", "small-Q4_0.gguf", "plan.json", "report.json", "Modelfile", LAYOUT_FILE} < names
    assert "nothing was sent" in told and "licence: apache-2.0" in told
    assert ("no token" in told) == (how == "no token")
    assert not [path.name for path in run.iterdir() if path.name.startswith(".tmp")]


def test_nothing_tells_of_the_machine(hub, push, run, tmp_path):
    """The board's address and folders stay here."""
    stage = (run / "report.json").resolve()
    document = json.loads(stage.read_text())
    changed = json.loads(json.dumps(document))
    changed["bench"]["machine"]["host"] = "pi@192.0.2.7"
    changed["bench"]["artifacts"][0].setdefault("runtime", {}).update(program="/home/pi/python", module="/home/pi/lib")
    try:
        stage.write_text(json.dumps(changed))
        assert push()[0] == 0
    finally:
        stage.write_text(json.dumps(document))
    for path in hub.unpack(REPO, tmp_path).rglob("*"):
        if path.is_file() and path.suffix in (".json", ".md", "") and path.stat().st_size < 2**20:
            text = path.read_text(errors="replace")
            assert not [place for place in ("192.0.2.7", "/home/pi", str(run.parent)) if place in text], path


REFUSED = [
    ("token", READER, "the hub refuses (403)", "must be allowed to write to 'me'"),
    ("token", "hf_wrong", "the hub refuses (401)", "hf auth login"),
    ("create", 409, "the hub refuses (409)", "is as it was"),
    ("create", 500, "the hub refuses (500)", "is as it was"),
    ("validate", 503, "the hub refuses (503)", "is as it was"),
    ("preupload", 404, "the hub refuses (404)", "was made and is empty"),
    ("preupload", 429, "the hub refuses (429)", "Wait"),
    ("batch", 403, "the hub refuses (403)", "was made and is empty"),
    ("upload", 500, "the hub refuses (500)", "was made and is empty"),
    ("upload", "drop", "the upload failed", "was made and is empty"),
    ("commit", 500, "the hub refuses (500)", "was made and is empty"),
    ("commit", "drop", "the upload failed", "as far as is known"),
    ("info", "drop", "the upload failed", "is as it was"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "fault", "reason", "more"), REFUSED)
def test_what_the_hub_refuses(hub, push, run, monkeypatch, what, fault, reason, more):
    if what == "token":
        monkeypatch.setenv("HF_TOKEN", fault)
    else:
        hub.faults[what] = fault
    code, document, told = push(*FEW)
    assert code == 2 and document is None and reason in told and more in told and "Traceback" not in told
    assert told.count("error:") == 1 and set(hub.repositories.get(REPO, Repository(False)).files) == {".gitattributes"}
    assert not [path.name for path in run.iterdir() if path.name.startswith(".tmp")]


def test_another_owner(hub, push):
    code, _, told = push(*FEW, repo="you/small")
    assert code == 2 and "(403)" in told and "write to 'you'" in told and "You don't have the rights" in told


def test_no_network(push, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    code, _, told = push(*FEW)
    assert code == 2 and "the upload failed: ConnectError" in told and "is as it was" in told


def test_repositories_of_others(hub, push):
    hub.repositories[REPO] = Repository(False)
    code, _, told = push(*FEW, "--private")
    assert code == 2 and "is there, and public" in told
    hub.repositories[REPO].files["README.md"] = b"# Mine\n"
    code, _, told = push(*FEW)
    assert code == 2 and "a file that saap-edge did not write, 'README.md'" in told
    hub.repositories[REPO].files[LAYOUT_FILE] = b'{"of": "something else"}'
    code, _, told = push(*FEW)
    assert code == 2 and "a file that saap-edge did not write" in told and len(hub.repositories[REPO].commits) == 1
    hub.repositories[REPO] = Repository(True)
    assert push(*FEW)[1]["private"], "an empty one is taken as it is"


def test_somebody_else_was_faster(hub, push, monkeypatch):
    push(*FEW)
    repository, before = hub.repositories[REPO], len(hub.repositories[REPO].commits)
    original = Repository.sha
    # The commit that the first question told is no longer the last one when ours arrives.
    told = iter([original.fget(repository)])
    monkeypatch.setattr(Repository, "sha", property(lambda self: next(told, "f" * 40)))
    code, _, said = push("--no-model", "--format", "gguf-f16")
    assert code == 2 and "(412)" in said and "changed it meanwhile" in said and len(repository.commits) == before


def test_a_killed_push_leaves_nothing(hub, run, push):
    """kill -9 in the middle of the upload: the repository is empty, and the same command does it."""
    hub.faults["upload"] = "stall"
    command = [sys.executable, "-m", "saap_edge", "push", str(run), "--repo", REPO, *FEW]
    settings = {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": WRITER}
    process = subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert hub.stalled.wait(120), process.communicate(timeout=5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert set(hub.repositories[REPO].files) == {".gitattributes"} and "POST commit" not in hub.calls
    hub.faults.clear()
    code, document, _ = push(*FEW)
    assert code == 0 and document["changed"] and "small-Q4_0.gguf" in hub.repositories[REPO].files
    assert not [path.name for path in run.iterdir() if path.name.startswith(".tmp")], "of the killed one too"


@pytest.mark.parametrize(
    ("stated", "arguments", "reason"),
    [
        ("# nothing\n", (), "the base model states no licence: say under which it is with --license"),
        ("---\nlicense: gemma\n---\n", (), "Say --yes when you see to it"),
        ("---\nlicense: other\nlicense_name: x\n---\n", (), "does not know this licence"),
        ("---\nlicense: mit\nextra_gated_heading: y\n---\n", (), "ask for consent"),
        ("---\nlicense: cc-by-nc-4.0\n---\n", (), "commercial purpose"),
        ("---\nlicense: cc-by-nc-nd-4.0\n---\n", ("--yes",), "forbids it: it allows no changed versions"),
        ("---\nlicense: llama3.2\n---\n", ("--yes",), "asks for a name that begins with 'Llama'"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", ("--yes",), "several licences (mit, apache-2.0)"),
        ("---\nlicense: mit\n---\n", ("--license", "apache-2.0"), "is under mit"),
    ],
)  # fmt: skip
def test_licences(hub, push, states, stated, arguments, reason):
    states.write_text(stated)
    code, _, told = push(*FEW, *arguments)
    assert code == 2 and reason in told and hub.calls == []


def test_demands_that_are_agreed_to(hub, push, states, tmp_path):
    states.write_text("---\nlicense: llama3.2\n---\n")
    code, document, told = push(*FEW, "--dry-run", repo="me/Llama-small")
    assert code == 0 and "Built with Llama" in told and any("demands" in note for note in document["notes"])
    assert push(*FEW, "--yes", repo="me/Llama-small")[0] == 0
    folder = hub.unpack("me/Llama-small", tmp_path)
    notice = "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, Inc."
    assert notice in (folder / "NOTICE").read_text() and notice in (folder / "README.md").read_text()
    states.write_text("# nothing\n")
    assert push(*FEW, "--license", "mit")[0] == 0
