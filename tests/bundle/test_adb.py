"""A phone through adb: against a stand-in that runs the commands here, in a folder that is the phone's storage."""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from saap_edge.bundle.schema import read_bundle
from saap_edge.errors import SaapError
from saap_edge.machine.adb import FOLDER, Phone
from tests.bundle.test_bench import one_load  # noqa: F401 (a fixture)
from tests.environments import write_llama_bench
from tests.test_cli import call

QUICK = ["--threads", 1, "--prompt", 8, "--decode", 4, "--rounds", 3]

# Paths of the phone lie in its folder; getprop, dumpsys and the like are programs in PHONE/bin.
ADB = """#!{python}
import os, subprocess, sys
phone, arguments = {phone!r}, sys.argv[1:]
with open(phone + "/calls", "a") as calls:
    calls.write(" ".join(arguments) + "\\n")
if arguments == ["devices"]:
    print("List of devices attached\\n" + open(phone + "/devices").read())
    sys.exit(0)
assert arguments[:2] == ["-s", "SERIAL"], arguments
there = lambda text: text.replace("/data/local/tmp", phone + "/data/local/tmp").replace("/sys/", phone + "/sys/")
if arguments[2] == "push":
    source, target = arguments[3], there(arguments[4])
    if os.path.exists(phone + "/full"):
        print("adb: error: failed to copy: remote couldn't create file: No space left on device", file=sys.stderr)
        sys.exit(1)
    with open(source, "rb") as data, open(target, "wb") as copy:
        copy.write(data.read())
    sys.exit(0)
assert arguments[2] == "shell" and len(arguments) == 4, arguments
environment = os.environ | {{"PATH": phone + "/bin:" + os.environ["PATH"]}}
sys.exit(subprocess.run(["/bin/sh", "-c", there(arguments[3])], env=environment).returncode % 256)
"""
PROPERTIES = {
    "ro.product.manufacturer": "Maker", "ro.product.model": "Model 8", "ro.soc.manufacturer": "Chips",
    "ro.soc.model": "C1", "ro.build.version.release": "15",
}  # fmt: skip
HEAT = """Thermal Status: 1
Cached temperatures:
  Temperature{mValue=90.0, mType=0, mName=cpu, mStatus=0}
Current temperatures from HAL:
  Temperature{mValue=41.5, mType=0, mName=cpu0, mStatus=0}
  Temperature{mValue=47.25, mType=0, mName=cpu1, mStatus=0}
  Temperature{mValue=60.0, mType=3, mName=skin, mStatus=1}
Current cooling devices from HAL:
"""


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def phone(tmp_path, monkeypatch):
    """The phone's folder, with adb on the PATH."""
    root = tmp_path / "phone"
    (root / FOLDER[1:]).mkdir(parents=True)
    (root / "devices").write_text("SERIAL\tdevice product:x\nOTHER\tunauthorized\nGONE\toffline\n")
    cases = "".join(f'{name}) echo "{value}";;\n' for name, value in PROPERTIES.items())
    program(root / "bin/getprop", f'#!/bin/sh\ncase "$1" in\n{cases}esac\n')
    (root / "heat").write_text(HEAT)
    program(root / "bin/dumpsys", f'#!/bin/sh\n[ "$1" = thermalservice ] && cat {root}/heat\n')
    program(root / "bin/nproc", "#!/bin/sh\necho 8\n")
    for cpu, clock in ((0, 1800000), (7, 2900000)):
        place = root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
        place.mkdir(parents=True)
        (place / "scaling_cur_freq").write_text(f"{clock}\n")
        (place / "scaling_governor").write_text("walt\n")
    program(tmp_path / "path/adb", ADB.format(python=sys.executable, phone=str(root)))
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/usr/bin:/bin")
    return root


@pytest.fixture
def binary(tmp_path):
    (tmp_path / "android").mkdir()
    (tmp_path / "android/libllama.so").write_bytes(b"a library")
    return write_llama_bench(tmp_path / "android/llama-bench")


