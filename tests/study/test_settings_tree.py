"""Settings: patching, comparing and showing them; and the small helpers for messages."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate.study.document import parse_value
from ablate.study.settings import brief, canonical, differences, fits, get, leaves, patched, show
from ablate.study.words import did_you_mean, duration, listed, nearest, with_article

TREE = {"model": {"norm": "none", "widths": [6, 16], "empty": {}}, "lr": 0.1, "epochs": 3, "subset": None}

keys = st.text("abcde", min_size=1, max_size=3)
numbers = st.integers(-99, 99) | st.floats(-9, 9).map(lambda x: x + 0.0)  # YAML's -0.0 is read as 0.0
scalars = st.none() | st.booleans() | numbers | st.text("xyz", max_size=3)
trees = st.dictionaries(keys, st.recursive(scalars, lambda below: st.dictionaries(keys, below, max_size=3)), max_size=4)


def test_leaves_and_get() -> None:
    paths = dict(leaves(TREE))
    assert list(paths) == ["model.norm", "model.widths", "model.empty", "lr", "epochs", "subset"]
    assert all(get(TREE, path) == value for path, value in paths.items())
    for path in ("model.none", "lr.x", "", "model.", "model.widths.0"):
        with pytest.raises(KeyError):
            get(TREE, path)


def test_patched_changes_what_is_named_and_nothing_else() -> None:
    before = copy.deepcopy(TREE)
    after = patched(TREE, {"model.norm": "batch", "subset": 100})
    assert before == TREE
    assert after == {**TREE, "model": {**TREE["model"], "norm": "batch"}, "subset": 100}  # type: ignore[dict-item]
    assert [str(change) for change in differences(TREE, after)] == ["model.norm: none → batch", "subset: null → 100"]


def test_numbers_keep_their_kind() -> None:
    after = patched(TREE, {"lr": 1, "epochs": 5.0})
    assert canonical([after["lr"], after["epochs"]]) == "[1.0,5]"
    assert canonical(patched(TREE, {"epochs": 2.5})["epochs"]) == "2.5"


@given(trees, trees)
def test_differences_are_complete(old: dict[str, Any], new: dict[str, Any]) -> None:
    found = differences(old, new)
    before, after = dict(leaves(old)), dict(leaves(new))
    changed = {p for p in {*before, *after} if canonical(before.get(p)) != canonical(after.get(p))}
    assert {change.path for change in found} == changed
    assert differences(new, new) == ()
    assert differences(new, copy.deepcopy(new)) == ()


@pytest.mark.parametrize(
    ("base", "value", "expected"),
    [
        (None, "anything", True),
        (1, 2, True),
        (1, 2.5, True),
        (1.0, 2, True),
        (1, True, False),
        (1, "2", False),
        (1, None, False),
        (True, False, True),
        (True, 1, False),
        ("a", "b", True),
        ("a", 1, False),
        ([1], ["a", 2], True),
        ([1], 1, False),
        ([1], {"a": 1}, False),
    ],
)
def test_fits(base: Any, value: Any, expected: bool) -> None:
    assert fits(base, value) is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "null"),
        (True, "true"),
        (1.0, "1.0"),
        (1e-05, "1e-05"),
        ("none", "none"),
        ("two words", "two words"),
        ("2", '"2"'),
        ("true", '"true"'),
        ("null", '"null"'),
        ("", '""'),
        (" x", '" x"'),
        ("a\nb", '"a\\nb"'),
        ("\u202eevil", '"\\u202eevil"'),
        ("\x1b[31m", '"\\u001b[31m"'),
        ([6, "a", None], '[6, "a", null]'),
        ({"a": 1}, '{"a": 1}'),
        ("größer", "größer"),
    ],
)
def test_show(value: Any, expected: str) -> None:
    assert show(value) == expected


@given(st.recursive(scalars, lambda below: st.lists(below, max_size=3)))
def test_shown_values_read_back(value: Any) -> None:
    shown = show(value)
    assert shown.isprintable()
    assert canonical(parse_value(shown, source="x")) == canonical(value)


def test_brief() -> None:
    assert brief("x" * 500) == "`" + "x" * 59 + "…`"
    assert brief("2") == '`"2"`'


def test_did_you_mean() -> None:
    known = ["model.norm", "model.scale", "train.lr", "train.epochs"]
    assert nearest("norm", known) == "model.norm"
    assert nearest("model.lr", known) == "train.lr"
    assert nearest("model.nrom", known) == "model.norm"
    assert nearest("MODEL.NORM", known) == "model.norm"
    assert nearest("momentum", known) is None
    assert did_you_mean("epochs", known) == "did you mean `train.epochs`?"
    assert did_you_mean("zzz", ["a", "b"]) == "known: a, b"
    assert did_you_mean("zzz", map(str, range(10))) == "known: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
    assert did_you_mean("zzz", []) == ""


def test_words() -> None:
    assert [with_article(noun) for noun in ("integer", "list", "text")] == ["an integer", "a list", "text"]
    assert listed(["a"]) == "`a`"
    assert listed(["a", "b", "c"]) == "`a`, `b` and `c`"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0 s"),
        (4.24, "4.2 s"),
        (9.97, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (3599.7, "1 h"),
        (3600 * 2 + 600, "2 h 10 min"),
        (3600 * 30 - 1, "30 h"),
    ],
)
def test_duration(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected
