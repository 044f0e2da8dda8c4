"""`bench --host` against a real sshd on loopback: what it measures, and all that goes wrong on the way to a board."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from saap_edge import __version__, cli
from saap_edge.bundle.archive import pack
from saap_edge.errors import SaapError
from saap_edge.files import file_hash
from saap_edge.remote import installation as remote
from saap_edge.remote.client import BOOT, EVENTS, LOG, reason_of
from saap_edge.remote.installation import Board, Client, bench_on_board
from saap_edge.remote.parcel import Parcel
from saap_edge.remote.ssh import Ssh, Unreachable
from tests.bundle.conftest import amend
from tests.remote.sshd import SSHD, Sshd, Wire, make_key

pytestmark = pytest.mark.skipif(SSHD is None, reason="needs sshd (Debian: apt-get install openssh-server)")
OPTIONS = {"threads": 1, "prompt_tokens": 8, "decode_tokens": 4, "rounds": 3}
PADDING = 6 * 2**20  # what there is to send, for a connection to be cut in the middle of it


@pytest.fixture(scope="module")
def large(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a file that takes a while to send."""
    folder = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("large") / "bundle"))
    (folder / "padding.bin").write_bytes(os.urandom(PADDING))
    amend(folder)
    return folder


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    yield server
    server.close()


@pytest.fixture
def board(sshd: Sshd, tmp_path: Path) -> Callable[..., Board]:
    """A board with a folder of its own, reached directly or through what is at a port."""

    def make(port: int | None = None, **changes: Any) -> Board:
        known = {
            "host": "board",
            "config": sshd.config(port),
            "python": sys.executable,
            "folder": str(tmp_path / "there"),
        }
        return Board(**known | changes)

    return make


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS", (0.1, 0.1))


class Watch:
    """Bars and words of a measurement, as the command line would show them; `on` is called at every step of a bar."""

    def __init__(self, on: Callable[[str, int], None] = lambda what, done: None) -> None:
        self.said: list[str] = []
        self.done: dict[str, tuple[int, int]] = {}
        self._on = on

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[..., None]]:
        self.done[what] = (0, total)

        def advance(steps: int) -> None:
            self.done[what] = (self.done[what][0] + steps, total)
            self._on(what, self.done[what][0])

        yield advance


def bench(folder: Path | list[Path], board: Board, watch: Watch | None = None, **options: Any) -> dict[str, Any]:
    watch = watch or Watch()
    folders = folder if isinstance(folder, list) else [folder]
    return bench_on_board(folders, board, OPTIONS | options, watch.bar, watch.said.append)


def left(board: Board) -> list[str]:
    """What is on the board, but for the lock."""
    return sorted(path.name for path in Path(board.folder).rglob("*") if path.is_file() and path.name != "lock")


def alive(board: Board) -> bool:
    """A process of a run on this board."""
    return subprocess.run(["pgrep", "-f", f"{board.folder}/runs"], stdout=subprocess.DEVNULL).returncode == 0


def client(folder: Path, board: Board) -> Client:
    """One run's client, to try one step alone."""
    return Client(Ssh(board.host, board.config), str(board.python), board, [Parcel.of(folder)], OPTIONS)


def test_measures_there_and_leaves_nothing(bundle, board, tmp_path):
    """Two bundles, one of them an archive, are compared there, with more rounds while a limit is undecided."""
    pack(bundle, tmp_path / "one.tar.zst")
    there, watch = board(), Watch()
    limits = [{"metric": "decode_vs_baseline", "min": 0.9999, "max": 1.0001}]  # of the same file: noise leaves it open
    document = bench([tmp_path / "one.tar.zst", bundle], there, watch, budget={"limits": limits}, max_rounds=6)
    rates = [artifact["metrics"]["decode_tok_s"]["median"] for artifact in document["artifacts"]]
    assert document["schema"] == 2 and len(rates) == 2 and min(rates) > 0
    ratio = document["comparisons"][0]["ratios"]["decode_tok_s"]
    still_open = ratio["low"] <= 1.0001 and ratio["high"] >= 0.9999
    assert ratio["rounds"] == 6 if still_open else ratio["rounds"] in (3, 6), "rounds are added while it is open"
    assert document["machine"]["host"] == "board" and document["machine"]["limits"]["cpus"] > 0
    assert left(there) == [] and not alive(there) and watch.said == []
    assert len(watch.done) == 2 and all(done == total for done, total in watch.done.values()), watch.done


