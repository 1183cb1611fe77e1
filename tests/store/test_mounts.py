"""SQLite on a network file system is read and never written."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ablate.errors import StoreError
from ablate.store import mounts
from ablate.store.mounts import file_system, is_network
from ablate.store.store import open_store
from tests.command import Call
from tests.store.test_migrations import DUMP
from tests.studies import write_study


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the kernel would say is on NFS."""
    table = tmp_path / "mountinfo"
    (tmp_path / "far").mkdir()
    table.write_text(
        "27 1 254:0 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/x - y\n"
        f"41 27 0:50 / {tmp_path}/far rw,relatime shared:7 master:2 - nfs4 server:/home rw,vers=4.2\n"
    )
    monkeypatch.setattr(mounts, "MOUNTS", table)
    return tmp_path / "far"


def test_the_longest_mount_point_above_a_path_counts(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "27 1 254:0 / / rw - ext4 /dev/vda rw\n"
        "28 27 0:1 / /data rw - autofs systemd-1 rw\n"
        "29 28 0:2 / /data rw shared:3 - nfs server:/data rw\n"
        "30 29 0:3 / /data/local rw - xfs /dev/vdb rw\n"
        "31 27 0:4 / /a\\040b\\134c rw - fuse.sshfs me@there: rw\n"
        "broken line\n"
    )
    found = {name: file_system(Path(name), table) for name in ("/", "/data/x/y", "/database", "/data/local/z")}
    assert found == {"/": "ext4", "/data/x/y": "nfs", "/database": "ext4", "/data/local/z": "xfs"}
    assert file_system(Path("/a b\\c/d"), table) == "fuse.sshfs"
    assert file_system(Path("/"), tmp_path / "none") == ""


@pytest.mark.parametrize(
    "kind",
    [
        "nfs", "nfs4", "cifs", "smb3", "9p", "fuse", "fuse.sshfs", "fuse.glusterfs", "fuse.grpcfuse", "virtiofs",
        "lustre", "ceph", "fuse.ceph-fuse", "glusterfs", "afs", "gpfs", "beegfs",
    ],
)  # fmt: skip
def test_what_machines_share_is_a_network_file_system(kind: str) -> None:
    assert is_network(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuse.fuse-overlayfs", "fuseblk", "aufs", "ecryptfs",
        "fuse.gocryptfs", "apfs", "",
    ],
)  # fmt: skip
def test_disks_and_containers_are_local(kind: str) -> None:
    assert not is_network(kind)


def test_a_store_is_not_made_there(mount: Path) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(mount / "runs" / "ablate.db", create=True)
    assert str(caught.value) == (
        f"error: {mount}/runs/ablate.db: SQLite can't be written on a network file system (nfs4): its locks are not"
        " safe there\nhint: name a file on a local disk (--store PATH), or use PostgreSQL"
        " (--store postgresql+psycopg://…)"
    )
    assert list(mount.iterdir()) == []


def test_a_link_does_not_hide_it(mount: Path) -> None:
    (mount.parent / "near").symlink_to(mount)
    with pytest.raises(StoreError, match="nfs4"):
        open_store(mount.parent / "near" / "ablate.db", create=True)


def test_a_store_there_is_read_and_not_upgraded(mount: Path) -> None:
    path = mount / "ablate.db"
    open_store(mount.parent / "here.db", create=True).close()
    (mount.parent / "here.db").rename(path)
    open_store(path, read_only=True).close()
    with pytest.raises(StoreError, match="nfs4"):
        open_store(path)
    path.unlink()
    with closing(sqlite3.connect(path)) as file:
        file.executescript(DUMP.read_text())
    before = path.read_bytes()
    with pytest.raises(StoreError, match="an earlier ablate wrote this store, and it can't be upgraded: SQLite can't"):
        open_store(path, read_only=True)
    assert path.read_bytes() == before


def test_a_run_there_ends_before_it_began(mount: Path, call: Call) -> None:
    (mount / ".git").mkdir()
    write_study(mount)
    done = call("run", "toy.yaml", cwd=mount)
    assert done.returncode == 3
    assert done.stderr.count("error: ") == 1
    assert "network file system (nfs4)" in done.stderr
    assert not (mount / "runs").exists()
    local = call("run", "toy.yaml", "--store", str(mount.parent / "local" / "ablate.db"), cwd=mount)
    assert local.returncode == 0, local.stderr
