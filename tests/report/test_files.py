"""Markdown, CSV and JSON, read back as their readers would."""

from __future__ import annotations

import csv as reader
import io
import json as loader
import re
from pathlib import Path

import pytest

from ablate.analyse.analysis import analyse
from ablate.analyse.frames import trials_frame
from ablate.report import csv, json, markdown
from tests.report.cases import CASES, HOSTILE
from tests.truth import FAILED, Fate, fill, truth_study


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.mark.parametrize("name", CASES)
def test_markdown_tables_have_equal_rows_and_every_footnote_its_place(name: str, tmp_path: Path) -> None:
    filled = CASES[name].fill(tmp_path)
    text = markdown.render(analyse(filled.store, filled.stored))
    for table in text.split("\n\n"):
        widths = {len(cells(line)) for line in table.splitlines() if line.startswith("|")}
        assert len(widths) <= 1
    assert f"\n| {0 if name != 'factorial' else 1} |" in text  # effects count from one
    used = re.findall(r"\[\^([\w-]+)\](?!:)", text)
    defined = re.findall(r"^\[\^([\w-]+)\]:", text, re.MULTILINE)
    assert sorted(set(used)) == sorted(defined)
    assert len(defined) == len(set(defined))


def test_markdown_gives_a_hostile_title_back_as_it_was(tmp_path: Path) -> None:
    filled = CASES["hostile"].fill(tmp_path)
    text = markdown.render(analyse(filled.store, filled.stored))
    row = next(line for line in text.splitlines() if line.startswith("| 1 |"))
    assert re.sub(r"\\(.)", r"\1", cells(row)[1]) == HOSTILE["batchnorm"]


def test_csv_gives_every_number_back(tmp_path: Path) -> None:
    filled = fill(tmp_path, truth_study(), {("batchnorm", 2): FAILED})
    frame = trials_frame(filled.store, filled.stored)
    text = csv.render(frame)
    rows = list(reader.DictReader(io.StringIO(text, newline="")))
    assert text.count("\r\n") == text.count("\n") == len(frame) + 1
    assert [row["val_acc"] for row in rows] == ["" if value != value else repr(value) for value in frame["val_acc"]]
    failed = next(row for row in rows if (row["arm"], row["seed"]) == ("batchnorm", "2"))
    assert (failed["state"], failed["val_acc"]) == ("failed", "")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_text_is_no_formula_in_a_spreadsheet(tmp_path: Path, start: str) -> None:
    title = f'{start}1+1, "quoted"\nand more'
    study = truth_study(seeds=1, steps=[{"name": "a", "title": title, "set": {"model.depth": 6}}])
    filled = fill(tmp_path, study)
    rows = list(reader.DictReader(io.StringIO(csv.render(trials_frame(filled.store, filled.stored)), newline="")))
    assert rows[1]["title"] == f"'{title}"


def test_csv_shows_control_characters_and_leaves_negative_numbers_alone(tmp_path: Path) -> None:
    study = truth_study(seeds=1, steps=[{"name": "a", "title": "x\x1b[31m", "set": {"model.depth": -6}}])
    filled = fill(tmp_path, study)
    rows = list(reader.DictReader(io.StringIO(csv.render(trials_frame(filled.store, filled.stored)), newline="")))
    assert (rows[1]["title"], rows[1]["model.depth"]) == (r"x\x1b[31m", "-6")


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is no JSON")


def test_json_is_strict_and_tables_can_be_rebuilt_from_it(tmp_path: Path) -> None:
    filled = CASES["troubled"].fill(tmp_path)
    analysis = analyse(filled.store, filled.stored)
    report = loader.loads(json.render(analysis), parse_constant=refuse)
    assert report["schema"] == "ablate-report/v1"
    arms = {arm["name"]: arm for arm in report["arms"]}
    for design in report["designs"]:
        for row in [*design["comparisons"], design["total"]]:
            effect = row["effects"]["val_acc"]
            assert [each["weight"] for each in row["weights"]] == [1.0, -1.0]
            left, right = (
                {each["seed"]: each["value"] for each in arms[side["arm"]]["metrics"]["val_acc"]["values"]}
                for side in row["weights"]
            )
            shared = {seed: left[seed] - right[seed] for seed in left if seed in right}
            assert {each["seed"]: each["value"] for each in effect["differences"]} == shared
            if not effect["withheld"]:
                assert effect["mean"] == pytest.approx(sum(shared.values()) / len(shared))
    diverged = arms["depth-6"]["trials"][2]
    assert (diverged["status"], diverged["values"]["val_acc"]) == ("diverged", {"value": None, "kind": "nan"})
    assert diverged["values"]["val_loss"] == {"value": None, "kind": "+inf"}
    assert report["counts"] == {
        "planned": 30, "finished": 27, "diverged": 1, "missing": 2, "failed": 1, "running": 0, "waiting": 1,
    }  # fmt: skip


def test_json_survives_numbers_at_the_end_of_the_scale(tmp_path: Path) -> None:
    fates = {("batchnorm", seed): Fate(metrics={"val_acc": -1e300 * (-1) ** seed}) for seed in (1, 2)}
    fates |= {("baseline", seed): Fate(metrics={"val_acc": 1e300 * (-1) ** seed}) for seed in (1, 2)}
    fates |= {("depth-6", seed): Fate(metrics={"val_acc": 1.7e308}) for seed in (1, 2)}
    filled = fill(tmp_path, truth_study(seeds=2), fates)
    report = loader.loads(json.render(analyse(filled.store, filled.stored)), parse_constant=refuse)
    assert report["designs"][0]["comparisons"][0]["effects"]["val_acc"]["mean"] == 0.0
    assert report["counts"]["diverged"] == 2
