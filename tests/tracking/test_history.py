"""Many runs as one history: which are found, in which order, what changed, and the page in a browser."""

from __future__ import annotations

import json

import pytest

import saap_edge as se
from saap_edge.documents.history import History
from saap_edge.errors import SaapError
from saap_edge.report.history import history_page
from saap_edge.tracking.collect import collect
from tests.gating.support import bench, report
from tests.report.test_browser import DESKTOP, PHONE, QUIET, chromium
from tests.test_cli import call
from tests.tracking.support import write_run


@pytest.fixture
def runs(tmp_path):
    """Four commits, the third too slow; the last with a newer runtime."""
    root = tmp_path / "runs"
    write_run(root / "c10", 1.21, "2026-01-02T00:00:00Z", least=1.1)
    write_run(root / "c9", 1.2, "2026-01-01T00:00:00Z", least=1.1)
    write_run(root / "c11", 0.9, "2026-01-03T00:00:00Z", least=1.1)
    write_run(root / "c12", 1.3, "2026-01-04T00:00:00Z", versions={"llama-cpp-python": "2"}, perplexity=None)
    return root


def test_runs_of_a_folder_in_the_order_of_their_time(runs):
    found = collect([runs])
    assert [run.label for run in found.runs] == ["c9", "c10", "c11", "c12"]
    assert [run.verdict for run in found.runs] == ["pass", "pass", "fail", None]
    assert found.runs[2].failed[0].startswith("gguf-q4_0: decode_vs_baseline >= 1.1: fail (")
    assert [run.changed for run in found.runs[:3]] == [[], [], []]
    assert found.runs[3].changed == ["llama-cpp-python: 1 => 2"]
    candidates = [point for point in found.points if point.artifact == "candidate gguf-q4_0"]
    assert [point.decode_ratio.ratio for point in candidates] == [1.2, 1.21, 0.9, 1.3]
    assert [point.perplexity for point in candidates] == [11.0, 11.0, 11.0, None]
    assert {point.against for point in candidates} == {"baseline gguf-q4_0"} and candidates[0].file_mib == 3.0
    baselines = [point for point in found.points if point.artifact == "baseline gguf-q4_0"]
    assert len(baselines) == 4 and all(point.decode_ratio is None and point.decode_tok_s for point in baselines)


def test_times_decide_against_names(tmp_path):
    for name, day in (("a", 3), ("b", 1), ("c", 2)):
        write_run(tmp_path / name, at=f"2026-01-0{day}T00:00:00Z")
    assert [run.label for run in collect([tmp_path]).runs] == ["b", "c", "a"]


def test_without_times_the_order_is_that_of_the_places_and_numbers_in_a_folder(tmp_path):
    for name in ("b/run10", "b/run9", "a"):
        write_run(tmp_path / name)
    found = collect([tmp_path / "b", f"last={tmp_path / 'a'}"])
    assert [run.label for run in found.runs] == ["run9", "run10", "last"]
    write_run(tmp_path / "b" / "run11", at="2020-01-01T00:00:00Z")
    assert [run.label for run in collect([tmp_path / "b"]).runs] == ["run9", "run10", "run11"], "one of three tells it"


def test_a_run_is_its_report_and_its_stages_are_not_counted_again(tmp_path):
    write_run(tmp_path / "out" / "stages" / "bench-1")
    (tmp_path / "out" / "report.json").write_text(json.dumps(report()))
    [run] = collect([tmp_path]).runs
    assert (run.label, run.model, run.file) == ("out", "a-model", str(tmp_path / "out" / "report.json"))


def test_boards_and_models_are_told_apart(tmp_path):
    for place, cpu in enumerate(("A", "B", "A")):
        write_run(tmp_path / f"run{place}", cpu=cpu, versions={"llama-cpp-python": str(place)})
    found = collect([tmp_path])
    assert [run.board for run in found.runs] == ["A", "B", "A"]
    assert [run.changed for run in found.runs] == [[], [], ["llama-cpp-python: 0 => 2"]], "beside its own board's last"


def test_files_of_any_name_and_their_verdicts(tmp_path):
    file = write_run(tmp_path / "x", least=9)
    file.rename(tmp_path / "abc123.bench.json")
    (tmp_path / "x" / "gate.json").rename(tmp_path / "abc123.gate.json")
    [run] = collect([tmp_path]).runs
    assert (run.label, run.verdict) == ("abc123.bench", "fail")


