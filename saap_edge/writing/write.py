"""A model writes text of its own, in llama.cpp at 8 bits, many documents at a time.

llama.cpp is taken because a document that ends makes room for the next at once, its file takes a quarter of the memory
of float32, and it is no slower than transformers.generate in bfloat16, which pads all documents to the longest
(benchmarks/self_text.py, docs/method.md#text-of-its-own).

Documents are written in rounds. A round depends on nothing but the seed and the rounds before it, and is kept in the
work folder as soon as it is done, so that a killed run goes on and ends with the same text.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from saap_edge.engines.llama_writer import SLOTS
from saap_edge.engines.registry import WRITER
from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError
from saap_edge.exporting.write import write_artifact
from saap_edge.formats import format_of
from saap_edge.model.tokenizer import load_tokenizer
from saap_edge.writing.filters import Seen
from saap_edge.writing.forms import Form, read_form
from saap_edge.writing.saved import save_written
from saap_edge.writing.settings import FORMAT

__all__ = ["TEMPERATURES", "write_text"]

TEMPERATURES = (0.7, 0.9, 1.1)  # of the documents, by turns: what is likely, and what is less so
LEAST_LIKELY = 0.02  # times the likeliest token's probability; what is below is not drawn
ROUND = 4 * SLOTS  # documents of a round, at most
EXPECTED = {"chat": 0.35, "text": 0.75}  # of the longest document, that one brings on average, until it is known
USABLE = 0.05  # share of documents that must be usable, once a round was written
STEPS = 16  # tokens of every document between two words of progress


@dataclass
class _Written:
    """What was written so far. All of it follows from the rounds, so that a run which goes on has it, too."""

    form: Form
    seen: Seen = field(default_factory=Seen)
    kept: list[list[int]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    temperatures: Counter[str] = field(default_factory=Counter)
    drafted: int = 0  # documents
    sampled: int = 0  # tokens that the model chose
    unfinished: int = 0  # kept documents that met the limit of their length
    tokens: int = 0  # of the documents that are kept
    seconds: float = 0.0

    def add(self, round: dict[str, Any]) -> None:
        """Take in a round."""
        self.seconds += round["seconds"]
        for number, start, written, ended in round["documents"]:
            self.drafted += 1
            self.sampled += sum(map(len, written))
            reason = self._refusal(start, written)
            if reason:
                self.dropped[reason] += 1
                continue
            self.unfinished += not ended
            self.temperatures[str(_temperature(number))] += 1
            self.kept.append(self.form.whole(start, written))
            self.tokens += len(self.kept[-1])

    def _refusal(self, start: list[int], written: list[list[int]]) -> str | None:
        if len(written) < len(self.form.parts):
            return "endless question"
        if not all(written[1:]) or not start + written[0]:
            return "short"
        return self.seen.refusal([*start, *(index for part in written for index in part)])


def write_text(
    model: Path, out: Path, work: Path, *, tokens: int, seed: int, threads: int,
    progress: Callable[[float, str], None] = lambda tokens, note: None,
) -> dict[str, Any]:  # fmt: skip
    """Let a model write at least `tokens` tokens of text, and save them in `out` (writing/saved.py).

    Args:
        model: its Hugging Face folder.
        work: folder for the model's GGUF file and the rounds; a killed run that is given the same one goes on.
        seed: of all random choices. On one machine, the same seed gives the same text.
        threads: of llama.cpp.
        progress: called with tokens that were gained, and how it goes.

    Returns the content of write.json. Raises SaapError as `read_form`, where llama.cpp does not run the model, and
    where hardly any document is fit to learn from.
    """
    form = read_form(model)
    work.mkdir(parents=True, exist_ok=True)
    gguf, rounds = _gguf(model, work), work / "rounds.jsonl"
    written = _Written(form)
    for round in _read(rounds):
        written.add(round)
    told = _Told(progress, tokens)
    told.now(written, 0)
    if written.tokens < tokens:
        with Worker(format_of(FORMAT).engine + WRITER, gguf, threads, form.length) as worker:
            while written.tokens < tokens:
                _require_usable(model, written)
                round = _round(worker, form, seed, written, tokens, lambda share: told.now(written, share))
                with rounds.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(round) + "\n")
                written.add(round)
                told.now(written, 0)
    record = _record(written, seed)
    tokenizer = load_tokenizer(model)
    save_written(out, written.kept, tokenizer.batch_decode(written.kept), record)
    return record


def _gguf(model: Path, work: Path) -> Path:
    """The model as a GGUF file, which a killed run leaves whole or not at all."""
    path = work / "model.gguf"
    if not path.is_file():
        beside = work / "making.gguf"
        beside.unlink(missing_ok=True)
        write_artifact(model, beside, FORMAT)
        beside.replace(path)
    return path


def _read(path: Path) -> list[dict[str, Any]]:
    """The rounds that are whole: a run may have been killed while it wrote the last."""
    found, lines = [], path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    if len(found) < len(lines):  # what follows must not be appended to half a line
        path.write_text("".join(json.dumps(round) + "\n" for round in found), encoding="utf-8")
    return found


def _temperature(number: int) -> float:
    return TEMPERATURES[number % len(TEMPERATURES)]


def _start(form: Form, seed: int, number: int) -> list[int]:
    """The first tokens of a document, beside those of the form. In a chat, the model begins two of three questions
    itself. All else begins with a token from the vocabulary, so that documents differ."""
    if form.kind == "chat" and (number // len(TEMPERATURES)) % 3 < 2:
        return []
    return [int(np.random.default_rng([seed, number, 1]).choice(form.starts))]


def _round(
    worker: Worker, form: Form, seed: int, written: _Written, wanted: int, progress: Callable[[float], None]
) -> dict[str, Any]:  # fmt: skip
    """Write as many documents as are likely to be missing; at most ROUND. `progress` is told the share that is done."""
    began = time.monotonic()
    gain = written.tokens / written.drafted if written.drafted else EXPECTED[form.kind] * form.length
    count = min(ROUND, max(SLOTS // 4, round(1.1 * (wanted - written.tokens) / max(gain, 1))))
    numbers = range(written.drafted, written.drafted + count)
    starts = {number: _start(form, seed, number) for number in numbers}
    (given, limit), *others = form.parts
    asked = [
        {
            "number": number, "seed": [seed, number], "temperature": _temperature(number),
            "parts": [([*given, *starts[number]], limit), *others],
        }
        for number in numbers
    ]  # fmt: skip
    worker.begin(asked, list(form.ends), list(form.banned), LEAST_LIKELY)
    done, tokens, left = list[list[Any]](), 0, count
    while left:
        news = worker.proceed(STEPS)
        done, tokens, left = done + news["done"], tokens + news["tokens"], news["left"]
        # Of the documents and of the tokens: the last documents of a round are the longest.
        progress((len(done) / count + min(1.0, tokens / (count * gain))) / 2)
    documents = [[number, starts[number], texts, ended] for number, texts, ended in sorted(done)]
    return {"seconds": round(time.monotonic() - began, 2), "documents": documents}


def _require_usable(model: Path, written: _Written) -> None:
    """Raise SaapError where hardly any of the documents is usable: more of them would not be better."""
    if written.drafted < SLOTS // 4 or len(written.kept) >= USABLE * written.drafted:
        return
    why = ", ".join(f"{count} {reason}" for reason, count in written.dropped.most_common())
    raise SaapError(
        f"'{model}' wrote {written.drafted} documents, and {len(written.kept)} are fit to learn from (dropped: {why}): "
        "name a text file as data.calibration"
    )


def _record(written: _Written, seed: int) -> dict[str, Any]:
    return {
        "form": written.form.kind, "format": FORMAT, "seed": seed, "tokens": written.tokens,
        "documents": len(written.kept), "unfinished": written.unfinished, "drafted": written.drafted,
        "sampled_tokens": written.sampled, "dropped": dict(sorted(written.dropped.items())),
        "temperatures": dict(sorted(written.temperatures.items())), "seconds": round(written.seconds, 1),
        "sampled_tok_s": round(written.sampled / written.seconds, 1) if written.seconds else None,
    }  # fmt: skip


class _Told:
    """Turns the share of a round that is done into tokens that are likely kept, for a bar that does not go back."""

    def __init__(self, progress: Callable[[float, str], None], wanted: int) -> None:
        self._progress, self._wanted, self._shown = progress, wanted, 0.0

    def now(self, written: _Written, share: float) -> None:
        left = max(0, self._wanted - written.tokens)
        gain = ROUND * written.tokens / written.drafted if written.drafted else left
        reached = min(self._wanted, written.tokens + share * min(gain, left))
        note = f"{sum(written.dropped.values())} of {written.drafted} documents dropped" if written.drafted else ""
        self._progress(max(0.0, reached - self._shown), note)
        self._shown = max(self._shown, reached)
