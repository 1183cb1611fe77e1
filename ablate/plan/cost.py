"""What a plan costs: from stored attempts, or from a timing; what is not known is said to be unknown. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from ablate.plan.trials import Plan


@dataclass(frozen=True)
class ArmCost:
    """One arm's trials and the seconds of one of them; ``measured`` tells stored attempts from a timing."""

    arm: str
    planned: int
    done: int
    failed: int
    trial_s: float | None
    measured: bool


@dataclass(frozen=True)
class Cost:
    """The cost of what is still to do. ``seconds`` is slot time, over the arms whose cost is known."""

    arms: tuple[ArmCost, ...]
    trials: int
    done: int
    failed: int
    seconds: float
    unknown: tuple[str, ...]

    @property
    def to_do(self) -> int:
        return self.trials - self.done - self.failed


def cost_of(
    plan: Plan,
    *,
    states: Mapping[str, str],
    seconds: Mapping[str, float],
    estimates: Mapping[str, float],
) -> Cost:
    """Cost a plan. ``states`` and ``seconds`` are by fingerprint, ``estimates`` (seconds a trial) by arm."""
    arms, total = [], 0.0
    counted: set[str] = set()
    unknown = []
    for arm in plan.arms:
        prints = [each.trial.fingerprint for each in plan.replicates if each.arm == arm.name]
        known = [seconds[name] for name in prints if name in seconds]
        trial_s = fmean(known) if known else estimates.get(arm.name)
        done = sum(states.get(name) == "done" for name in prints)
        failed = sum(states.get(name) == "failed" for name in prints)
        arms.append(ArmCost(arm.name, len(prints), done, failed, trial_s, bool(known)))
        left = [name for name in prints if states.get(name) not in ("done", "failed") and name not in counted]
        counted.update(left)
        if trial_s is not None:
            total += trial_s * len(left)
        elif left:
            unknown.append(arm.name)
    trials = plan.trials()
    done = sum(states.get(name) == "done" for name in trials)
    failed = sum(states.get(name) == "failed" for name in trials)
    return Cost(tuple(arms), len(trials), done, failed, total, tuple(unknown))
