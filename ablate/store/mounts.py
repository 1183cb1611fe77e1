"""Which file system holds a path: SQLite is safe on a local one only."""

from __future__ import annotations

import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
# locks and fsync are not what SQLite needs there, or not on every server
_NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cephfs", "cifs", "coda", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs",
    "nfs", "nfs3", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb2", "smb3", "smbfs", "virtiofs", "wekafs",
}  # fmt: skip
# a FUSE file system may be anything; these keep their files in a local folder or on a local disk
_LOCAL_FUSE = {
    "bindfs", "cryfs", "encfs", "exfat", "fuse-overlayfs", "gocryptfs", "mergerfs", "ntfs", "ntfs-3g", "securefs",
    "veracrypt",
}  # fmt: skip


def file_system(path: Path, mounts: Path | None = None) -> str:
    """Return the type of the file system that holds a path, there or not; empty where the system does not say."""
    try:
        lines = (mounts or MOUNTS).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    path = path.resolve()
    best, kind = "", ""
    for line in lines:
        mounted, _, source = line.partition(" - ")
        fields = mounted.split(" ")
        if len(fields) < 5 or not source:
            continue
        point = _unescaped(fields[4])
        # a later mount hides an earlier one at the same place
        if path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, _unescaped(source.split(" ")[0])
    return kind


def is_network(kind: str) -> bool:
    """Tell whether a type of file system may be shared by machines. Overlays and disks in user space are not."""
    kind = kind.lower()
    name, _, program = kind.partition(".")
    return name in _NETWORK or (name == "fuse" and program not in _LOCAL_FUSE)


def _unescaped(text: str) -> str:
    """Return a field of the mount table with its spaces, tabs and backslashes (octal there)."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
