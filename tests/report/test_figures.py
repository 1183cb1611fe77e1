"""Figures: what they draw is what was found, all of their text has room, and a publisher takes the files."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from scipy.stats import t

from ablate.analyse.analysis import analyse
from ablate.analyse.curves import Curve, study_curves
from ablate.analyse.findings import Analysis, MetricInfo
from ablate.report import figures
from tests.command import Call
from tests.hostile import corpus
from tests.report.cases import CASES, Case
from tests.truth import DIVERGED, STUDY, fill, truth_study

LONG = "double every convolution without any residual connection, as a check that depth alone does harm"
MANY = [{"name": f"s{i}", "title": LONG if i == 7 else f"setting {i}", "set": {"k": i}} for i in range(1, 61)]
CROSSED = [{"name": name, "set": {f"on.{name}": True}} for name in ("batchnorm", "residual", "mixup")]
DRAWN = {
    "ladder of 14": Case({"settings": {"k": 0}, "steps": MANY[:13], "seeds": 3}),
    "leave-one-out": CASES["leave-one-out"],
    "factorial": Case(
        {"settings": {"on": dict.fromkeys(("batchnorm", "residual", "mixup"), False)}, "steps": CROSSED,
         "designs": ["factorial"], "seeds": 3}
    ),
    "one seed": CASES["one-seed"],
    "sixty arms": Case({"settings": {"k": 0}, "steps": MANY, "designs": ["one-at-a-time"], "seeds": 3}),
    "troubled": CASES["troubled"],
    "hostile": CASES["hostile"],
}  # fmt: skip


def found(case: Case, folder: Path) -> tuple[Analysis, tuple[Curve, ...]]:
    filled = fill(folder, truth_study(**case.study), case.fates, epochs=8)
    analysis = analyse(filled.store, filled.stored)
    return analysis, study_curves(filled.store, filled.stored, analysis)


def texts(figure: Figure) -> list[tuple[str, Any]]:
    """Return each text that is drawn, with its box in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    drawn: list[Text] = []
    draw = Text.draw

    def noted(text: Text, *arguments: Any) -> None:
        drawn.append(text)
        draw(text, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", noted)
        figure.draw(renderer)
    return [
        (text.get_text(), text.get_window_extent(renderer)) for text in drawn if text.get_text() and text.get_visible()
    ]


SLOW = {"sixty arms": pytest.mark.slow}


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in DRAWN])
def test_no_text_is_cut_off_and_no_labels_overlap(tmp_path: Path, name: str) -> None:
    analysis, curves = found(DRAWN[name], tmp_path)
    drawn = 0
    with rc_context(figures.STYLE):
        for kind, draw in figures.figures_of(analysis, curves).items():
            drawn += 1
            figure = draw()
            assert figure.get_figwidth() in (figures.ONE_COLUMN, figures.TWO_COLUMNS)
            boxes = texts(figure)
            for text, box in boxes:
                inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.width + 1
                assert inside, f"{kind}: {text!r} leaves the figure"
                assert box.y1 <= figure.bbox.height + 1, f"{kind}: {text!r} leaves the figure"
            labels = [(text, box) for text, box in boxes if not re.fullmatch(r"\d+", text)]
            for i, (text, box) in enumerate(labels):
                for other, place in labels[:i]:
                    wide = min(box.x1, place.x1) - max(box.x0, place.x0)
                    high = min(box.y1, place.y1) - max(box.y0, place.y0)
                    # a line's box has room for accents and descenders
                    assert wide < 1 or high < 0.35 * min(box.height, place.height), f"{kind}: {text!r} on {other!r}"
    assert drawn >= 4


def test_the_same_findings_give_the_same_bytes_that_publishers_take(tmp_path: Path) -> None:
    analysis, curves = found(Case({"steps": STUDY["steps"][:1], "seeds": 3}), tmp_path)
    files = figures.write_figures(analysis, curves, tmp_path / "one")
    again = figures.write_figures(analysis, curves, tmp_path / "two")
    assert [path.name for path in files] == [path.name for path in again]
    for one, two in zip(files, again, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name
    for path in files:
        if path.suffix == ".pdf":
            content = path.read_bytes()
            assert b"/Type3" not in content
            assert b"/FontFile2" in content  # a TrueType font, within the file
            width = float(re.findall(rb"/MediaBox \[ 0 0 ([\d.]+)", content)[0])
            assert width / 72 == pytest.approx(3.3) or width / 72 == pytest.approx(6.9)
    assert {path.stem for path in files} == {
        "forest-ladder", "ladder", "curves-ladder", "cost-ladder-parameters", "cost-ladder-flops",
    }  # fmt: skip


def lines(figure: Figure, keep: Callable[[Any], bool]) -> list[tuple[list[float], list[float]]]:
    (panel,) = figure.axes
    return [(list(each.get_xdata()), list(each.get_ydata())) for each in panel.lines if keep(each)]


def test_a_forest_has_a_row_an_interval_and_dots_for_each_effect(tmp_path: Path) -> None:
    analysis, _ = found(CASES["leave-one-out"], tmp_path)
    figure = figures.forest_figure(analysis, analysis.designs[0])
    rows = sorted(analysis.designs[0].comparisons, key=lambda row: -(row.effects["val_acc"].mean or 0.0))
    effects = [row.effects["val_acc"] for row in rows]
    intervals = [[each.interval.low, each.interval.high] for each in effects if each.interval]
    drawn = lines(figure, lambda line: len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1])
    assert [x for x, _ in drawn] == intervals
    assert [y for _, y in drawn] == [[place, place] for place in range(4)]
    means = lines(figure, lambda line: line.get_marker() in ("o", "s"))
    assert [x[0] for x, _ in means] == [each.mean for each in effects]
    dots = lines(figure, lambda line: line.get_marker() == ".")
    assert [sorted(x) for x, _ in dots] == [sorted(each.differences.values()) for each in effects]


