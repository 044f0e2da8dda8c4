#!/usr/bin/env bash
# openvino 2026.4.1 on Linux: `import openvino` alone sends an event, and no variable of its own says no.
#
# One would expect that importing a library for inference asks no server, and that it can be told so by a variable, as
# ONNX Runtime can. Seen: the import (through openvino.tools.ovc, for the sake of convert_model) makes
# ~/intel/openvino_ga_cid, an id of this user, counts imports in ~/intel/stats, and posts to www.google-analytics.com. No
# consent is asked for: the dialog is turned off for this event. What stops it: a file ~/intel/openvino_telemetry that
# holds 0 (`opt_in_out --opt_out` writes it), the variables of CI systems (here: CI=true), so that what is seen in CI is
# not what a board does, or a process in which the package openvino_telemetry cannot be imported: openvino then takes a
# stub. DO_NOT_TRACK=1 does nothing.
#
# Run: findings/openvino-import-tells-its-maker.sh      (half a minute; nothing is sent: requests are refused inside Python)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check openvino==2026.4.1 2> /dev/null
cat > "$folder/look.py" << 'PY'
import sys
import time

ASKED = sys.argv[1]


def hook(event, arguments):  # in the process that the package starts for a request, too
    if event == "urllib.Request":
        with open(ASKED, "a") as file:
            file.write(arguments[0].split("/")[2] + "\n")
        raise ConnectionRefusedError("not in this script")


sys.addaudithook(hook)
if "stub" in sys.argv:
    sys.modules["openvino_telemetry"] = None
import openvino

time.sleep(3)  # it is sent from a thread
PY
found() { # how HOME begins, VARIABLE=VALUE or nothing, argument: who was asked; what is in the home folder
  rm -rf "$folder/home" && mkdir -p "$folder/home/intel"
  [ "$1" = refused ] && printf 0 > "$folder/home/intel/openvino_telemetry"
  : > "$folder/asked"
  env -i PATH=/usr/bin:/bin HOME="$folder/home" ${2:+"$2"} "$folder/venv/bin/python" "$folder/look.py" "$folder/asked" ${3:+"$3"} \
    > /dev/null 2>&1
  if [ -s "$folder/asked" ]; then sort -u "$folder/asked"; else echo nobody; fi
  (cd "$folder/home" && find . -type f -not -name openvino_telemetry | sed 's|.*/||' | sort | paste -sd ' ')
}
plain=$(found new "" "" | paste -sd ';')
track=$(found new DO_NOT_TRACK=1 "" | paste -sd ';')
ci=$(found new CI=true "" | paste -sd ';')
refused=$(found refused "" "" | paste -sd ';')
stub=$(found new "" stub | paste -sd ';')
"$folder/venv/bin/python" -m pip list --disable-pip-version-check 2> /dev/null | grep openvino
printf 'import openvino: %s\nDO_NOT_TRACK=1: %s\nCI=true: %s\n' "$plain" "$track" "$ci"
printf '~/intel/openvino_telemetry holds 0: %s\nno package openvino_telemetry: %s\n' "$refused" "$stub"
[[ $plain == "www.google-analytics.com;openvino_ga_cid stats" && $track == "$plain" ]] || { echo "the behaviour has changed"; exit 1; }
[[ $ci == "nobody;" && $refused == "nobody;" && $stub == "nobody;" ]] || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   openvino           2026.4.1
#   openvino-telemetry 2025.2.0
#   import openvino: www.google-analytics.com;openvino_ga_cid stats
#   DO_NOT_TRACK=1: www.google-analytics.com;openvino_ga_cid stats
#   CI=true: nobody;
#   ~/intel/openvino_telemetry holds 0: nobody;
#   no package openvino_telemetry: nobody;
