"""One table per design: columns, rows of text, and notes. All renderings for people are made from it.

Nothing here is escaped: each rendering makes the text harmless in its own way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ablate.analyse.findings import Analysis, ArmResult, Cell, Comparison, DesignResult, Effect, MetricInfo
from ablate.report.notes import SPREAD_FROM, Note, notes_of
from ablate.report.numbers import duration, fixed, plain, quantity, signed
from ablate.stats.digits import decimals


@dataclass(frozen=True)
class Column:
    """``key`` names the cell of a row. ``rank`` 0 is always shown; where width is short, high ranks are left out first.

    ``foreign``: the title comes from the study.
    """

    key: str
    title: str
    right: bool = True
    rank: int = 0
    foreign: bool = False


@dataclass(frozen=True)
class Difference:
    """An effect as text: its mean, and the ends of its interval or empty strings."""

    mean: str
    low: str = ""
    high: str = ""

    def __str__(self) -> str:
        return f"{self.mean} [{self.low}, {self.high}]" if self.low else self.mean


@dataclass(frozen=True)
class Value:
    """An arm's value of a metric as text: its mean, its standard deviation or an empty string, and a mark."""

    mean: str
    sd: str = ""
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.mean} ± {self.sd}{self.mark}" if self.sd else f"{self.mean}{self.mark}"


Text = str | Value | Difference


@dataclass(frozen=True)
class Row:
    """One line. ``number`` is how notes and other rows refer to it; ``plot`` is (low, mean, high) of its effect."""

    number: str
    cells: Mapping[str, Text]
    branch: bool = False
    total: bool = False
    plot: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Table:
    """The table of one design. ``estimand`` says in one sentence what is subtracted from what; ``places`` are the
    decimals of its effects.
    """

    design: str
    heading: str
    progress: str
    estimand: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    places: int
    notes: tuple[Note, ...]


EFFECT_TITLES = {
    "ladder": "Δ vs parent",
    "leave-one-out": "worth in the final model",
    "one-at-a-time": "worth alone",
}

ESTIMANDS = {
    "ladder": "Δ is the mean of a row minus the mean of its parent: the effect of the step given the steps above it. "
    "The parent is the row above, unless the row names another.",
    "leave-one-out": "Worth in the final model is the mean of the full model (row 0) minus the mean of the row: "
    "what is lost when that step alone is taken away.",
    "one-at-a-time": "Worth alone is the mean of a row minus the mean of the baseline (row 0), or of the row that it "
    "names: the effect of that step with no other.",
}


def build_tables(analysis: Analysis) -> tuple[Table, ...]:
    """Return one table per design, in the order in which the study lists them."""
    return tuple(_build(analysis, design) for design in analysis.designs)


def _build(analysis: Analysis, design: DesignResult) -> Table:
    order = _ordered(analysis, design)
    number = {name: index for index, name in enumerate(order)}
    arms = [analysis.arm(name) for name in order]
    digits = _digits(analysis, design, arms)
    rows = [_row(analysis, design, arm, number, digits) for arm in arms]
    if design.total is not None:
        rows.append(_total_row(analysis, design.total, number, digits))
    columns = _columns(analysis, design, rows)
    spread = any(isinstance(text, Value) and text.sd for row in rows for text in row.cells.values())
    notes = notes_of(analysis, design, number, spread=spread, shown=_shown_effects(analysis, design))
    return Table(
        design=design.name,
        heading=f"{analysis.title}: {design.name}",
        progress=_progress(design),
        estimand=ESTIMANDS[design.name],
        columns=columns,
        rows=tuple(rows),
        places=digits.effects,
        notes=notes,
    )


def _ordered(analysis: Analysis, design: DesignResult) -> list[str]:
    """Return the arms as the table lists them: leave-one-out by worth, the best first, and last what has no effect."""
    if design.name != "leave-one-out":
        return list(design.arms)
    sign = 1 if analysis.primary.goal == "max" else -1

    def place(comparison: Comparison) -> tuple[bool, float]:
        mean = comparison.effects[analysis.primary.name].mean
        return mean is None, -sign * (mean or 0.0)

    return [design.arms[0], *(each.arm for each in sorted(design.comparisons, key=place))]


def _progress(design: DesignResult) -> str:
    counts = design.counts
    if counts.running + counts.waiting == 0:
        return ""
    return f"not finished: {counts.done} of {counts.planned} trials have a result; the numbers will change"


@dataclass(frozen=True)
class _Digits:
    """The decimals of each metric's column, and of the column of effects."""

    cells: Mapping[str, int]
    effects: int


def _digits(analysis: Analysis, design: DesignResult, arms: Sequence[ArmResult]) -> _Digits:
    of_cells = {
        metric.name: decimals(
            [arm.cells[metric.name].se for arm in arms], [arm.cells[metric.name].mean for arm in arms]
        )
        for metric in analysis.metrics
    }
    primary = analysis.primary.name
    effects = [comparison.effects[primary] for comparison in design.comparisons]
    errors = [effect.se for effect in effects if effect.se]
    own = decimals(errors, []) if errors else 0
    # never fewer than the values have, or a reader could not subtract one row from another
    return _Digits(of_cells, max(of_cells[primary], own))


