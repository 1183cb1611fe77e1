"""The live picture as lines: it fits any terminal, keeps its places, and tells a time left that is right."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.cells import cell_len

from ablate.run.picture import Cell, Layout, Running, View, draw, seconds_left


def view(
    *,
    arms: int = 4,
    seeds: int = 3,
    done: int = 2,
    at_work: int = 2,
    now: float = 100.0,
    name: str = "arm",
    **more: object,
) -> View:
    """Arms × seeds in plan order: the first ones done in 10 s each, the next at work for 4 s, with 2 of 5 epochs."""
    cells = []
    running = []
    for index in range(arms * seeds):
        state = "done" if index < done else "running" if index < done + at_work else "waiting"
        arm = f"{name}-{index % arms}"
        seed = str(index // arms + 1)
        cells.append(Cell(arm, seed, f"seed {seed}", index, state, seconds=10.0 if state == "done" else None))
        if state == "running":
            values = {"val_acc": 61.234, "images_per_s": 5200.0}
            slot = f"cpu{len(running)}"
            running.append(
                Running(index, f"{arm} seed {index // arms + 1}", slot, "here", now - 4, values, 2, 5, 0, now)
            )
    values = {"title": "study@quick", "metric": "val_acc", "cells": cells, "running": running, "began": 0.0, "now": now}
    return View(**{**values, "footer": "Ctrl-C stops; nothing is lost", **more})  # type: ignore[arg-type]


def lines(
    shown: View, *, width: int = 80, height: int = 24, layout: Layout | None = None, **options: bool
) -> list[str]:
    return [line.plain for line in draw(shown, layout or Layout(), width=width, height=height, **options)]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 250])
@pytest.mark.parametrize("height", [1, 2, 3, 5, 9, 24, 40])
@pytest.mark.parametrize(("arms", "seeds", "at_work"), [(1, 1, 1), (4, 3, 2), (64, 5, 16), (14, 100, 64)])
def test_a_picture_is_never_larger_than_the_terminal(
    width: int, height: int, arms: int, seeds: int, at_work: int
) -> None:
    for name in ("arm", "an-arm-with-a-name-that-goes-on-and-on-for-ever", "腕の名前がとても長い腕の名前がとても長い"):
        shown = lines(view(arms=arms, seeds=seeds, done=0, at_work=at_work, name=name), width=width, height=height)
        assert len(shown) <= height
        assert max(map(cell_len, shown)) <= width


def test_a_picture_says_all_that_one_wants_to_know() -> None:
    assert lines(view()) == [
        "study@quick: 2 of 12 trials done, 2 running",
        "1 min 40 s so far, about 46 s left",
        "arm   1 2 3",
        "arm-0 ● · ·",
        "arm-1 ● · ·",
        "arm-2 ◐ · ·",
        "arm-3 ◐ · ·",
        "● done  ◐ running  · waiting",
        "arm-2 seed 1  epoch 2/5  val_acc 61.23  5,200 images/s  4.0 s  6.0 s left",
        "arm-3 seed 1  epoch 2/5  val_acc 61.23  5,200 images/s  4.0 s  6.0 s left",
        "Ctrl-C stops; nothing is lost",
    ]


def test_a_trial_at_work_shows_its_curve_and_its_memory() -> None:
    shown = view(arms=1, seeds=2, done=0, at_work=1)
    curve = [10.0, 30.0, 20.0, float("nan"), 80.0]
    (running,) = [replace(each, curve=curve, values=each.values | {"peak_memory_mb": 3174.4}) for each in shown.running]
    shown = replace(shown, running=[running])
    row = "arm-0 seed 1  epoch 2/5  val_acc 61.23  {}  5,200 images/s  3.1 GiB  4.0 s  6.0 s left"
    assert lines(shown, width=100)[5] == row.format("▁▃▂█")
    assert lines(shown, width=100, ascii_only=True)[5] == row.format("_,.#")
    assert "GiB" not in lines(shown)[5]  # at 80 columns what is left tells more
    long = replace(shown, running=[replace(running, curve=[float(value) for value in range(100)])])
    assert "▁▂▃▄▅▆▇█" in lines(long, width=100)[5]


def test_the_last_failure_stays_in_the_picture() -> None:
    shown = lines(view(failure="arm-1 seed 2: out of memory: 23.1 GiB of 24 GiB in use"))
    assert shown[-2:] == ["✗ arm-1 seed 2: out of memory: 23.1 GiB of 24 GiB in use", "Ctrl-C stops; nothing is lost"]


def test_where_there_is_little_room_the_throughput_goes_last() -> None:
    assert lines(view(), width=62)[8] == "arm-2 seed 1  epoch 2/5  val_acc 61.23  5,200 images/s  4.0 s"
    assert lines(view(), width=50)[8] == "arm-2 seed 1  epoch 2/5  val_acc 61.23  4.0 s"[:50]


def test_ascii_keeps_every_sign_in_its_place() -> None:
    plain, signs = lines(view(), ascii_only=True), lines(view())
    assert "\n".join(plain).isascii()
    assert list(map(len, plain)) == list(map(len, signs))
    assert plain[7] == "+ done  o running  . waiting"


def test_rows_and_columns_keep_their_places_while_numbers_grow() -> None:
    layout = Layout()
    first = view(now=100.0)
    before = lines(first, layout=layout)
    for running in first.running:
        running.values["val_acc"] = 5.0
        running.epoch = 1
    first.running[0].started -= 1000
    after = lines(first, layout=layout)
    assert len(before) == len(after)
    column = before[8].index("images/s")
    assert after[8].index("images/s") == column
    first.running[0].started += 1000
    again = lines(first, layout=layout)
    assert again[9].index("images/s") == column


def test_attempts_keep_the_order_of_their_slots() -> None:
    shown = view(arms=12, done=0, at_work=12)
    names = [
        line.split()[0] for line in lines(View(**{**vars(shown), "running": shown.running[::-1]}), height=60)[-13:-1]
    ]
    assert names == [f"arm-{i}" for i in range(12)]


def test_a_grid_without_room_scrolls_with_the_work_and_only_then() -> None:
    layout = Layout()
    shown = lines(view(arms=30, done=0, at_work=1), layout=layout, height=16)
    assert "arm-0  ◐ · ·" in shown
    assert "arms 1-9 of 30" in shown
    assert "arms 1-9 of 30" in lines(view(arms=30, done=5, at_work=1), layout=layout, height=16)
    assert "arms 13-21 of 30" in lines(view(arms=30, done=12, at_work=1), layout=layout, height=16)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        # two places have 6 s left each, then 8 trials of 10 s: four turns
        (view(), 6 + 4 * 10),
        # one place is left, and nothing waits
        (view(arms=3, seeds=1, done=2, at_work=1), 6),
        # nothing has ended yet: a running one tells by its epochs that it takes 10 s
        (view(done=0), 6 + 5 * 10),
        (view(done=0, at_work=0), None),
        (view(at_work=0), None),
    ],
)
def test_the_time_left(shown: View, expected: float | None) -> None:
    left = seconds_left(shown)
    assert left == (None if expected is None else pytest.approx(expected))


def test_the_time_left_of_a_resumed_attempt_counts_its_own_epochs() -> None:
    running = Running(0, "a", "cpu0", "h", started=90.0, epoch=8, epochs=10, first=4, heard=98.0)
    assert running.left(98.0, None) == pytest.approx(2 * 2.0)
    assert running.left(99.0, None) == pytest.approx(3.0)
    assert Running(0, "a", "cpu0", "h", started=90.0).left(99.0, None) is None
    assert Running(0, "a", "cpu0", "h", started=90.0).left(99.0, 30.0) == pytest.approx(21.0)


def test_trials_at_other_runners_count_as_places() -> None:
    shown = view(at_work=2)
    elsewhere = View(**{**vars(shown), "running": shown.running[:1]})
    elsewhere.cells[3].since = 96.0
    assert seconds_left(elsewhere) == pytest.approx(46.0)
