"""Which columns a table shows to those who name them, in every rendering."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablate.analyse.analysis import analyse
from ablate.analyse.findings import Analysis
from ablate.api import render
from ablate.errors import AblateError
from ablate.report.designs import build_tables
from tests.command import Call
from tests.report.cases import CASES, Case
from tests.report.test_files import cells
from tests.truth import STUDY, fill, truth_study


def analysed(case: Case, folder: Path) -> Analysis:
    filled = case.fill(folder)
    return analyse(filled.store, filled.stored)


def lines(text: str) -> list[list[str]]:
    return [cells(line) for line in text.splitlines() if line.startswith("|")]


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return analysed(CASES["ladder"], tmp_path_factory.mktemp("ladder"))


def test_columns_come_in_the_order_in_which_they_are_named(ladder: Analysis) -> None:
    head, _, first, *_ = lines(render(ladder, "markdown", columns=["verdict", "val_acc", "n", "verdict"]))
    assert head == ["#", "change", "verdict", "val_acc (%)", "n"]
    assert first == ["0", "baseline", "", "30.0 ± 0.5", "5"]


def test_what_is_shown_only_to_those_who_ask_for_it(ladder: Analysis) -> None:
    usual = {column.key for table in build_tables(ladder) for column in table.columns}
    assert not any(key.startswith("step:") or key in ("hours", "images_per_s") for key in usual)
    head, _, *rows = lines(render(ladder, "markdown", columns=["hours", "images_per_s", "published", "flops"]))
    assert head[2:] == ["CPU hours", "images/s", "published", "FLOPs"]
    assert rows[1][2:] == ["0.0847", "5.20 k", "31.4", "45.0 M"]


def test_a_row_has_a_mark_for_each_of_its_steps(ladder: Analysis) -> None:
    text = render(ladder, "markdown", columns=["steps", "val_acc"])
    head, _, *rows = lines(text)
    assert head == ["#", "change", "A", "B", "C", "D", "E", "val_acc (%)"]
    assert [row[2:7] for row in rows[:5]] == [
        list("·····"), list("✓····"), list("·✓···"), list("✓·✓··"), list("✓·✓✓·"),
    ]  # fmt: skip
    legend = "A batchnorm, B batchnorm-after-relu, C depth-6, D residual, E residual-scale"
    assert f"✓ marks the steps that a row has: {legend}." in text
    assert r"\ensuremath{\checkmark}" in render(ladder, "latex", columns=["steps", "val_acc"])


def test_few_and_short_steps_are_called_by_their_names(tmp_path: Path) -> None:
    steps = [{**step, "name": name} for name, step in zip(("bn", "x"), STUDY["steps"][::2], strict=False)]
    text = render(analysed(Case({"steps": steps, "seeds": 3}), tmp_path), "markdown", columns=["steps", "n"])
    assert lines(text)[0] == ["#", "change", "bn", "x", "n"]
    assert "marks the steps" not in text


def test_a_terminal_shows_what_was_asked_for_at_its_width_and_says_what_has_no_room(ladder: Analysis) -> None:
    asked = ["macro_f1", "flops", "parameters", "effect"]
    text = render(ladder, columns=asked)
    assert "macro_f1" in text
    assert "FLOPs" in text
    assert "val_acc (%)" not in text
    many = render(ladder, columns=["steps", "n", "val_acc", "macro_f1", "effect", "p", "verdict", "flops", "hours"])
    assert "Not shown at this width: " in many


def test_a_table_without_any_of_them_is_left_out(tmp_path: Path) -> None:
    analysis = analysed(Case({"designs": ["factorial"], "steps": STUDY["steps"][2:4], "seeds": 3}), tmp_path)
    assert len(build_tables(analysis)) == 3
    (effects,) = build_tables(analysis, ["p"])
    assert [column.title for column in effects.columns] == ["#", "effect", "p (Holm)"]
    (models,) = build_tables(analysis, ["steps", "val_acc"])
    assert [column.title for column in models.columns] == ["#", "model", "A", "B", "val_acc (%)"]


def test_a_name_without_a_value_is_said_beside_those_that_have_one(tmp_path: Path) -> None:
    analysis = analysed(CASES["one-seed"], tmp_path)
    assert "No row has a value of p and verdict." in render(analysis, "markdown", columns=["n", "p", "verdict"])
    with pytest.raises(AblateError, match="no table of `basenet` has a value of p"):
        render(analysis, "markdown", columns=["p"])


def test_intervals_are_drawn_beside_effects_only(ladder: Analysis) -> None:
    (table,) = build_tables(ladder, ["n", "p"])
    assert all(row.plot is None for row in table.rows)


def test_a_metric_may_be_called_like_a_column(tmp_path: Path) -> None:
    study = truth_study(seeds=3, metrics={"val_acc": {"goal": "max"}, "p": {"goal": "min"}})
    filled = fill(tmp_path, study, None, lambda _, arm, seed: {"val_acc": len(arm) * seed % 7, "p": seed})
    analysis = analyse(filled.store, filled.stored)
    assert lines(render(analysis, "markdown", columns=["p"]))[0][2:] == ["p (Holm)", "p"]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("steps,val_ac", ["there is no column `val_ac`", "did you mean `val_acc`?", "steps, n, effect, p"]),
        ("\x1b[31m", [r"there is no column `\x1b[31m`"]),
        (",", ["--columns names none"]),
    ],
)
def test_an_unknown_name_is_one_clear_line(tmp_path: Path, call: Call, columns: str, said: list[str]) -> None:
    CASES["one-seed"].fill(tmp_path)
    done = call("report", "--store", str(tmp_path / "ablate.db"), "--columns", columns, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert all(part in done.stderr for part in said)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("form", ["--csv", "--json"])
def test_files_for_programs_have_no_columns_to_choose(tmp_path: Path, call: Call, form: str) -> None:
    done = call("report", form, "--columns", "n", cwd=tmp_path)
    assert done.returncode == 2
    assert "--columns is for tables" in done.stderr


@pytest.mark.parametrize("form", [[], ["--markdown"], ["--latex"]])
def test_the_command_shows_them(tmp_path: Path, call: Call, form: list[str]) -> None:
    CASES["one-seed"].fill(tmp_path)
    store = ["--store", str(tmp_path / "ablate.db")]
    done = call("report", *store, *form, "--columns", "steps, n ,val_acc", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "val" in done.stdout
    assert "vs parent" not in done.stdout
