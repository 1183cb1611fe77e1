"""Figures for papers, as PDF, SVG and PNG: plain, and told apart by place and shape, not by colour alone.

Each is a function of the findings that gives a matplotlib figure, as wide as one column of a paper or as two.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from ablate.analyse.curves import Curve
from ablate.analyse.findings import (
    COMPARE,
    Analysis,
    ArmResult,
    ArmTuning,
    Comparison,
    DesignResult,
    MetricInfo,
    Tuning,
)
from ablate.failpoints import failpoint
from ablate.plan.crossed import CROSS, SHAPLEY
from ablate.plan.designs import BOTH
from ablate.report.designs import EFFECT_TITLES, row_numbers
from ablate.report.notes import SPREAD_FROM
from ablate.report.numbers import signed
from ablate.report.text import one_line
from ablate.stats.digits import decimals
from ablate.stats.intervals import paired_estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("pdf", "svg", "png")
ONE_COLUMN, TWO_COLUMNS = 3.3, 6.9  # inches: as in most two-column proceedings
MAX_PANELS = 60
_COLUMNS = 4
_INK, _POINT, _LINE = "#222222", "#999999", "#0072b2"  # grey, and a blue of Okabe and Ito 2008
_WORSE = "#d55e00"  # vermilion, theirs too
_SHAPES = {"better": ("o", _LINE, _LINE), "worse": ("s", _WORSE, _WORSE)}  # marker, line, fill
_FEW = 5  # curves that one panel can hold
_NUMBERED = 40  # points that one panel can hold with their numbers
STYLE: Any = {
    "font.family": "DejaVu Sans",  # it comes with matplotlib: the same everywhere
    "font.size": 7,
    "figure.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.0,
    "svg.hashsalt": "ablate",
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
}


def write_figures(analysis: Analysis, curves: Sequence[Curve], folder: Path) -> list[Path]:
    """Write every figure that the findings have something for, and return the files. Same findings, same bytes.

    Raises OSError where the folder can't be written.
    """
    from matplotlib import rc_context

    written: list[Path] = []
    with rc_context(STYLE):
        for name, draw in figures_of(analysis, curves).items():
            folder.mkdir(parents=True, exist_ok=True)
            figure = draw()
            for form in FORMATS:
                drawn = io.BytesIO()  # not into the file: what a full disk says would be lost in matplotlib
                figure.savefig(drawn, format=form, dpi=200, metadata=_UNDATED[form])
                path = folder / f"{name}.{form}"
                failpoint("figure-begun", meets_disk=True)
                path.write_bytes(drawn.getvalue())
                written.append(path)
    return written


def draw_figure(analysis: Analysis, curves: Sequence[Curve], name: str) -> Figure:
    """Draw the figure that ``write_figures`` writes under this name, one of ``figures_of``."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        return figures_of(analysis, curves)[name]()


# the time of writing would make other bytes of the same figure
_UNDATED: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}


def figures_of(analysis: Analysis, curves: Sequence[Curve]) -> dict[str, Callable[[], Figure]]:
    """Return the figures that the findings have something for, by name: functions that draw them."""
    return dict(_figures(analysis, curves))


def _figures(analysis: Analysis, curves: Sequence[Curve]) -> Iterator[tuple[str, Callable[[], Figure]]]:
    for design in analysis.designs:
        if design.name in (BOTH, COMPARE):
            continue
        if _drawn(analysis, design):
            yield f"forest-{design.name}", partial(forest_figure, analysis, design)
        if design.name == "ladder" and _drawn(analysis, design):
            yield "ladder", partial(ladder_figure, analysis, design)
        if design.components and len(_pairs(analysis, design)):
            yield f"interactions-{design.name}", partial(interaction_figure, analysis, design)
        if any(curve.metric == analysis.primary.name and _is_of(design, curve) for curve in curves):
            yield f"curves-{design.name}", partial(curves_figure, analysis, design, curves)
        for against in COSTS:
            if len(set(_costs(analysis, design, against).values())) > 1:
                yield f"cost-{design.name}-{against}", partial(cost_figure, analysis, design, against)
    if analysis.tuning:
        yield "tuning", partial(tuning_figure, analysis, analysis.tuning)


# --- effects -------------------------------------------------------------------------------------------------------


