"""Stores and attempt folders that somebody made to hurt: refused in a line, or read as far as they make sense.

``ABLATE_TEST_SOAK=1`` spoils ten times as many rows.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch

from ablate.errors import EnvironmentFault, StoreError
from ablate.run import locks
from ablate.run.scores import kept_scores
from ablate.store.store import open_store
from ablate.train import checkpoint, manifest
from ablate.train.context import Context
from ablate.train.folder import RECORDS_BLOCK, AttemptFolder, Result, Work
from tests.cli.conftest import troubled
from tests.command import Call, ablate, query
from tests.hostile import drives_terminal
from tests.studies import write_study
from tests.study.inputs import spoil

__all__ = ["troubled"]

ROWS = 600 if os.environ.get("ABLATE_TEST_SOAK") else 60
SEED = 20261121
LOOKS = [
    ["report"],
    ["report", "--csv"],
    ["status"],
    ["show", "three"],
    ["logs", "three"],
    ["plan", "toy.yaml"],
    ["watch"],
]


@pytest.fixture
def copied(troubled: Path, tmp_path: Path) -> Path:
    """A project of one's own, in which everything has happened."""
    folder = tmp_path / "copy"
    shutil.copytree(troubled, folder)
    return folder


def change(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / "runs" / "ablate.db")) as file, file:
        file.execute("PRAGMA ignore_check_constraints=ON")
        for statement in statements:
            file.execute(statement)


# --- stores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER UPDATE ON trial BEGIN DELETE FROM measurement; END",
        "CREATE VIEW v AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c",
    ],
    ids=["trigger", "endless view"],
)
def test_a_store_with_code_in_it_is_not_opened(copied: Path, call: Call, statement: str) -> None:
    change(copied, statement)
    before = (copied / "runs" / "ablate.db").read_bytes()
    for command in (["report"], ["status"], ["run", "toy.yaml"], ["retry"], ["doctor"], ["mirror"]):
        done = call(*command, cwd=copied)
        assert done.returncode == (4 if command == ["doctor"] else 3), done.stderr
        assert "is none of ablate's" in done.stderr + done.stdout
    assert (copied / "runs" / "ablate.db").read_bytes() == before


def test_a_table_that_is_a_view_in_disguise_is_not_read(copied: Path, call: Call) -> None:
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x AS key, x AS value FROM c"
    change(copied, "DROP TABLE meta", f"CREATE VIEW meta AS {endless}")
    assert call("report", cwd=copied).returncode == 3


def test_foreign_tables_are_left_alone_and_said_by_doctor(copied: Path, call: Call) -> None:
    change(copied, "CREATE TABLE extra (x)", "INSERT INTO extra VALUES (randomblob(100000))")
    before = call("report", cwd=copied)
    assert before.returncode == 0
    assert "the table `extra` is none of ablate's" in call("doctor", "--verify", cwd=copied).stdout


JSON_COLUMNS = {
    "study": ("spec_json", "spec_sha256"),
    "plan": ("plan_json", "sha256"),
    "arm": ("settings_json", None),
    "trial": ("settings_json", None),
    "attempt": ("environment_json", None),
}
LARGE = ["[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "9" * 10_000, "[" + "1," * 300_000 + "1]"]
BOMBS = [*LARGE, '"\\ud800"', "NaN", "null", "", "\x00", "[]", "{}", '"x"', '{"metrics": {}}']


def spoilt_text(rng: random.Random, text: str) -> str:
    if rng.random() < 0.3:
        return rng.choice(BOMBS)
    value = json.loads(text)
    for _ in range(rng.choice([1, 1, 3])):
        spoil(rng, value)
    return json.dumps(value)


def spoil_store(rng: random.Random, path: Path) -> str:
    """Change a value of a store as no disk would: the hashes beside it are right again. Return what was done."""
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("PRAGMA ignore_check_constraints=ON")
        if rng.random() < 0.6:
            table, (column, digest) = rng.choice(list(JSON_COLUMNS.items()))
            number, text = rng.choice(file.execute(f"SELECT rowid, {column} FROM {table}").fetchall())
            new = spoilt_text(rng, text)
            file.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (new, number))
            if digest:
                of = hashlib.sha256(new.encode("utf-8", "surrogatepass")).hexdigest()
                file.execute(f"UPDATE {table} SET {digest} = ? WHERE rowid = ?", (of, number))
            return f"{table}.{column} = {new[:200]!a}"
        table = rng.choice(["study", "arm", "runner", "trial", "replicate", "attempt", "measurement", "meta", "plan"])
        column = rng.choice([row[1] for row in file.execute(f"PRAGMA table_info({table})")])
        values = [
            None,
            0,
            -1,
            2**62,
            1e308,
            b"\xff\xfe",
            b"x" * 10_000,
            "",
            "\x1b[31m",
            "../../x",
            "x" * 100_000,
            "=1+1",
            "\u202e",
            "٣",
        ]
        value = rng.choice(values)
        try:
            file.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = (SELECT min(rowid) FROM {table})", (value,))
        except sqlite3.IntegrityError:
            return ""
        return f"{table}.{column} = {value!a:.60}"


