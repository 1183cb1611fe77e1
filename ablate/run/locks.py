"""Locks that the kernel frees at death: no daemon, and nothing to unlock by hand."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from pathlib import Path

from ablate.errors import EnvironmentFault


class FileLock:
    """A lock on a file (flock). Its descriptor is closed on exec: children of ours do not hold it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def try_take(cls, path: Path, *, shared: bool = False) -> FileLock | None:
        """Return the lock, or None where another process holds it. Several may hold it ``shared``, or one alone."""
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return cls(path, descriptor)

    def release(self) -> None:
        os.close(self._descriptor)


def is_free(path: Path) -> bool:
    """Tell whether a lock file exists and nobody holds it: its runner is dead."""
    if not path.exists():
        return False
    lock = FileLock.try_take(path, shared=True)  # or two that look at one time would take each other for its runner
    if lock is None:
        return False
    lock.release()
    return True


def host_locks() -> Path:
    """Return the folder of this host's device locks, shared by all runs of all users. Raises EnvironmentFault."""
    folder = Path(tempfile.gettempdir()) / "ablate-locks"
    try:
        folder.mkdir(exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise EnvironmentFault("device locks need a folder of this name", where=str(folder), hint="remove the file")
        if found.st_uid == os.getuid():
            folder.chmod(0o1777)
    except OSError as error:
        raise EnvironmentFault(f"device locks can't be kept: {error.strerror}", where=str(folder)) from None
    return folder


def boot_id() -> str:
    """Return what differs after a reboot; empty where the system does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _open(path: Path) -> int:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        # read-only is enough for flock, and works on another user's file
        return os.open(path, os.O_RDONLY | flags)
    except FileNotFoundError:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644)
