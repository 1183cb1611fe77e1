"""A store that can't be written: one line, exit 3, and the same command goes on where there is room again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ablate.errors import StoreError
from ablate.store.facts import record_plan
from ablate.store.integrity import store_flaws
from ablate.store.store import open_store
from tests.command import ablate, query, results
from tests.studies import TOY_STUDY, toy_plan, write_study

BUSY = TOY_STUDY.replace("seeds: 2", "seeds: 4")  # 12 trials, with a folder each


def mount(folder: Path, options: str) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder to mount a small disk on."""
    if os.geteuid() or sys.platform != "linux":
        pytest.skip("only root may mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    yield folder
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def one_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    assert "a fault of ablate itself" not in said
    return lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("size", ["60k", "220k"], ids=["before the store is made", "in the middle"])
def test_a_run_on_a_full_disk_goes_on_when_there_is_room(tmp_path: Path, disk: Path, size: str) -> None:
    mount(disk, f"size={size}")
    (tmp_path / ".git").mkdir()
    (tmp_path / "runs").symlink_to(disk)
    write_study(tmp_path, BUSY)
    done = ablate("run", "toy.yaml", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert one_line(done.stderr).endswith("runs/ablate.db: the store can't be used: database or disk is full")
    assert "hint: free some space and run the same command again: what was committed is safe" in done.stderr
    before = results(tmp_path) if size == "220k" else []
    remount(disk, "size=64m")
    again = ablate("run", "toy.yaml", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert store_flaws(open_store(disk / "ablate.db", read_only=True), thorough=True) == []
    assert set(before) <= set(results(tmp_path))
    assert query(tmp_path, "SELECT state, count(*) FROM trial GROUP BY state") == [("done", 12)]


@pytest.mark.slow
def test_a_folder_that_is_read_only_is_said_in_one_line(tmp_path: Path, disk: Path) -> None:
    mount(disk, "size=4m")
    write_study(disk)
    (disk / ".git").mkdir()
    assert ablate("run", "toy.yaml", cwd=disk, TMPDIR=str(tmp_path)).returncode == 0
    write_study(disk, BUSY)
    remount(disk, "ro")
    whole = (disk / "runs" / "ablate.db").read_bytes()
    done = ablate("run", "toy.yaml", cwd=disk, TMPDIR=str(tmp_path))
    assert done.returncode == 3, done.stderr
    assert "readonly" in one_line(done.stderr) or "not writable" in one_line(done.stderr)
    assert "hint: " in done.stderr
    assert ablate("report", cwd=disk, TMPDIR=str(tmp_path)).returncode == 0, "reading needs no room"
    assert (disk / "runs" / "ablate.db").read_bytes() == whole
    remount(disk, "rw")
    assert ablate("run", "toy.yaml", cwd=disk, TMPDIR=str(tmp_path)).returncode == 0


def test_a_store_is_not_made_where_nothing_can_be_written(disk: Path) -> None:
    mount(disk, "size=4m,ro")
    for path in (disk / "ablate.db", disk / "new" / "ablate.db"):
        with pytest.raises(StoreError) as caught:
            open_store(path, create=True)
        assert caught.value.exit_code == 3
        assert "hint: " in str(caught.value)
    assert list(disk.iterdir()) == []


# the limit of a file's size meets SQLite like a full disk, and needs no rights
FILLER = """
import resource, signal, sys
from pathlib import Path
from ablate.errors import StoreError
from ablate.store.facts import record_plan
from ablate.store.store import open_store
from tests.studies import toy_plan

folder = Path(sys.argv[1])
store = open_store(folder / "ablate.db")
size = (folder / "ablate.db").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4096, resource.RLIM_INFINITY))
try:
    record_plan(store, toy_plan(folder, overrides=["seeds=500"]))
except StoreError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_write_that_finds_no_room_leaves_what_was_committed(tmp_path: Path) -> None:
    store = open_store(tmp_path / "ablate.db", create=True)
    record_plan(store, toy_plan(tmp_path))
    store.close()
    done = subprocess.run([sys.executable, "-c", FILLER, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    assert "disk" in one_line(done.stdout)
    assert "hint: free some space and run the same command again: what was committed is safe" in done.stdout
    store = open_store(tmp_path / "ablate.db")
    assert store_flaws(store, thorough=True) == []
    assert record_plan(store, toy_plan(tmp_path)) == 1, "the study is there as it was committed"
    assert record_plan(store, toy_plan(tmp_path, overrides=["seeds=500"])) == 2
