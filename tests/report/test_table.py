"""What a table says in words. How it looks is held by the golden files."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablate.analyse.analysis import analyse
from ablate.plan.trials import Plan
from ablate.report.designs import build_tables
from ablate.report.table import Difference, Table
from tests.truth import DIVERGED, FAILED, WAITING, Fate, Measure, fill, measure_truth, truth_study


def table(
    folder: Path, fates: dict[tuple[str, int], Fate] | None = None, measure: Measure = measure_truth, **changes: object
) -> Table:
    filled = fill(folder, truth_study(**changes), fates, measure)
    (made,) = build_tables(analyse(filled.store, filled.stored))
    return made


def notes(made: Table) -> dict[str, tuple[int, ...]]:
    return {note.text: note.rows for note in made.notes}


def column(made: Table, key: str) -> list[str]:
    return [str(row.cells.get(key, "")) for row in made.rows]


def test_the_digits_of_a_column_are_those_of_its_typical_error(tmp_path: Path) -> None:
    made = table(tmp_path)
    assert column(made, "metric:val_acc")[:2] == ["30.0 ± 0.5", "38.0 ± 0.5"]
    assert column(made, "effect")[1] == "+8.0 [+7.4, +8.6]"


@pytest.mark.parametrize(
    ("seeds", "value", "effect", "sentence"),
    [
        (1, "38.3", "+7.5", "1 seed per row: no intervals, no verdicts."),
        (2, "38.1", "+8.0", "2 seeds per row: means only, no intervals, no verdicts; those need 3 seeds."),
    ],
)
def test_few_seeds_have_neither_spread_nor_interval(
    tmp_path: Path, seeds: int, value: str, effect: str, sentence: str
) -> None:
    made = table(tmp_path, seeds=seeds)
    assert column(made, "metric:val_acc")[1] == value
    assert column(made, "effect")[1] == effect
    assert sentence in notes(made)
    assert not any("±" in text or "CI" in text for text in [*notes(made), *(c.title for c in made.columns)])


def test_a_row_below_its_planned_seeds_shows_it(tmp_path: Path) -> None:
    made = table(tmp_path, {("batchnorm", 2): FAILED, ("depth-6", 1): WAITING, ("depth-6", 2): WAITING}, seeds=3)
    assert column(made, "n") == ["3", "2/3", "3", "1/3", "3", "3", "3"]
    assert made.progress.startswith("not finished: 15 of 18 trials have a result; the numbers will change")
    text = "18 trials planned = 15 finished + 0 diverged + 3 missing (1 failed, 2 waiting)."
    assert text in notes(made)
    assert notes(made)["the difference is over the 1 seed (3) that row 3 has as well."] == (4,)


def test_an_arm_without_values_says_why(tmp_path: Path) -> None:
    fates = {
        ("batchnorm", 1): FAILED,
        ("depth-6", 1): DIVERGED,
        ("residual", 1): WAITING,
        ("residual-scale", 1): Fate(state="running"),
    }
    made = table(tmp_path, fates, seeds=1)
    assert column(made, "metric:val_acc") == ["30.8", "failed", "37.2", "diverged", "waiting", "running", ""]
    assert column(made, "effect")[1] == "—"


def test_a_diverged_seed_is_marked_and_takes_part_in_no_difference(tmp_path: Path) -> None:
    made = table(tmp_path, {("depth-6", 3): DIVERGED})
    assert column(made, "metric:val_acc")[3].endswith("†")
    assert column(made, "effect")[3:5] == ["—", "—"]
    said = notes(made)
    text = "1 of 5 seeds diverged (seed 3). † is the mean of those that finished; no difference is made with it."
    assert said[text] == (3,)
    assert said["no difference: row 3 has a seed that diverged."] == (4,)


def test_a_parent_that_is_not_the_row_above_is_named(tmp_path: Path) -> None:
    made = table(tmp_path)
    assert column(made, "label") == [
        "baseline",
        "BatchNorm after each conv, before ReLU",
        "└ BatchNorm after each conv, after ReLU (vs row 0, baseline)",
        "depth 4 → 6 (vs row 1, batchnorm)",
        "residual connections",
        "residual scale 0.1",
        "total (row 5 − 0)",
    ]


def test_leave_one_out_is_sorted_by_worth_in_the_direction_of_the_metric(tmp_path: Path) -> None:
    def loss(plan: Plan, arm: str, seed: int) -> dict[str, float]:
        return {"val_loss": 100 - measure_truth(plan, arm, seed)["val_acc"]}

    up = table(tmp_path / "up", designs=["leave-one-out"])
    down = table(tmp_path / "down", measure=loss, designs=["leave-one-out"], metrics={"val_loss": {"goal": "min"}})
    assert column(up, "label") == column(down, "label")
    assert [text.split()[0] for text in column(up, "effect")[1:]] == ["+8.0", "+4.0", "+3.0", "+0.5"]
    assert [text.split()[0] for text in column(down, "effect")[1:]] == ["-8.0", "-4.0", "-3.0", "-0.5"]
    assert any("lower is better" in text for text in notes(down))


def test_leave_one_out_puts_last_what_has_no_effect(tmp_path: Path) -> None:
    made = table(tmp_path, {("without-batchnorm", 1): DIVERGED}, designs=["leave-one-out"])
    assert column(made, "label")[-1] == "without BatchNorm after each conv, before ReLU"


def test_a_dead_change_and_identical_seeds_are_said(tmp_path: Path) -> None:
    def measure(plan: Plan, arm: str, seed: int) -> dict[str, float]:
        if arm in ("baseline", "batchnorm-after-relu"):
            return {"val_acc": 30.0 if arm == "baseline" else 31.0}
        return {"val_acc": measure_truth(plan, "depth-6" if arm == "residual" else arm, seed)["val_acc"]}

    said = notes(table(tmp_path, measure=measure, metrics={"val_acc": {"goal": "max"}}))
    assert said["bit-identical results: the change is probably not reaching the code."] == (4,)
    assert said["seeds give identical runs; check seeding."] == (0, 2)
    assert said["no interval: the seeds of row 0 give identical runs."] == (1, 2)


def test_a_difference_without_noise_has_no_interval_and_says_why(tmp_path: Path) -> None:
    def measure(_: Plan, arm: str, seed: int) -> dict[str, float]:
        return {"val_acc": 30.0 + seed + (4 if arm == "batchnorm" else 0)}

    made = table(tmp_path, measure=measure, metrics={"val_acc": {"goal": "max"}}, steps=[STEP])
    assert made.rows[1].cells["effect"] == Difference("+4.0")
    assert notes(made)["no interval: every seed gives the same difference."] == (1,)


STEP = {"name": "batchnorm", "set": {"model.norm": "before_relu"}}


def test_another_metric_that_is_not_there_for_every_seed_is_said(tmp_path: Path) -> None:
    fates = {
        ("batchnorm", 2): Fate(metrics={"val_acc": 38.0}),
        ("depth-6", 3): Fate(metrics={"val_acc": 42.0, "macro_f1": float("nan")}),
    }
    said = notes(table(tmp_path, fates))
    assert said["macro_f1 was returned for 4 of 5 seeds only."] == (1,)
    assert said["macro_f1 is no finite number for seed 3. † is the mean of the others."] == (3,)


def test_the_total_is_left_out_where_a_row_says_it(tmp_path: Path) -> None:
    assert not any(row.total for row in table(tmp_path, steps=[STEP]).rows)


def test_time_is_gpu_time_where_trials_ask_for_a_gpu(tmp_path: Path) -> None:
    made = table(tmp_path, resources={"gpus": 1}, seeds=1)
    assert [c.title for c in made.columns if c.key == "cost"] == ["GPU time"]
    assert column(made, "cost")[0] == "47 s"


def test_what_a_source_leaves_open_is_printed(tmp_path: Path) -> None:
    reference = {"source": "a report", "values": {"val_acc": {"baseline": 23.0}, "macro_f1": {"batchnorm": 20.5}}}
    made = table(tmp_path, reference=reference, assumed={"train.lr": "not said.", "train.epochs": "ours"})
    assert column(made, "published:val_acc")[:2] == ["23", ""]
    assert column(made, "published:macro_f1")[:2] == ["", "20.5"]
    assert {"Published figures: a report.", "Assumed, train.lr: not said.", "Assumed, train.epochs: ours."} <= set(
        notes(made)
    )
