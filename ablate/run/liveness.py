"""Who is alive: by the kernel's word on this host, else by the lease. Reading it changes nothing."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from ablate.run.locks import boot_id, is_free
from ablate.store.claims import LEASE_S, Held
from ablate.store.history import StoredRunner
from ablate.store.store import Store, is_sqlite


def is_dead(held: Held, store: Store, *, lease_s: float = LEASE_S) -> bool:
    """Tell whether the owner of a running trial is gone, so that the trial may be taken from it."""
    if held.lease_until < time.time():
        # frozen and late, or on another host: its lock says nothing, its lease is over
        return not (held.boot_id == boot_id() and _is_late(held, lease_s))
    if held.boot_id == boot_id():
        return is_free(Path(held.lock_file))
    return _was_before_reboot(held, store)


def is_alive(runner: StoredRunner, store: Store) -> bool:
    """Tell whether a runner is at work. One on another host counts as alive until its heartbeat is a lease old."""
    if runner.ended is not None or _was_before_reboot(runner, store):
        return False
    lock = Path(runner.lock_file)
    if runner.boot_id == boot_id() and lock.exists():
        return not is_free(lock)
    return time.time() < runner.heartbeat + LEASE_S


def _is_late(held: Held, lease_s: float) -> bool:
    """A runner that is alive and late (a suspended laptop) keeps its trials for one more lease."""
    lock = Path(held.lock_file)
    return lock.exists() and not is_free(lock) and time.time() < held.lease_until + lease_s


def _was_before_reboot(runner: Held | StoredRunner, store: Store) -> bool:
    same_host = is_sqlite(store.engine.url) and runner.host == socket.gethostname()
    return same_host and runner.boot_id != boot_id()
