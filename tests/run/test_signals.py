"""Signals at every moment of a run: the exit code says which, nothing stays half done, the same command completes."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from tests.command import ablate, finish, query, results, start
from tests.run.test_stops import isolated, isolations, recorded, wait_until, workers_of
from tests.studies import TOY_STUDY, write_study

STUDY = TOY_STUDY.replace("epochs: 3, pause: 0.0", "epochs: 12, pause: 0.05").replace("seeds: 2", "seeds: 1")
RESUME = "nothing is lost; resume with: ablate run"

SENT = {
    "INT": (130, [signal.SIGINT]),
    "INT-twice": (130, [signal.SIGINT] * 2),
    "TERM": (143, [signal.SIGTERM]),
    "TERM-five-times": (143, [signal.SIGTERM] * 5),
    "HUP": (143, [signal.SIGHUP]),
    "USR1": (75, [signal.SIGUSR1]),
    "USR2": (75, [signal.SIGUSR2]),
    "KILL": (-9, [signal.SIGKILL]),
}


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[object, ...]]]:
    """What the study gives where nothing disturbs it, by isolation."""
    found = {}
    for isolation in ("process", "warm"):
        folder = tmp_path_factory.mktemp(f"quiet-{isolation}")
        (folder / ".git").mkdir()
        path = write_study(folder, isolated(isolation, STUDY))
        assert ablate("run", str(path), "--no-mirror", cwd=folder).returncode == 0
        found[isolation] = results(folder)
    return found


def begun(path: Path, project: Path, phase: str) -> subprocess.Popen[str]:
    """Start a run and return when it is in a phase."""
    process = start("run", str(path), "-j", "2", "--no-mirror", cwd=project)
    if phase == "starting":  # it has said what it will do, and waits for the server's imports
        assert process.stderr is not None
        assert "toy: " in process.stderr.readline()
        time.sleep(0.3)
    elif phase == "training":
        wait_until(lambda: recorded(project))
    else:  # nothing is left to train; the table is being made
        wait_until(lambda: has_ended(project))
    return process


def has_ended(project: Path) -> bool:
    """Tell whether the runner has written its last word; there may be no store yet."""
    with contextlib.suppress(sqlite3.Error):
        return query(project, "SELECT count(*) FROM runner WHERE ended IS NOT NULL") == [(1,)]
    return False


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["starting", "training", "finishing"])
@pytest.mark.parametrize("sent", SENT)
def test_a_signal_at_any_moment(
    project: Path, quiet: dict[str, list[tuple[object, ...]]], sent: str, phase: str
) -> None:
    code, numbers = SENT[sent]
    path = write_study(project, STUDY)
    process = begun(path, project, phase)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.02)
    said = finish(process)
    assert process.returncode == code, said
    wait_until(lambda: not workers_of(project), seconds=2)
    if sent != "KILL":
        assert RESUME in said
        assert "Traceback" not in said
        if (project / "runs" / "ablate.db").exists():
            assert query(project, "SELECT id FROM trial WHERE state NOT IN ('waiting', 'done')") == []
            assert set(query(project, "SELECT outcome FROM attempt")) <= {("interrupted",), ("ok",)}

    resumed = ablate("run", str(path), "-j", "2", "--no-mirror", cwd=project)
    assert resumed.returncode == 0, resumed.stderr
    assert results(project) == quiet["process"]


# where a process is asleep when the signal comes: on its way to a transaction or a file, or back from it
RUNNER_ASLEEP = (
    "register_runner-committed", "exchange-uncommitted", "work-renamed", "add_measurements-uncommitted",
    "exchange-committed",
)  # fmt: skip
WORKER_ASLEEP = ("record-written", "checkpoint-written", "manifest-renamed")
SOME = [("TERM", "exchange-committed"), ("USR1", "exchange-committed"), ("INT-twice", "checkpoint-written")]
EVERY = [(sent, place) for sent in SENT for place in (*RUNNER_ASLEEP, *WORKER_ASLEEP)]


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "place"), EVERY if os.environ.get("ABLATE_TEST_SOAK") else SOME)
@isolations
def test_a_signal_amid_a_write(
    project: Path, quiet: dict[str, list[tuple[object, ...]]], sent: str, place: str, isolation: str
) -> None:
    """To the runner it is a request to stop. A worker that gets one by itself may die of it: its trial goes on."""
    (project / "hits").mkdir()
    armed = {"ABLATE_FAILPOINT": f"{place}:sleep", "ABLATE_FAILPOINT_HIT": str(project / "hits")}
    path = write_study(project, isolated(isolation, STUDY))
    process = start("run", str(path), "-j", "1", "--no-mirror", cwd=project, **armed)
    mark = project / "hits" / place
    wait_until(mark.exists)
    code, numbers = SENT[sent]
    target = process.pid if place in RUNNER_ASLEEP else workers_of(project)[0]
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):  # a worker that died of the first
            os.kill(target, number)
        time.sleep(0.02)
    while process.poll() is None:  # a worker in the place of one that died falls asleep there too
        mark.unlink(missing_ok=True)
        time.sleep(0.05)
    said = finish(process)
    assert process.returncode == (code if target == process.pid else 0), said
    assert "Traceback" not in said
    wait_until(lambda: not workers_of(project), seconds=2)
    if sent != "KILL" and target == process.pid:
        assert RESUME in said
        if (project / "runs" / "ablate.db").exists():  # not yet, while the task is looked at
            assert query(project, "SELECT id FROM trial WHERE state NOT IN ('waiting', 'done')") == []
    resumed = ablate("run", str(path), "-j", "1", "--no-mirror", cwd=project)
    assert resumed.returncode == 0, resumed.stderr
    assert results(project) == quiet[isolation]


def test_a_repeated_request_does_not_cut_a_checkpoint_short(project: Path) -> None:
    """A scheduler repeats itself; only a second Ctrl-C is a person's impatience."""
    task = """
import time
def train(settings, context):
    context.record(epoch=1, acc=0.0)
    while not context.stop_requested:
        time.sleep(0.01)
    time.sleep(1.5)
    context.checkpoint({"epoch": 1})
    context.raise_if_stopped()
"""
    process = start("run", str(write_study(project, task=task)), "--no-mirror", "-j", "1", cwd=project)
    wait_until(lambda: recorded(project))
    for _ in range(5):
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
    said = finish(process)
    assert process.returncode == 75, said
    assert query(project, "SELECT outcome, exit_code FROM attempt") == [("interrupted", 0)]
    assert list(project.glob("runs/trials/*/*/checkpoint/manifest.json"))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_warning_to_every_process_of_a_job_step(project: Path, number: signal.Signals) -> None:
    """Runner, server, workers and what a task started get it; only the runner heeds it."""
    task = """
import subprocess, time
def train(settings, context):
    with subprocess.Popen(["sleep", "60"]) as child:
        context.record(epoch=1, acc=0.0)
        while not context.stop_requested:
            time.sleep(0.01)
        alive = child.poll() is None
        child.kill()
    context.record(epoch=2, acc=float(alive))
    context.raise_if_stopped()
"""
    process = start("run", str(write_study(project, task=task)), "-j", "1", cwd=project, ABLATE_NO_MIRROR="0")
    wait_until(lambda: recorded(project))
    time.sleep(0.2)
    everyone = descendants(process.pid)
    assert len(everyone) >= 4  # server, mirror, worker, its child
    for pid in [*everyone, process.pid]:
        os.kill(pid, number)
    said = finish(process)
    assert process.returncode == 75, said
    assert RESUME in said
    assert "the Optuna mirror is behind" not in said
    assert query(project, "SELECT outcome, exit_code FROM attempt") == [("interrupted", 0)]
    assert query(project, "SELECT value FROM measurement WHERE epoch = 2") == [(1.0,)]


def descendants(pid: int) -> list[int]:
    """Return all processes below one, the deepest first."""
    found: list[int] = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [*descendants(int(child)), int(child)]
    return found
