"""What is tuned for each arm: candidates asked of a sampler, told what became of them, and the best of them.

Candidates come in generations, each a pure function of what those before came to: whoever asks again, in whatever
order the trials ended, is given the same. Optuna's samplers are asked afresh for each generation, from its history.
"""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from ablate.plan.outcomes import SETTLED, Told, scored
from ablate.study.schema import Range, Study
from ablate.study.settings import Settings, canonical

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

STARTUP = 8  # candidates at random before TPE has something to go by; Optuna takes 10, of budgets that are larger
GENERATION = 4  # of TPE's candidates that are asked for at once: so many slots each arm can keep busy
DIGITS = 4  # significant ones of a tuned number: what differs by less is one setting, on every machine
LEAST = 4  # candidates that have ended, before there is a median to be behind of
EDGE = 0.05  # the share of a range, at either end, that is called its edge

_DIRECTIONS: Mapping[str, Literal["maximize", "minimize"]] = {"max": "maximize", "min": "minimize"}

# what is told of a candidate (dotted path → value) at each tuning seed
Tell = Callable[[Settings], Mapping[int, Told]]
# candidates as canonical JSON, with their mean; None for one that has none
History = tuple[tuple[str, float | None], ...]


@dataclass(frozen=True)
class Tuned:
    """How far the tuning of an arm has come.

    ``means`` has, by index, the mean over the tuning seeds of each candidate that has a value at all of them. ``best``
    is the index of the one that the arm's trials run with, once every candidate has ended; None before, or if no
    candidate has a mean.
    """

    candidates: tuple[Settings, ...]
    means: Mapping[int, float] = field(default_factory=dict)
    is_complete: bool = False
    best: int | None = None

    @property
    def chosen(self) -> Settings | None:
        return None if self.best is None else self.candidates[self.best]


@dataclass(frozen=True)
class _Search:
    """What the next candidates depend on beside their history: the same for every arm."""

    ranges: str
    whole: tuple[str, ...]
    sampler: Literal["tpe", "qmc", "grid"]
    size: int
    seed: int
    direction: Literal["maximize", "minimize"]


def tune(study: Study, tell: Tell) -> Tuned:
    """Return the candidates of an arm as far as what is told of them leads, and the best once all have ended."""
    metric = study.metrics[study.primary]
    search = _search_of(study)
    candidates: list[Settings] = []
    means: dict[int, float] = {}
    history: History = ()
    while asked := _next(search, history):
        settled = True
        for text in asked:
            candidate: Settings = json.loads(text)
            told = tell(candidate)
            found = scored(told, metric)
            if len(found.values) == len(study.tuning_seeds) and not found.undefined:
                means[len(candidates)] = fmean(found.values.values())
            settled = settled and all(each.status in SETTLED for each in told.values())
            history = (*history, (text, means.get(len(candidates))))
            candidates.append(candidate)
        if not settled:
            return Tuned(tuple(candidates), means)
    choose = max if metric.goal == "max" else min
    best = choose(means, key=lambda index: means[index]) if means else None  # of equals the first
    return Tuned(tuple(candidates), means, is_complete=True, best=best)


def edge(found: Range, value: Any) -> Literal["low", "high"] | None:
    """Tell at which end of its range a chosen value lies: beyond it may be a better one. None where it lies inside."""
    if found.choices:
        numbers = [each for each in found.choices if isinstance(each, (int, float)) and not isinstance(each, bool)]
        if len(numbers) < max(3, len(found.choices)):  # of two choices each is an end; of words none
            return None
        return "low" if value == min(numbers) else "high" if value == max(numbers) else None
    assert found.low is not None
    assert found.high is not None
    if size := found.size():
        ends = (found.point(0), found.point(size - 1))
        return None if size < 3 or value not in ends else "low" if value == ends[0] else "high"
    low, high, here = (math.log(each) if found.log else each for each in (found.low, found.high, value))
    share = (here - low) / (high - low)
    return "low" if share < EDGE else "high" if share > 1 - EDGE else None


