"""Locks that the kernel frees at death: no daemon, and nothing to unlock by hand."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from pathlib import Path

from ablate.errors import EnvironmentFault
from ablate.failpoints import failpoint
from ablate.train.folder import FREE_SPACE, open_lock

LOCKS_HINT = "remove it, or have its owner do so; a TMPDIR of your own shares no device with other users' runs"


class FileLock:
    """A lock on a file (flock). Its descriptor is closed on exec: children of ours do not hold it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def try_take(cls, path: Path, *, shared: bool = False) -> FileLock | None:
        """Return the lock, or None where another process holds it. Several may hold it ``shared``, or one alone."""
        try:
            descriptor = open_lock(str(path))
        except OSError as error:
            raise EnvironmentFault(
                f"the lock can't be used: {error.strerror}", where=str(path), hint=FREE_SPACE
            ) from None
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
    if not os.path.lexists(path):
        return False
    try:
        lock = FileLock.try_take(path, shared=True)  # or two that look at one time would take each other for its runner
    except EnvironmentFault:
        return False  # no lock file, or not one of ours to read: it says nothing
    if lock is None:
        return False
    lock.release()
    return True


def host_locks() -> Path:
    """Return the folder of this host's device locks, shared by all runs of all users. Raises EnvironmentFault.

    Whoever came first owns it; the sticky bit keeps others from taking each other's locks away. Nothing is ever written
    into a lock, and none is opened through a link.
    """
    folder = lock_folder()
    try:
        failpoint("host-locks-begun")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        flaw = flaw_of_lock_folder(folder)
        if not flaw and folder.lstat().st_uid == os.getuid():
            folder.chmod(0o1777)
    except OSError as error:
        hint = "free some space, or name a folder that can be written with TMPDIR, the same for all runs on this host"
        raise EnvironmentFault(f"device locks can't be kept: {error.strerror}", where=str(folder), hint=hint) from None
    if flaw:
        raise EnvironmentFault(f"device locks can't be kept: {flaw}", where=str(folder), hint=LOCKS_HINT)
    return folder


def lock_folder() -> Path:
    """Return where this host's device locks lie, be it there or not."""
    return Path(tempfile.gettempdir()) / "ablate-locks"


def flaw_of_lock_folder(folder: Path) -> str:
    """Return why locks may not be kept in a folder; empty where they may. Raises OSError where it is not there."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return "it is a link, or no folder"
    if found.st_uid != os.getuid() and found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        return "everybody may take away what is in it"
    return "" if os.access(folder, os.W_OK | os.X_OK) else "it is another user's, and not writable"


def boot_id() -> str:
    """Return what differs after a reboot; empty where the system does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
