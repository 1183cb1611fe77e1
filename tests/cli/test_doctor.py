from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from ablate.run.slots import Gpu
from ablate.store.integrity import _owners_without_trial, _replicates_twice, store_flaws
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
            "UPDATE attempt SET metrics_json = NULL WHERE trial = 1",
            "1 done trials lack a declared metric (trial 1)",
        ),
    ],
)
def test_what_a_store_should_never_hold_is_found(copied: Path, damage: str, flaw: str) -> None:
    path = copied / "runs" / "ablate.db"
    connection = sqlite3.connect(path)
    connection.executescript(damage)
    connection.close()
    found = store_flaws(open_store(path, read_only=True))
    assert any(flaw in each for each in found), found


def damage_rows(path: Path, sql: str) -> None:
    """Damage a store as no transaction of ablate could: constraints are off."""
    connection = sqlite3.connect(path)
    connection.executescript(f"PRAGMA ignore_check_constraints = ON; {sql}")
    connection.close()


def without_unique(table: str, replaced: str) -> str:
    """Return SQL that makes a table again without one of its constraints."""
    return (
        "PRAGMA writable_schema = ON;"
        f" UPDATE sqlite_master SET sql = replace(sql, '{replaced}', '') WHERE name = '{table}';"
        f" DELETE FROM sqlite_master WHERE name LIKE 'sqlite_autoindex_{table}%';"
    )


def test_verify_finds_nothing_in_a_sound_project(troubled: Path, call: Call) -> None:
    done = call("doctor", "--verify", cwd=troubled)
    assert done.returncode == 0, done.stdout
    assert "ok       the store is sound" in done.stdout
    assert "ok       checkpoints of 4 attempts are what was written" in done.stdout


def test_verify_finds_nothing_in_a_store_filled_by_hand(tmp_path: Path) -> None:
    fates = {("batchnorm", 1): FAILED, ("batchnorm", 3): DIVERGED, ("depth-6", 2): Fate(state="running")}
    assert store_flaws(fill(tmp_path, truth_study(), fates).store, thorough=True) == []


@pytest.mark.parametrize(
    ("damage", "flaw"),
    [
        (
            "UPDATE trial SET owner = (SELECT id FROM runner) WHERE id = 1",
            "SQLite finds damage: CHECK constraint failed in trial",
        ),
        (
            "UPDATE trial SET result_claim = NULL WHERE id = 1",
            "SQLite finds damage: CHECK constraint failed in trial",
        ),
        ("DROP INDEX attempt_running", "the index `attempt_running` is missing"),
        ("DROP TABLE score", "the table `score` is missing"),
        ("CREATE TABLE mine (x)", "the table `mine` is none of ablate's"),
        ("CREATE INDEX mine ON trial (seed)", "the index `mine` is none of ablate's"),
        ("ALTER TABLE trial ADD COLUMN mine TEXT", "the table `trial` is not as ablate makes it"),
        ("DELETE FROM plan", "study version 1 (`toy`) has no plan"),
        ("UPDATE arm SET name = 'fore' WHERE name = 'two'", "the arm `two` that `toy` compares is missing"),
        ("UPDATE arm SET settings_json = '{}' WHERE name = 'two'", "replicates have a trial of other settings than"),
        (
            "UPDATE replicate SET seed = 9 WHERE id = 1; UPDATE trial SET seed = 9 WHERE id = 1",
            "1 replicates have a seed that no plan asks for (replicate 1)",
        ),
        (
            "UPDATE measurement SET claim = 7 WHERE trial = 1",
            "1 trials have measurements of a later claim than their own (trial 1)",
        ),
        ("UPDATE attempt SET claim = 7 WHERE trial = 1", "1 trials have attempts of a later claim than their own"),
        ("UPDATE trial SET result_claim = 7 WHERE id = 1", "1 trials have a result of a later claim (trial 1)"),
        ("UPDATE study SET spec_json = spec_json || ' '", "the declaration of study version 1 is not what was written"),
        ("UPDATE plan SET plan_json = plan_json || ' '", "the plan of study version 1 is not what was written"),
        ("UPDATE plan SET plan_json = '{'", "what is stored can't be read (JSONDecodeError"),
        (
            "UPDATE trial SET settings_json = '{}' WHERE id = 2",
            "1 trials are not what their fingerprint says (trial 2)",
        ),
        ("UPDATE attempt SET folder = '../../x' WHERE id = 1", "1 attempts name a folder that is not theirs"),
        (
            "UPDATE attempt SET environment_json = '{' WHERE id = 1",
            "1 attempts have facts or numbers that can't be read",
        ),
        ("UPDATE attempt SET outcome = 'fine' WHERE id = 1", "1 attempts have an unknown outcome (attempt 1)"),
    ],
)
def test_what_only_a_thorough_look_finds(copied: Path, damage: str, flaw: str) -> None:
    path = copied / "runs" / "ablate.db"
    damage_rows(path, damage)
    found = store_flaws(open_store(path, read_only=True), thorough=True)
    assert any(flaw in each for each in found), found


