"""Stops: Ctrl-C and kill -9 leave a study that goes on to the same numbers. At random moments: tests/chaos."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command import ablate, finish, query, results, start
from tests.run.leased import LEASED
from tests.studies import TOY_STUDY, write_study

SLOW_TOY = TOY_STUDY.replace("epochs: 3, pause: 0.0", "epochs: 20, pause: 0.05")


isolations = pytest.mark.parametrize("isolation", ["process", "warm"])


def isolated(isolation: str, study: str = SLOW_TOY) -> str:
    return f"{study}execution: {{isolation: {isolation}}}\n"


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


def leased(*arguments: str, cwd: Path, lease_s: float, **environment: str) -> subprocess.Popen[str]:
    """Start `ablate …` with a lease of its own."""
    return subprocess.Popen(
        [*LEASED, *arguments],
        cwd=cwd,
        env={**os.environ, **environment, "ABLATE_TEST_LEASE_S": str(lease_s)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


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


PATIENT = """
import functools
from ablate.run import options
options.Options = functools.partial(options.Options, grace_s=3600)
from ablate.cli import main
main()
"""


def test_a_second_ctrl_c_does_not_wait_for_a_task_that_does_not_listen(project: Path) -> None:
    task = """
import time
def train(settings, context):
    context.record(epoch=1, acc=0.0)
    time.sleep(3600)
    return {"acc": 1.0}
"""
    process = subprocess.Popen(
        [sys.executable, "-c", PATIENT, "run", str(write_study(project, task=task))],
        cwd=project,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: recorded(project))
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    said = finish(process)
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


@isolations
def test_a_runner_takes_over_where_another_dies(project: Path, isolation: str) -> None:
    path = write_study(project, isolated(isolation))
    first = start("run", str(path), "-j", "2", cwd=project)
    wait_until(lambda: running(project) == 2)
    second = start("run", str(path), "-j", "2", cwd=project)
    time.sleep(3)
    first.kill()
    finish(first)
    said = finish(second)
    assert second.returncode == 0, said
    assert query(project, "SELECT count(*) FROM trial WHERE state = 'done'") == [(6,)]


def test_a_busy_runner_frees_what_a_dead_one_held(project: Path) -> None:
    """At once, and not when its lease calls for it: others may wait for the trial."""
    task = """
import time
from pathlib import Path
def train(settings, context):
    while not (Path(__file__).parent / "go").exists():
        time.sleep(0.05)
    return {"acc": 1.0}
"""
    path = write_study(project, task=task)
    first = leased("run", str(path), "-j", "1", cwd=project, lease_s=3600)
    wait_until(lambda: running(project) == 1)
    second = leased("run", str(path), "-j", "1", cwd=project, lease_s=3600, TMPDIR=str(project))
    wait_until(lambda: running(project) == 2)
    first.kill()
    finish(first)
    wait_until(lambda: running(project) == 1)
    (project / "go").touch()
    said = finish(second)
    assert second.returncode == 0, said
    assert sorted(query(project, "SELECT outcome, count(*) FROM attempt GROUP BY 1")) == [("lost", 1), ("ok", 6)]


def test_two_runs_at_once_share_a_study(project: Path) -> None:
    path = write_study(project, SLOW_TOY)
    runs = [start("run", str(path), "-j", "1", cwd=project) for _ in range(2)]
    for process in runs:
        said = finish(process)
        assert process.returncode == 0, said
    assert query(project, "SELECT count(*), count(DISTINCT trial) FROM attempt") == [(6, 6)]


@isolations
def test_a_frozen_runner_that_wakes_up_late_writes_nothing(project: Path, isolation: str) -> None:
    """SIGSTOP past the lease: others take over, and what the sleeper writes later is refused."""
    path = write_study(project, isolated(isolation))
    first = leased("run", str(path), "-j", "2", cwd=project, lease_s=1)
    wait_until(lambda: recorded(project))
    first.send_signal(signal.SIGSTOP)
    # the sleeper keeps its cores, as it should: the other run has cores of its own
    second = leased("run", str(path), "-j", "2", cwd=project, lease_s=1, TMPDIR=str(project))
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


def test_the_resume_command_can_be_pasted(project: Path) -> None:
    path = write_study(project, SLOW_TOY, name="with space")
    process = start("run", str(path), "--set", "extra=0", cwd=project)
    wait_until(lambda: recorded(project))
    process.send_signal(signal.SIGINT)
    said = finish(process)
    command = re.search(r"resume with: (.*)", said)
    assert command is not None
    assert command[1] == f"ablate run '{path}' --set extra=0"
