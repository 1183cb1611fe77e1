"""The figures of a page as places: percent of a width, or points of a panel. The page's templates draw them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ablate.analyse.details import Cost, Course, Mean
from ablate.analyse.findings import Analysis, DesignResult, MetricInfo
from ablate.plan.crossed import CROSS, letters
from ablate.report.numbers import duration, quantity, signed
from ablate.report.table import Plot, Row, Table, Text
from ablate.study.schema import BASELINE

MOST_PANELS = 60
# a panel: its size, and what of it is drawn in, in the units of its viewBox
WIDTH, HEIGHT = 300, 170
LEFT, RIGHT, TOP, BOTTOM = 44, 290, 10, 142

_HEADROOM = 0.04
_LOG_FROM = 10  # costs that differ by more are drawn on a log scale


# --- scales --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tick:
    place: float
    text: str


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` laid over places from ``start`` to ``end``; what lies beyond is at an end."""

    low: float
    high: float
    start: float = 0.0
    end: float = 100.0

    def place(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, most: int, text: Callable[[float, int], str], *, least: float = 0.0) -> tuple[Tick, ...]:
        """Return round values on it, about so many and ``least`` or more apart, as ``text(value, places)``."""
        size = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(size))
        step = max(least, next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= size))
        places = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return tuple(Tick(self.place(n * step), text(n * step, places)) for n in range(first, last + 1))


def scale_of(values: Iterable[float], *, start: float = 0.0, end: float = 100.0) -> Scale:
    """Return a scale that holds these values with a little room at its ends."""
    found = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(found), max(found)
    room = (high - low) * _HEADROOM or max(abs(high) * _HEADROOM, 1e-6)
    return Scale(low - room, high + room, start, end)


def _fixed(value: float, places: int) -> str:
    return f"{value or 0.0:.{places}f}"


# --- effects: a row each -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A row of a drawing: a bar or an interval on a scale in percent, and in words what it shows.

    ``kind`` is the verdict as a word of the style sheet. What is None is not drawn.
    """

    number: str
    label: str
    text: Text
    kind: str
    mean: float | None
    low: float | None = None
    high: float | None = None
    seeds: tuple[float, ...] = ()
    start: float | None = None
    branch: bool = False


@dataclass(frozen=True)
class Rows:
    """A drawing in rows on one scale. ``zero`` is the place of no effect, ``margin`` that of too small ones."""

    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    zero: float | None = None
    margin: tuple[float, float] | None = None


KINDS: Mapping[str, str] = {
    "better": "better",
    "worse": "worse",
    "no effect": "none",
    "unresolved": "open",
}


def forest(table: Table, metric: MetricInfo, *, with_seeds: bool) -> Rows | None:
    """Return the effects of a table with their intervals and seeds; None where it has none to draw."""
    plots = [row.plot for row in table.rows if row.plot is not None]
    margin = metric.margin if any(plot.verdict for plot in plots) else None
    values = [value for plot in plots for value in (plot.low, plot.high, *(plot.seeds if with_seeds else ()))]
    if not any(values):
        return None
    scale = scale_of([0.0, *values, *((-margin, margin) if margin is not None else ())])
    bars = tuple(_effect_bar(row, row.plot, scale, with_seeds=with_seeds) for row in table.rows if row.plot is not None)
    return Rows(
        bars,
        scale.ticks(6, signed),
        scale.place(0.0),
        None if margin is None else (scale.place(-margin), scale.place(margin)),
    )


def _effect_bar(row: Row, plot: Plot, scale: Scale, *, with_seeds: bool) -> Bar:
    has_interval = plot.low < plot.high
    return Bar(
        number=row.number,
        label=_title(row),
        text=row.cells["effect"],
        kind=KINDS.get(plot.verdict, "untested"),
        mean=scale.place(plot.mean),
        low=scale.place(plot.low) if has_interval else None,
        high=scale.place(plot.high) if has_interval else None,
        seeds=tuple(map(scale.place, plot.seeds)) if with_seeds and len(plot.seeds) > 1 else (),
    )


def _title(row: Row) -> str:
    return str(row.cells["label"]).removeprefix("└ ")


def waterfall(analysis: Analysis, design: DesignResult, table: Table) -> Rows | None:
    """Return each row of a ladder, or of a path, as a bar from where its parent stands to where it leads.

    None where fewer than two rows have a value.
    """
    primary = analysis.primary.name
    of_role = {arm.name: arm for arm in analysis.arms if arm.role == design.role}
    means = {name: of_role[name].cells[primary].mean for name in design.arms if name in of_role}
    known = [mean for mean in means.values() if mean is not None]
    if len(known) < 2:
        return None
    rows = {row.number: row for row in table.rows}
    spans: list[tuple[Row, float | None, float | None]] = []  # from where, to where
    for number, name in enumerate(design.arms):
        comparison = design.comparison(name)
        effect = comparison.effects[primary] if comparison else None
        start = means.get(comparison.other) if comparison else None
        if name in means and (effect is None or effect.mean is None or start is None):
            spans.append((rows[str(number)], None, means[name]))
        elif name in means and effect is not None and effect.mean is not None and start is not None:
            spans.append((rows[str(number)], start, start + effect.mean))
    scale = scale_of([value for row, *ends in spans for value in _reach(row, *ends)])
    bars = tuple(_step_bar(row, start, end, scale, primary) for row, start, end in spans)
    return Rows(bars, scale.ticks(6, _fixed))


def _reach(row: Row, start: float | None, end: float | None) -> Iterator[float]:
    """Yield the values that a bar has to have room for."""
    yield from (value for value in (start, end) if value is not None)
    if start is not None and row.plot is not None:
        yield from (start + row.plot.low, start + row.plot.high)


def _step_bar(row: Row, start: float | None, end: float | None, scale: Scale, primary: str) -> Bar:
    plot = row.plot if start is not None else None
    has_interval = plot is not None and plot.low < plot.high
    return Bar(
        number=row.number,
        label=_title(row),
        text=row.cells.get("effect", "") if start is not None else row.cells.get(f"metric:{primary}", ""),
        kind=KINDS.get(plot.verdict, "untested") if plot else "start",
        mean=None if end is None else scale.place(end),
        low=scale.place(start + plot.low) if start is not None and plot and has_interval else None,
        high=scale.place(start + plot.high) if start is not None and plot and has_interval else None,
        start=None if start is None else scale.place(start),
        branch=row.branch,
    )


# --- learning curves -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """The course of one arm: lines and a band as paths of a panel, and the baseline's mean to compare with."""

    arm: str
    last: str
    seeds: tuple[str, ...]
    mean: str
    band: str
    reference: str


