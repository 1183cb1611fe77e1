"""The files for programs are what their page says: every key and column, by a JSON Schema that knows no others."""

from __future__ import annotations

import json as loader
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from ablate.analyse.analysis import analyse
from ablate.analyse.comparing import compare_studies
from ablate.analyse.curves import Curve, study_curves
from ablate.analyse.frames import trials_frame
from ablate.report import json
from tests.command import Call
from tests.report.cases import CASES, Case
from tests.report.test_goldens import GOLDEN
from tests.truth import STUDY, fill, truth_study

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = loader.loads((DOCS / "report.schema.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)
PAGE = (DOCS / "report-files.md").read_text()
CROSSED: dict[str, Any] = {
    "settings": {"on": {"a": False, "b": False}},
    "steps": [{"name": name, "set": {f"on.{name}": True}} for name in "ab"],
    "designs": ["factorial"],
}
MORE = {
    "factorial": Case(CROSSED),
    "path": Case({**CROSSED, "designs": ["path"]}),
    "both": Case({"designs": ["leave-one-out", "one-at-a-time"], "seeds": 3}),
    "looks": Case({"seeds": {"looks": [3, 5]}}),
}


def faults(text: str) -> list[str]:
    return [f"{error.json_path}: {error.message:.300}" for error in VALIDATOR.iter_errors(loader.loads(text))]


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    objects = [each for each in objects_in(SCHEMA) if "properties" in each]
    assert len(objects) > 20
    assert all(each["additionalProperties"] is False for each in objects)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.name)
def test_the_golden_reports_keep_to_it(path: Path) -> None:
    assert faults(path.read_text()) == []


@pytest.mark.parametrize("name", [*CASES, *MORE])
def test_every_design_keeps_to_it(tmp_path: Path, name: str) -> None:
    case = {**CASES, **MORE}[name]
    filled = fill(tmp_path, truth_study(**case.study), case.fates, epochs=2)
    analysis = analyse(filled.store, filled.stored)
    text = json.render(analysis, study_curves(filled.store, filled.stored, analysis))
    assert faults(text) == []


def test_a_comparison_of_two_studies_keeps_to_it(tmp_path: Path) -> None:
    filled = [fill(tmp_path / str(k), truth_study(seeds=3, settings={**STUDY["settings"], "k": k})) for k in (1, 2)]
    assert faults(json.render(compare_studies(*((each.store, each.stored) for each in filled)))) == []


@pytest.mark.parametrize("more", [0, 1])
def test_studies_are_compared_on_the_metrics_that_both_declare(tmp_path: Path, more: int) -> None:
    metrics = {"val_acc": {"goal": "max", "unit": "%"}}
    filled = [
        fill(tmp_path / str(k), truth_study(seeds=3, **({} if k == more else {"metrics": metrics}), settings=settings))
        for k, settings in enumerate({**STUDY["settings"], "k": k} for k in (1, 2))
    ]
    found = compare_studies(*((each.store, each.stored) for each in filled))
    assert [metric.name for metric in found.metrics] == ["val_acc"]
    assert all([*row.effects] == ["val_acc"] for row in found.designs[0].comparisons)
    assert faults(json.render(found)) == []


def test_a_key_that_it_does_not_know_is_a_fault() -> None:
    report = loader.loads((GOLDEN / "troubled.json").read_text())
    report["arms"][0]["new"] = 1
    del report["designs"][0]["estimand"]
    assert len(faults(loader.dumps(report))) == 2


def objects_in(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    for each in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from objects_in(each)


def section(name: str) -> str:
    """Return what the page has under an object's heading; of the report itself, what stands under JSON."""
    start = PAGE.index(f"\n### {name.replace('_', ' ')}\n" if name else "\n## JSON\n")
    return PAGE[start : PAGE.find("\n### ", start + 1) if "\n### " in PAGE[start + 1 :] else None]


def test_the_page_says_what_every_key_is() -> None:
    for name, each in {"": SCHEMA, **SCHEMA["$defs"]}.items():
        said = re.findall(r"^\| `(\w+)` \|", section(name), re.MULTILINE)
        assert said == list(each["properties"]), name


def test_the_page_says_what_every_column_is(tmp_path: Path) -> None:
    filled = CASES["tuned"].fill(tmp_path)
    columns = list(trials_frame(filled.store, filled.stored).columns)
    told = PAGE[PAGE.index("## CSV") : PAGE.index("## JSON")]
    fixed = [name for name in columns if name not in ("val_acc", "macro_f1", "val_loss") and "." not in name]
    fixed = [name for name in fixed if name not in ("parameters", "flops", "images_per_s")]
    assert len(fixed) == 12
    assert [name for name in fixed if f"`{name}`" not in told] == []


def test_the_command_prints_curves_each_on_a_line(tmp_path: Path, call: Call) -> None:
    filled = fill(tmp_path, truth_study(seeds=2), epochs=3)
    printed = call("report", "--json", "--store", str(tmp_path / "ablate.db"), cwd=tmp_path).stdout
    curves = study_curves(filled.store, filled.stored, analyse(filled.store, filled.stored))
    read = [
        Curve(**{**each, **{k: tuple(each[k]) for k in ("epochs", "values")}})
        for each in loader.loads(printed)["curves"]
    ]
    assert tuple(read) == curves
    assert len(re.findall(r'^    \{"arm": .*"values": \[.*\]\},?$', printed, re.MULTILINE)) == len(curves)
    assert faults(printed) == []


def test_what_is_not_finite_is_a_word_in_a_curve(tmp_path: Path) -> None:
    filled = fill(tmp_path, truth_study(seeds=1))
    curve = Curve("baseline", "main", 1, "val_acc", (1, 2, 3), (1.5, float("nan"), float("-inf")))
    text = json.render(analyse(filled.store, filled.stored), [curve])
    assert loader.loads(text)["curves"][0]["values"] == [1.5, "nan", "-inf"]
    assert faults(text) == []
    assert loader.loads(json.render(analyse(filled.store, filled.stored), []))["curves"] == []
