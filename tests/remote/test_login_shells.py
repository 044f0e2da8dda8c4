"""Whatever a board's shell prints for every login, before us, after us, beside us: our messages are found.

An `ssh` on the PATH stands for the board: it prints, and runs the command here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from saap_edge.errors import SaapError
from saap_edge.remote import installation as remote
from saap_edge.remote import ssh
from saap_edge.remote.installation import Board, bench_on_board
from saap_edge.remote.ssh import PREFIX, Ssh, Unreachable
from tests.remote.test_remote import OPTIONS, Watch

RUN = 'sh -c "$command"'
LOGO = r"printf '\033[?25l\033[?7l   .--. \033]0;pi@board\007 logo \033[?25h'"
SHELLS = {
    "a line": f"echo Welcome; {RUN}",
    "no newline": f"{LOGO}; {RUN}",
    "lines of a terminal": f"printf 'Welcome\\r\\n\\r> '; {RUN}",
    "a message of the day that speaks of us": f"""printf 'saap-edge {{"error": "not ours"}} '; {RUN}""",
    "on stderr": f"printf 'Permission denied for guests\\n' >&2; {RUN}",
    "bytes of no encoding": f"printf '\\377\\376 '; {RUN}",
    "after the command": f"{RUN}; status=$?; echo; echo logout; exit $status",
    "after the command, no newline": f"{RUN}; status=$?; printf '\\033[0m bye'; exit $status",
    "every line ends as on Windows": f"{RUN} | sed -u 's/$/\\r/'",
    "colours off at the end of every line": f"{RUN} | sed -u 's/$/\\x1b[0m/'",
    "it echoes what it is sent": 'exec 3>&1; tee >(cat >&3) | sh -c "$command"; sleep 0.1',
    "it tells what it runs": 'sh -xvc "$command" 2>&1',
}


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Ssh]:
    """A board whose shell does as it is told, with a home folder of its own and none of our variables."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def make(script: str) -> Ssh:
        program = tmp_path / "bin/ssh"
        home = f'unset ORT_DISABLE_TELEMETRY; export HOME={tmp_path}/home; cd; command="${{@: -1}}"'
        program.write_text(f"#!/bin/bash\n{home}\n{script}\n")
        program.chmod(0o755)
        return Ssh("pi@board")

    return make


@pytest.mark.parametrize("script", SHELLS.values(), ids=SHELLS)
def test_python_is_found(script, shell):
    board = Board("pi@board", python=sys.executable)
    assert remote._python(shell(script), board, ["llama.cpp", "onnxruntime"]) == sys.executable


@pytest.mark.parametrize("script", SHELLS.values(), ids=SHELLS)
def test_no_python_is_still_no_python(script, shell):
    with pytest.raises(SaapError, match=r"there is no /nowhere/python\. Install there"):
        remote._python(shell(script), Board("pi@board", python="/nowhere/python"), ["llama.cpp"])


@pytest.mark.parametrize(("script", "said"), [
    ("echo 'This account is only for git.'", "This account is only for git."),
    (f"{LOGO}; cat > /dev/null", ".--.  logo"), ("exit 0", "''"),
])  # fmt: skip
def test_a_shell_that_runs_nothing_is_told_as_that(script, said, shell):
    with pytest.raises(SaapError, match="let us in and did not run our command") as refused:
        remote._python(shell(script), Board("pi@board", python=sys.executable), ["llama.cpp"])
    assert said in str(refused.value) and "\n" not in str(refused.value) and "\x1b" not in str(refused.value)


def test_a_cut_is_not_what_the_login_said(shell):
    """ssh's exit code 255 behind a message of ours is a cut connection, whatever stands on stderr."""
    hello = r"""printf '\036saap-edge {"a": 1}\n'"""
    with shell(f"echo 'Permission denied for guests' >&2; {hello}; exit 255").open("x") as session:
        messages = session.messages()
        assert next(messages) == {"a": 1}
        with pytest.raises(Unreachable, match="it was cut"):
            next(messages)


@pytest.mark.parametrize("body", ['{"a": ', '{"a": 1', "no message"])
def test_half_a_message_is_none(body, shell):
    with (
        shell(f"printf '\\036saap-edge %s\\n' '{body}'").open("x") as session,
        pytest.raises(SaapError, match="sent what is no message"),
    ):
        list(session.messages())
    with shell(f"printf '\\036saap-edge %s' '{body}'").open("x") as session:  # cut off in the middle of it
        assert list(session.messages()) == []


def test_no_text_can_hold_the_mark():
    assert PREFIX not in json.dumps({"text": PREFIX}) and PREFIX not in ascii(PREFIX)
    assert ssh._printable("\x1b[31mred\x1b[0m \x1b]0;title\x07 x\r\n") == "red  x"


def test_a_whole_measurement_through_such_a_shell(bundle, shell, tmp_path):
    """Files are sent, the job is followed, and nothing is left. It has the switch of ONNX Runtime's telemetry."""
    end = "status=${PIPESTATUS[0]}; printf ' bye'; exit $status"
    shell(f"echo banner >&2; {LOGO}; {RUN} | sed -u 's/$/\\r/'; {end}")
    folder, told = tmp_path / "there", []

    def look(what: str, done: int) -> None:
        if what.startswith("on board") and done == 1:
            process = json.loads((folder / "lock").read_text())["pid"]
            told.extend(Path(f"/proc/{process}/environ").read_bytes().split(b"\0"))

    watch = Watch(look)
    board = Board("pi@board", python=sys.executable, folder=str(folder))
    document = bench_on_board([bundle], board, OPTIONS, watch.bar, watch.said.append)
    assert document["machine"]["host"] == "board" and watch.said == []
    assert b"ORT_DISABLE_TELEMETRY=1" in told
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["lock"]
