"""Steps that change nothing, told while a study runs: days of training are too long to wait for the report."""

from __future__ import annotations

from collections.abc import Iterator

from ablate.plan.trials import Plan
from ablate.store.history import values_of
from ablate.store.store import Store

LEAST = 3  # different numbers that must agree: one accuracy may tie by chance


class Unchanged:
    """Finds steps of a plan that do not reach the code: each is told of once, and no longer asked for once it did."""

    def __init__(self, plan: Plan, store: Store, *, said: Unchanged | None = None) -> None:
        self._store = store
        self._metrics = list(plan.study.metrics)
        self._settled: set[str] = said._settled if said else set()
        self._pairs: dict[str, list[tuple[str, str, int, str]]] = {}
        for own, pair in _pairs(plan):
            self._pairs.setdefault(own, []).append(pair)

    def said_of(self, fingerprint: str) -> Iterator[str]:
        """Yield what to say where a trial that has just finished measured what its parent did or its child.

        To the last bit, every declared metric at every epoch, at the same seed: such a step does not reach the code.
        """
        pairs = [pair for pair in self._pairs.get(fingerprint, ()) if pair[0] not in self._settled]
        if not pairs:
            return
        values = values_of(self._store, [fingerprint, *(found for *_, found in pairs)], self._metrics)
        own = values.get(fingerprint, {})
        for arm, other, seed, found in pairs:
            if found in values and arm not in self._settled:
                if values[found] != own:
                    self._settled.add(arm)
                elif len(set(own.values())) >= LEAST:
                    self._settled.add(arm)
                    yield f"{arm} seed {seed} is bit-identical to {other}: the change is probably not reaching the code"


def _pairs(plan: Plan) -> Iterator[tuple[str, tuple[str, str, int, str]]]:
    """Yield, for each trial that stands in a row and each it is compared with: it, and (arm, other, seed, that one)."""
    # candidates of two arms that go by one number are equal settings, or else their results differ
    trials = {(each.arm, each.role, each.seed, each.candidate): each.trial.fingerprint for each in plan.replicates}
    contrasts: dict[str, list[tuple[str, str, str]]] = {}
    for contrast in plan.contrasts:
        if contrast.changes:
            contrasts.setdefault(contrast.arm, []).append((contrast.arm, contrast.other, contrast.other))
            contrasts.setdefault(contrast.other, []).append((contrast.arm, contrast.other, contrast.arm))
    for here in plan.replicates:
        for arm, other, partner in contrasts.get(here.arm, ()):
            found = trials.get((partner, here.role, here.seed, here.candidate), here.trial.fingerprint)
            if found != here.trial.fingerprint:
                yield here.trial.fingerprint, (arm, other, here.seed, found)
