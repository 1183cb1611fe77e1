from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from ablate.analyse.analysis import analyse
from ablate.analyse.findings import Analysis
from ablate.report import terminal
from tests.report.cases import CASES
from tests.truth import Fate, fill, truth_study


def printed(analysis: Analysis, width: int, **options: object) -> str:
    console = Console(file=io.StringIO(), width=width, **options)  # type: ignore[arg-type]
    terminal.print_report(analysis, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.fixture(params=["troubled", "hostile", "leave-one-out"], scope="module")
def analysis(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    filled = CASES[request.param].fill(tmp_path_factory.mktemp("store"))
    return analyse(filled.store, filled.stored)


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal_or_ends_in_blanks(analysis: Analysis, width: int) -> None:
    lines = printed(analysis, width).splitlines()
    assert [line for line in lines if cell_len(line) > width] == []
    assert [line for line in lines if line != line.rstrip()] == []


def test_every_row_keeps_its_numbers_at_80_columns(analysis: Analysis) -> None:
    text = printed(analysis, 80)
    for arm in analysis.arms:
        mean = arm.cells["val_acc"].mean
        assert mean is not None
        assert f"{mean:.1f}" in text
    for comparison in analysis.designs[0].comparisons:
        interval = comparison.effects["val_acc"].interval
        if interval is not None and comparison.effects["val_acc"].n > 2:
            assert f"{interval.low:+.1f}, " in text


def test_colour_adds_nothing_but_colour(analysis: Analysis) -> None:
    with_colour = printed(analysis, 100, force_terminal=True, color_system="standard", no_color=False)
    assert "\x1b[1m" in with_colour
    assert Text.from_ansi(with_colour).plain.split() == printed(analysis, 100).split()


def test_markup_in_a_title_is_text(tmp_path: Path) -> None:
    study = truth_study(seeds=1, steps=[{"name": "a", "title": "[red]x[/red] :smile:", "set": {"model.depth": 6}}])
    filled = fill(tmp_path, study)
    assert "[red]x[/red] :smile:" in printed(analyse(filled.store, filled.stored), 100)


def test_a_wide_terminal_draws_the_intervals_to_scale(tmp_path: Path) -> None:
    """Zero, the mean and the ends of an interval stand where their values are on the scale of the header."""
    filled = CASES["leave-one-out"].fill(tmp_path)
    analysis = analyse(filled.store, filled.stored)
    lines = printed(analysis, 140).splitlines()
    left = next(line for line in lines if "full model (all steps)" in line).index("│")
    effect = analysis.designs[0].comparisons[0].effects["val_acc"]
    assert effect.interval is not None
    low = min(each.effects["val_acc"].interval.low for each in analysis.designs[0].comparisons)  # type: ignore[union-attr]
    column = {
        value: round((value - low) / (effect.interval.high - low) * 24)
        for value in (0.0, effect.interval.low, effect.mean, effect.interval.high)
        if value is not None
    }
    row = next(line for line in lines if "without BatchNorm" in line)
    origin = left - column[0.0]
    assert row[origin + column[effect.mean or 0.0]] == "●"
    assert row[origin + column[effect.interval.low]] == "─"
    assert row[origin : origin + 25].rstrip().endswith(("─", "●"))
    assert row[left] == "│"


def test_what_has_no_room_is_named(tmp_path: Path) -> None:
    filled = CASES["ladder"].fill(tmp_path)
    analysis = analyse(filled.store, filled.stored)
    assert "Not shown at this width: published, macro_f1 (%), params, FLOPs and CPU time;" in printed(analysis, 80)
    assert "Not shown" not in printed(analysis, 200)


def test_numbers_too_wide_for_80_columns_push_out_p_and_n_by_name_and_break_no_word(tmp_path: Path) -> None:
    large = {1: 123456.71, 2: 123456.72, 3: 123456.73}
    study = truth_study(seeds=3, steps=[{"name": "deep", "set": {"model.depth": 6}}])
    fates = {
        (arm, seed): Fate(metrics={"val_acc": times * value + (arm == "deep") * seed % 2 / 100, "macro_f1": 1.0})
        for arm, times in (("baseline", 1), ("deep", -8))
        for seed, value in large.items()
    }
    filled = fill(tmp_path, study, fates)
    text = printed(analyse(filled.store, filled.stored), 80)
    (head,) = [line for line in text.splitlines() if "verdict" in line]
    assert head.split()[0] == "#"
    assert {"baseline", "worse", "123456.72"} <= set(text.split())
    assert "Not shown at this width: n, p (Holm), macro_f1 (%) and CPU time; Markdown and" in text
