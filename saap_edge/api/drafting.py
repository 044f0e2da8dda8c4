"""A pruned model as draft of its parent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saap_edge.errors import SaapError
from saap_edge.progress import Listener, progress_of

if TYPE_CHECKING:
    from saap_edge.documents.draft import Draft
    from saap_edge.targets import Target

__all__ = ["draft"]


def draft(
    drafts: str | Path | Sequence[str | Path], target: str | Target, *, model: str | Path | None = None,
    format: str | None = None, prompts: int | None = None, tokens: int = 48, longest: int = 7,
    threads: int | None = None, threads_here: int | None = None, measure: bool = False, rounds: int = 7,
    progress: Listener = None,
) -> Draft:  # fmt: skip
    """Find out whether pruned models, as drafts of the dense model, make it faster on a board (docs/draft.md).

    Args:
        drafts: one or several of: a .gguf file, a run's --out folder, an export folder.
        target: the board: its name, its YAML file or a `Target`.
        model: the dense model's .gguf file; the dense file of the first run where absent.
        format: which artifact of a run, where it has several GGUF files.
        prompts: prompts of each kind (text, chat, code), at least 2; all 8 where absent.
        tokens: tokens of an answer at most.
        longest: longest draft length that is considered, tokens.
        threads: threads on the board; its own number where absent.
        threads_here: threads of llama.cpp here; as on the board where absent, but no more than there are CPUs.
        measure: also decode here with and without each draft, by turns.
        rounds: rounds of measuring.

    Returns the draft document: `verdict` is "pays", "does not pay" or "undecided", `exit_code` 0 or 3. Raises SaapError
    for files that are no GGUF, and for a draft with another tokenizer.

    Examples:
        >>> found = se.draft("out", "rpi5", prompts=2, tokens=8, threads=1)
        >>> found.drafts[0].bytes_ratio < 1, [kind.kind for kind in found.drafts[0].kinds]
        (True, ['all', 'text', 'code'])
        >>> found.notes
        ["'model-q4_0.gguf' has no chat template: no chats were drafted"]
    """
    from saap_edge.drafting.files import dense_of, draft_at
    from saap_edge.drafting.find import Asked, find_drafts
    from saap_edge.drafting.prompts import MOST
    from saap_edge.targets import load_target

    board = load_target(target) if isinstance(target, str) else target
    if threads and threads > 2 * board.core_count:
        raise SaapError(f"--threads {threads}: '{board.name}' has {board.core_count} cores")
    for name, value, least in (("prompts", prompts or MOST, 2), ("tokens", tokens, 2), ("longest", longest, 1),
                               ("rounds", rounds, 3)):  # fmt: skip
        if value < least:
            raise SaapError(f"--{name} {value}: it is at least {least}")
    given = [Path(drafts)] if isinstance(drafts, str | Path) else [Path(each) for each in drafts]
    if not given:
        raise SaapError("no draft: give a .gguf file of a pruned model, or a run's --out folder")
    files = [draft_at(path, format) for path in given]
    parent = Path(model) if model is not None else dense_of(given[0], format)
    if not parent.is_file():
        raise SaapError(f"--model '{parent}' is no file: give the dense model's .gguf file")
    asked = Asked(min(prompts or MOST, MOST), tokens, longest, threads, threads_here, measure, rounds)
    return find_drafts(parent, list(dict.fromkeys(files)), board, asked, progress_of(progress).bar)
