"""Which saap-edge this is: its version, and the commit that it was installed from where that is known."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from saap_edge import __version__

__all__ = ["program"]


def program() -> str:
    """The program in words, as "saap-edge 0.1.0, commit 0123456789ab"."""
    commit = _installed() or _checked_out()
    return f"saap-edge {__version__}" + (f", commit {commit}" if commit else "")


def _installed() -> str | None:
    """The commit that pip installed, by PEP 610."""
    try:
        text = distribution("saap-edge").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    commit = json.loads(text).get("vcs_info", {}).get("commit_id") if text else None
    return str(commit)[:12] if commit else None


def _checked_out() -> str | None:
    """The commit of a checkout, with a word on changes that are not in it."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        asked = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty= with changes"]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
