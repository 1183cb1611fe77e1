"""A worker among others: who comes after one that was killed, or that lives on, is not harmed by it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ablate.train import worker
from ablate.train.folder import AttemptFolder, Result, Work

TASK = "def train(settings, context):\n    return {'acc': 1.0}\n"


LEAVES = """
import os, signal, sys

def train(settings, context):
    if settings["stop"]:
        os.kill(os.getpid(), signal.SIGTERM)
    sys.exit(0)  # as Lightning does at a SIGTERM
"""


def attempt(folder: Path, number: int, *, task: str = TASK, **values: object) -> AttemptFolder:
    (folder / "quick.py").write_text(task)
    made = AttemptFolder(folder / "trials" / "abc" / str(number))
    told = {"settings": {}, "metrics": ("acc",), **values}
    made.create(Work("quick:train", str(folder), seed=1, fingerprint="abc", **told))  # type: ignore[arg-type]
    return made


def live(made: AttemptFolder) -> Result:
    environment = {**os.environ, "ABLATE_PARENT": str(os.getpid())}
    subprocess.run([sys.executable, "-m", "ablate.train.worker", made.path], env=environment, timeout=60, check=True)
    result = made.result()
    assert result is not None
    return result


@pytest.mark.parametrize(("stop", "outcome"), [(True, "interrupted"), (False, "error")])
def test_a_task_that_leaves_because_it_was_asked_to_was_interrupted(tmp_path: Path, stop: bool, outcome: str) -> None:
    assert live(attempt(tmp_path, 1, task=LEAVES, settings={"stop": stop})).outcome == outcome


def test_the_lock_of_a_shared_gpu_is_held_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its other parts have it as well; an orphan of one who had the GPU whole keeps all of them out."""
    monkeypatch.setattr(worker, "LOCK_PATIENCE_S", 0.1)
    lock = tmp_path / "gpu.worker"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        assert live(attempt(tmp_path, 1, shared=(str(lock),), check_only=True)).outcome == "ok"
        fcntl.flock(held, fcntl.LOCK_EX)
        made = attempt(tmp_path, 2, shared=(str(lock),), check_only=True)
        worker.run_attempt(made.path)
    result = made.result()
    assert result is not None
    assert result.outcome == "interrupted"


def test_a_trial_that_an_earlier_worker_still_holds_waits_for_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its runner may be frozen, and it may train for hours: that is no fault of the trial, and costs no retry."""
    monkeypatch.setattr(worker, "LOCK_PATIENCE_S", 0.1)
    lock = tmp_path / "lock"
    made = attempt(tmp_path, 2, locks=(str(lock),))
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        worker.run_attempt(made.path)
    result = made.result()
    assert result is not None
    assert result.outcome == "interrupted"
    assert "an earlier worker still holds the trial or its device" in capsys.readouterr().err


@pytest.mark.parametrize(
    "task", ["def train(settings): return {}", "class train: pass", "def train(a, b, c): return {}"]
)
def test_a_task_of_other_arguments_is_said_before_it_is_run(tmp_path: Path, task: str) -> None:
    made = attempt(tmp_path, 1, check_only=True)
    (tmp_path / "quick.py").write_text(task)
    environment = {**os.environ, "ABLATE_PARENT": str(os.getpid())}
    subprocess.run([sys.executable, "-m", "ablate.train.worker", made.path], env=environment, timeout=60, check=True)
    result = made.result()
    assert result is not None
    assert result.outcome == "error"
    assert "quick:train can't be called with settings and context: " in result.error
    assert result.hint == "write it as `def train(settings, context):`"


def test_what_a_killed_worker_left_half_written_is_removed(tmp_path: Path) -> None:
    earlier = attempt(tmp_path, 1)
    kept = [earlier.checkpoints / "1.pt", earlier.checkpoints / "manifest.json", earlier.artifacts / "plot.png"]
    torn = [earlier.checkpoints / ".2.pt.4711", earlier.checkpoints / ".manifest.json.4711"]
    torn += [earlier.artifacts / ".plot.png.4711", earlier.path / ".scores.npz.4711"]
    for path in (*kept, *torn):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"some bytes")
    made = attempt(tmp_path, 2, earlier=(str(earlier.path),))
    assert live(made).outcome == "ok"
    assert [path for path in torn if path.exists()] == []
    assert all(path.exists() for path in kept)
