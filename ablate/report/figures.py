"""Figures for papers, as PDF, SVG and PNG: plain, and told apart by place and shape, not by colour alone."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.analyse.findings import Analysis, ArmTuning, Tuning
from ablate.failpoints import failpoint
from ablate.report.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("pdf", "svg", "png")
MAX_PANELS = 60
_COLUMNS = 4
_INK, _POINT, _LINE = "#222222", "#999999", "#0072b2"  # grey, and a blue of Okabe and Ito 2008
_STYLE: Any = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "ablate"}


def write_figures(analysis: Analysis, folder: Path) -> list[Path]:
    """Write every figure that the findings have something for, and return the files. Same findings, same bytes.

    Raises OSError where the folder can't be written.
    """
    from matplotlib import rc_context

    written: list[Path] = []
    with rc_context(_STYLE):
        for name, figure in _figures(analysis).items():
            folder.mkdir(parents=True, exist_ok=True)
            for form in FORMATS:
                drawn = io.BytesIO()  # not into the file: what a full disk says would be lost in matplotlib
                figure.savefig(drawn, format=form, dpi=200, metadata=_UNDATED[form])
                path = folder / f"{name}.{form}"
                failpoint("figure-begun", meets_disk=True)
                path.write_bytes(drawn.getvalue())
                written.append(path)
    return written


# the time of writing would make other bytes of the same figure
_UNDATED: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}


def _figures(analysis: Analysis) -> dict[str, Figure]:
    return {"tuning": tuning_figure(analysis, analysis.tuning)} if analysis.tuning else {}


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
    unit = f" ({analysis.primary.unit})" if analysis.primary.unit else ""
    figure.supylabel(_plain(f"{analysis.primary.label}{unit}, tuning seeds"))
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


def _plain(text: str) -> str:
    """Return text of a study as it stands: matplotlib takes what is between dollar signs for mathematics."""
    return one_line(text).replace("$", r"\$")