@pytest.fixture
def saap(monkeypatch, capsys):
    return lambda *arguments: call(monkeypatch, capsys, *arguments)


def storage(phone: Path) -> list[Path]:
    return list((phone / FOLDER[1:]).iterdir())


def test_a_bundle_beside_another_on_the_phone(made, phone, binary, saap, tmp_path):
    """Each file is sent once, the document is about the phone, and nothing stays there."""
    bundle, out = made["gguf-q4_0"], tmp_path / "bench.json"
    options = ["--adb", "SERIAL", "--llama-bench", binary, "--against", bundle, *QUICK]
    code, stdout, stderr = saap("bench", bundle, *options, "--json", "--out", out)
    assert code == 0, stderr
    assert "the same build" in stderr
    document = json.loads(stdout)
    machine = document["machine"]
    assert (machine["cpu"], machine["board"], machine["cores"]) == ("Chips C1", "Maker Model 8", 8)
    assert machine["system"].startswith("Android 15, Linux ") and machine["host"] == "SERIAL"
    assert machine["memory_bytes"] > 2**28 and machine["governor"] == "walt" and "python" not in machine
    for when in ("before", "after"):
        assert machine[when] == {"mhz": 2900, "temperature_c": 47.25, "throttled": 1}
    assert document["conditions"]["cores"] is None
    for entry in document["artifacts"]:
        assert not entry["runtime"]["own_loop"] and len(entry["metrics"]["decode_tok_s"]["samples"]) == 3
    assert document["comparisons"][0]["ratios"]["decode_tok_s"]["rounds"] == 3
    model = Path(read_bundle(bundle).model).name
    pushed = [line.split()[3] for line in (phone / "calls").read_text().splitlines() if " push " in line]
    assert sorted(Path(path).name for path in pushed) == ["libllama.so", "llama-bench", model], pushed
    assert not storage(phone)


def test_the_program_has_its_libraries_and_files_of_one_folder_stay_together(phone, binary, tmp_path):
    for name in ("part-1", "part-2"):
        (tmp_path / name).write_text(name)
    with Phone("SERIAL") as opened:
        place = opened.push_program(binary)
        parts = [opened.push(tmp_path / name) for name in ("part-1", "part-2", "part-1")]
        folders = {part.rpartition("/")[0] for part in parts}
        assert len(folders) == 1 and parts[0] == parts[2] and place.rpartition("/")[0] not in folders
        told = opened.shell(["sh", "-c", f"ls {place.rpartition('/')[0]}"])
        assert told.split() == ["libllama.so", "llama-bench"]
        program(tmp_path / "show/show", '#!/bin/sh\necho "$LD_LIBRARY_PATH $1"\n')
        shown = opened.program([opened.push_program(tmp_path / "show/show"), "an argument; 'quoted'"], 10).stdout
        assert shown.split(" ", 1)[1] == "an argument; 'quoted'\n" and shown.startswith(str(phone))
    assert not storage(phone)


def elf(machine):
    return b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00" + machine.to_bytes(2, "little") + bytes(44)


def test_a_program_of_another_processor(made, phone, tmp_path, saap):
    here = os.uname().machine
    other = {"x86_64": (183, "aarch64")}.get(here, (62, "x86_64"))
    path = tmp_path / "llama-bench"
    path.write_bytes(elf(other[0]))
    code, stdout, stderr = saap("bench", made["gguf-q4_0"], "--adb", "SERIAL", "--llama-bench", path, *QUICK)
    assert code == 2 and f"is a program for {other[1]}, and 'SERIAL' is {here}" in stderr and not stdout
    assert not storage(phone), "it is refused before anything is sent"


def no_adb(phone):
    os.remove(phone.parent / "path/adb")


def nothing_connected(phone):
    (phone / "devices").write_text("\n")


def full(phone):
    program(
        phone / "bin/df", "#!/bin/sh\necho Filesystem 1K-blocks Used Available Use%\necho /dev/x 100 90 9 99% /data\n"
    )


