"""Stops: Ctrl-C and kill -9 at any moment leave a study that goes on to the same numbers."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.command import ablate, finish, query, results, start
from tests.studies import TOY_STUDY, write_study

SLOW_TOY = TOY_STUDY.replace("epochs: 3, pause: 0.0", "epochs: 20, pause: 0.05")


def wait_until(condition: object, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


def running(project: Path) -> int:
    """Return how many attempts are at work; 0 also while there is no store yet."""
    with contextlib.suppress(Exception):
        return int(query(project, "SELECT count(*) FROM trial WHERE state = 'running'")[0][0])
    return 0


def recorded(project: Path) -> bool:
    return any(path.stat().st_size for path in project.glob("runs/trials/*/*/metrics.jsonl"))


def workers_of(project: Path) -> list[int]:
    """Return the worker processes of a project: those that hold a log of it open as stdout."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(process / "fd" / "1").startswith(str(project / "runs")):
                    found.append(int(process.name))
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    """What the slow toy study gives where nothing disturbs it."""
    folder = tmp_path_factory.mktemp("quiet")
    (folder / ".git").mkdir()
    assert ablate("run", str(write_study(folder, SLOW_TOY)), cwd=folder).returncode == 0
    return results(folder)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_a_stop_request_leaves_everything_resumable(
    project: Path, uninterrupted: list[tuple[object, ...]], number: signal.Signals, code: int
) -> None:
    path = write_study(project, SLOW_TOY)
    process = start("run", str(path), "-j", "2", cwd=project)
    wait_until(lambda: recorded(project))
    process.send_signal(number)
    said = finish(process)
    assert process.returncode == code, said
    assert f"nothing is lost; resume with: ablate run {path} -j 2" in said
    assert query(project, "SELECT DISTINCT state FROM trial WHERE state NOT IN ('waiting', 'done')") == []
    assert set(query(project, "SELECT DISTINCT outcome FROM attempt")) <= {("interrupted",), ("ok",)}
    assert ("interrupted",) in query(project, "SELECT outcome FROM attempt")
    assert workers_of(project) == []

    resumed = ablate("run", str(path), cwd=project)
    assert resumed.returncode == 0, resumed.stderr
    assert query(project, "SELECT count(*) FROM attempt WHERE resumed_from IS NOT NULL")[0][0] >= 1

    assert results(project) == uninterrupted


def test_a_second_ctrl_c_does_not_wait_for_a_task_that_does_not_listen(project: Path) -> None:
    task = """
import time
def train(settings, context):
    context.record(epoch=1, acc=0.0)
    time.sleep(60)
    return {"acc": 1.0}
"""
    process = start("run", str(write_study(project, task=task)), cwd=project)
    wait_until(lambda: recorded(project))
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    said = finish(process)
    assert time.monotonic() - asked < 5
    assert process.returncode == 130, said
    assert "a second Ctrl-C ends them at once" in said
    assert set(query(project, "SELECT outcome FROM attempt")) == {("interrupted",)}
    assert workers_of(project) == []


def test_workers_die_with_their_runner_and_its_trials_are_free_at_once(project: Path) -> None:
    path = write_study(project, SLOW_TOY)
    process = start("run", str(path), cwd=project)
    wait_until(lambda: recorded(project))
    process.kill()
    finish(process)
    wait_until(lambda: not workers_of(project), seconds=2)
    assert running(project) > 0  # nobody has told the store yet
    done = ablate("run", str(path), cwd=project)
    assert done.returncode == 0, done.stderr
    assert ("lost",) in query(project, "SELECT outcome FROM attempt")


def test_a_runner_takes_over_where_another_dies(project: Path) -> None:
    path = write_study(project, SLOW_TOY)
    first = start("run", str(path), "-j", "2", cwd=project)
    wait_until(lambda: running(project) == 2)
    second = start("run", str(path), "-j", "2", cwd=project)
    time.sleep(3)
    first.kill()
    finish(first)
    said = finish(second)
    assert second.returncode == 0, said
    assert query(project, "SELECT count(*) FROM trial WHERE state = 'done'") == [(6,)]


def test_two_runs_at_once_share_a_study(project: Path) -> None:
    path = write_study(project, SLOW_TOY)
    runs = [start("run", str(path), "-j", "1", cwd=project) for _ in range(2)]
    for process in runs:
        said = finish(process)
        assert process.returncode == 0, said
    assert query(project, "SELECT count(*), count(DISTINCT trial) FROM attempt") == [(6, 6)]


def test_a_frozen_runner_that_wakes_up_late_writes_nothing(project: Path) -> None:
    """SIGSTOP past the lease: others take over, and what the sleeper writes later is refused."""
    code = """
import sys
from ablate.run import runner
import dataclasses
runner.Options.__dataclass_fields__  # the lease is a setting of the runner, not of the user
original = runner.Options
def short(**values): return original(**{**values, "lease_s": 1.0})
runner.Options = short
sys.argv = ["ablate", *sys.argv[1:]]
from ablate.cli import main
main()
"""
    path = write_study(project, SLOW_TOY)
    arguments = ["run", str(path), "-j", "2"]
    command = [os.environ.get("PYTHON", __import__("sys").executable), "-c", code, *arguments]
    first = subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: recorded(project))
    first.send_signal(signal.SIGSTOP)
    # the sleeper keeps its cores, as it should: the other run has cores of its own
    other = {**os.environ, "TMPDIR": str(project)}
    second = subprocess.Popen(
        command, cwd=project, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=other
    )
    said = finish(second)
    assert second.returncode == 0, said
    first.send_signal(signal.SIGCONT)
    said = finish(first)
    assert first.returncode == 0, said
    outcomes = [row[0] for row in query(project, "SELECT outcome FROM attempt")]
    assert outcomes.count("ok") == 6
    assert set(outcomes) <= {"ok", "lost", "fenced"}
    assert query(project, "SELECT count(*) FROM trial WHERE state = 'done'") == [(6,)]
    # what it had recorded before it slept may stand under its own claim; a result may not
    late = "SELECT t.id FROM trial t JOIN measurement m ON m.trial = t.id WHERE m.claim <> t.result_claim"
    assert query(project, f"{late} AND m.epoch IS NULL") == []


