"""Warm workers: one process takes one attempt after another, and each finds it as if it were new."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.command import ablate, finish, query, results, start
from tests.run.test_commands import alive
from tests.run.test_stops import recorded, wait_until, workers_of
from tests.studies import TOY, TOY_STUDY, write_study

WARM = "execution: {isolation: warm}\n"
# each attempt says in its log which process it is in
TOLD = TOY.replace(
    "def train(settings, context):", "def train(settings, context):\n    print('process', os.getpid())", 1
)
TOLD = TOLD.replace("import hashlib", "import os, hashlib")


def processes(project: Path) -> list[str]:
    """Return the process of every attempt, in the order in which they were claimed."""
    folders = [project / "runs" / folder for (folder,) in query(project, "SELECT folder FROM attempt ORDER BY id")]
    return [re.findall(r"process (\d+)", (folder / "stdout.log").read_text())[0] for folder in folders]


def numbers(project: Path) -> list[tuple[object, ...]]:
    """Return what was measured, by settings and seed: warm trials have identities of their own."""
    return query(
        project,
        """SELECT t.settings_json, t.seed, m.metric, m.epoch, m.value FROM trial t
           JOIN measurement m ON m.trial = t.id AND m.claim = t.result_claim
           WHERE t.state = 'done' ORDER BY 1, 2, 3, 4""",
    )


def test_one_process_does_many_trials_and_measures_the_same(tmp_path: Path) -> None:
    found = {}
    for isolation in ("process", "warm"):
        project = tmp_path / isolation
        (project / ".git").mkdir(parents=True)
        path = write_study(project, f"{TOY_STUDY}execution: {{isolation: {isolation}}}\n", task=TOLD)
        done = ablate("run", str(path), "-j", "1", "--seeds", "8", cwd=project)
        assert done.returncode == 0, done.stderr
        found[isolation] = numbers(project)
        counts = query(project, "SELECT count(*) FROM attempt WHERE outcome = 'ok'")
        assert counts == [(24,)]
        assert len(set(processes(project))) == (24 if isolation == "process" else 1)
    assert found["warm"] == found["process"]


def test_isolation_is_part_of_a_trials_identity(project: Path) -> None:
    path = write_study(project)
    assert ablate("run", str(path), "--only", "baseline", cwd=project).returncode == 0
    warm = ablate("run", str(path), "--only", "baseline", "--set", "execution.isolation=warm", cwd=project)
    assert warm.returncode == 0, warm.stderr
    assert query(project, "SELECT count(*) FROM trial") == [(4,)]
    again = ablate("run", str(path), "--only", "baseline", "--set", "execution.isolation=process", cwd=project)
    assert "trained nothing new" in again.stderr


UNTIDY = """
import os, random, signal, sys
import numpy as np
import torch

def state():
    return {
        "cwd": os.getcwd(), "umask": os.umask(os.umask(0)), "mine": os.environ.get("MINE"), "path": os.environ["PATH"],
        "threads": torch.get_num_threads(), "sigint": str(signal.getsignal(signal.SIGINT)), "stdin": sys.stdin.read(),
        "draws": [random.random(), float(np.random.rand()), float(torch.rand(()))],
    }

def train(settings, context):
    print("only of trial", settings["level"])
    before = state()
    os.chdir("/")
    os.umask(0o77)
    os.environ["MINE"] = "left behind"
    os.environ["PATH"] = ""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(2)
    sys.stdout = open(os.devnull, "w")
    for key, value in before.items():
        context.fact(key, str(value))
    context.fact("pid", str(os.getpid()))
    return {"acc": float(settings["level"])}
"""


def test_what_a_trial_does_to_its_process_is_set_back(project: Path) -> None:
    path = write_study(project, TOY_STUDY.replace("seeds: 2", "seeds: 1") + WARM, task=UNTIDY)
    done = ablate("run", str(path), "-j", "1", cwd=project)
    assert done.returncode == 0, done.stderr
    rows = query(project, "SELECT environment_json, folder FROM attempt ORDER BY id")
    facts = [json.loads(row[0]) for row in rows]
    assert len({each["pid"] for each in facts}) == 1
    for name in ("cwd", "umask", "mine", "path", "threads", "sigint", "stdin", "draws"):
        assert len({each[name] for each in facts}) == 1, name
    logs = [(project / "runs" / folder / "stdout.log").read_text() for _, folder in rows]
    assert logs == [f"only of trial {level}\n" for level in (1, 2, 3)]


LEFT = """
import os, subprocess, threading, time

def train(settings, context):
    print("process", os.getpid())
    if settings["level"] == 2 and context.seed == 1:
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    if settings["level"] == 2 and context.seed == 2:
        # an orphan: its parent is gone at once
        subprocess.run(["sh", "-c", "sleep 600 & echo $! > " + str(context.folder / "orphan")])
    return {"acc": float(settings["level"])}
"""


def test_a_worker_that_leaves_something_running_takes_no_other_trial(project: Path) -> None:
    path = write_study(project, TOY_STUDY + WARM, task=LEFT)
    done = ablate("run", str(path), "-j", "1", cwd=project)
    assert done.returncode == 0, done.stderr
    rows = query(project, "SELECT t.settings_json, t.seed FROM attempt a JOIN trial t ON t.id = a.trial ORDER BY a.id")
    each = list(zip([(json.loads(text)["level"], seed) for text, seed in rows], processes(project), strict=True))
    for (place, process), (_, following) in itertools.pairwise(each):
        assert (process == following) is (place[0] != 2), each
    (orphan,) = project.glob("runs/trials/*/*/orphan")
    wait_until(lambda: not alive(int(orphan.read_text())))
    assert query(project, "SELECT DISTINCT outcome FROM attempt") == [("ok",)]


LEAKS = """
import os

