"""Threads sleep where they wait, but those of a measured runtime wait as users' do."""

import json
import os
import subprocess
import sys

import pytest

SHOWN = """
import json, os
from saap_edge.cli.base import prepare
from saap_edge.engines.worker import child_environment
prepare()
names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
print(json.dumps([[where.get(name) for name in names] for where in (os.environ, child_environment())]))
"""


@pytest.mark.parametrize(
    ("given", "here", "children"),
    [({}, ["PASSIVE", "0"], [None, None]), ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", None], ["ACTIVE", None])],
)
def test_only_our_own_threads_sleep(given, here, children):
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    shown = subprocess.run([sys.executable, "-c", SHOWN], env=plain | given, capture_output=True, text=True)
    assert json.loads(shown.stdout) == [here, children], shown.stderr
