"""The model card: README.md of a repository, in the hub's form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jinja2
import yaml
from huggingface_hub import ModelCard

from saap_edge.documents.bench import Conditions
from saap_edge.documents.report import Estimate, Report
from saap_edge.publishing.commit import program
from saap_edge.publishing.contents import Contents
from saap_edge.publishing.evaluations import Figure
from saap_edge.publishing.metadata import measured, metadata
from saap_edge.publishing.names import model_name
from saap_edge.publishing.usage import usages
from saap_edge.recipe import Recipe
from saap_edge.report.figures import both_widths, styled
from saap_edge.report.github import cell
from saap_edge.report.tables import change, number
from saap_edge.targets import HOST

__all__ = ["PICTURE", "Card", "Row", "make_card"]

PICTURE = "widths.png"


@dataclass(frozen=True)
class Row:
    """A file or folder in the card's table: where it is in the repository, its format, bytes and sha256."""

    path: str
    format: str
    bytes: int
    sha256: str | None = None


@dataclass(frozen=True)
class Card:
    """A model card: its text, the metadata at its head, and the picture that it shows."""

    text: str
    metadata: dict[str, Any]
    picture: bytes


def make_card(contents: Contents, repo: str, files: Sequence[Row], figures: tuple[Figure, ...] = ()) -> Card:
    """The card of a repository.

    Args:
        contents: what is published.
        repo: its name, OWNER/NAME, in the lines that say how it is run.
        files: what its table of files shows.
        figures: of zero-shot tasks.
    """
    report, title = contents.report, model_name(repo)
    names = {entry.name for entry in measured(contents)}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["cell"] = cell
    body = environment.get_template("card.md.j2").render(
        report=report, base=contents.base, licence=contents.licence, title=title, files=files, figures=figures,
        usages=usages(contents, repo), recipe=_recipe(contents), program=program(), maker=_maker(report),
        pairs=[pair for pair in report.bench.pairs() if pair.candidate.name in names],
        predicted=[entry for entry in report.predicted if entry.name in names], estimate=_estimate, both=_both,
        change=lambda widths: change(*widths), confidence=_confidence(report), trained=_trained(report),
        conditions=_conditions(report.bench.conditions), board=_board(report),
        measured_elsewhere=bool(report.predicted),
    )  # fmt: skip
    data = metadata(contents, title, figures)
    with styled():
        picture = both_widths(report.plan)
    return Card(str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")), dict(cast(Any, data).to_dict()), picture)


def _both(before: float | None, after: float | None, digits: int) -> str:
    return " ⇒ ".join(dict.fromkeys(number(value, digits) for value in (before, after)))


def _estimate(estimate: Estimate | None) -> str:
    return "unknown" if estimate is None else f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def _confidence(report: Report) -> str:
    return f"{100 * (report.bench.conditions.confidence or 0.95):.0f}"


def _maker(report: Report) -> str:
    return f"saap-edge {report.versions.get('saap-edge', '')}".strip()


def _board(report: Report) -> str:
    return report.target.cpu if report.target.name == HOST else report.target.title


def _trained(report: Report) -> str:
    return (
        f"trained again on {report.recover.tokens:,} tokens" if report.recover.tokens else "repaired, not trained again"
    )


def _conditions(conditions: Conditions) -> str:
    count = conditions.threads or "?"
    threads = f"{count} thread{'' if count == 1 else 's'}"
    cache = f" KV cache in {conditions.kv}." if conditions.kv else ""
    perplexity = (
        f" Perplexity is each file's own in its runtime, over {conditions.perplexity_tokens} tokens in windows of "
        f"{conditions.perplexity_window} of the text with sha256 `{conditions.perplexity_text_sha256}…`."
    )
    counts = f"{conditions.decode_tokens} decoded, {conditions.rounds or '?'} rounds in random order"
    return (
        f"{threads}, a prompt of {conditions.prompt_tokens} tokens, {counts}.{cache}"
        f"{perplexity if conditions.perplexity_window else ''}"
    )


def _recipe(contents: Contents) -> str:
    """The recipe's fields that differ from the defaults, as YAML. Of paths only names: they are of another machine."""
    found = _named(_differing(contents.recipe, Recipe().model_dump(mode="json")))
    named = {"model": contents.base.id or contents.base.name, "target": contents.report.target.name}
    return yaml.safe_dump(named | found | named, sort_keys=False, allow_unicode=True).strip()


def _differing(value: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, entry in value.items():
        default = usual.get(name)
        if isinstance(entry, dict) and isinstance(default, dict):
            entry = _differing(entry, default)
            if entry:
                found[name] = entry
        elif entry != default:
            found[name] = entry
    return found


def _named(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _named(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_named(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