def test_a_margin_is_shaded_and_what_is_unresolved_is_hollow(tmp_path: Path) -> None:
    metrics = {"val_acc": {"goal": "max", "unit": "%", "margin": 1.5}}
    analysis, _ = found(Case({**CASES["leave-one-out"].study, "metrics": metrics}), tmp_path)
    figure = figures.forest_figure(analysis, analysis.designs[0])
    (panel,) = figure.axes
    (band,) = (patch for patch in panel.patches if isinstance(patch, Rectangle))
    assert (band.get_x(), band.get_width()) == (-1.5, 3.0)
    hollow = [line.get_markerfacecolor() == "white" for line in panel.lines if line.get_marker() in ("o", "s")]
    assert hollow == [False, False, False, True]


def test_the_bars_of_a_ladder_go_from_the_parents_mean_to_their_own(tmp_path: Path) -> None:
    analysis, _ = found(Case(), tmp_path)
    figure = figures.ladder_figure(analysis, analysis.designs[0])
    (panel,) = figure.axes
    bars = [(each.get_x(), each.get_x() + each.get_width(), bool(each.get_hatch())) for each in panel.patches]  # type: ignore[attr-defined]
    expected = [(30, 38, False), (30, 36.5, True), (38, 42, False), (42, 44.5, False), (44.5, 45, False)]
    assert [pytest.approx(bar) for bar in bars] == expected


def test_nothing_is_drawn_from_a_mean_with_a_diverged_seed(tmp_path: Path) -> None:
    analysis, _ = found(Case(fates={("depth-6", 3): DIVERGED}), tmp_path)
    design = analysis.designs[0]
    (panel,) = figures.ladder_figure(analysis, design).axes
    assert len(panel.patches) == 3
    assert sum(line.get_marker() == "x" for line in panel.lines) == 2
    (panel,) = figures.cost_figure(analysis, design, "flops").axes
    assert len(panel.containers) == 5


def test_a_band_is_the_t_interval_of_the_mean_at_each_epoch(tmp_path: Path) -> None:
    analysis, curves = found(Case({"steps": STUDY["steps"][:2], "seeds": 5}), tmp_path)
    figure = figures.curves_figure(analysis, analysis.designs[0], curves)
    (panel,) = figure.axes
    values = np.array([each.values for each in curves if (each.arm, each.metric) == ("baseline", "val_acc")])
    assert list(panel.lines[0].get_ydata()) == pytest.approx(list(values.mean(0)))
    half = t.ppf(0.975, 4) * values.std(0, ddof=1) / math.sqrt(5)
    band = panel.collections[0].get_paths()[0].vertices
    assert {round(float(y), 9) for y in values.mean(0) + half} <= {round(float(y), 9) for _, y in band}
    assert panel.get_legend() is None
    assert figure.legends[0].get_texts()[0].get_text() == "baseline"


def test_few_seeds_have_a_line_each_and_a_mean_ends_where_one_diverges(tmp_path: Path) -> None:
    analysis, curves = found(Case({"steps": STUDY["steps"][:1], "seeds": 2}), tmp_path / "two")
    (panel,) = figures.curves_figure(analysis, analysis.designs[0], curves).axes
    assert len(panel.lines) == 4
    assert not panel.collections
    analysis, curves = found(Case({"steps": STUDY["steps"][:1], "seeds": 3}), tmp_path / "three")
    lost = curves[0]
    broken = Curve(lost.arm, lost.role, lost.seed, lost.metric, lost.epochs, (*lost.values[:4], *[math.nan] * 4))
    (panel,) = figures.curves_figure(analysis, analysis.designs[0], (broken, *curves[1:])).axes
    assert [list(line.get_xdata()) for line in panel.lines] == [[1, 2, 3, 4], list(range(1, 9))]


@pytest.mark.filterwarnings("error")  # of matplotlib: a glyph that the font lacks
def test_every_hostile_name_can_be_drawn() -> None:
    texts = corpus("http://127.0.0.1/canary")
    with rc_context(figures.STYLE):
        figure = Figure(figsize=(4, 60))
        panel = figure.subplots()
        panel.set_yticks(range(len(texts)), [figures._label(text, f"s{i}", 3.3) for i, text in enumerate(texts)])
        panel.set_ylim(-1, len(texts))
        for place, text in enumerate(texts):
            info = MetricInfo(f"m{place}", "max", text, text)
            panel.text(0, place, figures._axis(info))
            panel.text(0.5, place, figures._short(text, 20))
        for form in figures.FORMATS:
            figure.savefig(io.BytesIO(), format=form)


def test_the_command_names_what_it_wrote(tmp_path: Path, call: Call) -> None:
    found(CASES["two-seeds"], tmp_path)
    done = call("report", "--store", str(tmp_path / "ablate.db"), "--figures", "drawn", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {Path(line).name for line in done.stdout.splitlines()} == {
        path.name for path in (tmp_path / "drawn").iterdir()
    }
    assert "drawn/ladder.pdf" in done.stdout