@pytest.mark.parametrize(("make", "message"), [
    (lambda root: [root / "nothing"], "no '.*nothing'"),
    (lambda root: [root], "no report.json or bench.json in"),
    (lambda root: [(root / "bench.json").write_text("{") and root], "is not a JSON document"),
    (lambda root: [(root / "bench.json").write_text(json.dumps(bench() | {"schema": 1})) and root], "schema version 1"),
    (lambda root: [f"one={write_run(root / 'a') and write_run(root / 'b') and root}"], "2 runs cannot have one label"),
])  # fmt: skip
def test_what_is_no_history_is_refused(tmp_path, make, message):
    with pytest.raises(SaapError, match=message):
        collect(make(tmp_path))


def test_a_damaged_verdict_is_refused(runs):
    (runs / "c9" / "gate.json").write_text('{"version": 1}')
    with pytest.raises(SaapError, match=r"gate.json' is damaged: exit_code"):
        collect([runs])


def test_the_command(runs, tmp_path, monkeypatch, capsys):
    page = tmp_path / "h.html"
    code, stdout, stderr = call(monkeypatch, capsys, "history", runs, "--out", page, "--json")
    assert code == 0 and page.is_file() and str(page) in stderr and "c11" in stderr
    assert json.loads(stdout) == se.history([runs]).as_dict()
    code, stdout, stderr = call(monkeypatch, capsys, "history", runs, "--out", tmp_path / "no" / "h.html")
    assert code == 2 and not stdout and "cannot write" in stderr.splitlines()[-1]
    code, _, stderr = call(monkeypatch, capsys, "history", tmp_path / "missing", "--out", tmp_path / "other.html")
    assert code == 2 and not (tmp_path / "other.html").exists() and stderr.count("\n") == 1


needs_browser = pytest.mark.skipif(chromium is None, reason="no Chromium here: .ci/run installs it")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        yield started
        started.close()


def opened(browser, history: History, file, width: int = DESKTOP):
    file.write_text(history_page(history), encoding="utf-8")
    page = browser.new_context(offline=True, viewport={"width": width, "height": 844}).new_page()
    page.wrong = []
    page.on("request", lambda request: page.wrong.append(request.url) if request.url != file.as_uri() else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("console", lambda message: page.wrong.append(message.text))
    page.goto(file.as_uri())
    return page


@needs_browser
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_page_without_network(browser, runs, tmp_path, width):
    page = opened(browser, collect([runs]), tmp_path / "h.html", width)
    assert page.wrong == [] and page.evaluate("document.documentElement.scrollWidth") <= width
    titles = page.evaluate("[...document.querySelectorAll('svg')].map(s => s.getAttribute('aria-label'))")
    assert len(titles) == 6 and titles[0].startswith("decode speed") and "held memory, MiB" not in titles
    assert page.locator("svg circle.failed").count() > 0 and page.locator("#runs .verdict.fail").count() == 1
    rows = page.locator("#runs tr").all_inner_texts()
    assert len(rows) == 1 + 8 and "c12" in rows[1] and "llama-cpp-python: 1 => 2" in rows[1], "the newest first"
    assert "1.20 [1.15, 1.25]" in rows[-1] and "pass" in rows[-1] and "pass" not in rows[-2], "on what was compared"


@needs_browser
def test_filters_by_board_model_and_artifact(browser, runs, tmp_path):
    write_run(runs / "other", 1.5, "2026-02-01T00:00:00Z", cpu="Another <b>CPU</b>")
    page = opened(browser, collect([runs]), tmp_path / "h.html")
    assert page.inner_text("#told") == "5 of 5 runs."
    page.select_option("#board", "Another <b>CPU</b>")
    assert page.inner_text("#told") == "1 of 5 runs." and page.locator("#runs tr").count() == 1 + 2
    page.select_option("#artifact", "candidate gguf-q4_0")
    assert page.locator("#runs tr").count() == 1 + 1 and page.locator("svg circle").count() == 6
    page.select_option("#board", "")
    assert page.locator("#runs tr").count() == 1 + 5 and page.wrong == []
    assert page.locator("svg polyline").count() == 2 * 6, "a line for each board"


@needs_browser
def test_no_text_can_end_the_data(browser, tmp_path):
    write_run(tmp_path / "</script><script>alert(1)</script>", cpu="</script><img src=x onerror=alert(2)>")
    page = opened(browser, collect([tmp_path]), tmp_path / "h.html")
    assert page.wrong == [] and page.inner_text("#told") == "1 of 1 runs."
    assert "<img src=x" in page.inner_text("#runs")
