"""Studies in Optuna's journal: shared, killed, resumed, refused. The figures are a formula; all else is real."""

import json
import time

import optuna
import pytest

from saap_edge.errors import SaapError
from saap_edge.progress import Progress
from saap_edge.searching.run import Left, run_search
from saap_edge.searching.samplers import sampler
from saap_edge.searching.space import key_of
from saap_edge.searching.study import Tried
from tests.searching.support import attempt, figures, opened, space, start


def points(study):
    return [key_of(row["point"]) for row in study.rows]


def states(path):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    return [trial.state.name for trial in optuna.load_study(study_name="saap-edge", storage=storage).trials]


def test_every_point_once_and_the_front_is_that_of_the_grid(tmp_path):
    """Asked for more trials than there are points, every sampler ends with all of them."""
    study = opened(tmp_path / "study")
    run_search(study, space(), 100, attempt(), Progress())
    assert sorted(points(study)) == sorted(space().points)
    losses = {key: figures(point) for key, point in space().points.items()}
    front = {
        key for key, one in losses.items()
        if not any(other != one and other[0] <= one[0] and other[1] <= one[1] for other in losses.values())
    }  # fmt: skip
    assert {key_of(row["point"]) for row in study.best} == front


def test_the_same_seed_gives_the_same_search_also_in_parts(tmp_path):
    whole, parts, other = (opened(tmp_path / name, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    run_search(whole, space(), 9, attempt(), Progress())
    run_search(parts, space(), 4, attempt(), Progress())
    run_search(opened(tmp_path / "b", seed=3), space(), 9, attempt(), Progress())
    run_search(other, space(), 9, attempt(), Progress())
    assert points(whole) == points(opened(tmp_path / "b")) != points(other)


def test_two_processes_share_a_study(tmp_path):
    path, log = tmp_path / "study", tmp_path / "log"
    both = [start(path, 12, 0.3, log, seed) for seed in (0, 1)]
    for process in both:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    study = opened(path)
    made = log.read_text().splitlines()
    assert len(study.rows) == 12 and len(set(points(study))) == 12 and sorted(made) == sorted(set(made)), "none twice"
    assert len({trial.user_attrs["owner"]["process"] for trial in study.tried}) == 2, "both took part"
    assert study.running == 0


def test_a_killed_search_goes_on_and_nothing_is_lost(tmp_path):
    path, log = tmp_path / "study", tmp_path / "log"
    process = start(path, 6, 0.5, log)
    limit = time.monotonic() + 60
    while not (log.exists() and len(log.read_text().splitlines()) == 3):
        assert time.monotonic() < limit and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    before = states(path)
    assert before.count("COMPLETE") == 2 and before[-1] == "RUNNING"
    killed = log.read_text().splitlines()[-1]
    study = opened(path)
    run_search(study, space(), 6, attempt(log=log), Progress())
    assert len(study.rows) == 6 and len(set(points(study))) == 6 and study.running == 0
    assert log.read_text().splitlines()[3] == killed, "what was begun is tried first"
    undisturbed = opened(tmp_path / "other")
    run_search(undisturbed, space(), 6, attempt(), Progress())
    assert points(undisturbed)[:3] == points(study)[:3]


def test_an_error_or_ctrl_c_gives_the_point_back(tmp_path):
    study = opened(tmp_path / "study")
    begun = []

    def fails(point):
        begun.append(point)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_search(study, space(), 3, fails, Progress())
    assert study.running == 0 and study.rows == []
    run_search(study, space(), 3, attempt(), Progress())
    assert key_of(begun[0]) == points(study)[0] and len(study.rows) == 3


def test_points_that_are_left_do_not_count(tmp_path):
    study = opened(tmp_path / "study")

    def small(point):
        if point["ratio"] < 0.4:
            raise Left("too large")
        return attempt()(point)

    run_search(study, space(), 8, small, Progress())
    assert len(study.rows) == 8 and all(row["point"]["ratio"] >= 0.4 for row in study.rows)
    assert study.left and all(each["point"]["ratio"] < 0.4 for each in study.left)
    assert len({key_of(each["point"]) for each in study.left}) == len(study.left), "none is looked at twice"


def test_constraints_decide_what_is_best(tmp_path):
    """Ours finds the best point within a limit, which the unconstrained best breaks."""
    study = opened(tmp_path / "study", directions=["minimize"], sampler=sampler)

    def limited(point):
        loss, size = figures(point)
        return Tried([loss], {"point": point}, {"size": (size - 0.65) / 0.65})

    run_search(study, space(), 15, limited, Progress())
    allowed = [point for point in space().points.values() if figures(point)[1] <= 0.65]
    [best] = study.best
    assert figures(best["point"])[0] == min(figures(point)[0] for point in allowed)
    none = opened(tmp_path / "none", directions=["minimize"])
    run_search(none, space(), 3, lambda point: Tried([1.0], {"point": point}, {"size": 1.0}), Progress())
    assert none.best == []


def test_a_study_of_something_else_is_refused(tmp_path):
    path = tmp_path / "study"
    opened(path, {"model": "a", "budget": 1, "text": {"test": "x"}})
    opened(path, {"model": "a", "budget": 1, "text": {"test": "x"}})
    with pytest.raises(SaapError, match="was made for another budget: "):
        opened(path, {"model": "a", "budget": 2, "text": {"test": "x"}})
    with pytest.raises(SaapError, match="another model and another text"):
        opened(path, {"model": "b", "budget": 1, "text": {"test": "y"}})


def test_a_study_of_others_is_refused(tmp_path):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "study")))
    optuna.create_study(storage=storage, study_name="saap-edge").add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(SaapError, match="something else"):
        opened(tmp_path / "study", directions=["minimize"])


@pytest.mark.parametrize("content", [b"limits: []\n", b"{}\n", b"\x89PNG", b"[1]\n", b"no line"])
def test_a_file_that_is_no_journal_stays_as_it_is(tmp_path, content):
    path = tmp_path / "study"
    path.write_bytes(content)
    with pytest.raises(SaapError, match="no journal"):
        opened(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("place", ["absent/study", "."])
def test_a_place_that_cannot_be(tmp_path, place):
    with pytest.raises(SaapError, match="--study"):
        opened(tmp_path / place)


def test_a_damaged_journal_is_refused(tmp_path):
    path = tmp_path / "study"
    run_search(opened(path), space(), 2, attempt(), Progress())
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b'{"op_code": 4, "wor\n', *lines[3:]]))
    with pytest.raises(SaapError, match="damaged"):
        opened(path)


@pytest.mark.parametrize("cut", [1, 30])
def test_a_last_line_without_an_end_is_taken_away(tmp_path, cut):
    """What a full disk or a power cut leaves; Optuna would write behind it, and read nothing any more."""
    path = tmp_path / "study"
    run_search(opened(path), space(), 3, attempt(), Progress())
    whole = path.read_bytes()
    last = json.dumps({"op_code": 4, "worker_id": "x", "study_id": 0})
    path.write_bytes(whole + last.encode()[:cut])
    study = opened(path)
    run_search(study, space(), 5, attempt(), Progress())
    assert len(study.rows) == 5 and path.read_bytes().startswith(whole)


def test_one_seed_in_two_processes_is_two_searches(tmp_path):
    """A point that another process has begun is not begun again."""
    one, other = opened(tmp_path / "study"), opened(tmp_path / "study")
    first, second = one.begin(2), other.begin(2)
    assert first.point != second.point and one.begin(2) is None
