"""The texts of a run. Each is read and tokenised once, and a text that is too short is refused before any work.

Calibration text has to fill two windows, because scoring compares batches (one window to tune alone). Held-out and test
text have to fill one window each. verify runs VERIFIED tokens of the test text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.chain.rule import WRITE, Inputs
from saap_edge.errors import SaapError

if TYPE_CHECKING:
    from saap_edge.chain.context import Context

__all__ = ["HELDOUT_WINDOWS", "Corpus", "by_turns", "calibration", "calibration_hash", "text", "windows"]

HELDOUT_WINDOWS = 40  # at most: they decide between plans, and which weights recovery keeps

CHARACTERS = 16  # a token: how much text is tokenised at first to see whether it is long enough


class Corpus:
    """The texts of a run, in windows of tokens.

    Args:
        paths: text files by role: "calibration" (where there is a file), "heldout", "test".
        model: folder of the model, whose tokenizer splits the texts.
        window: tokens of a window.

    Methods raise SaapError for a text that is missing or not UTF-8.
    """

    def __init__(self, paths: Mapping[str, Path], model: Path, window: int) -> None:
        self._paths, self._model, self._window = dict(paths), model, window
        self._texts: dict[str, str] = {}
        self._windows: dict[str, Any] = {}
        self._tokenizer: Any = None

    def check(self, calibration_windows: int) -> None:
        """Raise SaapError for a text that a stage would refuse later. `calibration_windows` are those of the file."""
        from saap_edge.engines.answers import VERIFIED, VERIFIED_CHARACTERS

        for role in self._paths:
            self.text(role)
        if "calibration" in self._paths:
            self._require("calibration", calibration_windows * self._window)
        self._require("heldout", self._window)
        self._require("test", self._window)
        found = len(self._ids(self.text("test")[:VERIFIED_CHARACTERS]))
        if found < VERIFIED:
            raise SaapError(
                f"data.test: '{self._paths['test']}' has {found} tokens in its first {VERIFIED_CHARACTERS} characters, "
                f"and verify runs {VERIFIED}: give more text"
            )

    def text(self, role: str) -> str:
        """The whole text of a role."""
        if role not in self._texts:
            path = self._paths[role]
            try:
                self._texts[role] = path.read_text(encoding="utf-8")
            except FileNotFoundError:
                raise SaapError(f"data.{role}: no text file '{path}'") from None
            except OSError as error:
                raise SaapError(f"data.{role}: cannot read '{path}': {error.strerror}") from None
            except UnicodeDecodeError as error:
                raise SaapError(f"data.{role}: '{path}' is not UTF-8 text (byte {error.start})") from None
        return self._texts[role]

    def windows(self, role: str, limit: int | None = None) -> Any:
        """Token ids of a role's text, int64 [n, window], at most `limit` windows. Raises SaapError without any."""
        from saap_edge.model.perplexity import text_windows

        if role not in self._windows:
            try:
                self._windows[role] = text_windows(self.tokenizer, self.text(role), self._window)
            except ValueError as error:
                raise SaapError(f"data.{role}: '{self._paths[role]}': {error}") from None
            self._require_known(role, int(self._windows[role].max()))
        return self._windows[role][:limit]

    def _require_known(self, role: str, largest: int) -> None:
        """Raise SaapError for a token id that the model has no embedding for."""
        from saap_edge.model.checkpoint import read_spec

        known = read_spec(self._model).vocab_size
        if largest >= known:
            raise SaapError(
                f"data.{role}: '{self._paths[role]}' has token {largest}, and the vocabulary of '{self._model}' ends "
                f"at {known - 1}: the tokenizer is another model's"
            )

    def _require(self, role: str, tokens: int) -> None:
        """Raise SaapError for a text of fewer tokens. Only as much of a long text is tokenised as is needed to know."""
        text, taken = self.text(role), CHARACTERS * tokens
        while len(found := self._ids(text[:taken])) < tokens:
            if taken >= len(text):
                raise SaapError(
                    f"data.{role}: '{self._paths[role]}' has {len(found)} tokens, and {tokens} are needed "
                    f"({tokens // self._window} x score.window {self._window}): give more text, or a smaller window"
                )
            taken *= 4
        self._require_known(role, max(found))

    def _ids(self, text: str) -> list[int]:
        from saap_edge.model.tokenizer import plain_ids

        return plain_ids(self.tokenizer, text)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model."""
        from saap_edge.model.tokenizer import load_tokenizer

        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._model)
        return self._tokenizer


def text(context: Context, role: str) -> str:
    """The whole text of a role, for use by a stage."""
    return context.corpus.text(role)


def windows(context: Context, role: str, limit: int | None = None) -> Any:
    """Token ids of a role's text, int64 [n, window], at most `limit` windows, for use by a stage."""
    return context.corpus.windows(role, limit)


def calibration(context: Context, inputs: Inputs, limit: int | None = None) -> Any:
    """Windows of calibration text, int64 [n, window], at most `limit`: of the file, of the text that the stage `write`
    made (one of `inputs`), or of both by turns.

    Raises SaapError where a text does not fill a window.
    """
    from saap_edge.writing.saved import load_tokens

    data, size = context.recipe.data, context.recipe.score.window
    if not data.written:
        return windows(context, "calibration", limit)
    own = load_tokens(inputs[WRITE])
    own = own[: len(own) // size * size].view(-1, size)
    return (by_turns(own, windows(context, "calibration")) if data.file else own)[:limit]


def by_turns(first: Any, second: Any) -> Any:
    """Rows of two tensors by turns, as many of either as the shorter one has.

    >>> import torch
    >>> by_turns(torch.zeros(2, 1), torch.ones(9, 1)).flatten().tolist()
    [0.0, 1.0, 0.0, 1.0]
    """
    import torch

    count = min(len(first), len(second))
    return torch.stack((first[:count], second[:count]), dim=1).flatten(0, 1)


def calibration_hash(context: Context, inputs: Inputs) -> str:
    """Hash of the calibration text, which stands beside what was learnt from it."""
    from saap_edge.model.perplexity import text_hash
    from saap_edge.writing.saved import written_hash

    data = context.recipe.data
    return "+".join(
        [*([written_hash(inputs[WRITE])] if data.written else []), *([text_hash(data.file)] if data.file else [])]
    )