@dataclass(frozen=True)
class Panels:
    """Learning curves on one pair of scales. ``n`` has how many seeds an arm has, the fewest and the most.

    ``left_out`` counts arms beyond MOST_PANELS, and ``short`` those whose seeds share no two epochs.
    """

    metric: str
    panels: tuple[Panel, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    left_out: int
    short: int
    n: tuple[int, int]
    has_band: bool
    has_seeds: bool


def learning_curves(courses: Sequence[Course], metrics: Sequence[MetricInfo]) -> Panels | None:
    """Return a panel for each arm with two epochs, of the first MOST_PANELS; None where no arm has."""
    long = [course for course in courses if len(course.epochs) > 1]
    shown = long[:MOST_PANELS]
    if not shown:
        return None
    across = scale_of([epoch for each in shown for epoch in (each.epochs[0], each.epochs[-1])], start=LEFT, end=RIGHT)
    values = [value for each in shown for line in each.seeds.values() for value in line]
    up = scale_of([*values, *(mean.mean for each in shown for mean in each.means)], start=BOTTOM, end=TOP)
    baseline = next((each for each in shown if each.arm == BASELINE), None)

    def line(course: Course, ys: Sequence[float]) -> str:
        return _path([across.place(epoch) for epoch in course.epochs], [up.place(y) for y in ys])

    def panel(course: Course) -> Panel:
        return Panel(
            arm=course.arm,
            last=f"{course.means[-1].mean:.4g}",
            seeds=tuple(line(course, each) for each in course.seeds.values()) if course.n > 1 else (),
            mean=line(course, [mean.mean for mean in course.means]),
            band=_band(course, across, up) if any(mean.low < mean.high for mean in course.means) else "",
            reference=line(baseline, [mean.mean for mean in baseline.means])
            if baseline is not None and course is not baseline
            else "",
        )

    panels = tuple(map(panel, shown))
    sizes = [each.n for each in shown]
    return Panels(
        metric=next(metric.label for metric in metrics if metric.name == shown[0].metric),
        panels=panels,
        across=across.ticks(5, _fixed, least=1.0),
        up=up.ticks(6, _fixed),
        left_out=len(long) - len(shown),
        short=len(courses) - len(long),
        n=(min(sizes), max(sizes)),
        has_band=any(each.band for each in panels),
        has_seeds=any(each.seeds for each in panels),
    )


def _path(xs: Sequence[float], ys: Sequence[float]) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))


def _band(course: Course, across: Scale, up: Scale) -> str:
    xs = [across.place(epoch) for epoch in course.epochs]
    lows = [up.place(mean.low) for mean in course.means]
    highs = [up.place(mean.high) for mean in course.means]
    return _path([*xs, *reversed(xs)], [*highs, *reversed(lows)]) + "Z"


# --- interactions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """One field of the map: ``share`` is its effect as a part of the largest there is, from 0 to 1."""

    row: int
    column: int
    text: str
    kind: str
    share: float


