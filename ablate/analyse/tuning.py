"""What tuning came to: of each arm the settings that were tried, what they measured, and which was chosen."""

from __future__ import annotations

from collections.abc import Iterator

from ablate.analyse.findings import ArmTuning, Candidate, Edge, TrialResult, Tuning
from ablate.analyse.results import Results
from ablate.plan.trials import Plan
from ablate.plan.tuning import Tuned, edge


def tuning_of(plan: Plan, results: Results) -> Tuning | None:
    """Return what tuning came to; None for a study that tunes nothing."""
    study = plan.study
    if not study.tune or study.budget is None:
        return None
    tried = [trial for (_, role), trials in results.items() if role == "tune" for trial in trials]
    spent = {trial.fingerprint: trial.seconds or 0.0 for trial in tried}
    return Tuning(
        ranges={path: str(found) for path, found in study.tune.items()},
        sampler=study.budget.sampler,
        size=study.candidates,
        seeds=study.tuning_seeds,
        prune=study.budget.prune,
        seconds=sum(spent.values()),
        arms=tuple(
            ArmTuning(
                arm=arm.name,
                title=arm.title,
                candidates=tuple(_candidates(plan.tuned[arm.name], results.get((arm.name, "tune"), ()))),
                best=plan.tuned[arm.name].best,
                is_complete=plan.tuned[arm.name].is_complete,
                edges=tuple(_edges(plan, plan.tuned[arm.name])),
            )
            for arm in plan.arms
        ),
    )


def _candidates(tuned: Tuned, trials: tuple[TrialResult, ...]) -> Iterator[Candidate]:
    for index, settings in enumerate(tuned.candidates):
        own = tuple(trial for trial in trials if trial.candidate == index + 1)
        yield Candidate(index + 1, settings, own, tuned.means.get(index))


def _edges(plan: Plan, tuned: Tuned) -> Iterator[Edge]:
    for path, value in (tuned.chosen or {}).items():
        found = plan.study.tune[path]
        side = edge(found, value)
        if side is not None:
            yield Edge(path, value, side, str(found))