left = []

def train(settings, context):
    print("process", os.getpid())
    left.append(b"x" * (100 << 20))
    return {"acc": float(settings["level"])}
"""


def test_a_worker_whose_trials_leave_memory_taken_is_replaced(project: Path) -> None:
    """It may hold 256 MiB more than its first trial left: with 100 of each, that is four trials."""
    path = write_study(project, TOY_STUDY.replace("seeds: 2", "seeds: 3") + WARM, task=LEAKS)
    done = ablate("run", str(path), "-j", "1", cwd=project)
    assert done.returncode == 0, done.stderr
    assert [len(list(each)) for _, each in itertools.groupby(processes(project))] == [4, 4, 1]
    assert query(project, "SELECT DISTINCT outcome FROM attempt") == [("ok",)]


def test_a_killed_worker_costs_one_attempt_and_the_others_go_on(project: Path) -> None:
    """Short attempts are given in advance: those that the worker had not come to are not lost with it."""
    task = """
    import os, signal
    def train(settings, context):
        print("process", os.getpid())
        if settings["level"] == 2 and context.seed == 30 and context.folder.name == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return {"acc": float(settings["level"])}
    """
    path = write_study(project, TOY_STUDY.replace("seeds: 2", "seeds: 40") + WARM, task=task)
    done = ablate("run", str(path), "-j", "1", cwd=project)
    assert done.returncode == 0, done.stderr
    outcomes = dict(query(project, "SELECT outcome, count(*) FROM attempt GROUP BY 1"))
    assert outcomes == {"ok": 120, "killed": 1}
    assert len(set(processes(project))) == 2
    assert query(project, "SELECT count(*) FROM trial WHERE idle_deaths > 0 OR errors > 0") == [(0,)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 75), (signal.SIGKILL, -9)])
def test_a_stop_loses_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    study = TOY_STUDY.replace("pause: 0.0", "pause: 0.02").replace("seeds: 2", "seeds: 6") + WARM
    quiet = tmp_path / "quiet"
    project = tmp_path / "stopped"
    for folder in (quiet, project):
        (folder / ".git").mkdir(parents=True)
        write_study(folder, study)
    assert ablate("run", "toy.yaml", "-j", "2", cwd=quiet).returncode == 0
    process = start("run", "toy.yaml", "-j", "2", cwd=project)
    wait_until(lambda: recorded(project))
    os.kill(process.pid, number)
    said = finish(process)
    assert process.returncode == code, said
    wait_until(lambda: not workers_of(project))
    if number != signal.SIGKILL:
        assert query(project, "SELECT count(*) FROM trial WHERE state NOT IN ('waiting', 'done')") == [(0,)]
        assert {row[0] for row in query(project, "SELECT DISTINCT outcome FROM attempt")} <= {"ok", "interrupted"}
    again = ablate("run", "toy.yaml", "-j", "2", cwd=project)
    assert again.returncode == 0, again.stderr
    assert results(project) == results(quiet)


def test_a_trial_that_runs_into_its_timeout_ends_its_worker_alone(project: Path) -> None:
    task = """
    import os, time
    def train(settings, context):
        print("process", os.getpid())
        time.sleep(60 if settings["level"] == 2 else 0)
        return {"acc": 1.0}
    """
    study = TOY_STUDY.replace("seeds: 2", "seeds: 1") + WARM + "resources: {timeout: 2s}\n"
    done = ablate("run", str(write_study(project, study, task=task)), "-j", "1", cwd=project)
    assert done.returncode == 1, done.stderr
    assert query(project, "SELECT outcome FROM attempt ORDER BY id") == [("ok",), ("timeout",), ("ok",)]
    first, second, third = processes(project)
    assert first == second != third


def test_a_warm_run_leaves_its_slot_to_others_in_between(project: Path) -> None:
    """A run that holds the one core gives it back between two trials, process and all."""
    tasks = TOY_STUDY.replace("pause: 0.0", "pause: 0.05").replace("seeds: 2", "seeds: 8")
    (project / "one").mkdir()
    (project / "two").mkdir()
    runs = []
    core = min(os.sched_getaffinity(0))
    for name in ("one", "two"):
        write_study(project / name, tasks + WARM)
        command = ("run", "toy.yaml", "--store", str(project / name / "a.db"))
        runs.append(start(*command, cwd=project / name, TMPDIR=str(project)))
        os.sched_setaffinity(runs[-1].pid, {core})
    ends = []
    for process in runs:
        said = finish(process, timeout=240)
        assert process.returncode == 0, said
        ends.append(time.monotonic())
    spans = []
    for name in ("one", "two"):
        store = project / name / "runs"
        store.mkdir()
        (project / name / "a.db").rename(store / "ablate.db")
        spans.append(query(project / name, "SELECT min(started), max(ended) FROM attempt")[0])
    assert max(span[0] for span in spans) < min(span[1] for span in spans), "they took turns"