def is_behind(epochs: Mapping[int, float], others: Sequence[Mapping[int, float]], goal: Literal["max", "min"]) -> bool:
    """Tell whether the best epoch so far is worse than the median of what others had at the last one of ``epochs``.

    Optuna's median rule (``MedianPruner``). ``others`` are those that have ended; of fewer than LEAST there is no
    median. A value that is not finite is behind any other.
    """
    if len(others) < LEAST:
        return False
    import optuna
    from optuna.pruners import MedianPruner
    from optuna.trial import TrialState, create_trial

    with _quiet_optuna():
        pruner = MedianPruner(n_startup_trials=LEAST, n_warmup_steps=0)
        told = optuna.create_study(pruner=pruner, direction=_DIRECTIONS[goal])
        for values in others:
            last = values[max(values)]
            told.add_trial(create_trial(state=TrialState.COMPLETE, value=last, intermediate_values=dict(values)))
        trial = told.ask()
        for epoch, value in epochs.items():
            trial.report(value, epoch)
        return trial.should_prune()


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Keep Optuna from announcing each study that it makes, and from warning of samplers that are experimental."""
    import optuna

    loudness = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(loudness)


def _search_of(study: Study) -> _Search:
    assert study.budget is not None
    return _Search(
        ranges=json.dumps({path: found.model_dump(mode="json") for path, found in study.tune.items()}),
        whole=tuple(path for path in study.tune if study.is_whole(path)),
        sampler=study.budget.sampler,
        size=study.candidates,
        seed=study.tuning_seeds[0],
        direction=_DIRECTIONS[study.metrics[study.primary].goal],
    )


@lru_cache(maxsize=65_536)
def _next(search: _Search, history: History) -> tuple[str, ...]:
    """Return the next generation; () once the budget is spent, or the ranges hold nothing new."""
    left = search.size - len(history)
    ranges = {path: Range.model_validate_json(json.dumps(each)) for path, each in json.loads(search.ranges).items()}
    if search.sampler == "tpe":
        return _asked(search, ranges, history, min(left, GENERATION if history else STARTUP))
    if history:
        return ()
    if search.sampler == "qmc":
        return _asked(search, ranges, history, left)
    points = itertools.product(*(found.points() for found in ranges.values()))
    return tuple(canonical(dict(zip(ranges, each, strict=True))) for each in points)


def _asked(search: _Search, ranges: Mapping[str, Range], history: History, count: int) -> tuple[str, ...]:
    """Ask Optuna for so many candidates that are not there yet; for fewer where there are no more.

    Of the last points of a small space it asks for the same ones again: those that are left are then taken in order.
    """
    import optuna

    distributions = {path: _distribution(found, path in search.whole) for path, found in ranges.items()}
    with _quiet_optuna():
        told = optuna.create_study(sampler=_sampler(search, len(history)), direction=search.direction)
        for text, mean in history:
            told.add_trial(_past(_parameters(ranges, json.loads(text)), distributions, mean))
        if search.sampler == "qmc":  # which learns its ranges from a trial that has ended, and draws that one otherwise
            told.add_trial(_past(told.ask(distributions).params, distributions, None))
        found: dict[str, None] = {}
        known = {text for text, _ in history}
        for _ in range(10 * count):
            if len(found) == count:
                break
            parameters = told.ask(distributions).params
            text = canonical({path: _value(ranges[path], path in search.whole, parameters[path]) for path in ranges})
            if text not in known:
                found.setdefault(text)
    left = (text for text in _points(search, ranges, len(known) + count) if text not in known and text not in found)
    return (*found, *itertools.islice(left, count - len(found)))


def _points(search: _Search, ranges: Mapping[str, Range], most: int) -> Iterator[str]:
    """Yield ``most`` candidates or more, or all that there are; none of ranges without points."""
    sizes = [found.size(whole=path in search.whole) for path, found in ranges.items()]
    if None in sizes:
        return
    for indices in itertools.product(*(range(min(size or 0, most)) for size in sizes)):
        values = {path: ranges[path].point(index) for path, index in zip(ranges, indices, strict=True)}
        yield canonical(
            {
                path: value if ranges[path].choices else _value(ranges[path], path in search.whole, value)
                for path, value in values.items()
            }
        )


def _sampler(search: _Search, number: int) -> BaseSampler:
    from optuna.samplers import QMCSampler, TPESampler

    seed = search.seed + number
    if search.sampler == "qmc":
        return QMCSampler(scramble=True, seed=seed, warn_independent_sampling=False)
    return TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=True)


def _past(parameters: Mapping[str, Any], distributions: Mapping[str, BaseDistribution], mean: float | None) -> Any:
    """Return a candidate as Optuna keeps it. One without a mean is as good as pruned: TPE keeps away from it."""
    from optuna.trial import TrialState, create_trial

    state = TrialState.PRUNED if mean is None else TrialState.COMPLETE
    return create_trial(state=state, value=mean, params=dict(parameters), distributions=dict(distributions))


def _distribution(found: Range, whole: bool) -> BaseDistribution:
    """Return Optuna's word for a range. Choices go by their index: to Optuna True and 1 are the same."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if found.choices:
        return CategoricalDistribution(tuple(range(len(found.choices))))
    assert found.low is not None
    assert found.high is not None
    if whole:
        return IntDistribution(int(found.low), int(found.high), log=found.log, step=int(found.step or 1))
    return FloatDistribution(float(found.low), float(found.high), log=found.log, step=found.step)


def _parameters(ranges: Mapping[str, Range], candidate: Settings) -> dict[str, Any]:
    texts = {path: [canonical(each) for each in found.choices] for path, found in ranges.items()}
    return {path: texts[path].index(canonical(value)) if texts[path] else value for path, value in candidate.items()}


def _value(found: Range, whole: bool, parameter: Any) -> Any:
    """Return the setting that a parameter stands for: a number of few digits, inside its range."""
    if found.choices:
        return found.choices[parameter]
    if whole:
        return int(parameter)
    assert found.low is not None
    assert found.high is not None
    digits = DIGITS if found.step is None else 10
    return min(max(float(f"{parameter:.{digits}g}"), float(found.low)), float(found.high))