def full_without_a_word(phone):
    (phone / "full").touch()
    program(phone / "bin/df", "#!/bin/sh\nexit 1\n")


def dies(phone):
    """For another system: its loader is not there."""
    program(phone.parent / "android/llama-bench", "#!/no/such/linker\n")


TROUBLE = {
    "no adb": (no_adb, "SERIAL", "--adb needs adb on the PATH"),
    "no such device": (None, "ANOTHER", "adb knows no device 'ANOTHER' (it knows SERIAL, OTHER, GONE)"),
    "no device": (nothing_connected, "SERIAL", "it knows none: connect it"),
    "unauthorised": (None, "OTHER", "the device 'OTHER' is unauthorized: allow this computer on its screen"),
    "offline": (None, "GONE", "the device 'GONE' is offline: connect it again"),
    "no space": (full, "SERIAL", "'SERIAL' has no space: 'llama-bench' takes 0 MiB, and 0 MiB are free"),
    "no space, found late": (full_without_a_word, "SERIAL", "No space left on device"),
    "does not run": (dies, "SERIAL", "on 'SERIAL' ended with exit code 12"),
}  # fmt: skip


@pytest.mark.parametrize("what", TROUBLE)
def test_trouble_is_told_in_one_line(made, phone, binary, saap, what):
    change, serial, message = TROUBLE[what]
    if change:
        change(phone)
    code, stdout, stderr = saap("bench", made["gguf-q4_0"], "--adb", serial, "--llama-bench", binary, *QUICK)
    assert code == 2 and message in stderr and stderr.count("\n") == 1 and not stdout, stderr
    assert not storage(phone)


def test_the_phone_is_lost_meanwhile(phone, tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(SaapError, match=r"'uname' failed on 'SERIAL': error: device 'SERIAL' not found"),
        Phone("SERIAL") as opened,
    ):
        program(tmp_path / "path/adb", "#!/bin/sh\necho \"error: device 'SERIAL' not found\" >&2; exit 1\n")
        opened.push_program(tmp_path / "file")


def test_what_a_phone_does_not_tell(phone):
    shutil.rmtree(phone / "sys")
    for name in ("getprop", "dumpsys"):
        program(phone / "bin" / name, "#!/bin/sh\nexit 1\n")
    with Phone("SERIAL") as opened:
        assert opened.sensors() == {"mhz": None, "temperature_c": None, "throttled": None}
        facts = opened.facts()
    assert facts["cpu"] == os.uname().machine and facts["board"] is None and facts["governor"] is None
    assert facts["system"].startswith("Android ?, Linux")


def test_a_program_that_still_runs_is_ended(phone, tmp_path):
    """A call that was given up leaves it running on the phone."""
    path = program(tmp_path / "slow", "#!/bin/sh\nexec sleep 600\n")
    with Phone("SERIAL") as opened:
        place = opened.push_program(path)
        with pytest.raises(SaapError, match="gave no answer in 1 s"):
            opened.program([place], 1)
        pid = int((phone / opened.folder[1:] / "pid").read_text())
        assert Path(f"/proc/{pid}").exists()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]:
            return
        time.sleep(0.05)
    pytest.fail("it still runs")


@pytest.mark.parametrize(("options", "message"), [
    (["--adb", "SERIAL"], "give it, built for Android, by --llama-bench"),
    (["--adb", "SERIAL", "--llama-bench", "x", "--host", "pi"], "--host does not go with --adb"),
    (["--adb", "SERIAL", "--llama-bench", "x", "--python", "y"], "--python does not go with --adb"),
    (["--adb", "SERIAL", "--llama-bench", "x", "--minutes", 1], "--llama-bench does not go with --minutes"),
])  # fmt: skip
def test_options_that_do_not_go_together(made, saap, options, message):
    code, stdout, stderr = saap("bench", made["gguf-q4_0"], *options)
    assert code == 2 and message in stderr and stderr.count("\n") == 1 and not stdout, stderr
