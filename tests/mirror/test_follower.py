"""The mirror beside real runs: whatever becomes of the one, the other ends as it should."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.command import ablate, finish, results, start
from tests.mirror.drawn import content, states_in, trial_in, trials_in
from tests.studies import TOY_STUDY, write_study

MIRRORED = {"ABLATE_NO_MIRROR": "0"}
SLOW_TOY = TOY_STUDY.replace("epochs: 3, pause: 0.0", "epochs: 25, pause: 0.1")

FATES = """
import math, pathlib

def train(settings, context):
    context.record(epoch=1, acc=0.5)
    if settings["level"] == 2 and not pathlib.Path("mended").exists():
        raise ValueError("boom")
    return {"acc": math.nan if settings["level"] == 3 else 1.0}
"""


def wait_until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


def states(project: Path) -> dict[str, int]:
    """Return how many trials the mirror shows in each state; nothing while it is not there or at work."""
    with contextlib.suppress(Exception):
        return states_in(project / "runs" / "mirror.db", "toy v1")
    return {}


def recorded(project: Path) -> bool:
    with contextlib.suppress(Exception):
        return any(trial.intermediate_values for trial in trials_in(project / "runs" / "mirror.db", "toy v1"))
    return False


def followers(project: Path) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0") if process.name.isdigit() else []
            if b"ablate.mirror.follower" in words and os.fsencode(project / "runs") in words:
                found.append(int(process.name))
    return found


def rebuilt(project: Path) -> object:
    assert ablate("mirror", "--rebuild", cwd=project).returncode == 0
    return content(project / "runs" / "mirror.db")


def test_a_run_is_mirrored_to_its_end(project: Path) -> None:
    path = write_study(project)
    (project / "optuna.py").write_text("raise SystemExit('a file of the user that is called like the library')")
    done = ablate("run", str(path), cwd=project, **MIRRORED)
    assert done.returncode == 0, done.stderr
    assert "mirror" not in done.stderr
    mirror = project / "runs" / "mirror.db"
    wait_until(lambda: not followers(project))
    assert states(project) == {"COMPLETE": 6}
    assert trial_in(mirror, "toy v1", "two", 2).intermediate_values.keys() == {1, 2, 3}
    assert (project / "runs" / "mirror.log").read_text() == ""
    (project / "optuna.py").unlink()
    assert content(mirror) == rebuilt(project)


def test_failures_and_retries(project: Path) -> None:
    path = write_study(project, task=FATES)
    assert ablate("run", str(path), cwd=project, **MIRRORED).returncode == 1
    mirror = project / "runs" / "mirror.db"
    wait_until(lambda: not followers(project))
    assert states(project) == {"COMPLETE": 2, "FAIL": 4}
    failed, diverged = trial_in(mirror, "toy v1", "two", 1), trial_in(mirror, "toy v1", "three", 1)
    assert (failed.user_attrs["state"], failed.user_attrs["reason"]) == ("failed", "error: ValueError: boom")
    assert (diverged.user_attrs["state"], diverged.user_attrs["outcome"]) == ("done", "diverged")
    assert diverged.user_attrs["acc"] == "nan"

    (project / "mended").touch()
    assert ablate("retry", cwd=project).returncode == 0
    assert ablate("run", str(path), cwd=project, **MIRRORED).returncode == 0
    wait_until(lambda: not followers(project))
    assert states(project) == {"COMPLETE": 4, "FAIL": 2}
    mended = trial_in(mirror, "toy v1", "two", 1)
    assert [each["outcome"] for each in mended.user_attrs["attempts"]] == ["error", "ok"]
    assert content(mirror) == rebuilt(project)


@pytest.mark.parametrize("with_its_mirror", [False, True])
def test_a_killed_run_leaves_nothing_running(project: Path, with_its_mirror: bool) -> None:
    path = write_study(project, SLOW_TOY)
    process = start("run", str(path), cwd=project, **MIRRORED)
    wait_until(lambda: "RUNNING" in states(project))
    wait_until(lambda: recorded(project))
    for each in followers(project) if with_its_mirror else []:
        os.kill(each, signal.SIGKILL)
    process.send_signal(signal.SIGKILL)
    finish(process)
    if with_its_mirror:
        assert ablate("mirror", cwd=project).returncode == 0
    wait_until(lambda: not followers(project), seconds=20)
    assert set(states(project)) <= {"COMPLETE", "WAITING"}

    if with_its_mirror:
        return
    path.write_text(path.read_text().replace("seeds: 2", "seeds: 1"))
    resumed = ablate("run", str(path), cwd=project, **MIRRORED)
    assert resumed.returncode == 0, resumed.stderr
    wait_until(lambda: not followers(project))
    assert "RUNNING" not in states(project)
    assert states_in(project / "runs" / "mirror.db", "toy v2") == {"COMPLETE": 3}
    assert content(project / "runs" / "mirror.db") == rebuilt(project)


def test_a_stopped_run_leaves_nothing_running(project: Path) -> None:
    process = start("run", str(write_study(project, SLOW_TOY)), cwd=project, **MIRRORED)
    wait_until(lambda: "RUNNING" in states(project))
    process.send_signal(signal.SIGINT)
    finish(process)
    assert process.returncode == 130
    wait_until(lambda: not followers(project), seconds=20)
    assert set(states(project)) <= {"COMPLETE", "WAITING"}


@pytest.mark.slow
def test_a_mirror_that_is_deleted_under_a_run_comes_back(project: Path) -> None:
    mirror = project / "runs" / "mirror.db"
    process = start("run", str(write_study(project, SLOW_TOY)), cwd=project, **MIRRORED)
    wait_until(lambda: "RUNNING" in states(project))
    mirror.unlink()
    wait_until(lambda: states(project))  # under load, the run may be over by then
    finish(process)
    assert process.returncode == 0
    wait_until(lambda: not followers(project))
    assert states(project) == {"COMPLETE": 6}
    mirror.unlink()
    assert ablate("mirror", cwd=project).returncode == 0
    assert states(project) == {"COMPLETE": 6}


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple[object, ...]], list[str]]:
    """Return the results of the toy study without a mirror, and what a run of it says."""
    project = tmp_path_factory.mktemp("quiet")
    (project / ".git").mkdir()
    done = ablate("run", str(write_study(project)), "--no-mirror", cwd=project)
    assert done.returncode == 0, done.stderr
    assert not list((project / "runs").glob("mirror*"))
    return results(project), plain(done.stderr)


def plain(said: str) -> list[str]:
    """Return what was said without the lines of single trials, which tell seconds."""
    return [line for line in said.splitlines() if not line.startswith("[")]


def test_a_damaged_mirror_is_no_matter_to_the_run(
    project: Path, quiet: tuple[list[tuple[object, ...]], list[str]]
) -> None:
    (project / "runs").mkdir()
    (project / "runs" / "mirror.db").write_text("no database" * 1000)
    done = ablate("run", str(write_study(project)), cwd=project, **MIRRORED)
    assert done.returncode == 0
    assert (results(project), plain(done.stderr)) == quiet
    wait_until(lambda: not followers(project))
    (line,) = (project / "runs" / "mirror.log").read_text().splitlines()
    assert line.endswith(f"is drawn anew; the old file is {project / 'runs' / 'mirror.db.damaged'}")
    assert states(project) == {"COMPLETE": 6}


def test_a_mirror_that_is_locked_for_the_whole_run_is_no_matter_to_it(
    project: Path, quiet: tuple[list[tuple[object, ...]], list[str]]
) -> None:
    (project / "runs").mkdir()
    mirror = project / "runs" / "mirror.db"
    with closing(sqlite3.connect(mirror)) as other:
        other.execute("BEGIN EXCLUSIVE")
        done = ablate("run", str(write_study(project)), cwd=project, **MIRRORED)
        wait_until(lambda: not followers(project))
    assert done.returncode == 0
    assert results(project) == quiet[0]
    why = f"{mirror}: another program holds the mirror locked"
    note = f"note: the Optuna mirror is behind: {why}; `ablate mirror` brings it up to date"
    # on a busy machine the run may have ended before its mirror had given up
    assert [line for line in plain(done.stderr) if line not in quiet[1]] in ([note], [])
    (line,) = (project / "runs" / "mirror.log").read_text().splitlines()
    assert line.endswith(why)
    assert ablate("mirror", cwd=project).returncode == 0
    assert states(project) == {"COMPLETE": 6}


@pytest.mark.slow
def test_two_runs_in_one_store_are_both_mirrored(project: Path) -> None:
    other = TOY_STUDY.replace("name: toy", "name: other").replace("level: 1", "level: 7")
    first = start("run", str(write_study(project, SLOW_TOY)), "-j", "1", cwd=project, **MIRRORED)
    wait_until(lambda: followers(project))
    second = ablate("run", str(write_study(project, other, name="other")), cwd=project, **MIRRORED)
    assert second.returncode == 0, second.stderr
    finish(first)
    wait_until(lambda: not followers(project))
    mirror = project / "runs" / "mirror.db"
    assert states_in(mirror, "other v1") == {"COMPLETE": 6}
    assert states_in(mirror, "toy v1") == {"COMPLETE": 6}
    assert (project / "runs" / "mirror.log").read_text() == ""