def forest_figure(analysis: Analysis, design: DesignResult, *, width: float = ONE_COLUMN) -> Figure:
    """Draw each effect on the primary metric with its interval, in the order of the table, and a dot for each seed."""
    rows = _drawn(analysis, design)
    names = [_label(row.title, row.name, width) for row in rows]
    figure, panel = _listing(names, width)
    margin = analysis.primary.margin
    if margin is not None:
        panel.axvspan(-margin, margin, color="#eeeeee", linewidth=0)
    panel.axvline(0, color=_POINT, linewidth=0.6)
    for place, row in enumerate(rows):
        effect = row.effects[analysis.primary.name]
        assert effect.mean is not None
        marker, line, fill = _shape(analysis, row)
        seeds = list(effect.differences.values()) if effect.n > 1 else []
        panel.plot(seeds, [place + 0.28] * len(seeds), linestyle="none", marker=".", markersize=2, color=_POINT)
        if effect.interval is not None and effect.n >= SPREAD_FROM:
            panel.plot([effect.interval.low, effect.interval.high], [place, place], color=line)
        panel.plot([effect.mean], [place], marker=marker, markersize=4, color=line, markerfacecolor=fill)
    title = EFFECT_TITLES[design.name]
    level = f", {100 * (1 - analysis.alpha):g}% CI" if any(_has_interval(analysis, row) for row in rows) else ""
    figure.supxlabel(_wrapped(f"{title}: {_axis(analysis.primary)}{level}", width))
    return figure


def ladder_figure(analysis: Analysis, design: DesignResult, *, width: float = TWO_COLUMNS) -> Figure:
    """Draw each row as a bar from its parent's mean to its own; the whisker is the interval of that difference."""
    primary, number = analysis.primary.name, row_numbers(analysis, design)
    arms = [analysis.arm(name, design.role) for name in number]
    figure, panel = _listing([_label(arm.title, arm.name, width) for arm in arms], width)
    means = {arm.name: arm.cells[primary].mean for arm in arms}
    for arm in arms:
        place, mean, row = number[arm.name], means[arm.name], design.comparison(arm.name)
        if mean is None:
            continue
        start = means.get(row.other) if row is not None else None
        if row is None or start is None or row.effects[primary].mean is None:
            compared = row is None  # a mean with a seed that diverged is of the lucky ones
            panel.plot(
                [mean], [place], marker="D" if compared else "x", markersize=4, color=_INK if compared else _POINT
            )
            continue
        _, line, fill = _shape(analysis, row)
        panel.plot([start, start], [number[row.other], place], color=_POINT, linewidth=0.5, linestyle=":")
        hatch, face = ("////", "white") if row.branch else ("", fill)
        panel.barh(
            place, mean - start, 0.55, start, facecolor=face, edgecolor=line, hatch=hatch, linewidth=0.6, alpha=0.7
        )
        found = row.effects[primary].interval
        if found is not None and row.effects[primary].n >= SPREAD_FROM:
            panel.plot([start + found.low, start + found.high], [place, place], color=_INK, linewidth=0.8)
    branches = " (hatched: tried, not kept)" if any(row.branch for row in design.comparisons) else ""
    kind = f"{_axis(analysis.primary)}; bar: from the row that it builds on{branches}"
    figure.supxlabel(_wrapped(kind, width))
    return figure


def interaction_figure(analysis: Analysis, design: DesignResult, *, width: float = ONE_COLUMN) -> Figure:
    """Draw what each two steps do together beyond their sum: half of what one changes about the effect of the other."""
    from matplotlib.figure import Figure

    pairs, steps = _pairs(analysis, design), design.components
    means = {pair: row.effects[analysis.primary.name].mean or 0.0 for pair, row in pairs.items()}
    largest = max(map(abs, means.values())) or 1.0
    places = decimals([row.effects[analysis.primary.name].se for row in pairs.values()], list(means.values()))
    table = [[means.get((steps[x], steps[y]), math.nan) for x in range(len(steps) - 1)] for y in range(1, len(steps))]
    figure = Figure(figsize=(width, 0.75 * width + 0.3), layout="constrained")
    panel: Axes = figure.subplots()
    image = panel.imshow(table, cmap="PuOr_r", vmin=-largest, vmax=largest, aspect="auto")
    panel.set_xticks(range(len(steps) - 1), [_short(step, 14) for step in steps[:-1]], rotation=30, ha="right")
    panel.set_yticks(range(len(steps) - 1), [_short(step, 14) for step in steps[1:]])
    for (first, second), row in pairs.items():
        x, y = steps.index(first), steps.index(second) - 1
        mean = means[first, second]
        test = row.effects[analysis.primary.name].conclusion
        shown = signed(mean, places) + ("*" if test is not None and test.verdict in _SHAPES else "")
        ink = "white" if abs(mean) > 0.6 * largest else _INK
        panel.text(x, y, shown, ha="center", va="center", color=ink, fontsize=6)
    for side in ("left", "bottom"):
        panel.spines[side].set_visible(False)
    panel.tick_params(length=0)
    figure.colorbar(image, ax=panel, label=f"interaction: {_axis(analysis.primary)} (*: better or worse)")
    return figure


