"""Places of figures, against numbers that we chose."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablate.analyse.analysis import analyse
from ablate.analyse.details import Cost, Mean
from ablate.report.designs import build_tables
from ablate.report.drawings import BOTTOM, LEFT, RIGHT, TOP, Scale, clouds, forest, interactions, scale_of, waterfall
from ablate.report.numbers import signed
from tests.report.cases import CASES
from tests.report.made_up import ladder


def test_a_scale_is_straight_and_ends_at_its_ends() -> None:
    scale = Scale(-10, 30)
    assert [scale.place(value) for value in (-10, 0, 10, 30)] == [0, 25, 50, 100]
    assert (scale.place(-11), scale.place(99)) == (0, 100)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (-1.2, 8.8, ["0", "+2", "+4", "+6", "+8"]),
        (0.011, 0.052, ["+0.02", "+0.03", "+0.04", "+0.05"]),
        (-250, 1_250, ["0", "+500", "+1000"]),
        (99.97, 100.02, ["+99.97", "+99.98", "+99.99", "+100.00", "+100.01", "+100.02"]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, ticks: list[str]) -> None:
    scale = Scale(low, high)
    found = scale.ticks(5, signed)
    assert [tick.text for tick in found] == ticks
    assert [tick.place for tick in found] == [pytest.approx(scale.place(float(text)), abs=0.01) for text in ticks]


@pytest.mark.parametrize("values", [[], [0.0], [1e-300], [5.0, 5.0], [1e300, -1e300], [float("nan"), 1.0]])
def test_any_values_have_a_scale_with_ticks(values: list[float]) -> None:
    scale = scale_of(values)
    assert scale.low < scale.high
    assert all(0 <= tick.place <= 100 for tick in scale.ticks(5, signed))


def test_a_ladder_leads_from_parent_to_child(tmp_path: Path) -> None:
    filled = CASES["ladder"].fill(tmp_path)
    found = analyse(filled.store, filled.stored)
    (table,) = build_tables(found)
    drawn = waterfall(found, found.designs[0], table)
    assert drawn is not None
    truth = {
        "0": (None, 30.0),
        "1": (30.0, 38.0),
        "2": (30.0, 36.5),
        "3": (38.0, 42.0),
        "4": (42.0, 44.5),
        "5": (44.5, 45.0),
    }
    per_point = (_place(drawn.bars[5].mean) - _place(drawn.bars[0].mean)) / 15
    for bar in drawn.bars:
        start, end = truth[bar.number]
        assert bar.mean == pytest.approx(_place(drawn.bars[0].mean) + per_point * (end - 30), abs=0.02)
        if start is None:
            assert bar.start is None
        else:
            assert bar.start == pytest.approx(_place(drawn.bars[0].mean) + per_point * (start - 30), abs=0.02)
            assert _place(bar.low) < _place(bar.mean) < _place(bar.high)
    assert [bar.branch for bar in drawn.bars] == [False, False, True, False, False, False]


def _place(place: float | None) -> float:
    assert place is not None
    return place


def test_effects_have_their_sign_their_seeds_and_the_margin() -> None:
    found = ladder(arms=9, seeds=5)
    (table,) = build_tables(found)
    drawn = forest(table, found.primary, with_seeds=True)
    assert drawn is not None
    zero = _place(drawn.zero)
    for bar, row in zip(drawn.bars, found.designs[0].comparisons, strict=False):
        effect = row.effects["val_acc"]
        assert effect.mean is not None
        assert (_place(bar.mean) > zero) == (effect.mean > 0)
        assert len(bar.seeds) == 5
        assert sum(bar.seeds) / 5 == pytest.approx(bar.mean, abs=0.02)
    assert drawn.margin is not None
    assert sum(drawn.margin) / 2 == pytest.approx(zero, abs=0.02)
    assert [bar.kind for bar in drawn.bars[:4]] == ["worse", "none", "open", "better"]


def test_a_map_of_interactions_has_main_effects_on_its_diagonal(tmp_path: Path) -> None:
    filled = CASES["factorial"].fill(tmp_path)
    found = analyse(filled.store, filled.stored)
    drawn = interactions(found, found.designs[0], 1)
    assert drawn is not None
    fields = {(field.row, field.column): field for field in drawn.fields}
    assert sorted(fields) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    assert [(fields[i, i].text, fields[i, i].kind, fields[i, i].share) for i in range(3)] == [
        ("+8.0", "better", 1.0),
        ("+4.0", "better", 0.5),
        ("+2.5", "better", 0.312),
    ]
    assert {fields[row, column].kind for row, column in fields if row != column} == {"none"}


def test_costs_that_differ_by_ten_times_are_on_a_log_scale() -> None:
    def cost(number: int, seconds: Mean) -> Cost:
        return Cost(number, f"arm-{number}", Mean(50.0 + number, 49.0, 53.0), seconds, 1e6, None)

    near = [cost(0, Mean(10, 9, 11)), cost(1, Mean(20, 18, 22))]
    far = [cost(0, Mean(1, -1, 3)), cost(1, Mean(10, 9, 11)), cost(2, Mean(100, 90, 110))]
    analysis = ladder(arms=3, seeds=3)
    (linear,), (log,) = clouds(analysis, near), clouds(analysis, far)
    assert linear.title == "wall time of a trial"
    assert log.title == "wall time of a trial (log scale)"
    first, second, third = (spot.x for spot in log.spots)
    assert second - first == pytest.approx(third - second, abs=0.02)
    assert [tick.text for tick in log.across] == ["1.0 s", "10 s", "1.7 min"]
    for spot in (*linear.spots, *log.spots):
        assert LEFT <= spot.left <= spot.x <= spot.right <= RIGHT
        assert TOP <= spot.top <= spot.y <= spot.bottom <= BOTTOM