def test_the_command(bundle, board, tmp_path, monkeypatch, capsys):
    """Exit code 2 and one line for what is wrong; nothing is written then."""
    there = board()
    reach = ["--ssh-config", str(there.config), "--remote-python", str(there.python), "--remote-dir", str(there.folder)]

    def call(*arguments: str) -> tuple[int | str | None, str]:
        monkeypatch.setattr(sys, "argv", ["saap-edge", "bench", str(bundle), *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().err

    out = tmp_path / "bench.json"
    out.write_text("an older result")
    code, words = call("--host", "board", *reach, "--threads", "1", "--prompt", "3000000", "--out", str(out))
    assert code == 2 and len(words.splitlines()) == 1 and "on 'board': 'bundle-0' holds sequences of 2097152" in words
    assert out.read_text() == "an older result" and left(there) == []
    code, words = call("--keep")
    assert code == 2 and "go with --host" in words
    code, words = call("--host", "me:secret@board")
    assert code == 2 and "secret" not in words


def test_nothing_is_sent_twice(large, board, sshd):
    there, watch = board(keep=True), Watch()
    client(large, there).send(watch.bar, watch.said.append)
    client(large, there).clean(watch.said.append)
    kept, wire = left(there), Wire(sshd.port, [])
    client(large, board(wire.port)).send(watch.bar, watch.said.append)
    wire.close()
    assert len(kept) > 5 and left(there) == kept and sum(wire.carried) < PADDING / 10
    whole = max((Path(there.folder) / "files").iterdir(), key=lambda path: path.stat().st_size)
    content = whole.read_bytes()
    whole.write_bytes(b"rot" + content[3:])
    client(large, there).send(watch.bar, watch.said.append)
    assert whole.read_bytes() == content, "what had rotten was sent again"
    client(large, board()).clean(watch.said.append)
    assert left(there) == [] and watch.said == []


@pytest.mark.parametrize("again", [False, True], ids=["by itself", "by the same command"])
def test_an_upload_goes_on_where_it_was_cut(large, board, sshd, again):
    wire = Wire(sshd.port, [PADDING * 2 // 3] + ([0] * 2 if again else []))
    there, watch = board(wire.port), Watch()
    if again:
        with pytest.raises(Unreachable, match="no connection to 'board'"):
            client(large, there).send(watch.bar, watch.said.append)
        assert any(name.endswith(".part") for name in left(there)), "what had come is kept"
    client(large, there).send(watch.bar, watch.said.append)
    assert "trying again" in watch.said[0] and all(done == total for done, total in watch.done.values())
    # What was on its way when the connection broke (ssh holds up to 2 MiB) had to be sent again, and no more.
    assert wire.carried[0] < PADDING and 0 < wire.carried[-1] < PADDING - 2**20
    parcel = Parcel.of(large)
    for name in parcel.sizes:
        assert file_hash(Path(there.folder) / "files" / name) == name
    wire.close()


def test_a_measurement_outlives_its_connection(bundle, board, sshd):
    """Cut while it runs, and the way back is closed; the same command comes back to it, through another cut."""
    first, second = Wire(sshd.port, []), Wire(sshd.port, [None, None, 100])

    def gone(what: str, done: int) -> None:
        if "sending" not in what and done == 2:
            first.close()

    with pytest.raises(Unreachable, match=r"refused.*the same command goes on where it stopped"):
        bench(bundle, board(first.port), Watch(gone), rounds=60)
    process = json.loads((Path(board().folder) / "lock").read_text())["pid"]

    there, watch = board(second.port), Watch()
    assert bench(bundle, there, watch, rounds=60)["conditions"]["rounds"] == 60
    second.close()
    assert "trying again" in watch.said[0] and "coming back" in watch.said[1] and len(watch.said) == 2
    until(lambda: not Path(f"/proc/{process}").exists())  # it ends after it has given its result
    assert left(there) == []


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_one_at_a_time_and_ctrl_c_stops_it_there(bundle, board):
    there, found = board(), []

    def second(what: str, done: int) -> None:
        if "sending" not in what and done == 1:
            assert alive(there)
            with pytest.raises(SaapError, match="another measurement has the board"):
                bench(bundle, board(), rounds=4)
            found.append(alive(there))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench(bundle, there, Watch(second), rounds=100000)
    assert found == [True]
    assert not alive(there) and left(there) == []


def test_a_killed_measurement_is_no_result(bundle, board):
    there = board()

    def kill(what: str, done: int) -> None:
        if "sending" not in what and done == 1:
            pid = json.loads((Path(there.folder) / "lock").read_text())["pid"]
            os.killpg(pid, signal.SIGKILL)

    with pytest.raises(SaapError, match=r"on 'board': the measurement was ended: .*killed"):
        bench(bundle, there, Watch(kill), rounds=100000)
    assert left(there) == []


def test_a_restart_of_the_board_is_told(tmp_path):
    """Of a run that began under another boot of this machine, the rest is known."""
    (tmp_path / EVENTS).write_text(json.dumps({"boot": "another"}) + "\n")
    assert "the board restarted meanwhile" in reason_of(tmp_path)
    (tmp_path / EVENTS).write_text(json.dumps({"boot": BOOT.read_text().strip()}) + "\n")
    (tmp_path / LOG).write_text("some words\nBus error\n")
    assert reason_of(tmp_path) == "its last words: Bus error"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"HostName": "no-such-host.invalid"}, "no connection to 'board': .*resolve"),
        ({"Port": "1"}, "no connection to 'board': .*refused"),
        ({"UserKnownHostsFile": "/dev/null"}, "the host key of 'board' is unknown: connect once by `ssh board`"),
        ({"IdentityFile": "/dev/null"}, "refused the login .*ssh-copy-id board"),
        ({"NoSuchOption": "1"}, "ssh refuses its configuration"),
    ],
)
def test_no_way_in(bundle, board, sshd, changes, message):
    if "Port" in changes:
        changes["UserKnownHostsFile"] = "/dev/null"
    with pytest.raises(SaapError, match=message) as failed:
        bench(bundle, board(config=sshd.config(**changes)))
    assert "\n" not in str(failed.value)


