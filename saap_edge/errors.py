"""The one exception a user sees: what is wrong, where, and what to do, in one line."""

from __future__ import annotations

__all__ = ["EXIT_FAILED", "EXIT_INCONCLUSIVE", "EXIT_INPUT", "EXIT_OK", "ParityError", "SaapError"]

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_INPUT = 2
EXIT_INCONCLUSIVE = 3


class SaapError(Exception):
    """Input, file or environment that saap-edge cannot work with. The CLI prints it in one line and exits 2."""

    exit_code = EXIT_INPUT


class ParityError(SaapError):
    """An artifact answers differently from its torch model. The CLI exits 1, because the input was fine."""

    exit_code = EXIT_FAILED
