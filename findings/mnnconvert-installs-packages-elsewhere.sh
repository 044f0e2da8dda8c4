#!/usr/bin/env bash
# MNN 3.6.1: its command-line tools run `pip install` by themselves, with the first pip of PATH.
#
# One would expect that `mnnconvert` of an environment converts a model and touches nothing else. Seen: as it starts, it
# imports a module that reports every use (with /etc/machine-id and the arguments) to a log service, and where the
# client of that service is missing, it runs `pip install -U aliyun-log-python-sdk`. That is the pip that PATH finds
# first, not that of the environment that mnnconvert lies in: called by its path, it puts ten packages into the system's
# Python. The converter itself, `_tools.mnnconvert([...])` of the same package, does none of this.
#
# Here a stand-in for pip comes first in PATH. It notes what it was asked and installs nothing, so that the client stays
# missing and nothing is sent.
#
# Run: findings/mnnconvert-installs-packages-elsewhere.sh      (ten seconds)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check MNN==3.6.1 2> /dev/null
mkdir "$folder/first" "$folder/home"
printf '#!/bin/sh\necho "pip $*" >> "%s/asked"\n' "$folder" > "$folder/first/pip"
chmod +x "$folder/first/pip"
run() { env -i PATH="$folder/first:/usr/bin:/bin" HOME="$folder/home" "$@" > "$folder/said" 2>&1 || true; }
asked() { if [ -s "$folder/asked" ]; then sort -u "$folder/asked"; else echo nothing; fi; rm -f "$folder/asked"; }
run "$folder/venv/bin/mnnconvert" --version
tool=$(asked)
run "$folder/venv/bin/python" -c 'import _tools; _tools.mnnconvert(["mnnconvert", "--version"])'
inner=$(asked)
"$folder/venv/bin/python" -m pip list --disable-pip-version-check 2> /dev/null | grep -i '^mnn '
printf 'mnnconvert --version runs: %s\n_tools.mnnconvert runs: %s\n' "$tool" "$inner"
[[ $tool == "pip install -U aliyun-log-python-sdk" && $inner == nothing ]] || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   mnn        3.6.1
#   mnnconvert --version runs: pip install -U aliyun-log-python-sdk
#   _tools.mnnconvert runs: nothing
