"""The card: huggingface_hub reads its head, its figures are the run's, and it assumes nothing."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard, constants

import saap_edge as se
from saap_edge.documents.report import Report
from saap_edge.errors import SaapError
from saap_edge.publishing.contents import find_contents
from saap_edge.sources import stated_by
from tests.publishing.conftest import FORMATS, STATED
from tests.publishing.hub_support import Repository, running
from tests.test_cli import call


@pytest.fixture
def made(run, tmp_path):
    """Writes a card with options, and returns it as the hub's library reads it."""

    def write(**options):
        found = se.card(run, out=tmp_path / "README.md", **({"repo": "me/small-GGUF"} | options))
        return ModelCard.load(found.path), found

    return write


def test_the_head_is_what_the_hub_reads(made, run):
    card, found = made(base_model="you/large")
    data, report = card.data, Report.read(run / "report.json")
    assert (data.license, data.language, data.pipeline_tag) == ("apache-2.0", ["en"], "text-generation")
    assert (data.base_model, data.base_model_relation, data.library_name) == ("you/large", "finetune", "transformers")
    assert data.tags == ["saap-edge", "pruned", "gguf", "onnx", "conversational"]
    perplexities = {one.metric_name.split(",")[1].split()[0]: one.metric_value for one in data.eval_results}
    measured = {one.format: one.metrics.perplexity for one in report.bench.artifacts if one.role == "pruned"}
    assert perplexities == pytest.approx(measured, abs=1e-4) and set(perplexities) == set(FORMATS)
    assert {one.dataset_args["window"] for one in data.eval_results} == {report.bench.conditions.perplexity_window}
    assert found.metadata == yaml.safe_load(card.content.split("---")[1]) and not found.notes


def test_the_text_tells_what_was_measured(made, run):
    card, found = made()
    report, text = Report.read(run / "report.json"), card.text
    for pair in report.bench.pairs():
        ratio = pair.ratios.decode_tok_s
        assert f"| {pair.candidate.format} |" in text
        assert f"{ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" in text
    for layer in report.plan.layers:
        assert re.search(rf"^\| {layer.layer} \| .*{layer.ffn[1]} \|$", text, re.MULTILINE)
    for folder in report.lineage.values():
        assert f"`{folder}`" in text
    assert "widths.png" in text and found.picture.read_bytes().startswith(b"\x89PNG")
    for artifact in report.artifacts:
        if artifact.role == "pruned" and artifact.path.endswith(".gguf"):
            assert f"`{artifact.sha256[:12]}…`" in text
    assert str(run.parent) not in card.content, "no path of the machine that made it"
    assert "text.txt" in text


def test_lines_hold_for_what_is_there(made):
    whole = made()[0].text
    assert "llama-cli -hf me/small-GGUF:Q4_0" in whole and "ollama run hf.co/me/small-GGUF:Q4_0" in whole
    assert "trust_remote_code=True" in whole and "onnx/config.json" in whole and "onnxruntime_genai" in whole
    # The tag F16 would find small-BF16.gguf.
    assert "--hf-repo me/small-GGUF --hf-file small-F16.gguf" in whole and "--hf-file small-BF16" not in whole
    files = made(with_model=False, formats=["gguf-q4_0"])[0].text
    assert "llama-cli" in files and not {"transformers", "onnx"} & set(
        re.findall(r"\w+", files.partition("## What")[0])
    )


@pytest.mark.parametrize(
    ("formats", "with_model", "relation", "library"),
    [
        ((), True, "finetune", "transformers"),
        (("gguf-q4_0",), False, "quantized", "gguf"),
        (("gguf-f16",), False, "finetune", "gguf"),
        (("onnx-int4",), False, "quantized", "transformers.js"),
    ],
)
def test_what_it_is_to_its_base(made, formats, with_model, relation, library):
    data = made(formats=formats, with_model=with_model, base_model="you/large")[0].data
    assert (data.base_model_relation, data.library_name) == (relation, library)


def test_nothing_is_assumed(made, states):
    states.write_text("# No head\n")
    card, found = made(repo=None)
    assert card.data.license is None and card.data.base_model is None and card.data.language is None
    assert "nothing allows you to share this model" in card.text and "OWNER/base-pruned" in card.text
    assert any("--license" in note for note in found.notes) and any("--repo" in note for note in found.notes)
    assert made(license="mit")[0].data.license == "mit"


def test_licences_of_their_own(made, states):
    states.write_text("---\nlicense: other\nlicense_name: tongyi\nlicense_link: LICENSE\nextra_gated_prompt: x\n---\n")
    card, found = made(base_model="you/large")
    assert (card.data.license, card.data.license_name, card.data.license_link) == ("other", "tongyi", "LICENSE")
    assert "does not know this licence" in card.text and "gated" in card.text and len(found.notes) == 2
    states.write_text("---\nlicense: other\nlicense_name: tongyi\nlicense_link: terms/HERE.md\n---\n")
    assert (
        made(base_model="you/large")[0].data.license_link == "https://huggingface.co/you/large/blob/main/terms/HERE.md"
    )
    states.write_text("---\nlicense: gemma\n---\n")
    assert "Gemma is provided under and subject to the Gemma Terms of Use" in made()[0].text
    with pytest.raises(SaapError, match="--license mit: the base model is under gemma"):
        made(license="mit")