DIGITS_STUDY = """
schema: ablate/v1
name: digits
task: tiny:train
metrics: {val_acc: {goal: max}}
settings:
  data: {name: digits, size: null, split_seed: 0, validation: 300, subset: null}
  augment: {flip: false, crop: 1}
  normalise: true
  model: {width: 8, dropout: 0.1}
  train: {epochs: 12, batch: 32, optimizer: sgd, lr: 0.05, momentum: 0.9, weight_decay: 0.0001, schedule: cosine}
steps:
  - name: wide
    set: {model.width: 16}
  - name: adam
    branch: true
    set: {train.optimizer: adam, train.lr: 0.001, train.momentum: 0.0}
seeds: 2
"""

DIGITS_TASK = """
from torch import nn
from ablate.train.classification import train_classifier

def train(settings, context):
    def build(data):
        width = settings["model"]["width"]
        return nn.Sequential(
            nn.Conv2d(data.channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(settings["model"]["dropout"]),
            nn.Linear(width * (data.size // 2) ** 2, data.classes),
        )
    return train_classifier(settings, context, build)
"""


def write_digits(folder: Path) -> Path:
    (folder / "tiny.py").write_text(DIGITS_TASK)
    path = folder / "digits.yaml"
    path.write_text(DIGITS_STUDY)
    return path


@pytest.mark.slow
def test_twelve_kills_end_in_the_same_bits(tmp_path: Path) -> None:
    """kill -9 of worker or runner at random moments of real training: every number equal, no trial done twice."""
    seed = int(os.environ.get("ABLATE_TEST_CHAOS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"chaos seed {seed}: replay with ABLATE_TEST_CHAOS_SEED={seed}")
    chance = random.Random(seed)
    quiet, chaos = tmp_path / "quiet", tmp_path / "chaos"
    for folder in (quiet, chaos):
        (folder / ".git").mkdir(parents=True)
    assert ablate("run", str(write_digits(quiet)), cwd=quiet).returncode == 0

    path = write_digits(chaos)
    kills = {"runner": 0, "worker": 0}
    process = start("run", str(path), "-j", "2", cwd=chaos)
    while sum(kills.values()) < 12:
        _wait_for_work(chaos, process)
        time.sleep(chance.uniform(0.0, 0.8))
        finished = process.poll() is not None
        if finished:  # the study is done before the killing is: open some of it again, and go on
            assert process.returncode == 0, process.communicate()[1]
            _forget_some(chaos, chance)
            process = start("run", str(path), "-j", "2", cwd=chaos)
        elif chance.random() < 0.5:
            process.kill()
            finish(process)
            kills["runner"] += 1
            process = start("run", str(path), "-j", "2", cwd=chaos)
        elif victims := workers_of(chaos):
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(victims), signal.SIGKILL)
                kills["worker"] += 1
    said = finish(process)
    if process.returncode == 1:
        # three deaths in a row without a checkpoint between: the trial is set aside, as it should be
        assert "died 3 times in a row" in said
        ablate("retry", "digits", cwd=chaos)
        done = ablate("run", str(path), cwd=chaos)
        assert done.returncode == 0, done.stderr
    else:
        assert process.returncode == 0, said
    assert results(chaos) == results(quiet)
    assert len(results(quiet)) > 6 * 12
    assert query(chaos, "SELECT count(*) FROM trial") == [(6,)]
    assert query(chaos, "SELECT trial FROM attempt WHERE outcome = 'ok' GROUP BY trial HAVING count(*) > 1") == []
    gaps = "SELECT t.id FROM trial t JOIN attempt a ON a.trial = t.id GROUP BY t.id HAVING max(a.claim) <> count(*)"
    assert query(chaos, gaps) == []
    assert workers_of(chaos) == []
    print(f"{kills} in {query(chaos, 'SELECT count(*) FROM attempt')[0][0]} attempts")


def _wait_for_work(project: Path, process: subprocess.Popen[str]) -> None:
    wait_until(lambda: workers_of(project) or process.poll() is not None)


def _forget_some(project: Path, chance: random.Random) -> None:
    """Delete finished trials from the store, so that there is something left to kill."""
    import sqlite3

    connection = sqlite3.connect(project / "runs" / "ablate.db")
    ids = [row[0] for row in connection.execute("SELECT id FROM trial ORDER BY id")]
    for trial in chance.sample(ids, 3):
        connection.execute("DELETE FROM measurement WHERE trial = ?", (trial,))
        connection.execute("DELETE FROM attempt WHERE trial = ?", (trial,))
        connection.execute("UPDATE trial SET state='waiting', claim=0, result_claim=NULL WHERE id = ?", (trial,))
    connection.commit()
    connection.close()
    for folder in (project / "runs" / "trials").glob("*/*"):
        for file in sorted(folder.rglob("*"), reverse=True):
            if file.is_file():
                file.unlink()


def test_the_resume_command_can_be_pasted(project: Path) -> None:
    path = write_study(project, SLOW_TOY, name="with space")
    process = start("run", str(path), "--set", "extra=0", cwd=project)
    wait_until(lambda: recorded(project))
    process.send_signal(signal.SIGINT)
    said = finish(process)
    command = re.search(r"resume with: (.*)", said)
    assert command is not None
    assert command[1] == f"ablate run '{path}' --set extra=0"
