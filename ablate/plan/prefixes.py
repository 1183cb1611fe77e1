"""Which arms of a plan differ in the number of epochs alone: the longer may go on from where the shorter has ended."""

from __future__ import annotations

from collections.abc import Iterator

from ablate.plan.arms import Arm
from ablate.plan.trials import Plan
from ablate.study.prefixes import without_epochs
from ablate.study.settings import Settings, canonical


class Prefixes:
    """The arms of a plan by what they have in common but for the number of epochs.

    None of a command, which trains by itself; none where settings are tuned, which are not the arm's own; and none
    where several seeds are trained in one model.
    """

    def __init__(self, plan: Plan) -> None:
        self._arms: dict[str, dict[int, Arm]] = {}
        if plan.study.task.command is None and not plan.study.tune and plan.study.execution.fuse == 1:
            for arm in plan.arms:
                if found := without_epochs(arm.settings):
                    self._arms.setdefault(canonical(found[1]), {}).setdefault(found[0], arm)
        self._arms = {rest: arms for rest, arms in self._arms.items() if len(arms) > 1}

    def __bool__(self) -> bool:
        """True where any arm may go on from another."""
        return bool(self._arms)

    def shorter(self, settings: Settings) -> list[Arm]:
        """Return the arms with fewer epochs than these settings and all else the same, those with most first."""
        epochs, arms = self._like(settings)
        return [arms[each] for each in sorted(arms, reverse=True) if each < epochs]

    def has_longer(self, settings: Settings) -> bool:
        """Tell whether an arm has more epochs than these settings, and all else the same."""
        epochs, arms = self._like(settings)
        return any(each > epochs for each in arms)

    def pairs(self) -> Iterator[tuple[Arm, Arm]]:
        """Yield each arm that may go on from another, with the longest that it may go on from."""
        for arms in self._arms.values():
            in_order = [arms[each] for each in sorted(arms)]
            yield from zip(in_order[1:], in_order, strict=False)

    def _like(self, settings: Settings) -> tuple[int, dict[int, Arm]]:
        found = without_epochs(settings) if self._arms else None
        return (found[0], self._arms.get(canonical(found[1]), {})) if found else (0, {})
