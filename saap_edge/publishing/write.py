"""Writing a card, and laying a repository out in a folder: names, layouts, cards, licences, nothing of the network."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saap_edge import __version__
from saap_edge.bundle.find import front_matter
from saap_edge.documents.report import Report
from saap_edge.engines.onnx_folder import GENAI_FILE
from saap_edge.errors import SaapError
from saap_edge.files import read_json
from saap_edge.layouts.document import LAYOUT_FILE, File, Written
from saap_edge.layouts.ollama import modelfile, place, settings_of
from saap_edge.layouts.onnx_graph import standard_embedding
from saap_edge.layouts.registry import Given
from saap_edge.layouts.transformers_js import complete_tokenizer, config_of, copy_rest, file_of, write_graph
from saap_edge.model.tensors import Codes
from saap_edge.progress import Advance
from saap_edge.publishing.card import PICTURE, Card, Row, make_card
from saap_edge.publishing.contents import Contents, Shipped
from saap_edge.publishing.evaluations import Figure
from saap_edge.publishing.metadata import TAG
from saap_edge.publishing.names import gguf_name, gguf_tag
from saap_edge.publishing.usage import GGUF, ONNX, by_layer, of_kind, usual

__all__ = ["CARD", "LAYOUT", "CardFiles", "lay_out", "rows_of", "write_card"]

CARD, LAYOUT, NOTICE = "README.md", "hub", "NOTICE"


def rows_of(contents: Contents, repo: str) -> list[Row]:
    """What the card's table of files shows of a repository."""
    rows = []
    if contents.model is not None:
        weights = [path for path in contents.model.glob("*.safetensors") if path.name != Codes.FILE]
        rows.append(Row("`model*.safetensors`", "transformers", sum(path.stat().st_size for path in weights)))
    for shipped in contents.artifacts:
        entry, record = shipped.entry, shipped.record
        if record.kind == GGUF:
            rows.append(Row(f"`{gguf_name(repo, record.quantisation)}`", record.name, entry.bytes, entry.sha256))
        else:
            place = file_of(record.name) if record.kind == ONNX else f"{record.path}/"
            rows.append(Row(f"`{place}`", record.name, entry.bytes))
    return rows


@dataclass(frozen=True)
class CardFiles:
    """A card that was written.

    Attributes:
        path, picture: the card, and the picture of widths that it shows.
        metadata: what is at its head, for the hub.
        notes: lines that the user should read.
    """

    path: Path
    picture: Path
    metadata: dict[str, Any]
    notes: tuple[str, ...]


def write_card(contents: Contents, repo: str | None, figures: tuple[Figure, ...], out: Path) -> CardFiles:
    """Write the card of what is published as the file `out`. Without a repository's name, its lines name a made-up one.

    Raises SaapError where `out` is a file that saap-edge did not write, or cannot be written.
    """
    name = repo or f"OWNER/{_plain(contents.base.name)}-pruned"
    notes = [*contents.notes, *([] if repo else [f"the card's lines name {name}: say the real name with --repo"])]
    if contents.licence.id is None:
        notes.append("the base model states no licence, and the card says so: name one with --license")
    notes += [f"{contents.licence.shown} demands: {demand}" for demand in contents.licence.demands]
    if out.is_symlink() or (out.exists() and not _is_ours(out)):
        raise SaapError(f"--out '{out}' is a file that saap-edge did not write: move it, or choose another name")
    card = make_card(contents, name, rows_of(contents, name), figures)
    try:
        _save_card(card, out)
    except OSError as error:
        raise SaapError(f"cannot write to '{out}': {error.strerror or error}") from error
    return CardFiles(out, out.with_name(PICTURE), card.metadata, tuple(notes))


def _plain(name: str) -> str:
    """A name of a model as the end of a repository's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name.rpartition("/")[2].removesuffix(".gguf")).strip("-") or "model"


def _is_ours(card: Path) -> bool:
    return card.is_file() and TAG in (front_matter(card).get("tags") or ())


def _save_card(card: Card, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    picture = out.with_name(PICTURE)
    for path, content in ((picture, card.picture), (out, card.text.encode())):
        beside = path.with_name(f".{path.name}-{os.getpid()}")
        try:
            beside.write_bytes(content)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def lay_out(
    contents: Contents, repo: str, out: Path, figures: tuple[Figure, ...], advance: Advance
) -> Written:  # fmt: skip
    """Write a repository into the empty folder `out`, and layout.json with what was written.

    Args:
        contents: what is published.
        repo: its name, OWNER/NAME, with which files begin.
        figures: of zero-shot tasks, for the card.
        advance: called with (1, what) for every artifact.

    Large files become second names of the run's own, where the disk allows it. Recovered codes stay behind: loaders
    that take every *.safetensors of a folder would read them as weights. Raises SaapError as the layouts.
    """
    notes = list(contents.notes)
    if contents.model is not None:
        _copy(contents.model, out, (Codes.FILE,))
    for shipped in contents.artifacts:
        writer = _WRITERS.get(shipped.record.kind, _as_it_is)
        notes += writer(contents, shipped, repo, out)
        advance(1, f"{shipped.record.name} laid out")
    place(contents.plan, out / "plan.json")
    without_places(contents.report).write(out / "report.json")
    _licences(contents, out)
    _save_card(make_card(contents, repo, rows_of(contents, repo), figures), out / CARD)
    formats = ", ".join(shipped.record.name for shipped in contents.artifacts) or "none"
    written = Written(
        version=1, saap_edge=__version__, layout=LAYOUT, format=formats, notes=list(dict.fromkeys(notes)),
        files=[
            File(path=path.relative_to(out).as_posix(), bytes=path.stat().st_size)
            for path in sorted(out.rglob("*")) if path.is_file()
        ],
    )  # fmt: skip
    written.write(out / LAYOUT_FILE)
    return written


def without_places(report: Report) -> Report:
    """The report without names of machines and folders: the board's address, and where a runtime lay."""
    document = report.as_dict()
    document["bench"]["machine"].pop("host", None)
    document["gate"]["machine"].pop("host", None)
    for entry in document["bench"]["artifacts"]:
        for name in ("program", "module"):
            (entry.get("runtime") or {}).pop(name, None)
    return Report.parse(document, "the report")


