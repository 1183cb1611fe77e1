"""The mirror file: it shows what the store says, whatever was in it before."""

from __future__ import annotations

import datetime
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from ablate.errors import EnvironmentFault
from ablate.mirror.optuna import Mirror, refresh, sole_writer
from ablate.plan.trials import make_plan
from ablate.store.claims import (
    Claim,
    Ending,
    add_measurements,
    claim_trial,
    finish,
    register_runner,
    reopen,
    retrain,
)
from ablate.store.facts import record_plan
from ablate.store.store import open_store
from ablate.study.schema import Study
from tests.mirror.drawn import content, states_in, storage_of, trial_in, trials_in
from tests.truth import DIVERGED, FAILED, STUDY, WAITING, Fate, Filled, fill, truth_study

NAME = "basenet v1"
STEPS = [STUDY["steps"][0], STUDY["steps"][2], STUDY["steps"][3]]
TRIALS = 8


def small(**changed: Any) -> Study:
    """Return four arms of the truth study at two seeds."""
    return truth_study(**{"steps": STEPS, "seeds": 2, **changed})


def mirror_of(filled: Filled) -> Mirror:
    return Mirror(filled.store, filled.store.folder / "mirror.db")


def claim(filled: Filled) -> Claim:
    found = claim_trial(filled.store, runner_id="r", study_id=filled.stored.id, arms=None, slot="cpu:0", lease_s=1e9)
    assert found is not None
    return found


def record(filled: Filled, held: Claim, epochs: dict[int, float]) -> None:
    lines = [{"epoch": epoch, "values": {"val_acc": value, "loss": 1.0}} for epoch, value in epochs.items()]
    assert add_measurements(filled.store, [(held, lines)]) == []


def redrawn(filled: Filled, folder: Path) -> dict[str, Any]:
    """Return what a mirror shows that is drawn from nothing."""
    path = folder / "again.db"
    Mirror(filled.store, path).sync()
    found = content(path)
    path.unlink()
    return found


def test_every_state_is_shown_and_a_second_sync_writes_nothing(tmp_path: Path) -> None:
    fates = {
        ("batchnorm", 1): DIVERGED,
        ("depth-6", 1): FAILED,
        ("residual", 1): WAITING,
        ("residual", 2): Fate(state="running"),
    }
    filled = fill(tmp_path, small(), fates)
    mirror = mirror_of(filled)
    assert mirror.sync().written == TRIALS
    trials = {trial.user_attrs["arm"]: trial for trial in trials_in(mirror.path, NAME)[:4]}

    assert trials["baseline"].state == TrialState.COMPLETE
    assert trials["baseline"].value == pytest.approx(30.8)
    assert trials["baseline"].user_attrs["macro_f1"] == pytest.approx(28.36)
    assert trials["batchnorm"].state == TrialState.FAIL
    assert trials["batchnorm"].user_attrs["outcome"] == "diverged"
    assert trials["batchnorm"].user_attrs["val_acc"] == "nan"
    assert trials["depth-6"].state == TrialState.FAIL
    assert trials["depth-6"].user_attrs["reason"] == FAILED.reason
    assert trials["residual"].state == TrialState.WAITING
    running = trial_in(mirror.path, NAME, "residual", 2)
    assert running.state == TrialState.RUNNING
    assert running.user_attrs["attempts"] == [{"outcome": "running", "slot": "cpu:0", "seconds": None}]
    assert trials["batchnorm"].params == {
        "arm": "batchnorm",
        "seed": "1",
        "model.norm": "before_relu",
        "model.depth": "4",
        "model.residual": "false",
    }
    study = optuna.load_study(study_name=NAME, storage=storage_of(mirror.path))
    assert study.direction == StudyDirection.MAXIMIZE
    assert study.user_attrs["question"] == STUDY["question"]
    assert study.best_trial.params["arm"] == "depth-6"

    before = content(mirror.path)
    assert mirror.sync().written == 0
    assert mirror_of(filled).sync().written == 0
    assert content(mirror.path) == before == redrawn(filled, tmp_path)


def test_a_trial_appears_when_it_is_begun_with_its_true_start(tmp_path: Path) -> None:
    store = open_store(tmp_path / "ablate.db", create=True)
    study_id = record_plan(store, make_plan(small()))
    mirror = Mirror(store, tmp_path / "mirror.db")
    assert mirror.sync().trials == 0
    assert trials_in(mirror.path, NAME) == []

    facts = {"host": "here", "boot_id": "b", "lock_file": "l", "command": "ablate run"}
    register_runner(store, runner_id="r", study_id=study_id, facts=facts)
    begun = claim_trial(store, runner_id="r", study_id=study_id, arms=["depth-6"], slot="cpu:0")
    assert begun is not None
    with closing(sqlite3.connect(tmp_path / "ablate.db")) as file, file:
        file.execute("UPDATE attempt SET started = 1000000000")
    mirror.sync()
    (trial,) = trials_in(mirror.path, NAME)
    assert (trial.state, trial.params["arm"]) == (TrialState.RUNNING, "depth-6")
    assert trial.datetime_start == datetime.datetime.fromtimestamp(1_000_000_000)