@pytest.mark.slow
@pytest.mark.timeout(ROWS * 20)
def test_rows_that_somebody_made_up_end_in_a_line(copied: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in them, with hashes that fit: exit 0 or one line and exit 2 or 3; the file stays as it is."""
    monkeypatch.setattr("ablate.run.doctor._installation", list)
    monkeypatch.setattr("ablate.run.doctor._devices", list)
    path = copied / "runs" / "ablate.db"
    whole = path.read_bytes()
    ends: Counter[int] = Counter()
    wrong: list[str] = []
    for number in range(ROWS):
        rng = random.Random(f"{SEED}:{number}")
        path.write_bytes(whole)
        what = spoil_store(rng, path)
        spoilt = path.read_bytes()
        for arguments in [*rng.sample(LOOKS, 2), ["doctor", "--verify"]]:
            done = call(*arguments, cwd=copied)
            said = f"{number} (seed {SEED}), {what}: {arguments}: {done.returncode}\n{done.stdout[-300:]}{done.stderr}"
            codes = (0, 4) if arguments[0] == "doctor" else (0, 2, 3, 4)
            printable = not drives_terminal((done.stdout + done.stderr).replace("\r\n", "\n"))
            same = path.read_bytes() == spoilt
            # a log may hold the task's own traceback
            if done.returncode not in codes or "Traceback" in done.stderr or not printable or not same:
                wrong.append(said)
            ends[done.returncode] += 1
    assert not wrong, f"{len(wrong)} of {ends.total()}:\n" + "\n".join(wrong[:20])
    assert ends[0]
    assert ends[3]


def test_a_row_cannot_lead_out_of_the_store(copied: Path, call: Call) -> None:
    secret = copied / "secret" / "stdout.log"
    secret.parent.mkdir()
    secret.write_text("the secret")
    for folder in ("../secret", str(secret.parent), "trials/../../secret", "trials/x/../../../secret"):
        change(copied, f"UPDATE attempt SET folder = '{folder}'")
        for command in (["logs", "three"], ["watch"], ["show", "three"]):
            done = call(*command, cwd=copied)
            assert "the secret" not in done.stdout + done.stderr
            assert "Traceback" not in done.stderr
        assert call("logs", "three", cwd=copied).returncode == 3
        with pytest.raises(StoreError, match="names a folder that is not its own"):
            open_store(copied / "runs" / "ablate.db", read_only=True).path_of(folder)


def test_a_lock_that_a_row_names_keeps_nobody_waiting(copied: Path, call: Call, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "link", "none"):
        here = locks.boot_id()
        change(
            copied,
            f"UPDATE runner SET lock_file = '{tmp_path / name}', boot_id = '{here}', ended = NULL, heartbeat = 0",
        )
        assert call("status", cwd=copied).returncode == 0


# --- attempt folders -----------------------------------------------------------------------------------------------


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_link(path: Path) -> None:
    path.with_name("secret").write_text('{"epoch": 1, "values": {"secret": 1}}\nthe secret\n')
    path.symlink_to(path.with_name("secret"))


def an_endless_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def binary(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(100_000))


def without_end(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(5 << 30)  # a hole: it takes no room on the disk, and would take 5 GiB of memory


def deep(path: Path) -> None:
    path.write_text("[" * 200_000 + "\n")


KINDS: list[Callable[[Path], None]] = [a_pipe, a_folder, a_link, an_endless_link, binary, without_end, deep]
FILES = ["result.json", "metrics.jsonl", "stdout.log", "scores.npz", "checkpoint/manifest.json"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("make", KINDS)
def test_a_file_that_is_none_neither_keeps_nor_breaks_its_reader(
    make: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    folder = AttemptFolder(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    make(tmp_path / name)
    result = folder.result()
    assert result is None or (result.outcome == "error") == (name == "result.json")
    assert folder.records()[0] == []
    tail = folder.log_tail()
    assert "the secret" not in tail
    folder.note_in_log("a note")
    if make is not without_end:
        folder.cap_log()
    if name == "scores.npz":
        assert kept_scores(folder, "acc", 1.0)[0] is None
    assert manifest.read_manifest(folder.checkpoints) == []


LAST_WORD = {"outcome": "ok", "metrics": {}, "error": "", "hint": "", "exit_code": 0, "seconds": 0,
             "resumed_from": "", "facts": {}}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "{}", '"x"', "{", "NaN", "9" * 10_000, '{"outcome": "ok"}',
        *(json.dumps(LAST_WORD | part) for part in ({"outcome": "won"}, {"outcome": []}, {"metrics": []}, {"error": 1},
                                                    {"metrics": {"a": "x"}}, {"seconds": "x"}, {"facts": {"a": 1}})),
    ],
    ids=range(16),
)  # fmt: skip
def test_a_last_word_that_makes_no_sense_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    assert AttemptFolder(tmp_path).result() == Result("error", error="result.json is not what a worker writes")


def test_a_last_word_is_told_as_any_store_takes_it(tmp_path: Path) -> None:
    values = LAST_WORD | {"metrics": {"a\ud800": "nan", "b": 10**400}, "error": "x\0y" + "z" * 10_000}
    values |= {"seconds": float("1e999"), "resumed_from": "../../x", "facts": {"\0": "\udcff"}}
    (tmp_path / "result.json").write_text(json.dumps(values))
    assert AttemptFolder(tmp_path).result() == Result("error", error="result.json is not what a worker writes")
    del values["metrics"]["b"]  # type: ignore[attr-defined]
    (tmp_path / "result.json").write_text(json.dumps(values))
    result = AttemptFolder(tmp_path).result()
    assert result is not None
    assert list(result.metrics) == ["a\\ud800"]
    assert (result.seconds, result.resumed_from, result.facts) == (0.0, "", {"\\x00": "\\udcff"})
    assert result.error.startswith("x\\x00y")
    assert len(result.error) < 5000


def test_lines_that_are_no_records_are_passed_over(tmp_path: Path) -> None:
    folder = AttemptFolder(tmp_path)
    good = b'{"epoch": 1, "time": 1.5, "values": {"a": "nan"}}\n'
    bad = [b"x", b"[]", b"{}", b"\xff", b'{"epoch": true, "values": {}}', b'{"epoch": 1e3, "values": {}}',
           b"[" * 100_000, b'{"epoch": 99999999999, "values": {}}', b'{"epoch": 1, "values": []}',
           b'{"epoch": 1, "values": {"a": []}}',
           b'{"epoch": 1, "time": "x", "values": {}}', b'{"epoch": 1, "epochs": null, "values": {}}', b"9" * 5000,
           b"x" * (RECORDS_BLOCK + 1)]  # fmt: skip
    folder.metrics_file.write_bytes(good + b"\n".join(bad) + b"\n" + good)
    records, offset = [], -1
    at = 0
    while at != offset:
        offset = at
        found, at = folder.records(offset)
        records += found
    assert at == folder.metrics_file.stat().st_size
    assert [record["epoch"] for record in records] == [1, 1]
    with pytest.raises(ValueError, match="an epoch is a count below"):
        Context(seed=1, folder=tmp_path).record(epoch=1 << 31)


def test_what_lies_in_the_way_of_an_attempt_is_moved_aside(tmp_path: Path) -> None:
    """Two stores may share a folder: the result of one must not pass for that of the other."""
    folder = AttemptFolder(tmp_path / "trials" / "abc" / "1")
    work = Work("a:b", ".", {}, 1, "f")
    folder.create(work)
    folder.write_result(Result("ok", {"acc": 99.0}))
    folder.create(work)
    assert folder.result() is None
    assert folder.work() == work
    (kept,) = folder.path.parent.glob("1.before-*")
    assert (kept / "result.json").exists()


SPITEFUL = """
import os, pathlib
def train(settings, context):
    folder = pathlib.Path(context.folder)
    for name in ("metrics.jsonl", "scores.npz"):
        os.mkfifo(folder / name)
    (folder / "stdout.log").unlink()
    if context.seed == 1:
        os.mkfifo(folder / "stdout.log")
        (folder / "result.json").mkdir()  # so that not even the worker can say its last word
    else:
        (folder / "stdout.log").symlink_to("/etc/passwd")
        context.fact("a\\udcff\\x00", "\\x1b[2J")
        raise FileNotFoundError("no \\udcff\\x00\\x1b[31m file")
    return {"acc": 1.0}
"""


def test_a_spiteful_task_ends_neither_the_run_nor_its_listeners(project: Path, call: Call) -> None:
    write_study(project, task=SPITEFUL)
    done = ablate("run", "toy.yaml", "--only", "baseline", cwd=project)
    assert done.returncode == 1, done.stderr
    assert "2 failed" in done.stderr
    assert drives_terminal(done.stdout + done.stderr) == ""
    assert "root:" not in done.stderr
    assert query(project, "SELECT count(*) FROM attempt WHERE outcome = 'error'") == [(2,)]
    for command, code in (
        (["status"], 0),
        (["show", "baseline"], 0),
        (["logs"], 4),
        (["logs", "baseline", "-n", "3"], 4),
    ):
        done = call(*command, cwd=project)  # type: ignore[assignment]
        assert done.returncode == code, done.stderr
        assert drives_terminal(done.stdout + done.stderr) == ""
    assert call("doctor", "--verify", cwd=project).returncode == 0


# --- checkpoints -----------------------------------------------------------------------------------------------------


class Canary:
    """Unpickled by anything that trusts it, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.path), "w"))


