"""What every table of a report is made of: columns, rows of text, and notes. All renderings for people print these.

Nothing here is escaped: each rendering makes the text harmless in its own way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from ablate.analyse.findings import Analysis, ArmResult, Cell, Conclusion, Effect, MetricInfo
from ablate.report.notes import SPREAD_FROM, Note
from ablate.report.numbers import fixed, p_value, plain, signed
from ablate.stats.digits import decimals

_NAMES_FIT = 24  # characters of all steps' names together, beside which a row has room for what else it shows


@dataclass(frozen=True)
class Column:
    """``key`` names the cell of a row. ``rank`` 0 is always shown; where width is short, high ranks are left out first.

    ``foreign``: the title comes from the study, and ``meaning`` says what it stands for where it is only a letter.
    ``asked``: it is shown to those who name it.
    """

    key: str
    title: str
    right: bool = True
    rank: int = 0
    foreign: bool = False
    asked: bool = False
    meaning: str = ""


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
    """An arm's value of a metric as text: its mean, its standard deviation or an empty string, and a mark.

    ``best``: no other row is shown to be better; a rendering prints the mean in bold, where it has bold.
    """

    mean: str
    sd: str = ""
    mark: str = ""
    best: bool = False

    def __str__(self) -> str:
        return f"{self.mean} ± {self.sd}{self.mark}" if self.sd else f"{self.mean}{self.mark}"


Text = str | Value | Difference


@dataclass(frozen=True)
class Plot:
    """What there is to draw of an effect: the ends of its interval, or the mean for both, and each seed's difference.

    ``verdict`` is empty where none was asked for.
    """

    low: float
    mean: float
    high: float
    seeds: tuple[float, ...] = ()
    verdict: str = ""


@dataclass(frozen=True)
class Row:
    """One line. ``number`` is how notes and other rows refer to it; ``plot`` is what a figure draws of its effect."""

    number: str
    cells: Mapping[str, Text]
    branch: bool = False
    total: bool = False
    plot: Plot | None = None


@dataclass(frozen=True)
class Table:
    """One table of a design. ``estimand`` says in one sentence what is subtracted from what; ``places`` are the
    decimals of its effects. ``bold`` says what a value in bold is; empty where there is none.
    """

    design: str
    heading: str
    progress: str
    estimand: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    places: int
    notes: tuple[Note, ...]
    bold: str = ""


@dataclass(frozen=True)
class Digits:
    """The decimals of each metric's column, and of the column of effects."""

    cells: Mapping[str, int]
    effects: int


def digits_of(analysis: Analysis, arms: Sequence[ArmResult], effects: Iterable[Effect]) -> Digits:
    """Return the decimals that fit these arms and effects; effects have no fewer than the values.

    Else a reader could not subtract one row from another.
    """
    of_cells = {
        metric.name: decimals(
            [arm.cells[metric.name].se for arm in arms], [arm.cells[metric.name].mean for arm in arms]
        )
        for metric in analysis.metrics
    }
    errors = [effect.se for effect in effects if effect.se]
    means = [arm.cells[analysis.primary.name].mean for arm in arms]
    own = decimals(errors, means) if errors else 0
    return Digits(of_cells, max(of_cells[analysis.primary.name], own))


def count_text(arm: ArmResult, analysis: Analysis) -> str:
    n, planned = arm.cells[analysis.primary.name].n, len(arm.trials)
    return str(n) if n == planned else f"{n}/{planned}"


def value_text(arm: ArmResult, metric: MetricInfo, places: int, analysis: Analysis) -> Text:
    cell = arm.cells[metric.name]
    if cell.mean is None:
        return _why_empty(arm, cell) if metric == analysis.primary else "—"
    sd = "" if cell.sd is None or cell.n < SPREAD_FROM else fixed(cell.sd, places)
    return Value(fixed(cell.mean, places), sd, "†" if cell.undefined else "!" if cell.scored else "")


def _why_empty(arm: ArmResult, cell: Cell) -> str:
    """Say in a word why an arm has no value, the worst first."""
    if cell.undefined:
        return "diverged"
    counts = arm.counts
    return "failed" if counts.failed else "running" if counts.running else "waiting" if counts.waiting else "—"