def test_another_host_key_is_refused(bundle, board, sshd, tmp_path):
    """Even where the user's configuration would let it pass."""
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{sshd.port} {make_key(tmp_path / 'other').with_suffix('.pub').read_text()}")
    config = sshd.config(UserKnownHostsFile=str(known), StrictHostKeyChecking="accept-new")
    before = known.read_text()
    with pytest.raises(SaapError, match="the host key of 'board' is not the one in known_hosts"):
        bench(bundle, board(config=config))
    assert known.read_text() == before


def test_an_unknown_key_is_not_learnt(bundle, board, sshd, tmp_path):
    known = tmp_path / "known_hosts"
    known.touch()
    with pytest.raises(SaapError, match="is unknown"):
        bench(bundle, board(config=sshd.config(UserKnownHostsFile=str(known), StrictHostKeyChecking="no")))
    assert known.read_text() == ""


@pytest.mark.parametrize("host", ["", "-oProxyCommand=evil", "a b", "user:secret@board", "ssh://user:secret@board"])
def test_hosts_that_are_none(host):
    with pytest.raises(SaapError, match="--host") as failed:
        Ssh(host)
    assert "secret" not in str(failed.value)


def test_names_of_boards():
    assert Ssh("me@pi.local").board == "pi.local" and Ssh("ssh://me@pi:2222").board == "pi:2222"


def test_a_board_without_saap_edge(bundle, board, tmp_path):
    command = rf"pip install 'saap-edge\[device\]=={__version__}'"
    with pytest.raises(SaapError, match=rf"cannot measure: .*\(Python 3.*Install there: .*{command}"):
        bench(bundle, board(python=str(isolated(tmp_path))))
    with pytest.raises(
        SaapError, match=r"there is no ~/nowhere/bin/python.* python3 -m venv nowhere && nowhere/bin/python -m pip"
    ):
        bench(bundle, board(python="~/nowhere/bin/python"))