def as_torch(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["pickle", "torch", "within a state", "no dict", "no state", "nothing"])
def test_a_checkpoint_runs_nothing_and_an_older_one_is_gone_on_from(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its hash is right: whoever made it made the manifest too."""
    canary = Canary(tmp_path / "canary")
    folder = tmp_path / "checkpoint"
    checkpoint.save(folder, {"number": 1}, [], fingerprint="f")
    data = {
        "pickle": pickle.dumps(canary),
        "torch": as_torch(canary),
        "within a state": as_torch({"fingerprint": "f", "state": {"x": canary}, "records": []}),
        "no dict": as_torch([1, 2]),
        "no state": as_torch({"fingerprint": "f", "state": 1, "records": None}),
        "nothing": b"",
    }[kind]
    (folder / "2.pt").write_bytes(data)
    entry = {"number": 2, "file": "2.pt", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps([*manifest.read_manifest(folder), entry]))
    saved = checkpoint.load(folder, fingerprint="f")
    assert saved is not None
    assert saved["state"] == {"number": 1}
    assert not (tmp_path / "canary").exists()
    assert ("2.pt can't be loaded" in capsys.readouterr().err) == (kind not in ("no dict", "no state"))
    if kind == "pickle":
        pickle.loads(data).close()
        assert (tmp_path / "canary").exists(), "the canary sings where it is trusted"


# --- device locks --------------------------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(locks.tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("make", [a_pipe, a_link, binary])
def test_device_locks_are_kept_in_no_folder_that_is_none(temporary: Path, make: Callable[[Path], None]) -> None:
    make(temporary / "ablate-locks")
    with pytest.raises(EnvironmentFault, match="it is a link, or no folder"):
        locks.host_locks()


def test_a_planted_lock_keeps_nobody_waiting_and_leads_nowhere(temporary: Path) -> None:
    folder = locks.host_locks()
    assert folder.stat().st_mode & 0o7777 == 0o1777
    os.mkfifo(folder / "cpu0.lock")
    (folder / "cpu1.lock").symlink_to(temporary / "made")
    for name in ("cpu0.lock", "cpu1.lock"):
        with pytest.raises(EnvironmentFault, match="the lock can't be used"):
            locks.FileLock.try_take(folder / name)
        assert not locks.is_free(folder / name)
    assert not (temporary / "made").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_another_users_locks_are_shared_and_an_open_folder_is_refused() -> None:
    """As root: the folder is user 1000's, and user 1001 looks at it."""
    look = (
        "import os, pathlib, tempfile; from ablate.run import locks; from ablate.train.folder import open_lock\n"
        "os.setgid(1001); os.setuid(1001); tempfile.tempdir = os.environ['SHARED']\n"
        "folder = locks.host_locks()\n"
        "print(locks.FileLock.try_take(folder / 'theirs.lock') is not None, open_lock(str(folder / 'theirs.lock')) > 0)"
    )
    shared = Path(tempfile.mkdtemp(dir="/tmp"))  # others may not enter the folders of tests
    try:
        shared.chmod(0o1777)
        folder = shared / "ablate-locks"
        folder.mkdir()
        (folder / "theirs.lock").touch(mode=0o644)
        for path in (folder, folder / "theirs.lock"):
            os.chown(path, 1000, 1000)
        for mode, expected in ((0o1777, "True True"), (0o777, "everybody may take away"), (0o755, "not writable")):
            folder.chmod(mode)
            done = subprocess.run(
                [sys.executable, "-c", look],
                capture_output=True,
                text=True,
                env={**os.environ, "SHARED": str(shared)},
                check=False,
            )
            assert expected in done.stdout + done.stderr, done.stderr
    finally:
        shutil.rmtree(shared)
