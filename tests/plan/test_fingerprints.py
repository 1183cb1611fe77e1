"""A trial is its content: the same content is the same trial wherever it stands, and nothing else is."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ablate.plan.trials import Plan, fingerprint, make_plan
from ablate.study.document import Document
from ablate.study.schema import Study, from_document
from ablate.study.settings import canonical

STUDY: dict[str, Any] = {
    "schema": "ablate/v1",
    "name": "demo",
    "question": "Does it work?",
    "task": "demo:train",
    "metrics": {"acc": {"goal": "max"}},
    "settings": {"model": {"norm": "none", "widths": [6, 16]}, "train": {"lr": 0.1, "epochs": 3, "subset": None}},
    "steps": [{"name": "bn", "set": {"model.norm": "größer"}}],
    "seeds": [1],
}


def study(**changes: Any) -> Study:
    value = copy.deepcopy({**STUDY, **changes})
    return from_document(value, Document("study.yaml", value, {}), "")


def plan(**changes: Any) -> Plan:
    return make_plan(study(**changes))


def prints(**changes: Any) -> dict[str, str]:
    return {each.arm: each.trial.fingerprint for each in plan(**changes).replicates if each.role == "main"}


def test_golden() -> None:
    """These must never change: a store knows the trials it holds by them. A change here throws away trained trials."""
    assert prints() == {
        "baseline": "a8116351884a3b3a411a88e742a4e9712af095b7df1b1d6326c7a5156eac1ab4",
        "bn": "a91a7e472079ca77750e2ff860b3dbf67f6ed71d9728fd1e8b8c37c37d5ddc45",
    }
    changes = {"execution": {"dtype": "bfloat16", "threads": 2}, "resources": {"gpus": 1}}
    assert prints(**changes)["bn"] == "0a20361ea1751a34bcdb54eea52bb89f2617741a9e15de9313acb2c351c66667"


def test_what_is_hashed() -> None:
    """The text under the hash, so that another program can make it."""
    import hashlib

    text = (
        '{"device":"cpu","execution":{},"seed":1,"settings":{"model":{"norm":"none","widths":[6,16]},'
        '"train":{"epochs":3,"lr":0.1,"subset":null}},"task":"demo:train"}'
    )
    assert prints()["baseline"] == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"question": "Another one?"},
        {"metrics": {"loss": {"goal": "min", "margin": 0.1, "on_diverged": 9.0}}},
        {"analysis": {"alpha": 0.01, "correction": "bh", "pairing": "none", "scope": "population"}},
        {"confirm_seeds": 1},
        {"execution": {"dtype": "float32", "memory_format": "contiguous_format", "threads": 1}},
        {"execution": {"compile": False, "graphs": False}},
        {"resources": {"cpus": 2, "timeout": 5, "stall_timeout": "1m", "retries": 3}},
        {"reference": {"source": "a paper", "values": {}}},
        {"assumed": {"train.lr": "not said"}},
        {"designs": ["ladder", "one-at-a-time"]},
        {
            "steps": [
                {"name": "bn", "title": "BatchNorm", "group": "g", "conflicts": [], "set": {"model.norm": "größer"}}
            ]
        },
        {"settings": {"train": {"subset": None, "epochs": 3, "lr": 0.1}, "model": {"widths": [6, 16], "norm": "none"}}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_is_not_part_of_a_trial(changes: dict[str, Any]) -> None:
    assert {arm: prints(**changes)[arm] for arm in ("baseline", "bn")} == prints()


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "demo:other"},
        {"seeds": [2]},
        {"execution": {"threads": 2}},
        {"execution": {"dtype": "bfloat16"}},
        {"execution": {"memory_format": "channels_last"}},
        {"execution": {"fuse": 2}},
        {"execution": {"compile": True}},
        {"resources": {"gpus": 1}, "execution": {"graphs": True}},
        {"resources": {"gpus": 1}},
        {"settings": {**STUDY["settings"], "more": None}},
        {"settings": {**STUDY["settings"], "train": {"lr": 0.1, "epochs": 4, "subset": None}}},
    ],
    ids=str,
)
def test_what_makes_another_trial(changes: dict[str, Any]) -> None:
    assert not set(prints(**changes).values()) & set(prints().values())


keys = st.text("abcd", min_size=1, max_size=2)
scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from([0.5, 1.0, 2.0]) | st.text("xy1", max_size=2)
trees = st.dictionaries(
    keys,
    st.recursive(
        scalars, lambda below: st.lists(below, max_size=2) | st.dictionaries(keys, below, max_size=3), max_leaves=5
    ),
    min_size=1,
    max_size=4,
)


@given(trees, trees)
def test_equal_settings_and_only_those_are_one_trial(first: dict[str, Any], second: dict[str, Any]) -> None:
    one, other = (fingerprint(study(), settings, 1) for settings in (first, second))
    assert (one == other) == (canonical(first) == canonical(second))


@given(trees, st.randoms())
def test_the_order_of_keys_is_nothing(settings: dict[str, Any], rng: Any) -> None:
    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        items = [(key, shuffled(item)) for key, item in value.items()]
        rng.shuffle(items)
        return dict(items)

    assert fingerprint(study(), shuffled(settings), 1) == fingerprint(study(), settings, 1)


@given(trees, st.data())
def test_every_value_counts(settings: dict[str, Any], data: st.DataObject) -> None:
    changed = copy.deepcopy(settings)
    group: Any = changed
    while True:
        key = data.draw(st.sampled_from(sorted(group)))
        if not isinstance(group[key], dict) or not group[key]:
            break
        group = group[key]
    new = data.draw(scalars)
    assume(canonical(new) != canonical(group[key]))
    group[key] = new
    assert fingerprint(study(), changed, 1) != fingerprint(study(), settings, 1)


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_every_seed_counts(first: int, second: int) -> None:
    settings = STUDY["settings"]
    assert (fingerprint(study(), settings, first) == fingerprint(study(), settings, second)) == (first == second)


def test_equal_numbers_are_one_trial() -> None:
    """Whether a step writes 1 or 1.0 over a float is no difference."""
    for written in (1, 1.0):
        made = prints(steps=[{"name": "bn", "set": {"train.lr": written}}])
        assert made["bn"] == prints(steps=[{"name": "bn", "set": {"train.lr": 1.0}}])["bn"]
    for written in (5, 5.0):
        made = prints(steps=[{"name": "bn", "set": {"train.epochs": written}}])
        assert made["bn"] == prints(steps=[{"name": "bn", "set": {"train.epochs": 5}}])["bn"]


@pytest.mark.parametrize(
    ("preset", "written_out"),
    [
        ("exact", {"dtype": "float32", "memory_format": "channels_last", "threads": 1}),
        ("fast", {"dtype": "bfloat16", "memory_format": "channels_last", "threads": 1}),
    ],
)
def test_a_preset_is_the_keys_it_stands_for(preset: str, written_out: dict[str, Any]) -> None:
    by_name, by_keys = study(execution={"preset": preset}), study(execution=written_out)
    assert prints(execution={"preset": preset}) == prints(execution=written_out)
    assert by_name.execution == by_keys.execution
    assert by_name.model_dump(mode="json") == by_keys.model_dump(mode="json")
    assert by_name.execution.model_dump() == {**study().execution.model_dump(), **written_out}
    assert study(execution={"preset": preset, **written_out}).execution == by_keys.execution
    assert prints(execution={"preset": preset}) != prints()


def test_a_new_field_of_execution_would_not_change_old_trials() -> None:
    text = canonical(study().execution.model_dump(mode="json", exclude_defaults=True))
    assert text == "{}"


def test_what_is_frozen_before_the_first_trial() -> None:
    assert json.loads(json.dumps(plan().frozen())) == {
        "primary": "acc",
        "goal": "max",
        "margin": None,
        "on_diverged": None,
        "on_oom": None,
        "analysis": {"alpha": 0.05, "correction": "holm", "pairing": "seed", "select": "last", "scope": "test-set"},
        "seeds": [1],
        "confirm_seeds": [],
        "numbers": [1],
        "contrasts": [
            {"key": "0afe96d6ab05aa82", "design": "ladder", "name": "bn", "arms": {"bn": 1.0, "baseline": -1.0}}
        ],
    }
