"""What an analysis finds: plain frozen values, all that a report may print. A renderer gets these and can't query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from ablate.plan.outcomes import Status, Told
from ablate.study.schema import SMALLEST_TEST, Role

Verdict = Literal["better", "worse", "no effect", "unresolved", "not tested", "identical", "no seed effect"]

COMPARE = "compare"  # the design of a table of two studies


@dataclass(frozen=True)
class MetricInfo:
    """A declared metric: the first of an analysis is the primary one. ``goal`` is ``max`` or ``min``.

    A primary effect within ``margin`` counts as none; ``on_diverged`` is the value that a diverged seed is given, and
    ``on_oom`` that of one whose memory ran out.
    """

    name: str
    goal: str
    unit: str = ""
    title: str = ""
    margin: float | None = None
    on_diverged: float | None = None
    on_oom: float | None = None

    @property
    def label(self) -> str:
        return self.title or self.name


class TrialResult(NamedTuple):
    """What became of one arm at one seed. ``values`` has every final number, finite or not; ``seconds`` are wall time.

    ``reason`` says why it failed. A trial is ``diverged`` if its attempt says so or its primary metric is not finite.
    ``first_ended``: when it first had a result (Unix seconds); 0 for one that was ``imported``, as nobody knows.
    ``candidate``: of a trial that tunes, the place of its settings among those tried for the arm, from 1.
    ``reused_s``: wall seconds of the shorter trial that it went on from, spent there and not in ``seconds``.
    """

    seed: int
    fingerprint: str
    state: str
    status: Status
    outcome: str | None = None
    attempts: int = 0
    seconds: float | None = None
    reason: str = ""
    code_sha256: str | None = None
    first_ended: float | None = None
    environment: Mapping[str, str] = MappingProxyType({})
    values: Mapping[str, float] = MappingProxyType({})
    source: str = "trained"
    candidate: int | None = None
    reused_s: float = 0.0

    @property
    def whole_s(self) -> float | None:
        """Wall seconds as if it had been trained from its start, so that arms can be compared by them."""
        return None if self.seconds is None else self.seconds + self.reused_s

    def told(self, metric: str) -> Told:
        return Told(self.status, self.values.get(metric), self.state == "failed" and self.outcome == "oom")

    @property
    def has_result(self) -> bool:
        return self.status in ("finished", "diverged")

    @property
    def is_out_of_memory(self) -> bool:
        return self.state == "failed" and self.outcome == "oom"


@dataclass(frozen=True)
class Counts:
    """Distinct trials: ``planned = finished + diverged + missing``. A trial that two arms share counts once."""

    planned: int = 0
    finished: int = 0
    diverged: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0

    @property
    def missing(self) -> int:
        return self.failed + self.running + self.waiting

    @property
    def done(self) -> int:
        """Trials with a result, be it that they diverged."""
        return self.finished + self.diverged


@dataclass(frozen=True)
class Cell:
    """One arm's values of one metric: those of finished seeds, with n, mean and standard deviation (None for n < 2).

    ``undefined`` lists the seeds that ran to a result which is no finite number. They are not in the mean, which then
    stands for the lucky seeds only: nothing is compared with such a cell. ``scored`` lists those that diverged and are
    in the mean, with the value that the study declares for them.
    """

    metric: str
    n: int
    mean: float | None
    sd: float | None
    se: float | None
    values: Mapping[int, float]
    undefined: tuple[int, ...] = ()
    scored: tuple[int, ...] = ()

    @property
    def finished(self) -> Mapping[int, float]:
        """The values of the seeds that did finish."""
        if not self.scored:
            return self.values
        return {seed: value for seed, value in self.values.items() if seed not in self.scored}


@dataclass(frozen=True)
class Drift:
    """Seeds of an arm whose attempts ran on something else than most trials of the study did."""

    fact: str
    seeds: tuple[int, ...]
    here: str
    usual: str


@dataclass(frozen=True)
class Mismatch:
    """The first number that a resumed seed did not repeat bit for bit, and how many there are."""

    seed: int
    metric: str
    epoch: int
    first: float
    again: float
    count: int


@dataclass(frozen=True)
class ArmResult:
    """One arm with its cells by metric. ``seconds`` is the sum over the seeds that have a result, None without any, and
    has what was spent on shorter trials that they went on from.

    ``facts`` are the means of what a task may record beside its metrics: ``parameters``, ``flops``, ``images_per_s``.
    ``energy_j`` is what the GPUs used for those seeds, None unless all of them are known.
    ``published`` are the study's reference values by metric. ``identical_seeds``: no declared metric varies with the
    seed. ``drifts``: seeds whose attempt ran on other code, versions, devices or data than most trials of the study.
    ``mismatches``: seeds that, once resumed, did not repeat what they had measured before.
    ``role`` is what its seeds are for: an arm of a path has those that chose it, and those that confirm it.
    ``examples`` is the size of the test set and ``top`` the score of a right answer, where per-example scores are right
    or wrong.
    """

    name: str
    title: str
    steps: tuple[str, ...]
    trials: tuple[TrialResult, ...]
    cells: Mapping[str, Cell]
    counts: Counts
    seconds: float | None = None
    energy_j: float | None = None
    facts: Mapping[str, float] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    identical_seeds: bool = False
    drifts: tuple[Drift, ...] = ()
    mismatches: tuple[Mismatch, ...] = ()
    role: Role = "main"
    examples: int = 0
    top: float = 0.0

    @property
    def failure(self) -> str:
        """The first reason of a failure, in the order of seeds; empty where nothing failed."""
        return next((trial.reason for trial in self.trials if trial.status == "failed"), "")

    @property
    def is_unfinished(self) -> bool:
        """Planned seeds are still to come."""
        return bool(self.counts.running + self.counts.waiting)

    def seeds(self, status: Status) -> tuple[int, ...]:
        return tuple(trial.seed for trial in self.trials if trial.status == status)


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a mean difference, for this one comparison; ``level`` is 0.95 for alpha 0.05."""

    low: float
    high: float
    level: float