def test_a_trial_is_followed_from_waiting_to_its_end(tmp_path: Path) -> None:
    filled = fill(tmp_path, small(), {("baseline", 1): WAITING})
    mirror = mirror_of(filled)
    mirror.sync()
    assert trial_in(mirror.path, NAME, "baseline", 1).state == TrialState.WAITING

    held = claim(filled)
    record(filled, held, {1: 10.0, 2: float("nan")})
    assert mirror.sync().written == 1
    trial = trial_in(mirror.path, NAME, "baseline", 1)
    assert trial.state == TrialState.RUNNING
    assert trial.intermediate_values == {1: 10.0}
    assert trial.datetime_start is not None

    record(filled, held, {2: 20.0, 3: 30.0})
    mirror.sync()
    assert trial_in(mirror.path, NAME, "baseline", 1).intermediate_values == {1: 10.0, 2: 20.0, 3: 30.0}

    finish(filled.store, held, Ending("ok", "done", seconds=3.0), {"val_acc": 30.0})
    assert mirror.sync().redrawn == ()
    trial = trial_in(mirror.path, NAME, "baseline", 1)
    assert (trial.number, trial.state, trial.value) == (0, TrialState.COMPLETE, 30.0)
    assert trial.intermediate_values == {1: 10.0, 2: 20.0, 3: 30.0}
    assert [each["outcome"] for each in trial.user_attrs["attempts"]] == ["interrupted", "ok"]
    assert content(mirror.path) == redrawn(filled, tmp_path)


def test_a_retried_trial_is_one_trial_with_its_attempts(tmp_path: Path) -> None:
    filled = fill(tmp_path, small(), {("depth-6", 2): FAILED})
    mirror = mirror_of(filled)
    mirror.sync()
    assert states_in(mirror.path, NAME) == {"COMPLETE": 7, "FAIL": 1}

    reopen(filled.store, filled.stored.id, states=["failed"])
    assert mirror.sync().redrawn == (NAME,)
    assert states_in(mirror.path, NAME) == {"COMPLETE": 7, "WAITING": 1}

    held = claim(filled)
    finish(filled.store, held, Ending("ok", "done", seconds=3.0), {"val_acc": 42.0})
    assert mirror.sync().redrawn == ()
    trial = trial_in(mirror.path, NAME, "depth-6", 2)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 42.0)
    assert [each["outcome"] for each in trial.user_attrs["attempts"]] == ["oom", "ok"]
    assert content(mirror.path) == redrawn(filled, tmp_path)


def test_a_trial_trained_afresh_shows_the_new_attempt_alone(tmp_path: Path) -> None:
    filled = fill(tmp_path, small(), {("baseline", 1): WAITING})
    mirror = mirror_of(filled)
    held = claim(filled)
    record(filled, held, {1: 10.0, 2: 20.0})
    finish(filled.store, held, Ending("ok", "done", seconds=3.0), {"val_acc": 30.0, "old": 1.0})
    mirror.sync()
    retrain(filled.store, [held.fingerprint])
    assert mirror.sync().redrawn == (NAME,)
    assert "old" not in trial_in(mirror.path, NAME, "baseline", 1).user_attrs

    again = claim(filled)
    record(filled, again, {1: 11.0})
    mirror.sync()
    assert trial_in(mirror.path, NAME, "baseline", 1).state == TrialState.RUNNING
    finish(filled.store, again, Ending("ok", "done", seconds=3.0), {"val_acc": 31.0})
    mirror.sync()
    trial = trial_in(mirror.path, NAME, "baseline", 1)
    assert (trial.value, trial.intermediate_values) == (31.0, {1: 11.0})
    assert "old" not in trial.user_attrs
    assert content(mirror.path) == redrawn(filled, tmp_path)