def test_each_rule_of_a_running_trial_holds_by_itself(copied: Path) -> None:
    """SQLite's own check comes first; a server has none that reads the rows again."""
    path = copied / "runs" / "ablate.db"
    damage_rows(path, "UPDATE trial SET owner = (SELECT id FROM runner) WHERE id = 1")
    damage_rows(path, "UPDATE trial SET result_claim = NULL WHERE id = 2")
    store = open_store(path, read_only=True)
    assert store.read(lambda connection: list(_owners_without_trial(connection))) == [
        "1 trials run without owner and lease, or not with them (trial 1)",
        "1 trials are done without a result, or not done with one (trial 2)",
    ]


def test_a_name_from_elsewhere_drives_no_terminal(copied: Path, call: Call) -> None:
    damage_rows(copied / "runs" / "ablate.db", 'CREATE VIEW "\x1b[2Jv" AS SELECT 1')
    done = call("doctor", cwd=copied)
    assert done.returncode == 4
    assert "\x1b" not in done.stdout
    assert "[2Jv` is none of ablate's" in done.stdout


def test_a_planned_replicate_that_is_there_twice_is_found(copied: Path) -> None:
    path = copied / "runs" / "ablate.db"
    unique = "UNIQUE (arm, role, seed, trial), "
    damage_rows(path, without_unique("replicate", unique))
    damage_rows(path, "INSERT INTO replicate SELECT 99, arm, role, seed, trial, position FROM replicate WHERE id = 1")
    store = open_store(path, read_only=True)
    found = store.read(lambda connection: list(_replicates_twice(connection)))
    assert found == ["1 planned replicates are there twice (replicate 1)"]
    assert "the table `replicate` is not as ablate makes it" in store_flaws(store, thorough=True)


def test_a_checkpoint_that_is_not_what_was_written_is_found(copied: Path, call: Call) -> None:
    checkpoints = sorted((copied / "runs").glob("trials/*/*/checkpoint/*.pt"))
    data = bytearray(checkpoints[0].read_bytes())
    data[len(data) // 2] ^= 1
    checkpoints[0].write_bytes(data)
    manifest = next(path.parent / "manifest.json" for path in checkpoints if path.parent != checkpoints[0].parent)
    manifest.write_text(manifest.read_text()[:-5])
    assert call("doctor", cwd=copied).returncode == 0, "the quick look reads no checkpoint"
    done = call("doctor", "--verify", cwd=copied)
    assert done.returncode == 4
    errors = [line for line in done.stdout.splitlines() if line.startswith("error")]
    assert sorted(errors) == sorted(
        [f"error    {checkpoints[0]} is not what was written (SHA-256)", f"error    {manifest} is damaged"]
    )


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


def test_a_network_file_system_is_warned_of(copied: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablate.run.doctor.file_system", lambda _: "nfs4")
    done = call("doctor", cwd=copied)
    assert done.returncode == 0
    assert "is on a network file system (nfs4): SQLite is not written there" in done.stdout
    assert "PostgreSQL" in done.stdout


def test_a_full_disk_and_an_open_folder(copied: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "runs").chmod(0o777)
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    done = call("doctor", cwd=copied)
    assert done.returncode == 4
    assert "error    0.0 GiB free" in done.stdout
    assert f"warning  everybody may write to {copied}/runs" in done.stdout
