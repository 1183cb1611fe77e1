"""What a trial may go on from: the end of a finished one with fewer epochs and all else equal, which was trained alike.

Whether that is so in every bit is for the worker to find out: it knows the model, and the runner what it was told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ablate.plan.prefixes import Prefixes
from ablate.plan.trials import Plan, fingerprint
from ablate.run.provenance import PACKAGES
from ablate.store import claims
from ablate.store.facts import trials_of
from ablate.store.store import Store
from ablate.study.settings import Settings
from ablate.train.folder import AttemptFolder
from ablate.train.manifest import has_checkpoint

_ALIKE = ("ablate", "cpu", "driver", "gpu", "gpus", "python", "threads", *PACKAGES)  # on which the bits depend


class Shorter:
    """The shorter trials of a plan. ``code``: the hash of the task's source, which must be theirs as well."""

    def __init__(self, store: Store, plan: Plan, study_id: int, *, code: str) -> None:
        self._store = store
        self._study = plan.study
        self._code = code
        self._prefixes = Prefixes(plan)
        self._before: dict[int, set[int]] = {}  # a trial → those that it may go on from, once they have ended
        if self._prefixes:
            trials = {(each.arm, each.seed): each.trial for each in trials_of(store, study_id)}
            shorter = {arm.name: [each.name for each in self._prefixes.shorter(arm.settings)] for arm in plan.arms}
            for (arm, seed), trial in trials.items():
                found = {trials[name, seed] for name in shorter.get(arm, ()) if (name, seed) in trials}
                if found:
                    self._before[trial] = found

    def in_order(self, waiting: Sequence[int]) -> list[int]:
        """Return waiting trials in the order in which to claim them: last those whose shorter one is not done yet."""
        asked = set().union(*(self._before.get(each, ()) for each in waiting))
        if not asked:
            return list(waiting)
        unsettled = claims.unsettled(self._store, asked)
        return sorted(waiting, key=lambda each: bool(self._before.get(each, set()) & unsettled))

    def has_longer(self, settings: Settings) -> bool:
        """Tell whether an arm of the plan may go on from the end of this one."""
        return self._prefixes.has_longer(settings)

    def folders(self, settings: Settings, seed: int, noted: Mapping[str, str]) -> dict[str, str]:
        """Return the attempt folders of those that a trial may go on from, by fingerprint, the longest first.

        ``noted`` is what is noted of the machine for it.
        """
        arms = self._prefixes.shorter(settings)
        if not arms:
            return {}
        prints = [fingerprint(self._study, arm.settings, seed) for arm in arms]
        ends = claims.ends_of(self._store, prints, code=self._code)
        found = {}
        for each in prints:
            if each in ends:
                path, facts = self._store.path_of(ends[each][0]), ends[each][1]
                is_alike = all(facts.get(name) == noted.get(name) for name in _ALIKE)
                if is_alike and has_checkpoint(AttemptFolder(path).end):
                    found[each] = str(path)
        return found
