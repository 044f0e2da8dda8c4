"""Verifying and measuring what was made: the artifacts of a run, or a bundle on a board."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.api.recipes import budget_of
from saap_edge.api.results import Place, Run, folder_of
from saap_edge.api.stages import resume
from saap_edge.errors import SaapError
from saap_edge.progress import Listener, progress_of

if TYPE_CHECKING:
    from saap_edge.bundle.check import Check
    from saap_edge.documents.bench import Bench
    from saap_edge.gating import Budget

__all__ = ["bench", "bench_stage", "verify"]

LONGEST = 24 * 60.0  # minutes
NO_STAGE = "is neither a bundle (no bundle.json) nor a stage folder (as OUT/stages/NAME-HASH)"


def verify(place: Place, *, progress: Listener = None) -> Run | Check:
    """Check that every artifact of a run answers as torch does, or that a bundle works on this machine.

    A bundle is checked without torch: every file's sha256, the tokenizer, and whether the artifact answers here as it
    did where the bundle was made.

    Args:
        place: a run, or the folder of its export stage; or a bundle (a folder or a .tar.zst file).

    Returns the run. For a bundle, returns what was found: its `exit_code` is 0 for a good bundle, 1 where answers
    differ, 2 where a file is damaged. Raises SaapError where an artifact of a run was changed or answers otherwise.

    Examples:
        >>> checked = se.verify(run.folders["export"])
        >>> checked.folder == run.folders["verify"]
        True
        >>> se.verify("bundle").exit_code
        0
    """
    path, listener = folder_of(place), progress_of(progress)
    if path.is_file() or (path / "bundle.json").is_file():
        from saap_edge.bundle.check import check_bundle

        with listener.bar(f"verifying {path}", None):
            return check_bundle(path)
    if not (path / "stage.json").is_file():
        raise SaapError(f"'{path}' {NO_STAGE}")
    _check_files(path)
    return resume(path, "verify", progress=listener)


def _check_files(folder: Path) -> None:
    """Raise SaapError where an artifact no longer is what its manifest says: a cached stage would not notice."""
    from saap_edge.artifacts import read_manifest
    from saap_edge.cache import ancestors

    for name, made in ancestors(folder).items():
        if name in ("dense", "export"):
            read_manifest(made)


def bench(
    place: Place, against: str | Path | None = None, *, threads: int | None = None, prompt_tokens: int | None = None,
    decode_tokens: int | None = None, rounds: int | None = None, contexts: Sequence[int] | None = None,
    kv: str | None = None, ubatch: int | None = None,
    budget: Budget | Mapping[str, Any] | str | Path | None = None, max_rounds: int | None = None,
    target: str | None = None, minutes: float | None = None, python: str | Path | None = None,
    against_python: str | Path | None = None,
    llama_bench: str | Path | None = None, against_llama_bench: str | Path | None = None, adb: str | None = None,
    host: str | None = None, ssh_config: Path | None = None, remote_python: str | None = None,
    remote_folder: str | None = None, keep: bool = False, progress: Listener = None,
) -> Bench:  # fmt: skip
    """Measure speed and memory: of a bundle, of two bundles by turns, or of dense and pruned in a run.

    Args:
        place: a bundle; or a run that ends with verify, or the folder of its verify stage. The recipe of a run says how
            to measure it, so that all options below are for bundles.
        against: a bundle of the same model, measured by turns with `place`.
        threads: threads of the runtime; those of the bundle's board where absent, as far as this machine has them.
        prompt_tokens: tokens of the prompt; 64 where absent.
        decode_tokens: tokens decoded a round; 32 where absent.
        rounds: rounds that count; 7 where absent.
        contexts: further depths, in tokens, at which decoding is measured.
        kv: type of the KV cache, f16, q8_0 or q4_0 in llama.cpp; that of the bundle where absent.
        ubatch: tokens of a prompt that are computed at once; that of the bundle where absent.
        budget: limits; rounds are added while noise leaves one of them open.
        max_rounds: rounds at most, where there is a budget; `rounds` where absent.
        target: the board that the limits are for.
        minutes: decode without a pause for so long, in place of rounds: does the board keep its speed?
        python: another Python environment, by its folder or its interpreter, in which the runtime runs `place`.
        against_python: the same for `against`. Give the same bundle twice to compare two builds of the runtime.
        llama_bench: llama.cpp's own llama-bench, which runs `place`, a GGUF bundle, without our loop.
        against_llama_bench: the same for `against`.
        adb: run `llama_bench` on the phone with this serial number, through adb; `against` runs there too.
        host: measure on this board over SSH (docs/boards.md). The options below go with it.
        ssh_config: configuration file of ssh, instead of ~/.ssh/config.
        remote_python: Python on the board; that of ~/.cache/saap-edge/venv, or python3, where absent.
        remote_folder: folder on the board for files and runs; ~/.cache/saap-edge where absent.
        keep: leave the bundles' files on the board for the next time.

    Returns the bench document (docs/measuring.md). Raises SaapError for bad input or options that do not go together.

    Examples:
        >>> measured = se.bench("bundle", threads=1, prompt_tokens=8, decode_tokens=4, rounds=3)
        >>> measured.artifacts[0].format, measured.artifacts[0].metrics.decode_tok_s.median > 0
        ('gguf-q4_0', True)
        >>> [artifact.role for artifact in se.bench(run.folders["verify"]).artifacts]
        ['dense', 'pruned']
    """
    path, listener = folder_of(place), progress_of(progress)
    if (path / "stage.json").is_file():
        return bench_stage(
            path, against=against, threads=threads, prompt_tokens=prompt_tokens, decode_tokens=decode_tokens,
            rounds=rounds, contexts=contexts, kv=kv, ubatch=ubatch, budget=budget, max_rounds=max_rounds,
            target=target, minutes=minutes, python=python, against_python=against_python, llama_bench=llama_bench,
            against_llama_bench=against_llama_bench, adb=adb, host=host, ssh_config=ssh_config,
            remote_python=remote_python, remote_folder=remote_folder, keep=keep, progress=listener,
        ).bench  # fmt: skip
    given: dict[str, Any] = {
        "threads": threads, "prompt_tokens": prompt_tokens, "decode_tokens": decode_tokens, "rounds": rounds,
        "contexts": tuple(contexts) if contexts else None, "kv": kv, "ubatch": ubatch, "minutes": minutes,
    }  # fmt: skip
    if minutes is not None:
        _check_minutes(minutes, {
            "--against": against, "--rounds": rounds, "--max-rounds": max_rounds, "--contexts": contexts,
            "--budget": budget, "--llama-bench": llama_bench,
        })  # fmt: skip
    options = {name: value for name, value in given.items() if value is not None}
    if adb is not None:
        _check_phone(llama_bench, {"--python": python, "--against-python": against_python, "--host": host})
        against_llama_bench, options["adb"] = against_llama_bench or (against and llama_bench), adb
    options |= _builds(against is not None, (python, llama_bench), (against_python, against_llama_bench), contexts)
    there = {"config": ssh_config, "python": remote_python, "folder": remote_folder, "keep": keep or None}
    there = {name: value for name, value in there.items() if value is not None}
    _check_host(host, there)
    if not path.is_file() and not (path / "bundle.json").is_file():
        raise SaapError(f"'{path}' is neither a bundle nor a stage folder (as OUT/stages/NAME-HASH)")
    options |= _looks(budget, max_rounds, rounds or 7, target)
    paths = [path, *([Path(against)] if against else [])]
    with listener.bar("bench", None):
        if host is None:
            return _bench_here(paths, options, listener)
        return _bench_there(host, there, paths, options, listener)


def bench_stage(place: Place, *, progress: Listener = None, **options: Any) -> Run:
    """Run the bench stage of a run, whose recipe says how to measure.

    Returns the run. Raises SaapError where one of `options`, those of `bench`, is given all the same.

    Examples:
        >>> se.bench_stage(run.folders["verify"]).folder == run.folders["bench"]
        True
    """
    path = folder_of(place)
    there = {name: options.pop(name, None) for name in ("ssh_config", "remote_python", "remote_folder", "keep")}
    _check_host(options.get("host"), {name: value for name, value in there.items() if value})
    if any(options.values()):
        raise SaapError(f"'{path}' is a stage of a run: its recipe says how to measure (options are for bundles)")
    return resume(path, "bench", progress=progress)


def _check_host(host: str | None, there: Mapping[str, Any]) -> None:
    if there and host is None:
        raise SaapError("--ssh-config, --remote-python, --remote-dir and --keep go with --host")


def _check_minutes(minutes: float, others: Mapping[str, Any]) -> None:
    """Raises SaapError for a time that is none, and for options that a run for minutes has no use for."""
    if not 0 < minutes <= LONGEST:
        raise SaapError(f"--minutes {minutes:g}: give a time up to {LONGEST:.0f} minutes")
    given = [name for name, value in others.items() if value]
    if given:
        raise SaapError(
            f"{given[0]} does not go with --minutes: one bundle decodes alone, from the board's present state on, and "
            "the gate judges the result"
        )


def _check_phone(program: Any, others: Mapping[str, Any]) -> None:
    """Raises SaapError where there is nothing that runs on a phone, and for what does not."""
    if not program:
        raise SaapError(
            "--adb runs llama.cpp's own llama-bench on the phone: give it, built for Android, by --llama-bench"
        )
    given = [name for name, value in others.items() if value]
    if given:
        raise SaapError(f"{given[0]} does not go with --adb: on a phone only llama-bench runs")


Named = tuple[str | Path | None, str | Path | None]  # an environment, and a program


def _builds(beside: bool, own: Named, others: Named, contexts: Any) -> dict[str, Any]:
    """The option `builds` of `bench_bundles`. Raises SaapError for options that do not go together."""
    if any(others) and not beside:
        raise SaapError("--against-python and --against-llama-bench go with --against")
    if all(own) or all(others):
        raise SaapError("a side runs in one environment or in one llama-bench: give --python or --llama-bench")
    if contexts and (own[1] or others[1]):
        raise SaapError("--contexts is measured by saap-edge's own loop: it does not go with --llama-bench")
    names = ("python", "program")
    builds = [{name: str(place) for name, place in zip(names, side, strict=True) if place} for side in (own, others)]
    return {"builds": builds} if any(builds) else {}


def _looks(budget: Any, max_rounds: int | None, rounds: int, target: str | None) -> dict[str, Any]:
    """Options for adding rounds while a limit is undecided. Raises SaapError for options that do not go together."""
    from saap_edge.targets import load_target

    if budget is None:
        if max_rounds is not None:
            raise SaapError("--max-rounds goes with --budget: its limits say when to stop")
        return {}
    if max_rounds is not None and max_rounds < rounds:
        raise SaapError(f"--max-rounds {max_rounds} is less than --rounds {rounds}")
    looks = {"budget": budget_of(budget), "target": load_target(target) if target else None}
    return looks | ({} if max_rounds is None else {"max_rounds": max_rounds})


def _bench_here(paths: list[Path], options: dict[str, Any], listener: Any) -> Bench:
    from saap_edge.gating.rerun import asked_by
    from saap_edge.measuring.bundles import bench_bundles

    budget, target = options.pop("budget", None), options.pop("target", None)
    return bench_bundles(paths, listener.bar, **options, **asked_by(budget, target))


def _bench_there(host: str, there: dict[str, Any], paths: list[Path], options: dict[str, Any], listener: Any) -> Bench:
    from saap_edge.remote.installation import Board, bench_on_board

    for name in ("budget", "target"):
        if options.get(name) is not None:
            options[name] = options[name].model_dump(mode="json")
    return bench_on_board(paths, Board(host, **there), options, listener.bar, listener.say)
