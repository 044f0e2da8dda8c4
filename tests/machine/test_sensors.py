"""Sensors and meters against trees of files as boards have them; a meter against a counter that really runs."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saap_edge.machine.limits import _memory, _quota, _used, memory
from saap_edge.machine.sensors import sensors
from saap_edge.measuring.energy import Meter, Source, find_meter, joules_between


def tree(root: Path, **files: object) -> Path:
    for path, content in files.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{content}\n")
    return root


def vcgencmd(root: Path, answers: dict[str, str]) -> None:
    """A program that answers as a Raspberry Pi's does."""
    cases = "".join(f'  {name}) printf "{answer}" ;;\n' for name, answer in answers.items())
    script = root / "usr/bin/vcgencmd"
    script.parent.mkdir(parents=True)
    script.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}  *) echo "unknown"; exit 1 ;;\nesac\n')
    script.chmod(0o755)


def test_a_board_that_tells_nothing(tmp_path):
    assert set(sensors(tmp_path).values()) == {None} and find_meter(tmp_path) is None


def test_an_arm_board(tmp_path):
    cpu = "sys/devices/system/cpu"
    tree(tmp_path, **{
        f"{cpu}/cpu0/cpufreq/scaling_governor": "ondemand", f"{cpu}/cpu0/cpufreq/scaling_cur_freq": 1500000,
        f"{cpu}/cpu3/cpufreq/scaling_cur_freq": 2400000, "sys/class/thermal/thermal_zone0/temp": 61500,
        "sys/class/thermal/thermal_zone1/temp": 58000, "proc/loadavg": "0.52 0.58 0.59 1/400 1234",
    })  # fmt: skip
    vcgencmd(tmp_path, {"get_throttled": "throttled=0x50000\\n", "measure_temp": "temp=1.0'C"})
    assert sensors(tmp_path) == {
        "governor": "ondemand", "mhz": 2400.0, "temperature_c": 61.5, "throttled": "0x50000", "load_average": 0.52,
    }  # fmt: skip


def test_an_x86_machine_without_cpufreq(tmp_path):
    throttle = "sys/devices/system/cpu/cpu{}/thermal_throttle/{}_throttle_count"
    files = {throttle.format(n, kind): 2 + n for n in (0, 1) for kind in ("core", "package")}
    tree(tmp_path, **files, **{"proc/cpuinfo": "cpu MHz\t\t: 2100.5\nflags\t: x\ncpu MHz\t\t: 2899.999"})
    found = sensors(tmp_path)
    assert (found["mhz"], found["throttled"], found["temperature_c"]) == (2899.999, 10, None)


def test_a_sensor_that_cannot_be_read(tmp_path):
    """Zones without a driver answer with an error, or with nothing."""
    tree(tmp_path, **{"sys/class/thermal/thermal_zone0/temp": "", "sys/class/thermal/thermal_zone2/temp": 40000})
    (tmp_path / "sys/class/thermal/thermal_zone1/temp").mkdir(parents=True)
    assert sensors(tmp_path)["temperature_c"] == 40.0


def test_this_machine_says_something():
    assert sensors()["load_average"] == pytest.approx(os.getloadavg()[0], abs=2)


RAPL = "sys/class/powercap/intel-rapl:"


def rapl(root, **counts):
    for number, count in counts.items():
        domain = f"{RAPL}{number.removeprefix('n')}"
        name = {"n0": "package-0", "n1": "package-1", "n0:0": "core", "n2": "psys"}[number]
        tree(root, **{f"{domain}/name": name, f"{domain}/energy_uj": count, f"{domain}/max_energy_range_uj": 999_999})


def test_rapl_adds_packages_and_goes_over_the_end(tmp_path):
    rapl(tmp_path, **{"n0": 900_000, "n1": 100, "n0:0": 5})
    meter = find_meter(tmp_path)
    assert meter.name == "rapl package-0, package-1"
    read = meter._source.read
    before = read()
    rapl(tmp_path, n0=400_000, n1=200_100)  # 0.5 J, over the end of its range, and 0.2 J
    assert read() - before == pytest.approx(0.7, abs=1e-5)


def test_rapl_takes_the_platform_alone(tmp_path):
    rapl(tmp_path, n0=1, n2=2)
    assert find_meter(tmp_path).name == "rapl psys"


