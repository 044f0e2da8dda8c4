"""Boards: the shipped files hold, wrong ones are named by line, this machine is described truly."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from saap_edge import cli, targets
from saap_edge.errors import SaapError
from saap_edge.targets import Figure, Target, dump_yaml, figures, list_targets, load_target, matches_this_machine

BOARDS = [name for name in list_targets() if name != "host"]
RPI4 = load_target("rpi4")


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "saap_edge", *arguments], capture_output=True, text=True, env=os.environ | environment
    )


@pytest.mark.parametrize("name", list_targets())
def test_shipped_targets_are_valid_and_sourced(name):
    path = targets._folder() / f"{name}.yaml"
    target = Target.model_validate(yaml.safe_load(path.read_text()))
    assert target.name == path.stem and len(target.source) >= 8
    for place, figure in figures(target):
        source = figure.source
        stated = source.startswith(("https://", "derived, ", "assumed, ", "estimate, ", "measured by "))
        assert stated, f"{place}: {source}"
        assert figure.assumed or not source.startswith(("assumed, ", "estimate, ")), place
        assert not re.search(r"assum|unsourced", figure.note or "") or figure.assumed, (
            f"{place}: an assumption as known"
        )
    assert Target.model_validate(yaml.safe_load(dump_yaml(target))) == target


@pytest.mark.parametrize("name", BOARDS)
def test_shipped_boards_say_what_is_needed(name):
    target = load_target(name)
    assert len(BOARDS) >= 12
    assert all(core.clock_ghz and core.simd_bits for core in target.cores)
    assert target.isa and target.system_ram_mib and target.why.threads and target.why.quantisation and target.why.grid
    assert target.threads <= target.core_count and not matches_this_machine(target)


def test_rpi5_has_its_published_figures():
    target = load_target("rpi5")
    core = target.cores[0]
    assert (core.kind, core.count, core.clock_ghz.value) == ("cortex-a76", 4, 2.4)
    assert (target.isa, target.bandwidth_gb_s.theoretical.value) == (["neon", "fp16", "dotprod"], 17.07)
    assert target.decode_bandwidth == 10.2e9


def test_host_is_always_this_machine():
    target = load_target("host")
    assert matches_this_machine(target) and target.core_count == os.cpu_count()


def test_a_board_is_recognised_by_its_device_tree(monkeypatch):
    monkeypatch.setattr(targets, "device_tree", lambda: "Raspberry Pi 5 Model B, raspberrypi,5-model-b, brcm,bcm2712")
    assert [name for name in BOARDS if matches_this_machine(load_target(name))] == ["rpi5"]


def test_unknown_name_lists_the_known():
    with pytest.raises(SaapError, match=r"unknown target 'toaster' \(known: graviton3, host, .*rpi5"):
        load_target("toaster")


@pytest.mark.parametrize(("old", "new", "expected"), [
    ("    count: 4", "    count: none", r"mine\.yaml:7: cores\.0\.count"),
    ("threads: 4", "thread: 4", r"mine\.yaml:\d+: thread.*threads"),
    ("threads: 4", "threads: 9", r"threads: 9 are more than twice the 4 cores"),
    ("value: 17.07", "value: -1", r"bandwidth_gb_s\.theoretical\.value"),
    (', source: "derived, LPDDR4X-4267 times 32 bits"', "", r"theoretical\.source"),
    ("[2048, 4096", "[256, 4096", r"the system takes more than the smallest of ram_mib, 256"),
])  # fmt: skip
def test_a_malformed_file_names_line_and_field(tmp_path, old, new, expected):
    text = (targets._folder() / "rpi5.yaml").read_text()
    assert old in text
    (tmp_path / "mine.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(SaapError, match=expected):
        load_target(str(tmp_path / "mine.yaml"))


@given(st.floats(min_value=1e-3, max_value=1e6), st.booleans())
def test_any_figure_survives_yaml(value, assumed):
    figure = Figure(value=value, source="measured by hand", assumed=assumed)
    target = RPI4.model_copy(update={"system_ram_mib": None, "power_w": targets.Power(idle=figure)})
    assert Target.model_validate(yaml.safe_load(dump_yaml(target))) == target


def test_the_page_lists_all_boards():
    page = (Path(__file__).parents[1] / "docs" / "targets.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| ([\w-]+) \| (.+) \|$", page.split("## Add")[0], re.MULTILINE)[1:]
    assert listed == [(name, load_target(name).title) for name in list_targets()]
    usage = (Path(__file__).parents[1] / "docs" / "usage.md").read_text(encoding="utf-8")
    assert f"lists {len(list_targets())} boards" in usage
    fields = set(re.findall(r"`(\w+)`", page.split("## Fields")[1]))
    assert set(Target.model_fields) <= fields


@pytest.mark.parametrize("name", BOARDS)
def test_every_shipped_board_passes_its_check(name, monkeypatch, capsys):
    if matches_this_machine(load_target(name)):
        pytest.skip("this machine is that board: what is measured here now decides")
    monkeypatch.setattr(sys, "argv", ["saap-edge", "target", "check", name, "--json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    told = capsys.readouterr()
    assert end.value.code == 0, told.err
    silent = load_target(name).bandwidth_gb_s == targets.Bandwidth()
    assert bool(json.loads(told.out)["unstated"]) == silent == ("not stated: bandwidth_gb_s" in told.err)


def test_the_command_lists_shows_and_checks(tmp_path):
    listed = run("targets", "--json")
    assert [board["name"] for board in json.loads(listed.stdout)] == list_targets()
    shown = run("target", "show", "rk3588")
    assert Target.model_validate(yaml.safe_load(shown.stdout)) == load_target("rk3588")
    checked = run("target", "check", "rk3588", "--json")
    assert checked.returncode == 0 and json.loads(checked.stdout)["here"] is False
    text = (targets._folder() / "rk3588.yaml").read_text()
    (tmp_path / "fast.yaml").write_text(text.replace("value: 24.84", "value: 39"))
    fast = run("target", "check", str(tmp_path / "fast.yaml"))
    assert fast.returncode == 1 and "copy_measured 39.0 is above theoretical 34.1" in " ".join(fast.stderr.split())
    (tmp_path / "wrong.yaml").write_text(text.replace("grid: 32", "grid: 33"))
    wrong = run("target", "check", str(tmp_path / "wrong.yaml"))
    assert wrong.returncode == 2 and re.search(r"wrong\.yaml:\d+: grid: ", wrong.stderr) and not wrong.stdout