def test_epochs_of_an_attempt_that_was_lost_do_not_stay_in_the_result(tmp_path: Path) -> None:
    filled = fill(tmp_path, small(), {("baseline", 1): WAITING})
    mirror = mirror_of(filled)
    lost = claim(filled)
    record(filled, lost, {1: 10.0, 2: 20.0, 3: 30.0})
    mirror.sync()
    finish(filled.store, lost, Ending("killed", "waiting"))
    mirror.sync()
    assert trial_in(mirror.path, NAME, "baseline", 1).state == TrialState.WAITING

    held = claim(filled)
    record(filled, held, {1: 11.0})
    mirror.sync()
    finish(filled.store, held, Ending("diverged", "done"), {"val_acc": float("nan")})
    mirror.sync()
    assert trial_in(mirror.path, NAME, "baseline", 1).intermediate_values == {1: 11.0}
    assert content(mirror.path) == redrawn(filled, tmp_path)


def test_a_trial_of_a_dead_runner_waits(tmp_path: Path) -> None:
    filled = fill(tmp_path, small(), {("baseline", 1): Fate(state="running")})
    mirror = mirror_of(filled)
    mirror.sync()
    assert states_in(mirror.path, NAME) == {"COMPLETE": 7, "RUNNING": 1}
    with closing(sqlite3.connect(tmp_path / "ablate.db")) as store, store:
        store.execute("UPDATE trial SET lease_until = 1 WHERE state = 'running'")
    mirror.sync()
    assert states_in(mirror.path, NAME) == {"COMPLETE": 7, "WAITING": 1}
    assert mirror_of(filled).sync().written == 0


def test_an_edited_study_is_a_study_of_its_own_and_the_old_one_stays(tmp_path: Path) -> None:
    filled = fill(tmp_path, small())
    mirror = mirror_of(filled)
    mirror.sync()
    before = content(mirror.path)[NAME]

    wider = {"name": "wider", "set": {"model.depth": 8}}
    edited = small(steps=[*STEPS, wider], metrics={"val_loss": {"goal": "min"}})
    record_plan(filled.store, make_plan(edited))
    assert mirror.sync().redrawn == ()
    now = content(mirror.path)
    assert list(now) == [NAME, "basenet v2"]
    assert now[NAME] == before
    assert now["basenet v2"]["direction"] == StudyDirection.MINIMIZE
    assert trials_in(mirror.path, "basenet v2")[0].distributions["model.depth"].choices == ("4", "6", "8")
    values = [trial.value for trial in trials_in(mirror.path, "basenet v2")[:4]]
    assert values[0] == pytest.approx(4.6 - 30.8 / 20), "what was trained for v1 stands in v2 with its new metric"


def test_trials_that_an_edit_brings_in_stand_where_they_were_begun(tmp_path: Path) -> None:
    filled = fill(tmp_path, small())
    path = tmp_path / "mirror.db"
    mirror = mirror_of(filled)
    mirror.sync()
    complete = content(path)
    with closing(sqlite3.connect(tmp_path / "ablate.db")) as store, store:
        places = store.execute("SELECT * FROM replicate WHERE position % 4 = 2").fetchall()
        store.execute("DELETE FROM replicate WHERE position % 4 = 2")
    mirror.sync()
    assert len(trials_in(path, NAME)) == 6
    with closing(sqlite3.connect(tmp_path / "ablate.db")) as store, store:
        store.executemany(f"INSERT INTO replicate VALUES ({', '.join('?' * len(places[0]))})", places)
    mirror.sync()
    assert content(path) == complete


def test_a_store_that_was_started_again_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    old = fill(tmp_path / "old", small())
    refresh(old.store, say=print)
    new = fill(tmp_path / "new", small(seeds=1))
    other = fill(tmp_path / "other", small(name="other"))
    for filled in (new, other):
        path = filled.store.folder / "mirror.db"
        path.write_bytes((tmp_path / "old" / "mirror.db").read_bytes())
        refresh(filled.store, say=print)
        assert content(path) == redrawn(filled, tmp_path)


# --- what others do to the file


def test_what_a_user_changes_in_the_dashboard_is_mended(tmp_path: Path) -> None:
    filled = fill(tmp_path, small())
    mirror = mirror_of(filled)
    mirror.sync()
    good = content(mirror.path)
    storage = storage_of(mirror.path)

    storage.delete_study(storage.get_study_id_from_name(NAME))
    mirror.sync()
    assert content(mirror.path) == good

    study = optuna.load_study(study_name=NAME, storage=storage)
    study.add_trial(create_trial(value=99.0, params={"x": "1"}, distributions={"x": CategoricalDistribution(["1"])}))
    assert mirror_of(filled).sync().redrawn == (NAME,)
    assert content(mirror.path) == good

    study = optuna.load_study(study_name=NAME, storage=storage)
    study.add_trial(study.trials[0])
    assert mirror_of(filled).sync().redrawn == (NAME,), "a trial that is there twice"
    assert content(mirror.path) == good

    optuna.create_study(study_name="mine", storage=storage)
    refresh(filled.store, rebuild=True, say=print)
    assert content(mirror.path).keys() == {NAME, "mine"}, "what is not ours is left alone"


