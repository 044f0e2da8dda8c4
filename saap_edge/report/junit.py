"""Verdicts as JUnit XML, which CI systems show beside their tests."""

from __future__ import annotations

import datetime
import re
from xml.etree import ElementTree

from saap_edge.documents.gate import Gate, Verdict

__all__ = ["render_junit"]

# What XML 1.0 cannot hold, escaped or not.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(gate: Gate, now: datetime.datetime) -> str:
    """A suite with a case for each verdict, with the attributes and the order of elements that usual schemas demand.

    A limit that failed is a <failure>. An inconclusive one is an <error>, which in JUnit is a test that could not be
    carried out. GitLab, Jenkins and GitHub's reporters show an <error> in red, but <skipped> like a pass.
    """
    verdicts = gate.verdicts
    counts = {
        "tests": len(verdicts),
        "failures": sum(entry.verdict == "fail" for entry in verdicts),
        "errors": sum(entry.verdict == "inconclusive" for entry in verdicts),
        "skipped": 0,
    }
    totals = {name: str(count) for name, count in counts.items()}
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(root, "testsuite", {
        "name": "saap-edge gate", "id": "0", "package": "saap-edge", "hostname": "localhost", "time": "0",
        "timestamp": now.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S"), **totals,
    })  # fmt: skip
    ElementTree.SubElement(suite, "properties")
    for entry in verdicts:
        _add_case(suite, entry)
    ElementTree.SubElement(suite, "system-out")
    ElementTree.SubElement(suite, "system-err")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _add_case(suite: ElementTree.Element, entry: Verdict) -> None:
    case = ElementTree.SubElement(suite, "testcase", {
        "classname": _text(entry.name or entry.artifact or "nothing measured"),
        "name": f"{entry.metric} {entry.limit} ({entry.kind})", "time": "0",
    })  # fmt: skip
    tag = {"fail": "failure", "inconclusive": "error"}.get(entry.verdict)
    if tag:
        attributes = {"type": entry.verdict, "message": _text(entry.reason)}
        ElementTree.SubElement(case, tag, attributes).text = _text(f"{entry.metric}: {entry.reason}")


def _text(text: str) -> str:
    return _FORBIDDEN.sub("?", text)