def _row(analysis: Analysis, design: DesignResult, arm: ArmResult, number: Mapping[str, int], digits: _Digits) -> Row:
    comparison = design.comparison(arm.name)
    cells: dict[str, Text] = {
        "number": str(number[arm.name]),
        "label": _label(design, arm, comparison, number),
        "n": _count(arm, analysis),
        "cost": "" if arm.seconds is None else duration(arm.seconds),
    }
    for metric in analysis.metrics:
        cells[f"metric:{metric.name}"] = _value(arm, metric, digits.cells[metric.name], analysis)
        if metric.name in arm.published:
            cells[f"published:{metric.name}"] = plain(arm.published[metric.name])
    for fact in ("parameters", "flops"):
        if fact in arm.facts:
            cells[fact] = quantity(arm.facts[fact])
    effect = None if comparison is None else comparison.effects[analysis.primary.name]
    cells["effect"] = _difference(effect, digits.effects)
    return Row(str(number[arm.name]), cells, branch=comparison is not None and comparison.branch, plot=_plot(effect))


def _total_row(analysis: Analysis, total: Comparison, number: Mapping[str, int], digits: _Digits) -> Row:
    effect = total.effects[analysis.primary.name]
    last, first = number[total.minuend], number[total.subtrahend]
    cells: dict[str, Text] = {
        "label": f"total (row {last} − row {first})",
        "n": str(effect.n) if effect.n == len(analysis.seeds) else f"{effect.n}/{len(analysis.seeds)}",
        "effect": _difference(effect, digits.effects),
    }
    return Row("", cells, total=True)


def _label(design: DesignResult, arm: ArmResult, comparison: Comparison | None, number: Mapping[str, int]) -> str:
    if comparison is None:
        return {"full": "full model (all steps)"}.get(arm.name, arm.title)
    title = f"└ {arm.title}" if design.name == "ladder" and comparison.branch else arm.title
    expected = number[arm.name] - 1 if design.name == "ladder" else 0
    other = number[comparison.other]
    return title if other == expected else f"{title} (vs row {other}, {comparison.other})"


def _count(arm: ArmResult, analysis: Analysis) -> str:
    n, planned = arm.cells[analysis.primary.name].n, len(analysis.seeds)
    return str(n) if n == planned else f"{n}/{planned}"


def _value(arm: ArmResult, metric: MetricInfo, places: int, analysis: Analysis) -> Text:
    cell = arm.cells[metric.name]
    if cell.mean is None:
        return _why_empty(arm, cell) if metric == analysis.primary else "—"
    sd = "" if cell.sd is None or cell.n < SPREAD_FROM else fixed(cell.sd, places)
    return Value(fixed(cell.mean, places), sd, "†" if cell.undefined else "")


def _why_empty(arm: ArmResult, cell: Cell) -> str:
    """Say in a word why an arm has no value, the worst first."""
    if cell.undefined:
        return "diverged"
    counts = arm.counts
    return "failed" if counts.failed else "running" if counts.running else "waiting" if counts.waiting else "—"


def _difference(effect: Effect | None, places: int) -> Text:
    if effect is None:
        return ""
    if effect.mean is None:
        return "—"
    mean = signed(effect.mean, places)
    if effect.interval is None or effect.n < SPREAD_FROM:
        return Difference(mean)
    return Difference(mean, signed(effect.interval.low, places), signed(effect.interval.high, places))


def _plot(effect: Effect | None) -> tuple[float, float, float] | None:
    if effect is None or effect.mean is None:
        return None
    if effect.interval is None or effect.n < SPREAD_FROM:
        return effect.mean, effect.mean, effect.mean
    return effect.interval.low, effect.mean, effect.interval.high


def _shown_effects(analysis: Analysis, design: DesignResult) -> tuple[Effect, ...]:
    """Return the effects that are printed with an interval."""
    every = [*design.comparisons, *([design.total] if design.total else [])]
    effects = [each.effects[analysis.primary.name] for each in every]
    return tuple(effect for effect in effects if effect.interval is not None and effect.n >= SPREAD_FROM)


def _columns(analysis: Analysis, design: DesignResult, rows: Sequence[Row]) -> tuple[Column, ...]:
    """Return the columns that have something to say, in reading order."""
    filled = {key for row in rows for key, text in row.cells.items() if str(text)}
    level = f"{100 * (1 - analysis.alpha):g}%"
    with_interval = any(isinstance(text, Difference) and text.low for row in rows for text in row.cells.values())
    effect = EFFECT_TITLES[design.name] + (f" [{level} CI]" if with_interval else "")
    columns = [
        Column("number", "#"),
        Column("label", "change" if design.name == "ladder" else "model", right=False),
        Column("n", "n"),
        *_metric_columns(analysis.primary, rank=0, published_rank=1),
        Column("effect", effect),
        *(column for metric in analysis.metrics[1:] for column in _metric_columns(metric, rank=4, published_rank=6)),
        Column("parameters", "params", rank=5),
        Column("flops", "FLOPs", rank=5),
        Column("cost", "GPU time" if analysis.gpus else "CPU time", rank=2),
    ]
    return tuple(column for column in columns if column.rank == 0 or column.key in filled)


def _metric_columns(metric: MetricInfo, *, rank: int, published_rank: int) -> Iterable[Column]:
    title = f"{metric.label} ({metric.unit})" if metric.unit else metric.label
    yield Column(f"metric:{metric.name}", title, rank=rank, foreign=True)
    published = "published" if rank == 0 else f"published {metric.label}"
    yield Column(f"published:{metric.name}", published, rank=published_rank, foreign=True)