def _given(contents: Contents, shipped: Shipped, path: Path) -> Given:
    return Given(shipped.record.name, path, contents.tokenizer, contents.base.folder)


def _gguf(contents: Contents, shipped: Shipped, repo: str, out: Path) -> list[str]:
    """The file under its name, a Modelfile for `ollama create`, and once what `ollama run hf.co/...` reads."""
    path = out / gguf_name(repo, shipped.record.quantisation)
    place(shipped.path, path)
    given, files = _given(contents, shipped, path), of_kind(contents, GGUF)
    text, notes = modelfile(given)
    name = "Modelfile" if len(files) == 1 else f"Modelfile.{gguf_tag(shipped.record.quantisation)}"
    (out / name).write_text(text, encoding="utf-8", newline="\n")
    if shipped is files[0]:
        _for_hf_co(given, out)
    return notes


def _for_hf_co(given: Given, out: Path) -> None:
    """`template` and `params`, which the hub gives Ollama with every GGUF file (huggingface.co/docs/hub/ollama)."""
    settings, parameters = settings_of(given), dict[str, Any]()
    if settings.template is not None:
        (out / "template").write_text(settings.template, encoding="utf-8", newline="\n")
    for name, value in settings.parameters:
        if name == "stop":
            parameters.setdefault(name, []).append(value)
        else:
            parameters[name] = value
    (out / "params").write_text(json.dumps(parameters, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _onnx(contents: Contents, shipped: Shipped, repo: str, out: Path) -> list[str]:
    """The graph where transformers.js looks for it; once the configs of transformers.js and onnxruntime-genai."""
    given = _given(contents, shipped, shipped.path)
    graph = out / file_of(shipped.record.name)
    write_graph(given, graph, standard_embedding)
    if shipped is not usual(of_kind(contents, ONNX), "transformers.js"):
        return []
    _for_genai(shipped.path, graph)
    _write(graph.with_name("config.json"), config_of(given))
    if contents.model is None:
        copy_rest(shipped.path, out)
        _write(out / "config.json", config_of(given))
    elif not by_layer(contents.model):
        key = "transformers.js_config"
        _write(out / "config.json", read_json(contents.model / "config.json") | {key: config_of(given)[key]})
    complete_tokenizer(contents.tokenizer, _own(out / "tokenizer_config.json"))
    return []


def _for_genai(folder: Path, graph: Path) -> None:
    """genai_config.json and the tokenizer beside a graph, which onnxruntime-genai wants in one folder."""
    if not (folder / GENAI_FILE).is_file():
        return
    copy_rest(folder, graph.parent)
    config = read_json(folder / GENAI_FILE)
    config["model"]["decoder"]["filename"] = graph.name
    _write(graph.with_name(GENAI_FILE), config)


def _as_it_is(contents: Contents, shipped: Shipped, repo: str, out: Path) -> list[str]:
    """An artifact of another kind, as the export wrote it."""
    target = out / shipped.record.path
    if shipped.path.is_dir():
        _copy(shipped.path, target)
    else:
        place(shipped.path, target)
    return []


_WRITERS: dict[str | None, Callable[[Contents, Shipped, str, Path], list[str]]] = {GGUF: _gguf, ONNX: _onnx}


def _licences(contents: Contents, out: Path) -> None:
    for path in contents.licence.files:
        shutil.copyfile(path, out / path.name)
    notice, target = contents.licence.terms.notice, out / NOTICE
    before = target.read_text(encoding="utf-8", errors="replace") if target.is_file() else ""
    if notice and notice not in before:
        target.write_text(f"{before}{notice}.\n", encoding="utf-8")


def _copy(folder: Path, out: Path, but: tuple[str, ...] = ()) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in but:
            place(path, out / path.relative_to(folder))


def _own(path: Path) -> Path:
    """The file as one of its own: it may be a second name of the run's."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    return path


def _write(path: Path, document: Any) -> None:
    path.unlink(missing_ok=True)  # it may be a second name of the run's own file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
