"""What README and docs say is so: evidence exists, links lead somewhere, pages are listed, commands are all there."""

import inspect
import json
import re
import sys
from pathlib import Path

import pytest
import typer
import yaml

from saap_edge.cli import app

ROOT = Path(__file__).parents[1]
DOCS = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{name}" for name in DOCS)]
GENERATED = ("cli.md", "reference.md")  # by mkdocs_hooks.py


@pytest.fixture(scope="module")
def commands():
    sys.path.insert(0, str(ROOT))
    try:
        import mkdocs_hooks
    finally:
        sys.path.remove(str(ROOT))
    return mkdocs_hooks.commands_page()


@pytest.mark.parametrize("document", PAGES)
def test_evidence_exists(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    paths = re.findall(r"(?:tests|benchmarks|saap_edge)/[\w/]+\.py", text)
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    names = re.findall(r"\b(test_\w+)(?![\w.])", text)
    assert [name for name in names if f"def {name}(" not in source and f"/{name}.py" not in text] == []
    results = re.findall(r"benchmarks/results/[\w.-]+\.(?:json|svg)", text)
    assert [path for path in results if not (ROOT / path).is_file() and "NAME" not in path] == []


@pytest.mark.parametrize("document", PAGES)
def test_links_lead_somewhere(document):
    """Files and headings. `make docs` checks those of the site too, and more strictly."""
    text = re.sub(r"```.*?```", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        if document.startswith("docs/") and name in GENERATED:
            continue
        assert path.is_file(), target
        assert not (document.startswith("docs/") and name.startswith("../")), f"{target} is not on the site"
        assert not anchor or anchor in headings(path), target


def headings(path):
    """Anchors of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_every_page_is_in_the_index_and_in_the_navigation():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", index))
    assert linked == {*DOCS, *GENERATED} - {"index.md"}
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert set(re.findall(r"[\w-]+\.md", json.dumps(navigation))) == {*DOCS, *GENERATED}


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 130


@pytest.mark.parametrize("document", ["README.md", "docs/results.md"])
def test_figures_of_the_real_model_are_those_of_its_result(document, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from real_model import tables

    result = json.loads((ROOT / "benchmarks" / "results" / "smollm2-135m.json").read_text(encoding="utf-8"))
    text = (ROOT / document).read_text(encoding="utf-8")
    shown = text.partition("<!-- real model: begin -->")[2].partition("<!-- real model: end -->")[0]
    assert shown.strip() == "\n".join(tables(result)).strip()


def test_tables_on_a_pretrained_model_are_those_of_the_result(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from real_show import files, tables, trained

    result = json.loads((ROOT / "benchmarks" / "results" / "real-smollm2-135m.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "real-models.md").read_text(encoding="utf-8")
    rows, texts = result["recovered"], list(result["windows"])
    wanted = {
        "real methods": tables(result), "real recovered": trained(rows, texts),
        "real files": files([row for row in rows if row["tasks"]], texts),
    }  # fmt: skip
    for mark, lines in wanted.items():
        shown = text.partition(f"<!-- {mark}: begin -->")[2].partition(f"<!-- {mark}: end -->")[0]
        assert shown.strip() == "\n".join(lines).strip()


def test_the_table_of_the_search_is_that_of_its_result(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from search import tables

    result = json.loads((ROOT / "benchmarks" / "results" / "search.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    shown = text.partition("<!-- search: begin -->")[2].partition("<!-- search: end -->")[0]
    assert shown.strip() == "\n".join(tables(result)).strip()


def registered(typed, words=()):
    """Every command of a Typer app as (words, function), from what was registered: not as mkdocs_hooks.py walks it."""
    for command in typed.registered_commands:
        yield (*words, command.name or command.callback.__name__), command.callback
    for group in typed.registered_groups:
        yield from registered(group.typer_instance, (*words, group.name))


def test_every_command_and_option_is_in_the_reference(commands):
    known = dict(registered(app))
    assert len(known) > 20
    sections = dict(re.findall(r"^## saap-edge ([\w ]+)\n(.*?)(?=^## |\Z)", commands, re.MULTILINE | re.DOTALL))
    assert set(sections) - {group.name for group in app.registered_groups} == {" ".join(words) for words in known}
    for words, function in known.items():
        section = sections[" ".join(words)]
        assert inspect.cleandoc(function.__doc__).splitlines()[0] in section
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
            [info] = [one for one in parameter.annotation.__metadata__ if hasattr(one, "param_decls")]
            shown = name.upper()
            if isinstance(info, typer.models.OptionInfo):
                shown = next(text for text in (info.default, *info.param_decls) if str(text).startswith("--"))
            starts = (f"| `{shown}` |", f"| `{shown}...` |")  # the second: it may be given several times
            rows = [line for line in section.splitlines() if line.startswith(starts)]
            assert len(rows) == 1 and " ".join(info.help.split()) in rows[0], (words, name)


def test_the_reference_is_the_same_on_every_machine(commands):
    """No default that is read from the machine."""
    assert not re.search(r"\| `--threads` \| [^|]*\| `\d+` \|", commands)
    assert "<" not in re.sub(r"^    .*$", "", commands, flags=re.MULTILINE)
