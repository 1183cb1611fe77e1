"""Steps that change nothing, told while a study runs: days of training are too long to wait for the report."""

from __future__ import annotations

from collections.abc import Iterator

from ablate.plan.trials import Plan
from ablate.store.history import values_of
from ablate.store.store import Store

LEAST = 3  # different numbers that must agree: one accuracy may tie by chance


def unchanged(plan: Plan, store: Store, fingerprint: str) -> dict[str, str]:
    """Return what to say, by arm, where a trial that has just finished measured what its parent did or its child.

    To the last bit, every declared metric at every epoch, at the same seed: such a step does not reach the code.
    """
    pairs = {arm: (other, seed, found) for arm, other, seed, found in _pairs(plan, fingerprint)}
    if not pairs:
        return {}
    values = values_of(store, [fingerprint, *(found for _, _, found in pairs.values())], list(plan.study.metrics))
    own = values.get(fingerprint, {})
    return {
        arm: f"{arm} seed {seed} is bit-identical to {other}: the change is probably not reaching the code"
        for arm, (other, seed, found) in pairs.items()
        if len(set(own.values())) >= LEAST and values.get(found) == own
    }


def _pairs(plan: Plan, fingerprint: str) -> Iterator[tuple[str, str, int, str]]:
    """Yield (arm, what it is compared with, seed, the other of the two trials) for each row that a trial stands in."""
    # candidates of two arms that go by one number are equal settings, or else their results differ
    trials = {(each.arm, each.role, each.seed, each.candidate): each.trial.fingerprint for each in plan.replicates}
    for here in (each for each in plan.replicates if each.trial.fingerprint == fingerprint):
        for contrast in plan.contrasts:
            if contrast.changes and here.arm in (contrast.arm, contrast.other):
                partner = contrast.other if here.arm == contrast.arm else contrast.arm
                found = trials.get((partner, here.role, here.seed, here.candidate), fingerprint)
                if found != fingerprint:
                    yield contrast.arm, contrast.other, here.seed, found
