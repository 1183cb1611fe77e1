"""Candidates that are behind the others of their arm are ended early: by the median rule, as Optuna has it.

Only trials that tune are ever pruned: what a table is made from is always trained to its end.
"""

from __future__ import annotations

from collections.abc import Mapping

from ablate.plan.trials import Plan
from ablate.plan.tuning import is_behind
from ablate.store.facts import states_of
from ablate.store.history import values_of
from ablate.store.store import Store


class Pruner:
    """Judges the attempts of one runner. ``plan`` must be the one that its trials stand in."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self._primary = plan.study.primary
        self._goal = plan.study.metrics[self._primary].goal
        self._store = store
        self._ended: dict[str, dict[int, float]] = {}
        self._peers: dict[str, list[str]] = {}
        needed = {each.trial.fingerprint for each in plan.replicates if each.role != "tune"}
        groups: dict[tuple[str, int], list[str]] = {}
        for each in plan.replicates:
            if each.role == "tune":
                groups.setdefault((each.arm, each.seed), []).append(each.trial.fingerprint)
        for peers in groups.values():
            self._peers.update((fingerprint, peers) for fingerprint in peers if fingerprint not in needed)

    def is_behind(self, fingerprint: str, epochs: Mapping[int, float]) -> bool:
        """Tell whether a candidate's best epoch so far is worse than the median of what its peers had by then.

        ``epochs``: the primary metric as it was recorded. A value that is not finite is behind any other.
        """
        if not epochs or fingerprint not in self._peers:
            return False
        others = self._finished(fingerprint)
        return is_behind(epochs, others, self._goal)

    def _finished(self, fingerprint: str) -> list[dict[int, float]]:
        """Return the epochs of those peers that have ended; what is finished does not change, and is read once."""
        peers = [each for each in self._peers[fingerprint] if each != fingerprint]
        unread = [each for each in peers if each not in self._ended]
        done = [each for each, state in states_of(self._store, unread).items() if state == "done"] if unread else []
        read = values_of(self._store, done, [self._primary]) if done else {}
        for peer in done:
            recorded = read.get(peer, {}).items()
            self._ended[peer] = {epoch: value for (_, epoch), (value, _) in recorded if epoch and value is not None}
        return [epochs for each in peers if (epochs := self._ended.get(each))]
