"""The detached process that measures on a board: `python -m saap_edge.remote.worker RUN_FOLDER`.

client.py starts it. It writes events to `events.jsonl`, one JSON object a line: {"bar": what, "done": n, "total": n},
and at its end {"end": "done", "document": ...} or {"end": "failed", "reason": one line}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saap_edge.bundle.schema import Bundle, read_bundle
from saap_edge.documents.bench import Bench
from saap_edge.engines.options import kv_bytes
from saap_edge.engines.worker import EngineDied
from saap_edge.errors import SaapError
from saap_edge.machine.limits import allowed
from saap_edge.progress import Advance
from saap_edge.remote.client import EVENTS, REQUEST

__all__ = ["main", "out_of_memory"]

MIB = 2**20


def main() -> None:
    """Measure what the request says. The last event says how it ended."""
    place = Path(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the engines too
    request = json.loads((place / REQUEST).read_text())
    folders = [place / f"bundle-{number}" for number in range(len(request["bundles"]))]
    kills = _kernel_kills()
    try:
        document = _measure(place, folders, request["options"])
        _write(place, end="done", document=document.as_dict())
    except EngineDied as error:
        reason = str(error)
        if error.code == -signal.SIGKILL:
            reason = out_of_memory(reason, [read_bundle(folder) for folder in folders], request["options"], kills)
        _write(place, end="failed", reason=reason.replace(f"{place}/", ""))
    except (SaapError, OSError, MemoryError, ImportError) as error:
        _write(place, end="failed", reason=(str(error) or type(error).__name__).replace(f"{place}/", ""))


def _measure(place: Path, folders: list[Path], options: dict[str, Any]) -> Bench:
    from saap_edge.gating import Budget
    from saap_edge.gating.rerun import asked_by
    from saap_edge.measuring.bundles import bench_bundles
    from saap_edge.targets import Target

    @contextmanager
    def bar(what: str, total: float | None) -> Iterator[Advance]:
        done = 0

        def advance(steps: int, note: str = "") -> None:
            nonlocal done
            done += steps
            _write(place, bar=what, done=done, total=total)

        yield advance

    options = dict(options)
    budget, target = options.pop("budget", None), options.pop("target", None)
    limits = None if budget is None else Budget.model_validate(budget)
    board = None if target is None else Target.model_validate(target)
    return bench_bundles(folders, bar, **options, **asked_by(limits, board))


def out_of_memory(reason: str, bundles: list[Bundle], options: dict[str, Any], kills: int | None) -> str:
    """Why memory was short, in a line: what the board has, what the artifacts need, and what to do.

    `kills` is the number of processes that the kernel had killed for want of memory before the run; None: unknown.
    """
    import psutil

    from saap_edge.measuring.bundles import bench_bundles
    from saap_edge.measuring.conditions import longest_sequence

    memory, limit, now = psutil.virtual_memory(), allowed()["memory_bytes"], _kernel_kills()
    known = kills is not None and now is not None and now > kills
    who = "out of memory: the kernel killed it" if known else "killed, most likely for want of memory"
    settings = (bench_bundles.__kwdefaults__ or {}) | options
    tokens = longest_sequence(settings["prompt_tokens"], settings["contexts"], settings["decode_tokens"])
    needs = "; ".join(
        f"{bundle.format} needs {_size(bundle) / MIB:.1f} MiB for its file, "
        f"{tokens * _cached(bundle, settings['kv']) / MIB:.1f} MiB for the KV cache of {tokens} tokens, and work space"
        for bundle in bundles
    )
    has = f"the board has {memory.total / MIB:.0f} MiB, {memory.available / MIB:.0f} free"
    has += f", of which a control group allows {limit / MIB:.0f}" if limit is not None else ""
    return f"{who} ({reason}). {has}; {needs}. Take fewer bits, prune more, or a smaller --prompt and --decode"


def _cached(bundle: Bundle, kv: str | None) -> int:
    """Bytes of a token's keys and values in the type that was asked for. Bundles tell those in the runtime's own, which
    is F16 where there are others."""
    name = kv or bundle.kv
    return kv_bytes(bundle.kv_bytes_per_token // 2, name) if name else bundle.kv_bytes_per_token


def _size(bundle: Bundle) -> int:
    model = bundle.model
    return sum(file.bytes for file in bundle.files if file.path == model or file.path.startswith(f"{model}/"))


def _kernel_kills() -> int | None:
    """Processes the kernel has killed for want of memory since it started; None where it does not tell."""
    path = Path("/proc/vmstat")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _write(place: Path, **event: Any) -> None:
    """Append an event: a line in one write, so that no reader sees half of it."""
    with (place / EVENTS).open("ab", buffering=0) as file:
        file.write(json.dumps(event).encode() + b"\n")
        if "end" in event:
            os.fsync(file.fileno())


if __name__ == "__main__":
    main()
