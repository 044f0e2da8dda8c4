"""Boards: the shipped files hold, wrong ones are named by line, this machine is described truly."""

import os

import pytest
import yaml

from saap_edge import targets
from saap_edge.errors import SaapError
from saap_edge.targets import Target, dump_yaml, list_targets, load_target, matches_this_machine


@pytest.mark.parametrize("name", list_targets())
def test_shipped_targets_are_valid_and_sourced(name):
    target = load_target(name)
    figures = [figure for figure in (*dict(target.bandwidth_gb_s).values(), *dict(target.power_w).values()) if figure]
    assert all(len(figure.source) >= 8 for figure in figures)
    assert Target.model_validate(yaml.safe_load(dump_yaml(target))) == target


def test_rpi5_has_its_published_figures():
    target = load_target("rpi5")
    assert (target.cores, target.isa, target.bandwidth_gb_s.theoretical.value) == (
        4,
        ["neon", "fp16", "dotprod"],
        17.07,
    )
    assert not matches_this_machine(target)


def test_host_is_always_this_machine():
    target = load_target("host")
    assert matches_this_machine(target) and target.cores == os.cpu_count()


def test_probe_measures_bandwidth(monkeypatch):
    monkeypatch.setattr(targets, "measure_bandwidth", lambda: targets_bandwidth(8, 2))
    probed = targets.probe_target()
    assert (
        probed.bandwidth_gb_s.copy_measured.value > 0.1 and "target probe" in probed.bandwidth_gb_s.read_measured.source
    )


targets_bandwidth = targets.measure_bandwidth  # small arrays are enough to see that it measures


def test_unknown_name_lists_the_known():
    with pytest.raises(SaapError, match=r"unknown target 'toaster' \(known: host, rpi5"):
        load_target("toaster")


@pytest.mark.parametrize(("old", "new", "expected"), [
    ("cores: 4", "cores: none", r"mine\.yaml:5: cores"), ("threads: 4", "thread: 4",
    r"mine\.yaml:\d+: thread.*threads"),
    ("    value: 17.07", "    value: -1", r"bandwidth_gb_s\.theoretical\.value"),
    ("    source: derived, LPDDR4X-4267 times 32 bits\n", "", r"theoretical\.source"),
])  # fmt: skip
def test_a_malformed_file_names_line_and_field(tmp_path, old, new, expected):
    text = (targets._folder() / "rpi5.yaml").read_text()
    assert old in text
    (tmp_path / "mine.yaml").write_text(text.replace(old, new))
    with pytest.raises(SaapError, match=expected):
        load_target(str(tmp_path / "mine.yaml"))