def test_a_deleted_file_is_drawn_again(tmp_path: Path) -> None:
    filled = fill(tmp_path, small())
    mirror = mirror_of(filled)
    mirror.sync()
    good = content(mirror.path)
    mirror.path.unlink()
    mirror.sync()
    assert content(mirror.path) == good
    assert mirror.notes == []


@pytest.mark.parametrize("damage", ["not SQLite", "torn", "another Optuna"])
def test_a_file_that_cannot_be_read_is_set_aside_and_said_once(tmp_path: Path, damage: str) -> None:
    filled = fill(tmp_path, small())
    said: list[str] = []
    refresh(filled.store, say=said.append)
    path = tmp_path / "mirror.db"
    good = content(path)
    assert said == []
    if damage == "not SQLite":
        path.write_text("this is no database" * 1000)
    elif damage == "torn":
        data = path.read_bytes()
        path.write_bytes(data[:4096] + b"\xff" * 40_000 + data[44_096:])
    else:
        with closing(sqlite3.connect(path)) as file, file:
            file.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
            file.execute("UPDATE version_info SET schema_version = 99")
    bad = path.read_bytes()
    refresh(filled.store, say=said.append)
    refresh(filled.store, say=said.append)
    aside = tmp_path / "mirror.db.damaged"
    assert said == [f"note: the mirror could not be read and is drawn anew; the old file is {aside}"]
    assert aside.read_bytes() == bad
    assert content(path) == good


def test_a_locked_file_is_said_and_caught_up_with_later(tmp_path: Path) -> None:
    filled = fill(tmp_path, small())
    mirror = mirror_of(filled)
    with closing(sqlite3.connect(mirror.path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(EnvironmentFault) as raised:
            mirror.sync()
    assert str(raised.value) == (
        f"error: {mirror.path}: another program holds the mirror locked\n"
        "hint: close it; `ablate mirror` then brings the mirror up to date"
    )
    mirror.sync()
    assert content(mirror.path) == redrawn(filled, tmp_path)


def test_a_file_that_may_not_be_written_is_said(tmp_path: Path) -> None:
    filled = fill(tmp_path, small())
    path = tmp_path / "mirror.db"
    path.mkdir()
    with pytest.raises(EnvironmentFault, match="the mirror can't be written: unable to open database file"):
        Mirror(filled.store, path).sync()


def test_any_path_will_do(tmp_path: Path) -> None:
    filled = fill(tmp_path / "a b{c}%20?x=1#é", small())
    refresh(filled.store, say=print)
    assert (filled.store.folder / "mirror.db").stat().st_size > 0


def test_one_process_at_a_time_keeps_the_mirror(tmp_path: Path) -> None:
    filled = fill(tmp_path, small())
    with sole_writer(tmp_path / "mirror.db", patience_s=0) as ours:
        assert ours
        assert refresh(filled.store, say=print) is None
        with pytest.raises(EnvironmentFault, match="a run or a dashboard keeps the mirror just now"):
            refresh(filled.store, rebuild=True, say=print)
    assert refresh(filled.store, say=print) is not None


@pytest.mark.slow
def test_a_mirror_that_is_killed_at_any_moment_is_completed_without_duplicates(tmp_path: Path) -> None:
    filled = fill(tmp_path, small())
    path = tmp_path / "mirror.db"
    source = random.Random(7)
    counts = []
    for _ in range(10):
        code = "from ablate.cli import main; main()"
        command = [sys.executable, "-c", code, "mirror", "--rebuild", "--store", str(tmp_path / "ablate.db")]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        _wait_for(path, source.randint(0, TRIALS - 1), process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        counts.append(_count(path))
        if len(counts) % 2:
            mirror_of(filled).sync()
            keys = Counter(trial.user_attrs["ablate:trial"] for trial in trials_in(path, NAME))
            assert len(keys) == TRIALS
            assert set(keys.values()) == {1}
    assert min(counts) < TRIALS, counts
    mirror_of(filled).sync()
    assert content(path) == redrawn(filled, tmp_path)


def _count(path: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
            return int(file.execute("SELECT count(*) FROM trials").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # not there yet, or at work


def _wait_for(path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a rebuild has begun and come to so many trials, or is through."""
    begun = not path.exists()
    while process.poll() is None:
        now = _count(path)
        begun = begun or now < TRIALS
        if begun and now >= count:
            return
        time.sleep(0.002)
