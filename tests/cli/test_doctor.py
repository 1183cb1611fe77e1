from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from ablate.run.doctor import file_system
from ablate.run.slots import Gpu
from ablate.store.integrity import store_flaws
from ablate.store.store import open_store
from tests.command import Call, ablate
from tests.truth import DIVERGED, FAILED, Fate, fill, truth_study


@pytest.fixture
def copied(troubled: Path, tmp_path: Path) -> Path:
    """A copy of the troubled study, to be damaged."""
    shutil.copytree(troubled, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_sound_project(troubled: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablate.run.doctor.listed_gpus", lambda: [Gpu("GPU-1", "0", "H200")])
    done = call("doctor", cwd=troubled)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines} <= {"ok", "warning", "hint:"}
    for part in (
        "ok       ablate ",
        "ok       Python ",
        "ok       torch ",
        "ok       SQLite ",
        f"ok       store {troubled}/runs/ablate.db (SQLite)",
        " GiB free in ",
        "ok       the store is sound",
        "ok       device locks",
        "ok       GPU 0: H200 (GPU-1)",
        " usable of ",
        "CIFAR-100",
    ):
        assert any(part in line for line in lines), part


def test_without_a_store(project: Path, call: Call) -> None:
    done = call("doctor", cwd=project)
    assert done.returncode == 0
    assert f"ok       no store yet; `ablate run` makes {project}/runs/ablate.db" in done.stdout
    assert list(project.iterdir()) == [project / ".git"], "looking makes nothing"


def test_a_store_filled_by_hand_is_sound(tmp_path: Path) -> None:
    fates = {("batchnorm", 1): FAILED, ("batchnorm", 3): DIVERGED, ("depth-6", 2): Fate(state="running")}
    assert store_flaws(fill(tmp_path, truth_study(), fates).store) == []


@pytest.mark.parametrize(
    ("damage", "flaw"),
    [
        ("DELETE FROM trial WHERE id = 1", "rows name a row that is not there"),
        ("UPDATE replicate SET seed = 7 WHERE id = 1", "1 replicates have a trial of another seed (replicate 1)"),
        ("DELETE FROM replicate WHERE id = 1", "arm `baseline` of `toy` has 1 of its 2 planned seeds"),
        (
            "DROP INDEX attempt_running; UPDATE attempt SET ended = NULL, outcome = NULL WHERE trial = 1; INSERT INTO"
            " attempt (trial, claim, runner, slot, folder, started) SELECT trial, 2, runner, '', '', 0 FROM attempt"
            " WHERE trial = 1",
            "1 trials have more than one running attempt (trial 1)",
        ),
        (
            "UPDATE trial SET state = 'running', owner = (SELECT id FROM runner), lease_until = 1, result_claim = NULL"
            " WHERE id = 2",
            "1 running trials have no open attempt (trial 2)",
        ),
        (
            "UPDATE attempt SET ended = NULL, outcome = NULL WHERE trial = 2",
            "1 trials that do not run have an open attempt (trial 2)",
        ),
        ("UPDATE trial SET claim = 3 WHERE id = 1", "1 trials have claims with gaps (trial 1)"),
        ("DELETE FROM attempt WHERE trial = 1", "1 trials have claims with gaps (trial 1)"),
        (
            "UPDATE attempt SET outcome = 'killed' WHERE trial = 1",
            "1 done trials have no attempt that ended with a result (trial 1)",
        ),
        (
            "DELETE FROM measurement WHERE trial = 1 AND epoch IS NULL",
            "1 done trials lack a declared metric (trial 1)",
        ),
        ("CREATE TRIGGER t AFTER UPDATE ON trial BEGIN DELETE FROM study; END", "the trigger `t` is none of ablate's"),
    ],
)
def test_what_a_store_should_never_hold_is_found(copied: Path, damage: str, flaw: str) -> None:
    path = copied / "runs" / "ablate.db"
    connection = sqlite3.connect(path)
    connection.executescript(damage)
    connection.close()
    found = store_flaws(open_store(path, read_only=True))
    assert any(flaw in each for each in found), found


def test_a_flaw_is_an_error_of_the_environment(copied: Path, call: Call) -> None:
    connection = sqlite3.connect(copied / "runs" / "ablate.db")
    connection.executescript("UPDATE trial SET claim = 3 WHERE id = 1")
    connection.close()
    done = call("doctor", cwd=copied)
    assert done.returncode == 4
    assert "error    store: 1 trials have claims with gaps (trial 1)\nhint:    keep a copy" in done.stdout


def test_a_file_that_is_no_database_is_left_as_it_is(copied: Path, call: Call) -> None:
    path = copied / "runs" / "ablate.db"
    path.write_bytes(b"not a database at all" * 1000)
    before = path.read_bytes()
    done = call("doctor", cwd=copied)
    assert done.returncode == 4
    assert "error    store" in done.stdout
    assert path.read_bytes() == before


def test_damaged_pages_are_found_without_a_traceback(copied: Path, call: Call) -> None:
    path = copied / "runs" / "ablate.db"
    whole = path.read_bytes()
    for offset in range(4096, len(whole), len(whole) // 12):
        path.write_bytes(whole[:offset] + b"\xff" * 512 + whole[offset + 512 :])
        done = call("doctor", cwd=copied)
        assert done.returncode in (0, 4), done.stdout + done.stderr
        assert done.stderr == ""


def test_a_newer_store_is_said_to_be_newer(copied: Path, call: Call) -> None:
    connection = sqlite3.connect(copied / "runs" / "ablate.db")
    connection.executescript("UPDATE meta SET value = '999' WHERE key = 'schema'")
    connection.close()
    done = call("doctor", cwd=copied)
    assert done.returncode == 4
    assert "a newer ablate wrote this store (schema 999" in done.stdout


def test_another_distribution_of_our_name_is_found(project: Path) -> None:
    info = project / "site" / "ablate_cli-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ablate-cli\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[console_scripts]\nablate = ablate_cli:main\n")
    (info / "RECORD").write_text("ablate/__init__.py,,\nablate_cli-0.1.dist-info/METADATA,,\n")
    other = project / "site" / "other-1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (other / "entry_points.txt").write_text("[console_scripts]\nablate = other:main\n")
    done = ablate("doctor", cwd=project, PYTHONPATH=str(project / "site"))
    assert done.returncode == 4, done.stdout
    assert "error    the distribution `ablate-cli` installs a package `ablate` too" in done.stdout
    assert "error    the distribution `other` installs a command `ablate` too" in done.stdout


def test_a_network_file_system_is_warned_of(
    copied: Path, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/home {tmp_path} nfs4 rw 0 0\nx /a\\040b fuse.sshfs rw 0 0\n")
    assert file_system(copied, mounts) == "nfs4"
    assert file_system(Path("/"), mounts) == "ext4"
    assert file_system(Path("/a b/c"), mounts) == "fuse.sshfs"
    assert file_system(Path("/"), tmp_path / "none") == ""
    monkeypatch.setattr("ablate.run.doctor.file_system", lambda folder: file_system(folder, mounts))
    done = call("doctor", cwd=copied)
    assert done.returncode == 0
    assert "is on a network file system (nfs4): SQLite's locks are not safe there" in done.stdout


def test_a_full_disk_and_an_open_folder(copied: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "runs").chmod(0o777)
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    done = call("doctor", cwd=copied)
    assert done.returncode == 4
    assert "error    0.0 GiB free" in done.stdout
    assert f"warning  everybody may write to {copied}/runs" in done.stdout
