#!/usr/bin/env bash
# optuna 5.0.0: a journal in which one line was cut off by a full disk cannot be read any more after the next line.
#
# `JournalFileBackend` appends a line for every step of a study, and several processes may share the file. Where the disk
# is full, the operating system writes a part of the line and Optuna raises OSError, as one would expect; a reader passes
# over a last line without an end. But once there is room again, Optuna writes the next line behind that part instead of
# on a line of its own. Seen: the next trial fails with AttributeError, because its line says nothing, and after the one
# after it everybody who reads the study gets JSONDecodeError, and none of the finished trials. What helps: before a journal is opened, cut off what follows its
# last line end, holding Optuna's lock.
#
# Run: findings/optuna-journal-of-a-full-disk.sh      (a minute, most of it pip)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check optuna==5.0.0 2> /dev/null
cat > "$folder/run.py" <<'PYTHON'
import os
import resource
import signal
import sys

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

optuna.logging.set_verbosity(optuna.logging.ERROR)
path = os.path.join(sys.argv[1], "study.journal")


def storage():
    return JournalStorage(JournalFileBackend(path))


def trials():
    try:
        return f"{len(optuna.load_study(study_name='a', storage=storage()).trials)} trials"
    except Exception as error:
        return type(error).__name__


def step(trial):
    return trial.suggest_float("x", 0, 1)


optuna.create_study(storage=storage(), study_name="a").optimize(step, n_trials=3)
print("at first:", trials())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
before = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path) + 40, before[1]))  # a disk with 40 bytes left
study = optuna.load_study(study_name="a", storage=storage())
try:
    study.optimize(step, n_trials=1)
except OSError as error:
    print("the disk is full: OSError,", error.strerror)
resource.setrlimit(resource.RLIMIT_FSIZE, before)
with open(path, "rb") as file:
    cut = file.read()
print("read then:", trials())
for again in ("one more trial, with room again:", "and another one:"):
    try:
        optuna.load_study(study_name="a", storage=storage()).optimize(step, n_trials=1)
        print(again, "done")
    except Exception as error:
        print(again, type(error).__name__)
print("read after them:", trials())
with open(path, "wb") as file:
    file.write(cut[: cut.rfind(b"\n") + 1])
print("read without the cut-off line:", trials())
PYTHON
output=$("$folder/venv/bin/python" "$folder/run.py" "$folder" 2> "$folder/log") || { tail -5 "$folder/log"; exit 1; }
printf '%s\n' "optuna 5.0.0" "$output"
grep -q "read after them: JSONDecodeError" <<< "$output" && grep -q "cut-off line: 3 trials" <<< "$output" || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   optuna 5.0.0
#   at first: 3 trials
#   the disk is full: OSError, File too large
#   read then: 3 trials
#   one more trial, with room again: AttributeError
#   and another one: JSONDecodeError
#   read after them: JSONDecodeError
#   read without the cut-off line: 3 trials