def _drawn(analysis: Analysis, design: DesignResult) -> list[Comparison]:
    """Return the rows that have an effect to draw, in the order of the table."""
    rows = [row for row in design.comparisons if SHAPLEY not in row.name and not (design.components and row.arm)]
    if not design.components and design.name not in (BOTH, COMPARE):
        number = row_numbers(analysis, design)
        rows.sort(key=lambda row: number[row.arm])
    return [row for row in rows if row.effects[analysis.primary.name].mean is not None]


def _pairs(analysis: Analysis, design: DesignResult) -> dict[tuple[str, str], Comparison]:
    found = {}
    for row in design.comparisons:
        parts = tuple(row.name.split(CROSS))
        known = set(parts) <= set(design.components)
        if len(parts) == 2 and known and row.effects[analysis.primary.name].mean is not None:
            found[parts[0], parts[1]] = row
    return found


def _shape(analysis: Analysis, row: Comparison) -> tuple[str, str, str]:
    """Return marker, colour of the line, and filling: what is not resolved is a hollow circle."""
    test = row.effects[analysis.primary.name].conclusion
    return _SHAPES.get(test.verdict if test is not None else "", ("o", _INK, "white"))


def _has_interval(analysis: Analysis, row: Comparison) -> bool:
    effect = row.effects[analysis.primary.name]
    return effect.interval is not None and effect.n >= SPREAD_FROM


def _listing(names: Sequence[str], width: float) -> tuple[Figure, Axes]:
    """Return an empty figure with a line for each name, the first on top."""
    from matplotlib.figure import Figure

    height = 0.27 if any("\n" in name for name in names) else 0.19
    figure = Figure(figsize=(width, 0.6 + height * len(names)), layout="constrained")
    panel: Axes = figure.subplots()
    panel.use_sticky_edges = False  # a bar that begins at the least value would stand on the edge
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)
    return figure, panel


# --- learning curves -----------------------------------------------------------------------------------------------


def curves_figure(
    analysis: Analysis, design: DesignResult, curves: Sequence[Curve], *, metric: str = "", width: float | None = None
) -> Figure:
    """Draw a metric (the primary one) by epoch: the mean with a pointwise t interval of it, or one line a seed.

    A mean ends where one of its seeds is no number. Up to five arms share a panel; else each has its own, beside the
    first arm in grey.
    """
    from matplotlib.figure import Figure

    info = next(each for each in analysis.metrics if each.name == (metric or analysis.primary.name))
    lines: dict[str, list[Curve]] = {}
    for name in row_numbers(analysis, design):
        found = [each for each in curves if (each.arm, each.role, each.metric) == (name, design.role, info.name)]
        if found:
            lines[name] = found
    titles = {arm.name: arm.title for arm in analysis.arms}
    if len(lines) <= _FEW:
        figure = Figure(figsize=(width or ONE_COLUMN, 2.2 + 0.13 * len(lines)), layout="constrained")
        panel: Axes = figure.subplots()
        for place, (name, found) in enumerate(lines.items()):
            label = _label(titles[name], name, TWO_COLUMNS).replace("\n", " ")
            _draw_curves(panel, found, analysis.alpha, _HUES[place], _DASHES[place], label)
        panel.set_xlabel("epoch")
        figure.legend(loc="outside lower center", frameon=False, ncols=1)
    else:
        shown, (first, *_) = list(lines)[:MAX_PANELS], lines
        number = row_numbers(analysis, design)
        columns = 6
        rows = math.ceil(len(shown) / columns)
        figure = Figure(figsize=(width or TWO_COLUMNS, 1.05 * rows + 0.5), layout="constrained")
        axes: Sequence[Axes] = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel().tolist()
        for panel, name in zip(axes, shown, strict=False):
            panel.set_title(_short(f"{number[name]} {name.removeprefix('only-')}", 20), fontsize=6, color=_INK)
            if name != first:
                _draw_curves(panel, lines[first], analysis.alpha, _POINT, "--", "")
            _draw_curves(panel, lines[name], analysis.alpha, _LINE, "-", "")
        for panel in axes[len(shown) :]:
            panel.set_visible(False)
        figure.supxlabel("epoch")
    few = any(len(found) < SPREAD_FROM for found in lines.values())
    band = "each seed" if few else f"mean, {100 * (1 - analysis.alpha):g}% band"
    figure.supylabel(f"{_axis(info)}, {band}")
    return figure