def difference_text(effect: Effect | None, places: int) -> Text:
    if effect is None:
        return ""
    if effect.mean is None:
        return "—"
    mean = signed(effect.mean, places)
    if effect.interval is None or effect.n < SPREAD_FROM:
        return Difference(mean)
    return Difference(mean, signed(effect.interval.low, places), signed(effect.interval.high, places))


def plot_of(effect: Effect | None) -> Plot | None:
    if effect is None or effect.mean is None:
        return None
    has_interval = effect.interval is not None and effect.n >= SPREAD_FROM
    low, high = (effect.interval.low, effect.interval.high) if effect.interval and has_interval else (effect.mean,) * 2
    verdict = effect.conclusion.verdict if effect.conclusion else ""
    return Plot(low, effect.mean, high, tuple(effect.differences.values()), verdict)


def conclusion_cells(effect: Effect | None, metric: MetricInfo, *, looks: int = 0) -> dict[str, Text]:
    """Return the cells of a comparison's conclusion: p, verdict and look."""
    if effect is None or effect.conclusion is None:
        return {}
    test = effect.conclusion
    cells: dict[str, Text] = {"verdict": verdict_text(test, metric)}
    if test.adjusted is not None:
        cells["p"] = p_value(test.adjusted)
    if looks and test.look:
        cells["look"] = f"{test.look} of {looks}"
    return cells


def verdict_text(test: Conclusion, metric: MetricInfo) -> str:
    margin = "" if metric.margin is None else plain(metric.margin)
    if test.verdict == "no effect":
        return f"no effect >{margin}"
    return f"{test.verdict} (<{margin})" if test.within_margin and test.verdict in ("better", "worse") else test.verdict


def conclusion_columns(analysis: Analysis, rows: Sequence[Row], *, rank: int = 0) -> tuple[Column, ...]:
    """Return the columns of p, verdict and look, where there is any; with rank 0 they are shown at every width."""
    name = {"holm": "Holm", "bh": "FDR"}[analysis.correction]
    columns = (
        Column("p", f"p ({name})", rank=rank),
        Column("verdict", "verdict", right=False, rank=rank),
        Column("look", "look", rank=max(2, rank)),
    )
    enough = any("±" in str(text) for row in rows for text in row.cells.values())  # from three seeds on
    tested = enough or any(str(row.cells.get("verdict", "not tested")) != "not tested" for row in rows)
    return tuple(each for each in columns if tested and any(each.key in row.cells for row in rows))


def effect_title(analysis: Analysis, title: str, rows: Sequence[Row], key: str = "effect") -> str:
    """Return the title of a column of effects, which says what its brackets are."""
    texts = [row.cells.get(key) for row in rows]
    with_interval = any(isinstance(text, Difference) and text.low for text in texts)
    level = f"{100 * (1 - analysis.alpha):g}%"
    return title + (f" [{level} CI]" if with_interval else "")


def filled(columns: Iterable[Column], rows: Sequence[Row]) -> tuple[Column, ...]:
    """Return the columns that have something to say, in reading order."""
    keys = {key for row in rows for key, text in row.cells.items() if str(text)}
    return tuple(column for column in columns if column.rank == 0 or column.key in keys)


def step_columns(steps: Sequence[str]) -> Iterable[Column]:
    """Return a narrow column for each step, called by its name where the names are few and short, else by a letter."""
    named = sum(map(len, steps)) <= _NAMES_FIT
    for index, step in enumerate(steps):
        letter = ascii_uppercase[index] if index < len(ascii_uppercase) else f"S{index + 1}"
        meaning = "" if named else f"{letter} {step}"
        yield Column(f"step:{step}", step if named else letter, rank=1, foreign=True, asked=True, meaning=meaning)


def metric_columns(metric: MetricInfo, *, rank: int, published_rank: int) -> Iterable[Column]:
    title = f"{metric.label} ({metric.unit})" if metric.unit else metric.label
    yield Column(f"metric:{metric.name}", title, rank=rank, foreign=True)
    published = "published" if rank == 0 else f"published {metric.label}"
    yield Column(f"published:{metric.name}", published, rank=published_rank, foreign=True)