@dataclass(frozen=True)
class Map:
    """The main effects of a factorial on the diagonal, and the interactions of two below it."""

    letters: tuple[str, ...]
    steps: tuple[str, ...]
    fields: tuple[Field, ...]


def interactions(analysis: Analysis, design: DesignResult, places: int) -> Map | None:
    """Return what each two steps do to each other; None where the design can't tell."""
    steps = design.components
    if design.name != "factorial" or len(steps) < 2:
        return None
    found: dict[tuple[int, int], float] = {}
    for row in design.comparisons:
        names = row.name.split(CROSS)
        mean = row.effects[analysis.primary.name].mean
        if mean is not None and len(names) <= 2 and all(name in steps for name in names):
            places_of = sorted(steps.index(name) for name in names)
            found[places_of[-1], places_of[0]] = mean
    if not found:
        return None
    largest = max(map(abs, found.values())) or 1.0
    sign = 1 if analysis.primary.goal == "max" else -1
    fields = tuple(
        Field(row, column, signed(mean, places), _direction(sign * mean, places), round(abs(mean) / largest, 3))
        for (row, column), mean in sorted(found.items())
    )
    return Map(tuple(letters(steps, frozenset([step])) for step in steps), steps, fields)


def _direction(gain: float, places: int) -> str:
    """Return how a gain is coloured: not at all where it is printed as zero."""
    return "none" if not round(gain, places) else "better" if gain > 0 else "worse"


# --- cost ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spot:
    """An arm between two scales, with the ends of its intervals."""

    number: str
    x: float
    y: float
    left: float
    right: float
    top: float
    bottom: float


@dataclass(frozen=True)
class Cloud:
    """The primary metric against one kind of cost."""

    title: str
    spots: tuple[Spot, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]


def clouds(analysis: Analysis, costs: Sequence[Cost]) -> tuple[Cloud, ...]:
    """Return the primary metric against time, parameters and FLOPs: of each, where two arms differ in it."""
    device = "GPU" if analysis.gpus else "wall"
    kinds: tuple[tuple[str, Callable[[Cost], Mean | None], Callable[[float], str]], ...] = (
        (f"{device} time of a trial", lambda cost: cost.seconds, duration),
        ("parameters", lambda cost: _exactly(cost.parameters), quantity),
        ("FLOPs", lambda cost: _exactly(cost.flops), quantity),
    )
    return tuple(cloud for title, take, text in kinds if (cloud := _cloud(title, costs, take, text)) is not None)


def _exactly(value: float | None) -> Mean | None:
    return None if value is None else Mean(value, value, value)


def _cloud(
    title: str, costs: Sequence[Cost], take: Callable[[Cost], Mean | None], text: Callable[[float], str]
) -> Cloud | None:
    found = [(cost.number, cost.value, took) for cost in costs if (took := take(cost)) is not None]
    means = [took.mean for _, _, took in found]
    if len(set(means)) < 2 or min(means) < 0:
        return None
    is_log = 0 < _LOG_FROM * min(means) <= max(means)
    floor = min(means) / 2 if is_log else 0.0  # an interval of few seeds may reach below zero
    measure: Callable[[float], float] = math.log10 if is_log else float
    ends = [max(floor, end) for _, _, took in found for end in (took.low, took.high)]
    across = scale_of(map(measure, ends), start=LEFT, end=RIGHT)
    up = scale_of([end for _, value, _ in found for end in (value.low, value.high)], start=BOTTOM, end=TOP)
    spots = tuple(
        Spot(
            number=str(number),
            x=across.place(measure(took.mean)),
            y=up.place(value.mean),
            left=across.place(measure(max(floor, took.low))),
            right=across.place(measure(took.high)),
            top=up.place(value.high),
            bottom=up.place(value.low),
        )
        for number, value, took in found
    )
    ticks = _log_ticks(across, text) if is_log else across.ticks(4, lambda value, _: text(max(0.0, value)))
    return Cloud(f"{title}{' (log scale)' if is_log else ''}", spots, ticks, up.ticks(5, _fixed))


def _log_ticks(scale: Scale, text: Callable[[float], str]) -> tuple[Tick, ...]:
    """Return round values on a scale of powers of ten, as many as have room."""
    powers = range(math.floor(scale.low), math.ceil(scale.high) + 1)
    fine = [power + math.log10(factor) for power in powers for factor in (1, 2, 5)]
    inside = [each for each in fine if scale.low <= each <= scale.high]
    every = 1 if len(inside) <= 5 else 3  # of one, two and five the tens alone
    kept = [each for each in inside if every == 1 or each.is_integer()]
    return tuple(Tick(scale.place(each), text(10.0**each)) for each in kept)


def interval_text(mean: Mean, text: Callable[[float], str]) -> str:
    """Return a mean with the ends of its interval, where it has one."""
    return f"{text(mean.mean)} [{text(mean.low)}, {text(mean.high)}]" if mean.low < mean.high else text(mean.mean)
