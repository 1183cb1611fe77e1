"""Faults of ablate, and of the disk: what a user hears of them, and what is left."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ablate.failpoints import _read
from ablate.store import mounts
from ablate.study.words import without_secrets
from ablate.train import checkpoint
from tests.command import ablate, finish, query, results, start
from tests.failpoints.scenes import RUN, Stage
from tests.postgres import Server
from tests.run.test_stops import wait_until
from tests.store.test_full_disk import disk, mount, one_line, remount
from tests.studies import write_study

__all__ = ["disk"]

COMMANDS = [
    ("run", "toy.yaml"), ("plan", "toy.yaml"), ("report",), ("report", "--csv"), ("status",), ("watch",),
    ("show", "two"), ("logs",), ("doctor",), ("retry",), ("compare", "toy", "toy"), ("mirror",),
    ("dashboard", "--port", "0"),
]  # fmt: skip


@pytest.fixture
def done(stage: Stage, place: Path) -> Path:
    return stage.copy("done", place / "project")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_fault_of_ablate_is_one_line_and_a_file_in_every_command(
    stage: Stage, done: Path, words: tuple[str, ...]
) -> None:
    ended = stage.run(*words, project=done, ABLATE_FAILPOINT="store-read:raise")
    assert ended.code == 70, ended.err
    lines = ended.err.splitlines()
    assert lines[-2] == "error: a fault of ablate itself: RuntimeError: failpoint store-read"
    file = re.fullmatch(r"hint: please report it with this file: (.*)", lines[-1])
    assert file is not None
    assert not any(line.startswith("Traceback") for line in lines)
    kept = Path(file[1])
    assert kept.stat().st_mode & 0o777 == 0o600
    assert "Traceback (most recent call last)" in kept.read_text()
    assert f"ablate {' '.join(words)}" in kept.read_text()


def test_a_crash_file_holds_no_password(stage: Stage, done: Path, postgres: Server) -> None:
    url = postgres.new_database().replace("://ablate@", "://ablate:canary-1@")
    url += ("&" if "?" in url else "?") + "password=canary-2&application_name=x"
    ended = stage.run("status", "--store", url, project=done, ABLATE_FAILPOINT="store-read:raise")
    kept = [path.read_text() for path in (done / "tmp").glob("ablate-crash-*")]
    assert ended.code == 70, ended.err
    assert len(kept) == 1
    assert "Traceback" in kept[0]
    assert "canary" not in kept[0] + ended.err


def test_passwords_are_left_out_wherever_a_url_has_them() -> None:
    text = "--store postgresql+psycopg://me:s3/cr@t@host/db?sslmode=on&password=s3cret&x=1 --seeds 3"
    shown = without_secrets(text)
    assert "s3" not in shown
    assert "://me:***@" in shown
    assert shown.endswith("@host/db?*** --seeds 3")


def test_a_fault_gives_the_trials_at_work_back_at_once(stage: Stage, place: Path) -> None:
    project = stage.copy("new", place / "project")
    ended = stage.run(*RUN, project=project, TOY="heard", ABLATE_FAILPOINT="add_measurements-committed:raise")
    assert ended.code == 70, ended.err
    assert query(project, "SELECT DISTINCT state FROM trial WHERE state = 'running'") == []
    assert ("interrupted",) in query(project, "SELECT outcome FROM attempt")
    assert query(project, "SELECT count(*) FROM trial WHERE idle_deaths > 0") == [(0,)], "no death of its own"
    assert query(project, "SELECT count(*) FROM runner WHERE ended IS NULL") == [(0,)]
    assert stage.run(*RUN, project=project).code == 0


@pytest.mark.parametrize("point", ["checkpoint-written", "manifest-written", "checkpoint-named", "record-begun"])
def test_an_error_of_the_disk_ends_the_run_and_counts_against_no_trial(stage: Stage, place: Path, point: str) -> None:
    """Also one of fsync: what could not be synced is thrown away, and written anew by the next run."""
    project = stage.copy("new", place / "project")
    armed = {"ABLATE_FAILPOINT": f"{point}:eio@2", "ABLATE_FAILPOINT_HIT": str(place)}
    ended = stage.run(*RUN, project=project, **armed)
    assert ended.code == 4, ended.err
    assert "can't be written: Input/output error (" in one_line(ended.err)
    assert re.search(r"\([\d,]+ bytes are free\)", ended.err)
    assert query(project, "SELECT count(*) FROM trial WHERE state = 'failed' OR errors > 0") == [(0,)]
    assert list(project.glob("runs/trials/*/*/checkpoint/.*")) == [], "nothing half-written"
    assert stage.run(*RUN, project=project).code == 0
    assert query(project, "SELECT DISTINCT state FROM trial") == [("done",)]


LARGE = """
import torch
from pathlib import Path

def train(settings, context):
    state = context.resume() or {"epoch": 0}
    for epoch in range(state["epoch"] + 1, 4):
        context.record(epoch=epoch, acc=float(epoch))
        context.checkpoint({"epoch": epoch, "weights": torch.zeros(1 if epoch == 1 else 1_000_000)})
    return {"acc": 1.0}
