"""What YAML text means, and on which line each thing stands."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate.errors import StudyError
from ablate.study.document import Document, parse_document, parse_scalar, parse_value

# YAML 1.2, without the surprises of 1.1; text unless it plainly is something else
SCALARS: dict[str, Any] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "nULL": "nULL",
    "none": "none",
    "None": "None",
    "true": True,
    "True": True,
    "TRUE": True,
    "tRUE": "tRUE",
    "false": False,
    "False": False,
    "FALSE": False,
    "yes": "yes",
    "no": "no",
    "on": "on",
    "off": "off",
    "Yes": "Yes",
    "y": "y",
    "n": "n",
    "0": 0,
    "-0": 0,
    "5": 5,
    "+5": 5,
    "-5": -5,
    "9223372036854775807": 9223372036854775807,
    "0x1F": 31,
    "0o17": 15,
    "-0x1F": "-0x1F",
    "0b11": "0b11",
    "010": "010",
    "-010": "-010",
    "007": "007",
    "1_000": "1_000",
    "1,000": "1,000",
    "1:30": "1:30",
    "190:20:30": "190:20:30",
    "0.5": 0.5,
    ".5": 0.5,
    "5.": 5.0,
    "-.5": -0.5,
    "+1.5": 1.5,
    "-0.0": 0.0,
    "1.10": 1.1,
    "1.10.0": "1.10.0",
    "1e-3": 0.001,
    "1E5": 100000.0,
    "5e-6": 5e-6,
    "1e+2": 100.0,
    "1.5e3": 1500.0,
    "1e": "1e",
    "e5": "e5",
    "1e5x": "1e5x",
    "12e34567": "12e34567",
    "deadbeef": "deadbeef",
    "1d5": "1d5",
    "nan": "nan",
    "NaN": "NaN",
    "inf": "inf",
    "-inf": "-inf",
    "Infinity": "Infinity",
    "2024-01-01": "2024-01-01",
    "2024-01-01T12:00:00Z": "2024-01-01T12:00:00Z",
    "=": "=",
    ".": ".",
    "-": "-",
    "1/10": "1/10",
    "90%": "90%",
    "1 000": "1 000",
    "before_relu": "before_relu",
}


@pytest.mark.parametrize("text", SCALARS)
def test_scalar(text: str) -> None:
    expected = SCALARS[text]
    value = parse_scalar(text)
    assert (type(value), value) == (type(expected), expected)
    assert math.copysign(1, value or 0) == math.copysign(1, expected or 0) if not isinstance(value, str) else True
    if text not in ("=", "-"):
        assert parse_document(f"a: {text}\nb: 0", name="f").value["a"] == expected


@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x24F, exclude_categories=["Cc", "Cs"])))
def test_quoted_text_stays_text(text: str) -> None:
    for quoted in (json.dumps(text, ensure_ascii=False), "'" + text.replace("'", "''") + "'"):
        assert parse_value(quoted, source="--set") == text


def test_block_text() -> None:
    text = "folded: >-\n  one\n  two\nkept: |\n  5\n"
    assert parse_document(text, name="f").value == {"folded": "one two", "kept": "5\n"}


def test_a_byte_order_mark_and_windows_lines_are_fine(tmp_path: Any) -> None:
    from ablate.study.document import read_document

    path = tmp_path / "study.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: demo\r\nseeds: 3\r\n")
    document = read_document(path)
    assert document.value == {"name": "demo", "seeds": 3}
    assert document.where(("seeds",)) == f"{path}:2"


def test_json_is_yaml() -> None:
    value = {"name": "demo", "settings": {"lr": 0.1, "widths": [1, 2], "note": 'a "quote"', "none": None}}
    assert parse_document(json.dumps(value, indent=2), name="f").value == value


LINES = """\
# a remark
name: demo
settings:
  model: {norm: none,
    widths: [1,
      2]}
steps:
  - name: a
    set:
      model.norm: b
  - {name: b,
     set: {model.widths: [3]}}
again: &again {x: 1}
alias: *again
"""


def test_lines() -> None:
    document = parse_document(LINES, name="f")
    places = {
        (): 2,
        ("name",): 2,
        ("settings",): 3,
        ("settings", "model", "norm"): 4,
        ("settings", "model", "widths"): 5,
        ("settings", "model", "widths", 1): 6,
        ("steps", 0): 8,
        ("steps", 0, "set", "model.norm"): 10,
        ("steps", 1): 11,
        ("steps", 1, "set"): 12,
        ("alias", "x"): 14,
        ("steps", 0, "title"): 8,  # what is not there is looked for where it would stand
        ("nowhere", "at", "all"): 2,
    }
    assert {place: document.where(place) for place in places} == {place: f"f:{line}" for place, line in places.items()}


def test_a_place_is_followed_through_all_changes() -> None:
    document = Document("f", {}, {(): 1, ("steps", 3): 40, ("profiles", "quick", "seeds"): 70, ("steps", 3, "set"): 41})
    document = document.changed({}, {("seeds",): ("profiles", "quick", "seeds"), ("steps", 2): ("steps", 3)})
    document = document.changed({}, {("settings", "lr"): "--set lr=1"})
    document = document.changed({}, {("steps", 0): ("steps", 2)})
    assert document.where(("steps", 0, "set", "lr")) == "f:41"
    assert document.where(("seeds", 1)) == "f:70"
    assert document.where(("settings", "lr")) == "--set lr=1"
    assert document.where(("settings", "momentum")) == "f:1"


def test_aliases_are_copies() -> None:
    value = parse_document("a: &a {x: [1]}\nb: *a\n", name="f").value
    value["a"]["x"].append(2)
    assert value["b"] == {"x": [1]}


def test_faults_before_a_fatal_one_are_kept() -> None:
    with pytest.raises(StudyError) as error:
        parse_document("a: 1\na: 2\nb: .nan\nc: [1\n", name="f")
    assert [fault.where for fault in error.value.faults] == ["f:2", "f:3", "f:4"]


def test_syntax_errors_point_to_the_mistake() -> None:
    cases = {
        "a: [1, 2\nb: 3\n": "f:1: a `,` or the closing `]` is missing",
        "a: {x: 1\nb: 3\n": "f:1: a `,` or the closing `}` is missing",
        'b: 1\na: "x\nc: 1\n': "f:2: a quote that begins here is not closed",
        "a: b: c\n": "f:1: a second `: ` on one line",
        "a:\n   b: 1\n  c: 2\n": "f:3: this line does not fit the lines above it",
        "a: @x\n": "f:1: a text can't begin with the sign @",
        "a: *\n": "f:1: a text can't begin with one of the signs & * %",
        'a: "\\q"\n': "f:1: a backslash is not followed by a known letter",
        "a: it's 'x' y: z\n": "f:1: a second `: `",
        "a: 'it's'\n": "f:1: text after the end of a value",
        "a: 1\nb:x\nc: 1\n": "f:2: a `: ` is missing after a key",
        "a: [x,,y]\n": "f:1: a value is missing before `,`",
        "a: - b\n": "f:1: a `- ` item can't stand on the line of its key",
        "a: |x\n y\n": "f:1: not valid YAML: expected chomping or indentation indicators",
    }
    for text, expected in cases.items():
        with pytest.raises(StudyError) as error:
            parse_document(text, name="f")
        assert str(error.value).startswith(f"error: {expected}"), text