def test_a_jetson_by_either_driver(tmp_path):
    """Only the rail that feeds the others counts."""
    chip = "new/sys/class/hwmon/hwmon3"
    tree(tmp_path, **{
        f"{chip}/name": "ina3221", f"{chip}/in1_label": "VDD_CPU_GPU_CV", f"{chip}/in1_input": 5000,
        f"{chip}/curr1_input": 400, f"{chip}/in2_label": "VDD_IN", f"{chip}/in2_input": 5000,
        f"{chip}/curr2_input": 1500, "new/sys/class/hwmon/hwmon0/name": "coretemp",
    })  # fmt: skip
    meter = find_meter(tmp_path / "new")
    assert meter.name == "ina3221 VDD_IN" and meter._source.read() == pytest.approx(7.5)
    old = "old/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    names = {"rail_name_0": "POM_5V_IN", "rail_name_1": "POM_5V_GPU", "in_power0_input": 4200, "in_power1_input": 900}
    tree(tmp_path, **{f"{old}/{name}": value for name, value in names.items()})
    assert find_meter(tmp_path / "old")._source.read() == pytest.approx(4.2)


def test_one_chip_on_the_board(tmp_path):
    tree(tmp_path, **{"sys/class/hwmon/hwmon0/name": "ina226", "sys/class/hwmon/hwmon0/power1_input": 3_300_000})
    assert find_meter(tmp_path)._source.read() == pytest.approx(3.3)
    tree(tmp_path, **{"sys/class/hwmon/hwmon1/name": "ina226", "sys/class/hwmon/hwmon1/power1_input": 1})
    assert find_meter(tmp_path) is None, "which of the two feeds the board is not known"


def test_a_raspberry_pi_5_adds_its_rails(tmp_path):
    rails = (
        "VDD_CORE_A current(7)=2.00000000A\\n   3V3_SYS_A current(1)=0.10000000A\\n VDD_CORE_V volt(15)=0.90000000V\\n"
    )
    vcgencmd(tmp_path, {"pmic_read_adc": rails + "3V3_SYS_V volt(9)=3.30000000V\\nEXT5V_V volt(24)=5.10000000V\\n"})
    meter = find_meter(tmp_path)
    assert meter.name == "pmic" and meter._source.read() == pytest.approx(2 * 0.9 + 0.1 * 3.3)


@given(st.floats(0.1, 50), st.lists(st.floats(0.01, 1), min_size=3, max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_constant_power_gives_power_times_time(watts, gaps, one, other):
    times = [sum(gaps[:n]) for n in range(len(gaps) + 1)]
    start, end = sorted(times[-1] * share for share in (one, other))
    for is_power, values in ((True, [watts] * len(times)), (False, [7 + watts * t for t in times])):
        samples = list(zip(times, values, strict=True))
        assert joules_between(samples, is_power, start, end) == pytest.approx(watts * (end - start), abs=1e-6)
        assert joules_between(samples, is_power, start, times[-1] + 1) is None, "nothing was sampled there"


def test_a_meter_follows_its_source():
    began = time.monotonic()
    with Meter(Source("clock", lambda: 3 * (time.monotonic() - began), False, 0.01)) as meter:
        start = time.monotonic()
        time.sleep(0.05)
        end = time.monotonic()
        assert meter.joules(start, end) == pytest.approx(3 * (end - start), rel=0.05)
        assert meter.joules(start - 10, end) is None


@pytest.mark.parametrize(("files", "cpus", "memory"), [
    ({"cpu.max": "150000 100000", "memory.max": 1000000}, 1.5, 1000000),
    ({"cpu.max": "max 100000", "memory.max": "max"}, None, None),
    ({"cpu.cfs_quota_us": 50000, "cpu.cfs_period_us": 100000, "memory.limit_in_bytes": 2000000}, 0.5, 2000000),
    ({"cpu.cfs_quota_us": -1, "cpu.cfs_period_us": 100000, "memory.limit_in_bytes": 2**63 - 4096}, None, None),
    ({}, None, None),
])  # fmt: skip
def test_limits_of_control_groups(tmp_path, files, cpus, memory):
    """Of version 2 and of version 1, set and not set."""
    folder = tree(tmp_path, **files)
    assert (_quota(folder), _memory(folder)) == (cpus, memory)


@pytest.mark.parametrize(("files", "used"), [
    ({"memory.current": 5000, "memory.stat": "anon 3000\ninactive_file 1500"}, 3500),
    ({"memory.usage_in_bytes": 5000, "memory.stat": "inactive_file 1\ntotal_inactive_file 1500"}, 3500),
    ({"memory.current": 5000}, 5000),
    ({}, 0),
])  # fmt: skip
def test_memory_in_use_leaves_out_pages_that_can_go(tmp_path, files, used):
    assert _used(tree(tmp_path, **files)) == used


def test_memory_that_can_be_had():
    total, free = memory()
    assert 0 < free <= total