"""


@pytest.mark.slow
def test_a_checkpoint_that_finds_no_room_fails_now_and_leaves_the_earlier_one(tmp_path: Path, disk: Path) -> None:
    mount(disk, "size=3m")
    (tmp_path / ".git").mkdir()
    (tmp_path / "runs").symlink_to(disk)
    write_study(tmp_path, "schema: ablate/v1\nname: toy\ntask: toy:train\nmetrics: {acc: {goal: max}}\n"
                "settings: {level: 1}\nseeds: 1\n", task=LARGE)  # fmt: skip
    done = ablate("run", "toy.yaml", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    line = one_line(done.stderr)
    assert re.search(r"checkpoint/2\.pt: the checkpoint can't be written: No space left on device \([\d,]+ bytes", line)
    assert "hint: free some space" in done.stderr
    [folder] = disk.glob("trials/*/1/checkpoint")
    [fingerprint] = query(tmp_path, "SELECT fingerprint FROM trial")[0]
    saved = checkpoint.load(folder, fingerprint=fingerprint)
    assert saved is not None
    assert saved["state"]["epoch"] == 1
    assert sorted(path.name for path in folder.iterdir()) == ["1.pt", "manifest.json"]
    assert query(tmp_path, "SELECT state, errors FROM trial") == [("waiting", 0)]
    remount(disk, "size=64m")
    again = ablate("run", "toy.yaml", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert query(tmp_path, "SELECT outcome, resumed_from FROM attempt") == [("error", None), ("ok", 1)]
    assert len(results(tmp_path)) == 4


# the limit of a file's size takes the part of a line that fits, as a disk does that is almost full
TORN = """
import resource, sys
from pathlib import Path
from ablate.errors import EnvironmentFault
from ablate.train.folder import AttemptFolder

folder = AttemptFolder(sys.argv[1])
folder.append_record({"epoch": 1, "values": {}})
size = folder.metrics_file.stat().st_size
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, limits[1]))
try:
    folder.append_record({"epoch": 2, "values": {}})
except EnvironmentFault as fault:
    print(fault.faults[0].message)
assert folder.metrics_file.stat().st_size == size
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
folder.append_record({"epoch": 3, "values": {}})
print([record["epoch"] for record in folder.records()[0]])
"""


def test_a_part_of_a_record_is_cut_off_again(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", TORN, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said, records = done.stdout.splitlines()
    assert said.startswith("a record can't be written: No space left on device (")
    assert records == "[1, 3]"


@pytest.mark.parametrize("words", ["report", "report --csv", "status", "schema"])
def test_output_that_nobody_takes_is_one_line(done: Path, words: str) -> None:
    command = f"{sys.executable} -m ablate {words} > /dev/full"
    ended = subprocess.run(["sh", "-c", command], cwd=done, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 4, ended.stderr
    assert one_line(ended.stderr) == "error: output: it can't be written: No space left on device"


# --- the mirror


def test_there_is_no_mirror_on_a_network_file_system(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ablate.errors import EnvironmentFault
    from ablate.mirror.follower import following
    from ablate.mirror.optuna import refresh
    from ablate.store.store import open_store

    store = open_store(place / "local" / "ablate.db", folder=place / "far", create=True)
    (place / "far").mkdir()
    table = place / "mountinfo"
    table.write_text(f"27 1 254:0 / / rw - ext4 /dev/vda rw\n41 27 0:50 / {place}/far rw - nfs4 server:/home rw\n")
    monkeypatch.setattr(mounts, "MOUNTS", table)
    said: list[str] = []
    reason = "there is no Optuna mirror on a network file system (nfs4): SQLite's locks are not safe there"
    with following(said.append) as start_it:
        start_it(store)
    assert said == [f"note: {reason}"]
    with pytest.raises(EnvironmentFault) as caught:
        refresh(store, say=said.append)
    assert str(caught.value).startswith(f"error: {place}/far/mirror.db: {reason}\nhint: ")
    assert list((place / "far").iterdir()) == []


def test_a_mirror_without_room_is_said_once_and_the_run_goes_on(stage: Stage, place: Path) -> None:
    project = stage.copy("new", place / "project")
    armed = {"ABLATE_FAILPOINT": "mirror-opened:full", "ABLATE_FAILPOINT_HIT": str(place)}
    ended = stage.run(*RUN, project=project, ABLATE_NO_MIRROR="0", **armed)
    assert ended.code == 0, ended.err
    wait_until((place / "mirror-opened").exists)  # on a busy machine it comes to that after the run
    assert ended.err.count("the Optuna mirror is behind") <= 1
    assert query(project, "SELECT DISTINCT state FROM trial") == [("done",)]
    wait_until(lambda: stage.run("mirror", project=project).code == 0)


# --- failpoints themselves


@pytest.mark.parametrize("text", ["here", "here:explode", "here:kill@x", ":kill"])
def test_a_failpoint_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected NAME:MODE or NAME:MODE@N"):
        _read(text)


def test_a_failpoint_that_sleeps_lets_a_test_look(project: Path) -> None:
    marks = project / "marks"
    marks.mkdir()
    armed = {"ABLATE_FAILPOINT": "exchange-committed:sleep@2", "ABLATE_FAILPOINT_HIT": str(marks)}
    process = start("run", str(write_study(project)), "-j", "1", cwd=project, **armed)
    try:
        wait_until(lambda: (marks / "exchange-committed").exists())
        assert process.poll() is None
        assert query(project, "SELECT count(*) FROM trial WHERE claim = 1") == [(2,)]
    finally:
        process.kill()
        finish(process)
    assert os.listdir(marks) == ["exchange-committed"]