@dataclass(frozen=True)
class Conclusion:
    """What is concluded of a declared comparison on the primary metric.

    ``p`` is of this comparison by itself (at looks: the least p/weight so far), ``adjusted`` corrected for all of them;
    ``equivalent`` the adjusted p of "the effect is as large as the margin". ``within_margin``: better or worse, and yet
    surely smaller than the margin. ``bound``: |effect| is below it (one level for both sides, 95 % at alpha 0.05).
    ``seeds_needed``: about so many would show an effect of ``target`` in the correction's first step. ``look`` counts
    the looks reached, 0 where there are none. ``remarks``: what of its declaration is younger than its first result;
    ``anytime`` is then the p-value that allows for it. ``if_dropped``: the verdict with diverged seeds left out, where
    it is another one.
    """

    verdict: Verdict
    p: float | None = None
    adjusted: float | None = None
    equivalent: float | None = None
    within_margin: bool = False
    bound: float | None = None
    target: float | None = None
    seeds_needed: int | None = None
    look: int = 0
    remarks: tuple[str, ...] = ()
    anytime: float | None = None
    if_dropped: Verdict | None = None


@dataclass(frozen=True)
class Effect:
    """A comparison on one metric, in the metric's own unit and sign: the weighted sum of arms' means.

    ``differences`` holds one value per seed that all arms have; ``dropped`` are the other planned seeds. The interval
    needs some noise, and two seeds of it. ``withheld`` lists the arms with an undefined value, and ``why`` says what
    else is missing: then there is no mean. ``method``: ``paired``, ``welch``, ``stein`` or ``crossed``.
    """

    metric: str
    n: int
    mean: float | None
    sd: float | None
    se: float | None
    interval: Interval | None
    differences: Mapping[int, float]
    dropped: tuple[int, ...] = ()
    withheld: tuple[str, ...] = ()
    why: str = ""
    method: Literal["paired", "welch", "stein", "crossed"] = "paired"
    df: float = 0.0
    conclusion: Conclusion | None = None


@dataclass(frozen=True)
class Comparison:
    """One row of a design: an effect per metric. Most rows compare ``arm`` with ``other``; some go over many cells.

    ``weights`` say how arms enter it. ``changes`` are the settings that differ. ``identical``: every seed gives
    bit-identical values of every metric in both arms. ``claimed``: what a path's step promised on the seeds that chose
    it. ``networks_differ``: for one seed, McNemar's p that two networks err on different examples.
    """

    name: str
    weights: tuple[tuple[str, float], ...]
    effects: Mapping[str, Effect]
    title: str = ""
    arm: str = ""
    other: str = ""
    changes: tuple[str, ...] = ()
    branch: bool = False
    note: str = ""
    identical: bool = False
    claimed: float | None = None
    networks_differ: float | None = None

    @property
    def minuend(self) -> str:
        return self.weights[0][0]

    @property
    def subtrahend(self) -> str:
        return self.weights[1][0]


@dataclass(frozen=True)
class DesignResult:
    """One design: its arms in the order of their rows, its comparisons, and in a ladder the total of the trunk.

    ``role`` tells whose seeds it is made from. ``components`` are the steps that a factorial or a fraction crosses.
    ``best`` are the arms with the best mean of the primary metric or not shown to be worse; empty where that is not
    tested.
    """

    name: str
    arms: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    counts: Counts
    seconds: float
    total: Comparison | None = None
    role: Role = "main"
    components: tuple[str, ...] = ()
    best: tuple[str, ...] = ()

    @cached_property
    def _by_arm(self) -> Mapping[str, Comparison]:
        return {each.arm: each for each in reversed(self.comparisons)}  # the first of several

    def comparison(self, arm: str) -> Comparison | None:
        """Return the row of an arm; None for the one that all others are measured from."""
        return self._by_arm.get(arm)