def test_zero_shot_figures_of_the_run(made, evaluation):
    card, _ = made(evaluations=[evaluation])
    [one] = [one for one in card.data.eval_results if one.metric_type == "acc"]
    assert (one.dataset_type, one.metric_value, one.metric_name) == ("piqa", 0.625, "acc, gguf-q4_0")
    assert "| gguf-q4_0 | piqa | acc | 0.6250 ± 0.0340 | 200 |" in card.text and "gguf-other" not in card.text
    document = json.loads(evaluation.read_text())
    for change, reason in (
        ({"evaluated": "out/stages/export-0123"}, "is of 'export-0123', this run's artifacts are in 'export-"),
        ({"tasks": document["tasks"][1:]}, "has no task of gguf-bf16"), ({"schema": 2}, "another version"),
        ({"tasks": [{}]}, "is not what `saap-edge evaluate --json` prints"),
    ):  # fmt: skip
        evaluation.write_text(json.dumps(document | change))
        with pytest.raises(SaapError, match=reason):
            made(evaluations=[evaluation])


def test_the_base_model_of_the_hubs_cache(run, tmp_path, monkeypatch):
    """Its commit is told where the folder is the one that the run began with."""
    folder = tmp_path / "models--you--large" / "snapshots" / ("0123456789" * 4)
    shutil.copytree(run.parent / "base", folder)
    monkeypatch.setattr("saap_edge.publishing.contents.stated_by", lambda name: folder)
    base = find_contents(run).base
    assert (base.id, base.commit) == ("you/large", "0123456789" * 4)
    assert find_contents(run, base_id="you/other").base.commit is None
    (folder / "config.json").write_text("{}")
    assert find_contents(run).base.id == "you/large" and find_contents(run).base.commit is None


def test_of_a_hub_name_no_weights_are_fetched(tmp_path, monkeypatch):
    with running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        address = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        files = {"README.md": STATED.encode(), "LICENSE.txt": b"Apache", "model.safetensors": b"0" * 2**20}
        hub.repositories["you/large"] = Repository(False, files)
        folder = stated_by("you/large")
        assert {path.name for path in folder.iterdir()} == {"README.md", "LICENSE.txt"}
        before = len(hub.calls)
        assert stated_by("you/large") == folder and len(hub.calls) == before, "the cache is taken as it is"
        with pytest.raises(SaapError, match="no such model on the hub"):
            stated_by("you/none")
    with pytest.raises(SaapError, match="no model folder '/none'"):
        stated_by("/none")


def test_by_the_command(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "deep" / "card.md"
    code, printed, told = call(monkeypatch, capsys, "card", run, "--out", out, "--repo", "me/small", "--json")
    document = json.loads(printed)
    assert code == 0 and document["exit_code"] == 0 and document["metadata"]["license"] == "apache-2.0"
    assert document["card"] == str(out) and out.is_file() and "apache-2.0" in told
    assert call(monkeypatch, capsys, "card", run, "--out", out)[0] == 0, "its own card is replaced"
    assert call(monkeypatch, capsys, "card", run / "report.json" / "..", "--out", out)[0] == 2
    code, _, _ = call(monkeypatch, capsys, "card", (run / "report.json").resolve().parent)
    assert code == 0 and ModelCard.load(run / "README.md").data.license == "apache-2.0"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--repo", "a b/c"), "--repo 'a b/c'"), (("--repo", "small"), "say whose it is, as OWNER/NAME"),
        (("--repo", "me/smtp-model"), "takes files with 'mtp-' in their names for no model"),
        (("--base-model", "me//x"), "--base-model 'me//x'"), (("--format", "gguf-q9"), "has gguf-f16, gguf-bf16"),
        (("--license", "mit"), "is under apache-2.0"), (("--evaluation", "none.json"), "cannot read 'none.json'"),
        (("--out", "mine.md"), "a file that saap-edge did not write"),
    ],
)  # fmt: skip
def test_bad_input(run, tmp_path, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.md").write_text("# Mine\n")
    code, _, told = call(monkeypatch, capsys, "card", run, "--out", "new.md", *arguments)
    assert code == 2 and reason in " ".join(told.split()) and [path.name for path in tmp_path.iterdir()] == ["mine.md"]


def test_unfinished_runs(run, tmp_path, monkeypatch, capsys):
    for place, reason in ((tmp_path, "no finished run: it has no report.json"), (tmp_path / "none", "no run at"),
                          ((run / "gguf").resolve().parent, "is no finished run")):  # fmt: skip
        code, _, told = call(monkeypatch, capsys, "card", place, "--out", tmp_path / "README.md")
        assert code == 2 and reason in " ".join(told.split()) and not list(tmp_path.iterdir())
