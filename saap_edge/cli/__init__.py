"""The command line: the only place that prints for people and exits."""

from __future__ import annotations

import sys
from typing import NoReturn

from rich.markup import escape

from saap_edge import __version__

from saap_edge.cli import chain, sweeping, measuring, bundles, publishing, worth, quality, drafting, boards, documents  # noqa: F401 # isort: skip (--help's order)
from saap_edge.cli.base import app, console
from saap_edge.errors import EXIT_INPUT, SaapError

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line. Every expected error becomes one line on stderr and an exit code."""
    try:
        app()
    except SaapError as error:
        _die(str(error), error.exit_code)
    except MemoryError:
        _die("out of memory: use a smaller model, fewer samples or a smaller recover.batch", EXIT_INPUT)
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("saap_edge"):
            raise
        _die(
            f"this needs the package {error.name}, which boards do without: pip install 'saap-edge[compile]'",
            EXIT_INPUT,
        )
    except OSError as error:
        name = f" '{error.filename}'" if error.filename else ""
        _die(f"{error.strerror or error}{name}", EXIT_INPUT)


def _die(message: str, code: int) -> NoReturn:
    line = " ".join(message.split())
    console.print(f"[bold red]error:[/] {escape(line)}", soft_wrap=True)
    sys.exit(code)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)