def isolated(folder: Path) -> Path:
    """A Python that sees neither the environment's packages nor PYTHONPATH."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    script.chmod(0o755)
    return script


def test_a_board_with_another_version(bundle, board, monkeypatch):
    monkeypatch.setattr(remote, "__version__", "9.9")
    with pytest.raises(SaapError, match=rf"has saap-edge {__version__}, not 9.9\. Install there"):
        bench(bundle, board())


def test_a_damaged_bundle_is_not_sent(bundle, board, tmp_path):
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (folder / "expected.npy").write_bytes(b"")
    with pytest.raises(SaapError, match=r"expected.npy' is missing or not as bundle.json says"):
        bench(folder, board())


def test_a_file_that_changes_on_its_way_is_refused(bundle, board, tmp_path):
    """Right size, wrong bytes: the board finds out."""
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    size = (folder / "expected.npy").stat().st_size
    (folder / "expected.npy").write_bytes(bytes(size))
    there = board()
    with pytest.raises(SaapError, match=r"expected.npy' arrives at 'board' with another sha256"):
        bench(folder, there)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a small file system, a control group")


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip(f"cannot mount a tmpfs: {made.stderr.decode()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@needs_root
def test_a_board_without_room(large, board, tmp_path):
    with small_disk(tmp_path / "disk", PADDING // 2) as disk:
        there = board(folder=str(disk / "there"))
        with pytest.raises(
            SaapError, match=r"the disk of 'board' is full: 6\.\d MiB have to go to .*, where [23]\.\d MiB"
        ):
            bench(large, there)
        assert left(there) == []


@needs_root
def test_a_board_whose_disk_fills_meanwhile(large, board, sshd, tmp_path):
    with small_disk(tmp_path / "disk", 2 * PADDING) as disk:
        wire = Wire(
            sshd.port, [None, PADDING // 2], lambda: (disk / "other").write_bytes(bytes(PADDING + PADDING // 4))
        )
        there = board(wire.port, folder=str(disk / "there"), keep=True)
        with pytest.raises(SaapError, match=r"on 'board': the disk of '.*there' is full"):
            bench(large, there)
        halves = sum(path.stat().st_size for path in (disk / "there/files").glob("*.part"))
        assert halves == 0, "our half is gone, whatever else is kept"
        wire.close()


@contextmanager
def control_group(controller: str, limits: dict[str, str]) -> Iterator[Path]:
    """A control group below ours, of version 1 or 2, with limits by their file names in either."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    root = Path("/sys/fs/cgroup")
    ours = [root / controller / path.lstrip("/") for _, names, path in lines if controller in names.split(",")]
    ours += [root / path.lstrip("/") for _, names, path in lines if not names]
    group = next((path / f"saap-edge-test-{os.getpid()}" for path in ours if path.is_dir()), None)
    if group is None:
        pytest.skip(f"no control group of {controller} here")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a control group: {error}")
    try:
        known = {name: value for name, value in limits.items() if (group / name).exists()}
        if not known:
            pytest.skip(f"the control group has no limits of {controller}")
        for name, value in known.items():
            (group / name).write_text(value)
        yield group
    finally:
        until(lambda: not (group / "cgroup.procs").read_text().strip(), 10)
        group.rmdir()


@needs_root
def test_a_board_out_of_memory(bundle, tmp_path):
    """A real limit of the kernel: it kills what needs more."""
    limit = 240 * 2**20
    with control_group("memory", {"memory.max": str(limit), "memory.limit_in_bytes": str(limit)}) as group:
        server = Sshd(tmp_path, (group,))
        there = Board("board", server.config(), sys.executable, str(tmp_path / "there"))
        try:
            with pytest.raises(SaapError) as failed:
                bench(bundle, there, prompt_tokens=1_000_000)
        finally:
            server.close()
    text = str(failed.value)
    assert text.startswith("on 'board': out of memory: the kernel killed it (llama.cpp died in '") and "\n" not in text
    assert "of which a control group allows 240" in text and "for the KV cache of 1000004 tokens" in text
    assert "gguf-q4_0 needs" in text and left(there) == []


@needs_root
def test_a_limit_on_cpus_is_reported(tmp_path):
    with control_group("cpu", {"cpu.max": "150000 100000", "cpu.cfs_quota_us": "150000"}) as group:
        server = Sshd(tmp_path, (group,))
        code = "import json; from saap_edge.machine.limits import allowed; print(json.dumps(allowed()))"
        ask = ["ssh", "-F", str(server.config()), "board", f"taskset -c 0 {sys.executable} -c '{code}'", ";"]
        found = subprocess.run([*ask, sys.executable, "-c", f"'{code}'"], capture_output=True, text=True).stdout
        server.close()
    one, quota = (json.loads(line)["cpus"] for line in found.splitlines())
    assert one == 1.0 and quota == min(1.5, len(os.sched_getaffinity(0)))