@dataclass(frozen=True)
class Family:
    """The comparisons that are corrected for: those this version declares, and how many more stood in other ones."""

    declared: int
    withdrawn: int = 0

    @property
    def size(self) -> int:
        return self.declared + self.withdrawn


@dataclass(frozen=True)
class Candidate:
    """Settings (dotted path → value) that were tried for an arm; ``number`` counts from 1, in the order of asking.

    ``mean`` is over the tuning seeds, if all have a value.
    """

    number: int
    settings: Mapping[str, Any]
    trials: tuple[TrialResult, ...]
    mean: float | None

    @property
    def status(self) -> str:
        """What became of it: ``finished``, or how its trials ended or stand otherwise, the first that says so."""
        outcomes = ["pruned" if trial.outcome == "pruned" else trial.status for trial in self.trials]
        return next((each for each in outcomes if each != "finished"), "finished" if outcomes else "waiting")


@dataclass(frozen=True)
class Edge:
    """A chosen value that lies at the ``side`` (low or high) of its range: a better one may lie beyond."""

    path: str
    value: Any
    side: str
    range: str


@dataclass(frozen=True)
class ArmTuning:
    """The candidates of one arm. ``best`` is the index of the one that its trials run with, once all have ended."""

    arm: str
    title: str
    candidates: tuple[Candidate, ...]
    best: int | None
    is_complete: bool
    edges: tuple[Edge, ...] = ()

    @property
    def chosen(self) -> Candidate | None:
        return None if self.best is None else self.candidates[self.best]

    def best_so_far(self, goal: str) -> list[float | None]:
        """Return, after each candidate in turn, the best mean until then; None before there is one."""
        better = max if goal == "max" else min
        found: list[float | None] = []
        for candidate in self.candidates:
            known = [each for each in (found[-1] if found else None, candidate.mean) if each is not None]
            found.append(better(known) if known else None)
        return found


@dataclass(frozen=True)
class Tuning:
    """How settings were tuned for every arm alike: ``size`` candidates each, on ``seeds`` that no table uses.

    ``seconds`` is the wall time of their trials.
    """

    ranges: Mapping[str, str]
    sampler: str
    size: int
    seeds: tuple[int, ...]
    prune: bool
    seconds: float
    arms: tuple[ArmTuning, ...]


@dataclass(frozen=True)
class Analysis:
    """All findings of one study version."""

    title: str
    name: str
    profile: str
    version: int
    question: str
    task: str
    metrics: tuple[MetricInfo, ...]
    seeds: tuple[int, ...]
    fresh_seeds: tuple[int, ...]
    looks: tuple[int, ...]
    weights: tuple[float, ...]
    half_width: float | None
    pilot: int
    alpha: float
    correction: str
    pairing: str
    scope: str
    family: Family
    later_versions: tuple[int, ...]
    gpus: int
    arms: tuple[ArmResult, ...]
    designs: tuple[DesignResult, ...]
    counts: Counts
    source: str = ""
    assumed: Mapping[str, str] = field(default_factory=dict)
    tuning: Tuning | None = None

    @property
    def primary(self) -> MetricInfo:
        return self.metrics[0]

    @cached_property
    def _by_name(self) -> Mapping[tuple[str, Role], ArmResult]:
        return {(arm.name, arm.role): arm for arm in self.arms}

    def has_arm(self, name: str, role: Role) -> bool:
        return (name, role) in self._by_name

    def arm(self, name: str, role: Role = "main") -> ArmResult:
        return self._by_name[name, role]

    def spreads(self) -> list[float]:
        """Return the sd of the primary metric's differences, of each two arms compared at three seeds or more."""
        rows = [row for design in self.designs for row in design.comparisons if len(row.weights) == 2]
        effects = [row.effects[self.primary.name] for row in rows]
        # the same trials stand in several designs under several names: equal differences are one comparison
        distinct = {tuple(sorted(map(abs, effect.differences.values()))): effect for effect in effects}
        return [effect.sd for effect in distinct.values() if effect.n >= SMALLEST_TEST and effect.sd]

    @property
    def is_adaptive(self) -> bool:
        return bool(self.looks) or self.half_width is not None


def count(trials: Iterable[TrialResult]) -> Counts:
    """Count distinct trials by what became of them."""
    return counts_of(Counter(dict(map(_STATUS_OF_PRINT, trials)).values()))


_STATUS_OF_PRINT = itemgetter(*map(TrialResult._fields.index, ("fingerprint", "status")))


def counts_of(statuses: Counter[Status]) -> Counts:
    """Return counts from how many distinct trials have each status."""
    names: tuple[Status, ...] = ("finished", "diverged", "failed", "running", "waiting")
    return Counts(statuses.total(), *(statuses[name] for name in names))
