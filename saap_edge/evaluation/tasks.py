"""Tasks for lm-eval: its own by name, and local JSON Lines files in three plain forms. lm-eval does the scoring.

All rows of a local file have the same one of these forms (the names are those of MosaicML's llm-foundry):

    {"query": text, "choices": [text, ...], "gold": index}                  which choice continues the query?
    {"context_options": [text, ...], "continuation": text, "gold": index}   which context fits the continuation?
    {"context": text, "continuation": text}                                 does greedy decoding give the continuation?
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saap_edge.errors import SaapError
from saap_edge.model.perplexity import text_hash

__all__ = ["EvalTask", "lm_eval_version", "load_tasks", "quiet_lm_eval", "read_rows"]

_ACCURACY = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
_NORMALISED = {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}
_PERPLEXITY = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}

# lm-eval's settings for each form. Fields are named and not templates, so that text with braces stays text.
_FORMS: dict[tuple[str, ...], dict[str, Any]] = {
    ("query", "choices", "gold"): {
        "output_type": "multiple_choice", "doc_to_text": "query", "doc_to_choice": "choices", "doc_to_target": "gold",
        "metric_list": [_ACCURACY, _NORMALISED],
    },
    ("context_options", "continuation", "gold"): {
        "output_type": "multiple_choice", "doc_to_text": "gold", "doc_to_choice": "context_options",
        "doc_to_target": "continuation", "metric_list": [_ACCURACY],
    },
    ("context", "continuation"): {
        "output_type": "loglikelihood", "doc_to_text": "context", "doc_to_target": "continuation",
        "metric_list": [_ACCURACY, _PERPLEXITY],
    },
}  # fmt: skip


@dataclass(frozen=True)
class EvalTask:
    """A task. `name`: as the user gave it. `task`: lm-eval's object. `sha256`: that of a local file, else None."""

    name: str
    task: Any
    sha256: str | None


def lm_eval_version() -> str:
    """The version of the installed lm-eval. Raises SaapError when there is none."""
    try:
        import lm_eval
    except ImportError:
        raise SaapError("zero-shot tasks need lm-eval: pip install 'saap-edge[eval]'") from None
    return str(lm_eval.__version__)


def load_tasks(names: list[str]) -> list[EvalTask]:
    """Tasks of lm-eval by name, and of `.jsonl` files by path; a file's task has the name of the file.

    Raises SaapError for a file that is missing or malformed, a name that lm-eval does not know, a data set that cannot
    be loaded, a task that asks for generated text, and two tasks of the same name.
    """
    with quiet_lm_eval():
        local = {name: _local_task(Path(name)) for name in names if name.endswith(".jsonl")}
        found = local | _own_tasks([name for name in names if name not in local])
    tasks = [found[name] for name in names]
    seen: set[str] = set()
    for task in tasks:
        if task.name in seen:
            raise SaapError(f"--task {task.name} is given twice: results are told apart by name")
        seen.add(task.name)
    return tasks


@contextlib.contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Silence lm-eval: stdout is for the result only, and the terminal for our own progress bar."""
    for name in ("lm_eval", "datasets", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Without this lm-eval starts a pool of processes for each standard error that it bootstraps.
    os.environ["DISABLE_MULTIPROC"] = "1"
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _own_tasks(names: list[str]) -> dict[str, EvalTask]:
    if not names:
        return {}
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    found = {}
    for name in names:
        if name not in manager.all_tasks:
            raise SaapError(f"--task {name}: neither a .jsonl file nor a task of lm-eval {lm_eval_version()}")
        try:
            loaded = manager.load([name])
        except Exception as error:  # whatever the hub's client, the data set's builder or a task's own code raises
            reason = " ".join(str(error).split())[:160]
            raise SaapError(
                f"--task {name}: lm-eval cannot load its data set, which comes from the network: use a local .jsonl "
                f"file where there is none ({type(error).__name__}: {reason})"
            ) from None
        for task in loaded["tasks"].values():
            if task.OUTPUT_TYPE == "generate_until":
                raise SaapError(f"--task {name} asks for generated text: only likelihood tasks can be run here")
        found[name] = EvalTask(name, loaded, None)
    return found


def _local_task(path: Path) -> EvalTask:
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    form, rows = read_rows(path)
    config = _FORMS[form] | {"task": path.name, "test_split": "test", "num_fewshot": 0}
    if form == ("context", "continuation"):
        # lm-eval puts nothing between context and continuation here.
        rows = [row | {"continuation": _between(row["context"]) + row["continuation"]} for row in rows]
    else:
        # One delimiter for the whole file; none after prompts that end in a line break (PIQA).
        before = [row["query"] if "query" in row else row["context_options"][0] for row in rows]
        config["target_delimiter"] = " " if any(map(_between, before)) else ""
    data = {"test": Dataset.from_list(rows)}
    task = ConfigurableTask(config=config | {"custom_dataset": lambda **_: data})
    return EvalTask(path.name, {"tasks": {path.name: task}}, text_hash(path))


def _between(text: str) -> str:
    return "" if text[-1].isspace() else " "


def read_rows(path: Path) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """The form of a local file, as its field names, and its rows with only these fields.

    Raises SaapError, naming file, line and field, when the file is missing, empty or malformed.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would cut at U+2028, which JSON may hold
    except OSError as error:
        raise SaapError(f"cannot read the task '{path}': {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SaapError(f"the task '{path}' is not UTF-8 text ({error.reason} at byte {error.start})") from None
    form: tuple[str, ...] | None = None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"'{path}', line {number}"
        row = _object(line, where)
        form = form or _form(row, where)
        _check(row, form, where)
        rows.append({field: row[field] for field in form})
    if form is None:
        raise SaapError(f"the task '{path}' has no rows")
    return form, rows


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise SaapError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise SaapError(f"{where}: a JSON object is wanted, got {type(row).__name__}")
    return row


def _form(row: dict[str, Any], where: str) -> tuple[str, ...]:
    """The form whose first field is in the row. Raises SaapError when there is none."""
    for form in _FORMS:
        if form[0] in row:
            return form
    wanted = "; or ".join(", ".join(form) for form in _FORMS)
    raise SaapError(f"{where}: fields {', '.join(row) or '(none)'} are no task: wanted are {wanted}")


def _check(row: dict[str, Any], form: tuple[str, ...], where: str) -> None:
    for field in form:
        if field not in row:
            raise SaapError(f"{where}: field '{field}' is missing (first row: {', '.join(form)})")
        value = row[field]
        if field in ("choices", "context_options"):
            if not isinstance(value, list) or len(value) < 2 or not all(map(_is_text, value)):
                raise SaapError(f"{where}: field '{field}' must be a list of at least two texts, none of them empty")
        elif field == "gold":
            count = len(row[form[0] if form[0] == "context_options" else "choices"])
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
                raise SaapError(f"{where}: field 'gold' must be a number from 0 to {count - 1}, got {value!r}")
        elif not _is_text(value):
            raise SaapError(f"{where}: field '{field}' must be text, and not empty, got {str(value)[:40]!r}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
