#!/usr/bin/env bash
# onnxruntime 1.32.0 on Linux: `import` alone, without a session, makes a device id.
#
# One would expect that a library for inference writes nothing into the home folder, and that a short strace of a session
# shows whether it talks to anyone. Seen: importing onnxruntime makes ~/.cache/Microsoft/DeveloperTools/.onnxruntime
# with `deviceid` and a queue of events (onnxruntime.db). Events are sent in batches: a process looks for its maker's
# server only after some tens of seconds, so that a strace of a few seconds finds no socket and proves nothing. The device
# id is the quick check.
# ORT_DISABLE_TELEMETRY=1 before the import stops all of it, ORT_DISABLE_TELEMETRY=0 does not ask for it to stop; the
# variables that CI systems set (here: GITHUB_ACTIONS=true) stop it as well, so that what is seen in CI is not what a
# board does.
#
# Run: findings/onnxruntime-import-makes-a-device-id.sh      (half a minute; nothing is sent: each process ends at once)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check onnxruntime==1.32.0 2> /dev/null
found() { # VARIABLE=VALUE or nothing: what is in a new home folder after the import
  rm -rf "$folder/home" && mkdir "$folder/home"
  env -i PATH=/usr/bin:/bin HOME="$folder/home" ${1:+"$1"} "$folder/venv/bin/python" -c "import onnxruntime" > /dev/null 2>&1
  (cd "$folder/home" && find . -type f -not -name '*.db-*' | sed 's|.*/||' | sort | paste -sd ' ')
}
plain=$(found "")
off=$(found ORT_DISABLE_TELEMETRY=1)
zero=$(found ORT_DISABLE_TELEMETRY=0)
ci=$(found GITHUB_ACTIONS=true)
"$folder/venv/bin/python" -m pip list --disable-pip-version-check 2> /dev/null | grep onnxruntime
printf 'import onnxruntime: %s\nORT_DISABLE_TELEMETRY=1: %s\n' "$plain" "${off:-nothing}"
printf 'ORT_DISABLE_TELEMETRY=0: %s\nGITHUB_ACTIONS=true: %s\n' "$zero" "${ci:-nothing}"
[[ $plain == *deviceid* && -z $off && $zero == *deviceid* && -z $ci ]] || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   onnxruntime       1.32.0
#   import onnxruntime: deviceid onnxruntime.db
#   ORT_DISABLE_TELEMETRY=1: nothing
#   ORT_DISABLE_TELEMETRY=0: deviceid onnxruntime.db
#   GITHUB_ACTIONS=true: nothing
