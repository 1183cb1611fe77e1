"""Who is alive: by the kernel's word on this host, else by the lease. Reading it changes nothing."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from ablate.run.locks import boot_id, is_free
from ablate.store.claims import LEASE_S, Held
from ablate.store.history import StoredRunner
from ablate.store.store import Store, is_sqlite

LOOK_S = 1.0
LOOKS_PER_S = 10.0  # of all runners together: each costs as much as there are trials at work


class Owners:
    """Tells which owners of running trials are gone, so that their trials may be taken from them.

    On this host the kernel says whether one is alive, whatever clocks say. One that is, and has renewed nothing for two
    leases by a clock that nobody sets, is frozen. Of others all that is known is the lease, by the store's time.
    """

    def __init__(self, store: Store, *, lease_s: float = LEASE_S) -> None:
        self._store = store
        self._lease_s = lease_s
        self._renewed: dict[tuple[int, int], tuple[float, float]] = {}  # (trial, claim) → its lease, first seen when
        self._found: set[tuple[int, int]] | None = None  # what was held when we first looked
        self.look_s = LOOK_S  # from one look to the next: where many hold trials, others look in between

    def gone(self, held: Sequence[Held]) -> list[Held]:
        """Return those of all running trials whose owners are gone."""
        at = monotonic()
        self.look_s = max(LOOK_S, len({each.owner for each in held}) / LOOKS_PER_S)
        known = {(each.trial, each.claim): (each.lease_until, at) for each in held}
        for key, (lease_until, _) in known.items():
            if key in self._renewed and self._renewed[key][0] == lease_until:
                known[key] = self._renewed[key]
            elif key in self._renewed and self._found is not None:
                self._found.discard(key)
        self._renewed = known
        if self._found is None:
            self._found = set(known)
        return [each for each in held if self._is_gone(each, at - known[each.trial, each.claim][1])]

    def has_shown_life(self, trial: int, claim: int) -> bool:
        """Tell whether the owner of a running trial has claimed it or renewed its lease since we first looked."""
        return self._found is not None and (trial, claim) not in self._found

    def _is_gone(self, held: Held, unrenewed_s: float) -> bool:
        lock = Path(held.lock_file)
        if held.boot_id == boot_id() and lock.exists():
            return is_free(lock) or unrenewed_s > 2 * self._lease_s
        return held.lease_until < held.now or _was_before_reboot(held, self._store)


def is_alive(runner: StoredRunner, store: Store) -> bool:
    """Tell whether a runner is at work. One on another host counts as alive until its heartbeat is a lease old."""
    if runner.ended is not None or _was_before_reboot(runner, store):
        return False
    lock = Path(runner.lock_file)
    if runner.boot_id == boot_id() and lock.exists():
        return not is_free(lock)
    return runner.now < runner.heartbeat + LEASE_S


def _was_before_reboot(runner: Held | StoredRunner, store: Store) -> bool:
    same_host = is_sqlite(store.engine.url) and runner.host == socket.gethostname()
    return same_host and runner.boot_id != boot_id()
