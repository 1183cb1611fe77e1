"""What an analysis finds: plain frozen values, all that a report may print. A renderer gets these and can't query."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["finished", "diverged", "failed", "running", "waiting"]


@dataclass(frozen=True)
class MetricInfo:
    """A declared metric: the first of an analysis is the primary one. ``goal`` is ``max`` or ``min``."""

    name: str
    goal: str
    unit: str = ""
    title: str = ""

    @property
    def label(self) -> str:
        return self.title or self.name


@dataclass(frozen=True)
class TrialResult:
    """What became of one arm at one seed. ``values`` has every final number, finite or not; ``seconds`` are wall time.

    ``reason`` says why it failed. A trial is ``diverged`` if its attempt says so or its primary metric is not finite.
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
    environment: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)


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
    stands for the lucky seeds only: nothing is compared with such a cell.
    """

    metric: str
    n: int
    mean: float | None
    sd: float | None
    se: float | None
    values: Mapping[int, float]
    undefined: tuple[int, ...] = ()


@dataclass(frozen=True)
class Drift:
    """Seeds of an arm whose attempts ran on something else than most trials of the study did."""

    fact: str
    seeds: tuple[int, ...]
    here: str
    usual: str


@dataclass(frozen=True)
class ArmResult:
    """One arm with its cells by metric. ``seconds`` is the sum over the seeds that have a result, None without any.

    ``facts`` are the means of what a task may record beside its metrics: ``parameters``, ``flops``, ``images_per_s``.
    ``published`` are the study's reference values by metric. ``identical_seeds``: no declared metric varies with the
    seed. ``other_code``: seeds whose attempt ran a version of the code that most trials of the study did not;
    ``drifts``: the same of versions, device and data.
    """

    name: str
    title: str
    steps: tuple[str, ...]
    trials: tuple[TrialResult, ...]
    cells: Mapping[str, Cell]
    counts: Counts
    seconds: float | None = None
    facts: Mapping[str, float] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    identical_seeds: bool = False
    other_code: tuple[int, ...] = ()
    drifts: tuple[Drift, ...] = ()

    @property
    def failure(self) -> str:
        """The first reason of a failure, in the order of seeds; empty where nothing failed."""
        return next((trial.reason for trial in self.trials if trial.status == "failed"), "")

    def seeds(self, status: Status) -> tuple[int, ...]:
        return tuple(trial.seed for trial in self.trials if trial.status == status)


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a mean difference, for this one comparison; ``level`` is 0.95 for alpha 0.05."""

    low: float
    high: float
    level: float


@dataclass(frozen=True)
class Effect:
    """Mean of ``minuend`` less mean of ``subtrahend`` on one metric, paired by seed, in the metric's own unit and sign.

    ``differences`` holds one value per seed that both arms have; ``dropped`` are the other planned seeds. The interval
    needs two of them and some noise. ``withheld`` lists the arms with an undefined value: then there is no mean.
    """

    metric: str
    minuend: str
    subtrahend: str
    n: int
    mean: float | None
    sd: float | None
    se: float | None
    interval: Interval | None
    differences: Mapping[int, float]
    dropped: tuple[int, ...] = ()
    withheld: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """One row of a design: ``arm`` against ``other``, with an effect per metric.

    ``changes`` are the settings that differ. ``identical``: every seed gives bit-identical values of every metric in
    both arms.
    """

    arm: str
    other: str
    minuend: str
    subtrahend: str
    changes: tuple[str, ...]
    effects: Mapping[str, Effect]
    branch: bool = False
    note: str = ""
    identical: bool = False


@dataclass(frozen=True)
class DesignResult:
    """One design: its arms in the order of their rows, its comparisons, and in a ladder the total of the trunk."""

    name: str
    arms: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    counts: Counts
    seconds: float
    total: Comparison | None = None

    def comparison(self, arm: str) -> Comparison | None:
        """Return the row of an arm; None for the one that all others are measured from."""
        return next((each for each in self.comparisons if each.arm == arm), None)


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
    alpha: float
    gpus: int
    arms: tuple[ArmResult, ...]
    designs: tuple[DesignResult, ...]
    counts: Counts
    source: str = ""
    assumed: Mapping[str, str] = field(default_factory=dict)

    @property
    def primary(self) -> MetricInfo:
        return self.metrics[0]

    def arm(self, name: str) -> ArmResult:
        return next(arm for arm in self.arms if arm.name == name)


def count(trials: Iterable[TrialResult]) -> Counts:
    """Count distinct trials by what became of them."""
    distinct = list({trial.fingerprint: trial for trial in trials}.values())
    names: tuple[Status, ...] = ("finished", "diverged", "failed", "running", "waiting")
    return Counts(len(distinct), *(sum(trial.status == name for trial in distinct) for name in names))