_HUES = (_INK, _LINE, _WORSE, "#009e73", "#cc79a7")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def _draw_curves(panel: Axes, found: Sequence[Curve], alpha: float, hue: str, dash: Any, label: str) -> None:
    if len(found) < SPREAD_FROM:
        for place, curve in enumerate(found):
            points = [(x, y) for x, y in zip(curve.epochs, curve.values, strict=True) if math.isfinite(y)]
            panel.plot(*_split(points), color=hue, linestyle=dash, linewidth=0.7, label="" if place else label)
        return
    values = [dict(zip(curve.epochs, curve.values, strict=True)) for curve in found]
    epochs = sorted(set.intersection(*(set(each) for each in values)))
    lost = next((x for x in epochs if not all(math.isfinite(each[x]) for each in values)), math.inf)
    estimates = {x: paired_estimate([(1.0, [each[x] for each in values])]) for x in epochs if x < lost}
    panel.plot(list(estimates), [each.mean for each in estimates.values()], color=hue, linestyle=dash, label=label)
    ends = [each.interval(alpha) or (each.mean, each.mean) for each in estimates.values()]
    low, high = [end for end, _ in ends], [end for _, end in ends]
    panel.fill_between(list(estimates), low, high, color=hue, alpha=0.18, linewidth=0)


def _is_of(design: DesignResult, curve: Curve) -> bool:
    return curve.role == design.role and curve.arm in design.arms


# --- cost ----------------------------------------------------------------------------------------------------------

COSTS = {"hours": "hours of all seeds", "parameters": "parameters", "flops": "FLOPs"}


def cost_figure(analysis: Analysis, design: DesignResult, against: str, *, width: float = ONE_COLUMN) -> Figure:
    """Draw the primary metric against hours, parameters or FLOPs: a point for each row with its sd, and its number."""
    from matplotlib.figure import Figure

    costs, number = _costs(analysis, design, against), row_numbers(analysis, design)
    figure = Figure(figsize=(width, 0.72 * width), layout="constrained")
    panel: Axes = figure.subplots()
    points: dict[int, tuple[float, float]] = {}
    for name, cost in costs.items():
        cell = analysis.arm(name, design.role).cells[analysis.primary.name]
        assert cell.mean is not None
        sd = cell.sd if cell.n >= SPREAD_FROM else None
        best = name in design.best
        panel.errorbar(
            [cost], [cell.mean], yerr=sd, marker="D" if best else "o", markersize=4, color=_LINE if best else _INK,
            markerfacecolor=_LINE if best else "white", elinewidth=0.6, linestyle="none",
        )  # fmt: skip
        points[number[name]] = (cost, cell.mean)
    if len(points) <= _NUMBERED:
        _number(panel, points)
    if max(costs.values()) > 30 * min(costs.values()) > 0:
        panel.set_xscale("log")
    device = f"{'GPU' if analysis.gpus else 'CPU'} " if against == "hours" else ""
    bold = " (diamond: in bold in the table)" if design.best else ""
    panel.set_xlabel(f"{device}{COSTS[against]}{bold}")
    panel.set_ylabel(_axis(analysis.primary))
    return figure


def _number(panel: Axes, points: Mapping[int, tuple[float, float]]) -> None:
    """Write the number of its row beside each point, on another side where one that is near has it there."""
    sides: Sequence[tuple[int, int, Any]] = ((4, 2, "left"), (-4, 2, "right"), (4, -7, "left"), (-4, -7, "right"))
    wide, high = (max(each) - min(each) or 1.0 for each in zip(*points.values(), strict=True))
    taken: list[tuple[float, float, int]] = []
    for number, (x, y) in points.items():
        near = {side for a, b, side in taken if abs(a - x) < 0.12 * wide and abs(b - y) < 0.08 * high}
        side = next((each for each in range(len(sides)) if each not in near), 0)
        taken.append((x, y, side))
        right, up, align = sides[side]
        panel.annotate(str(number), (x, y), (right, up), textcoords="offset points", ha=align, fontsize=6, color=_INK)


