"""JSON schemas of the documents that saap-edge writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saap_edge.errors import SaapError

if TYPE_CHECKING:
    from saap_edge.documents.base import Document

__all__ = ["DOCUMENTS", "schema"]

DOCUMENTS = {
    "bench": "speed, memory and quality of artifacts (bench.json)",
    "draft": "pruned models as drafts of their parent (draft.json)",
    "gate": "verdicts on limits (gate.json)",
    "history": "figures of many runs, in order (history --json)",
    "manifest": "artifacts of an export (manifest.json)",
    "plan": "widths per layer, before and after (plan.json)",
    "report": "all that a run found (report.json)",
    "sweep": "recipes of a sweep, what became of each, and the stages that they share (sweep.json)",
    "verify": "how far each artifact's answers are from torch's (verify.json)",
}


def schema(name: str) -> dict[str, Any]:
    """The JSON schema of a document, one of DOCUMENTS ("bench", "gate", "report" and others).

    Every field has a description with its unit (docs/documents.md). Raises SaapError for another name.

    Examples:
        >>> se.schema("bench")["properties"]["schema"]["const"]
        2
    """
    if name not in DOCUMENTS:
        raise SaapError(f"there is no document '{name}' (known: {', '.join(DOCUMENTS)})")
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return head | _classes()[name].model_json_schema()


def _classes() -> dict[str, type[Document]]:
    from saap_edge.artifacts import Manifest
    from saap_edge.documents.bench import Bench
    from saap_edge.documents.draft import Draft
    from saap_edge.documents.gate import Gate
    from saap_edge.documents.history import History
    from saap_edge.documents.plan import Plan
    from saap_edge.documents.report import Report
    from saap_edge.documents.sweep import Sweep
    from saap_edge.documents.verify import Verify

    return {
        "bench": Bench, "draft": Draft, "gate": Gate, "history": History, "manifest": Manifest, "plan": Plan,
        "report": Report, "sweep": Sweep, "verify": Verify,
    }  # fmt: skip