def _costs(analysis: Analysis, design: DesignResult, against: str) -> dict[str, float]:
    """Return what each arm of a design cost, of those that have a value."""
    arms = [arm for arm in analysis.arms if arm.role == design.role and arm.name in design.arms]
    cells = {arm.name: arm.cells[analysis.primary.name] for arm in arms}
    usable = [arm for arm in arms if cells[arm.name].mean is not None and not cells[arm.name].undefined]
    found = {arm.name: _cost(arm, against) for arm in usable}
    return {name: cost for name, cost in found.items() if cost is not None}


def _cost(arm: ArmResult, against: str) -> float | None:
    if against == "hours":
        return None if arm.seconds is None else arm.seconds / 3600
    return arm.facts.get(against)


# --- tuning --------------------------------------------------------------------------------------------------------


def tuning_figure(analysis: Analysis, tuning: Tuning) -> Figure:
    """Draw the metric against the budget: a panel per arm, a dot per setting tried, a line for the best so far."""
    from matplotlib.figure import Figure

    arms = tuning.arms[:MAX_PANELS]
    columns = min(_COLUMNS, len(arms))
    rows = math.ceil(len(arms) / columns)
    figure = Figure(figsize=(1.9 * columns + 0.7, 1.7 * rows + 0.6), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for panel, arm in zip(axes, arms, strict=False):
        _draw_tuning(panel, arm, analysis.primary.goal)
    for panel in axes[len(arms) :]:
        panel.set_visible(False)
    figure.supylabel(f"{_axis(analysis.primary)}, tuning seeds")
    figure.supxlabel("settings tried (line: the best so far; diamond: chosen)")
    more = f" (the first {MAX_PANELS} of {len(tuning.arms)} arms)" if len(tuning.arms) > MAX_PANELS else ""
    figure.suptitle(_plain(f"{analysis.title}: tuning of {', '.join(tuning.ranges)}{more}"))
    return figure


def _draw_tuning(panel: Axes, arm: ArmTuning, goal: str) -> None:
    tried = [(each.number, each.mean) for each in arm.candidates if each.mean is not None]
    best = arm.best_so_far(goal)
    known = [(number, value) for number, value in enumerate(best, start=1) if value is not None]
    panel.set_title(_plain(arm.arm), color=_INK)
    panel.plot(*_split(tried), linestyle="none", marker="o", markersize=3, color=_POINT)
    panel.step(*_split(known), where="post", color=_LINE)
    if arm.chosen is not None and arm.chosen.mean is not None:
        panel.plot(arm.chosen.number, arm.chosen.mean, marker="D", markersize=4, color=_LINE)


def _split(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


# --- text ----------------------------------------------------------------------------------------------------------


def _axis(metric: MetricInfo) -> str:
    unit = f" ({metric.unit})" if metric.unit and _has_font(metric.unit) else ""
    return _plain(f"{metric.label if _has_font(metric.label) else metric.name}{unit}")


def _label(title: str, name: str, width: float) -> str:
    """Return a title on at most two lines; the name in its place where the font lacks a character of it."""
    shown = one_line(title) if _has_font(title) else name
    lines = wrap(shown, 24 if width < TWO_COLUMNS else 44) or [name]
    return "\n".join(map(_plain, lines[:2])) + ("…" if len(lines) > 2 else "")


def _wrapped(text: str, width: float) -> str:
    return "\n".join(wrap(text, round(18 * width)))


def _short(text: str, length: int) -> str:
    return _plain(text if len(text) <= length else f"{text[: length - 1]}…")


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


def _has_font(text: str) -> bool:
    return all(ord(c) in _glyphs() for c in one_line(text))


def _plain(text: str) -> str:
    """Return text of a study as it stands; what the font lacks is spelt out, and it is never mathematics (`$x$`)."""
    shown = (c if ord(c) in _glyphs() else c.encode("unicode_escape").decode() for c in one_line(text))
    return "".join(shown).replace("$", r"\$")
