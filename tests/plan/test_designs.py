"""Designs: which arms they make, what each row compares, and what they refuse."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from ablate.errors import StudyError
from ablate.plan.designs import BOTH
from ablate.plan.outcomes import Told
from ablate.plan.trials import Plan, make_plan
from ablate.study.document import Document
from ablate.study.schema import from_document

STUDY: dict[str, Any] = {
    "schema": "ablate/v1",
    "name": "demo",
    "task": "json:loads",
    "metrics": {"acc": {"goal": "max"}},
    "settings": {"norm": "none", "depth": 4, "skip": False, "scale": 1.0, "flip": False, "groups": 1},
    "steps": [
        {"name": "bn", "title": "BatchNorm", "set": {"norm": "before"}},
        {"name": "bn-after", "from": "baseline", "branch": True, "set": {"norm": "after"}},
        {"name": "skip", "title": "skip connections", "set": {"skip": True}},
        {"name": "scale", "requires": ["skip"], "set": {"scale": 0.1}},
        {"name": "groups", "branch": True, "set": {"groups": 4}},
        {"name": "flip", "set": {"flip": True}},
    ],
    "seeds": 2,
}


def plan(*designs: Any, steps: list[dict[str, Any]] | None = None, **changes: Any) -> Plan:
    value = copy.deepcopy({**STUDY, **changes, "designs": list(designs)})
    if steps is not None:
        value["steps"] = steps
    return make_plan(from_document(value, Document("study.yaml", value, {}), ""))


def rows(made: Plan, design: str) -> list[str]:
    return [
        f"{c.name}{' (branch)' if c.branch else ''} = {c.minuend} - {c.subtrahend}: {'; '.join(map(str, c.changes))}"
        f"{f' [{c.note}]' if c.note else ''}"
        for c in made.contrasts
        if c.design == design
    ]


def faults(*designs: Any, **changes: Any) -> list[str]:
    with pytest.raises(StudyError) as error:
        plan(*designs, **changes)
    return [fault.message for fault in error.value.faults]


def test_ladder() -> None:
    made = plan("ladder")
    assert rows(made, "ladder") == [
        "bn = bn - baseline: norm: none → before",
        "bn-after (branch) = bn-after - baseline: norm: none → after",
        "skip = skip - bn: skip: false → true",
        "scale = scale - skip: scale: 1.0 → 0.1",
        "groups (branch) = groups - scale: groups: 1 → 4",
        "flip = flip - scale: flip: false → true",
        "total = flip - baseline: norm: none → before; skip: false → true; scale: 1.0 → 0.1; flip: false → true",
    ]
    assert [c.name for c in made.contrasts if not c.tested] == ["total"]
    assert [arm.name for arm in made.arms] == ["baseline", "bn", "bn-after", "skip", "scale", "groups", "flip"]
    assert made.arm("flip").steps == ("bn", "skip", "scale", "flip")
    assert made.arm("flip").settings == {
        "norm": "before", "depth": 4, "skip": True, "scale": 0.1, "flip": True, "groups": 1,
    }  # fmt: skip
    assert made.arm("skip").title == "skip connections"
    assert made.arm("scale").title == "scale"
    assert [made.parent(name) for name in ("baseline", "bn-after", "flip")] == [None, "baseline", "scale"]


def test_ladder_from_a_branch() -> None:
    steps = [
        {"name": "a", "branch": True, "set": {"norm": "a"}},
        {"name": "b", "from": "a", "requires": ["a"], "set": {"skip": True}},
        {"name": "c", "set": {"flip": True}},
    ]
    made = plan("ladder", steps=steps)
    assert made.arm("c").steps == ("a", "b", "c")
    assert [row.partition(":")[0] for row in rows(made, "ladder")] == [
        "a (branch) = a - baseline",
        "b = b - a",
        "c = c - b",
        "total = c - baseline",
    ]


def test_one_at_a_time() -> None:
    made = plan("one-at-a-time")
    assert rows(made, "one-at-a-time") == [
        "only-bn = only-bn - baseline: norm: none → before",
        "only-bn-after (branch) = only-bn-after - baseline: norm: none → after",
        "only-skip = only-skip - baseline: skip: false → true",
        "only-scale = only-scale - only-skip: scale: 1.0 → 0.1 [compared with the baseline plus skip]",
        "only-groups (branch) = only-groups - baseline: groups: 1 → 4",
        "only-flip = only-flip - baseline: flip: false → true",
    ]
    assert made.arm("only-scale").steps == ("skip", "scale")
    assert made.arm("only-scale").title == "scale"


def test_one_at_a_time_with_a_reference_that_is_no_row() -> None:
    steps = [
        {"name": "a", "set": {"norm": "a"}},
        {"name": "b", "title": "B", "set": {"skip": True}},
        {"name": "c", "requires": ["a", "b"], "set": {"flip": True}},
        {"name": "d", "requires": ["c"], "set": {"scale": 0.5}},
        {"name": "e", "requires": ["b", "a"], "set": {"groups": 2}},
    ]
    made = plan("one-at-a-time", steps=steps)
    assert [(c.arm, c.other) for c in made.contrasts] == [
        ("only-a", "baseline"), ("only-b", "baseline"), ("only-c", "only-a+b"), ("only-d", "only-c"),
        ("only-e", "only-a+b"),
    ]  # fmt: skip
    assert made.arm("only-a+b").title == "a + B"
    assert made.arm("only-d").steps == ("a", "b", "c", "d")
    assert len(made.arms) == 7


def test_leave_one_out() -> None:
    made = plan("leave-one-out")
    assert rows(made, "leave-one-out") == [
        "without-bn = full - without-bn: norm: before → none",
        "without-skip = full - without-skip: skip: true → false; scale: 0.1 → 1.0 [scale removed with it]",
        "without-scale = full - without-scale: scale: 0.1 → 1.0",
        "without-flip = full - without-flip: flip: true → false",
    ]
    assert made.arm("full").steps == ("bn", "skip", "scale", "flip")
    assert made.arm("full").title == "all steps"
    assert made.arm("without-skip").title == "without skip connections"
    assert made.arm("without-skip").steps == ("bn", "flip")


def test_leave_one_out_except() -> None:
    made = plan({"leave-one-out": {"except": ["bn", "skip"]}})
    assert [c.arm for c in made.contrasts] == ["without-scale", "without-flip"]
    assert made.arm("full").steps == ("bn", "skip", "scale", "flip")


def test_dependents_of_dependents_go_too() -> None:
    steps = [
        {"name": "a", "set": {"norm": "a"}},
        {"name": "b", "requires": ["a"], "set": {"skip": True}},
        {"name": "c", "requires": ["b"], "set": {"flip": True}},
    ]
    made = plan("leave-one-out", steps=steps)
    assert made.arm("without-a").steps == ()
    assert [c.note for c in made.contrasts] == ["b, c removed with it", "c removed with it", ""]


def test_rows_that_designs_share_are_one_trial() -> None:
    made = plan("ladder", "one-at-a-time", "leave-one-out")
    by_arm = {each.arm: each.trial.fingerprint for each in made.replicates if each.seed == 1}
    assert len(made.arms) == len(by_arm) == 7 + 6 + 5
    assert by_arm["bn"] == by_arm["only-bn"]
    assert by_arm["bn-after"] == by_arm["only-bn-after"]
    assert by_arm["flip"] == by_arm["full"]
    assert by_arm["scale"] == by_arm["without-flip"]
    shared = {"only-bn", "only-bn-after", "full", "without-flip"}
    assert len(made.trials()) == 2 * (len(made.arms) - len(shared))


def test_seed_by_seed() -> None:
    made = plan("ladder", seeds=[5, 3])
    count = len(made.arms)
    assert [each.seed for each in made.replicates] == [5] * count + [3] * count
    assert [each.arm for each in made.replicates[:count]] == [arm.name for arm in made.arms]


def test_no_steps() -> None:
    made = plan("ladder", "one-at-a-time", steps=[])
    assert ([arm.name for arm in made.arms], made.contrasts) == (["baseline"], ())


def test_overwritten_steps_are_all_named_in_the_hint() -> None:
    steps = [{"name": f"depth-{n}", "set": {"depth": n}} for n in (5, 6, 7)]
    with pytest.raises(StudyError) as error:
        plan("leave-one-out", steps=steps)
    assert [fault.message for fault in error.value.faults] == [
        "leave-one-out can't remove `depth-5`: the later step `depth-6` sets `depth` as well",
        "leave-one-out can't remove `depth-6`: the later step `depth-7` sets `depth` as well",
    ]
    hint = "write the design as `{leave-one-out: {except: [depth-5, depth-6]}}`"
    assert {fault.hint for fault in error.value.faults} == {hint}
    made = plan({"leave-one-out": {"except": ["depth-5", "depth-6"]}}, steps=steps)
    assert rows(made, "leave-one-out") == ["without-depth-7 = full - without-depth-7: depth: 7 → 6"]


def test_a_dependent_that_is_overwritten() -> None:
    steps = [
        {"name": "a", "set": {"skip": True}},
        {"name": "b", "requires": ["a"], "set": {"depth": 5}},
        {"name": "c", "set": {"depth": 6}},
    ]
    message = "leave-one-out can't remove `{}`: the later step `c` sets `depth` as well"
    assert faults("leave-one-out", steps=steps) == [message.format("a"), message.format("b")]


def test_a_step_that_changes_nothing_is_one_fault_in_all_designs() -> None:
    steps = [{"name": "a", "set": {"depth": 4}}, {"name": "b", "set": {"skip": True}}]
    for designs in (["ladder"], ["one-at-a-time"], ["leave-one-out"]):
        assert faults(*designs, steps=steps) == ["step `a` leaves the settings unchanged"]


def test_equal_arms() -> None:
    twice = [{"name": "a", "set": {"skip": True}}, {"name": "b", "from": "baseline", "set": {"skip": True}}]
    assert faults("ladder", steps=twice) == ["ladder: the arms `a` and `b` have the same settings"]
    assert faults("ladder", "one-at-a-time", steps=twice) == ["ladder: the arms `a` and `b` have the same settings"]
    back = [{"name": "a", "set": {"skip": True}}, {"name": "b", "set": {"skip": False}}]
    assert faults("ladder", steps=back) == ["ladder: the arms `baseline` and `b` have the same settings"]
    both = [*twice, {"name": "c", "set": {"flip": True}}, {"name": "d", "from": "b", "set": {"flip": True}}]
    assert faults("ladder", steps=both) == [
        "ladder: the arms `a` and `b` have the same settings", "ladder: the arms `c` and `d` have the same settings",
    ]  # fmt: skip


def test_where_equal_arms_are_mended() -> None:
    """At the last of the steps that they differ by, in whichever arm it stands."""
    steps = [
        {"name": "z", "set": {"groups": 2}},
        {"name": "a", "set": {"skip": True}},
        {"name": "b", "set": {"skip": True}},
    ]
    for design in ("one-at-a-time", "factorial"):
        value = {**copy.deepcopy(STUDY), "steps": steps, "designs": [design]}
        with pytest.raises(StudyError) as error:
            make_plan(from_document(value, Document("study.yaml", value, {("steps", 2): 30}), ""))
        assert [fault.where for fault in error.value.faults] == ["study.yaml:30"]


def test_conflicts() -> None:
    steps = [
        {"name": "a", "set": {"skip": True}},
        {"name": "b", "conflicts": ["a"], "set": {"flip": True}},
        {"name": "c", "set": {"groups": 2}},
    ]
    assert faults("ladder", steps=steps) == ["ladder: step `b` would stand upon `a`, and the two conflict"]
    assert faults("leave-one-out", steps=steps) == [
        "leave-one-out: the full model would have `a` and `b`, which conflict"
    ]
    apart = [steps[0], {**steps[1], "from": "baseline", "branch": True}, steps[2]]
    assert plan("ladder", "leave-one-out", steps=apart).arm("c").steps == ("a", "c")
    assert len(plan("one-at-a-time", steps=steps).arms) == 4


def test_side_by_side() -> None:
    """The mean of a step's worth alone and in the final model, and what these means leave of the total gain."""
    made = plan("leave-one-out", "one-at-a-time")
    assert [(c.name, c.tested) for c in made.contrasts if c.design == BOTH] == [("bn", False), ("flip", False)]
    free = [{"name": name, "set": {key: True}} for name, key in (("a", "skip"), ("b", "flip"))]
    a, b, rest = (c for c in plan("leave-one-out", "one-at-a-time", steps=free).contrasts if c.design == BOTH)
    assert dict(a.weights) == {"only-a": 0.5, "baseline": -0.5, "full": 0.5, "without-a": -0.5}
    total: dict[str, float] = {}
    for row in (a, b, rest):
        for arm, weight in row.weights:
            total[arm] = total.get(arm, 0.0) + weight
    assert {arm: weight for arm, weight in total.items() if weight} == {"full": 1.0, "baseline": -1.0}


# --- what a comparison is known by ---------------------------------------------------------------------------------

ONE_STEP = [{"name": "a", "set": {"skip": True}}]


def test_one_comparison_has_one_key() -> None:
    made = plan("ladder", "one-at-a-time", "leave-one-out", steps=ONE_STEP)
    assert len({made.key(each) for each in made.contrasts if each.tested}) == 1, "also the other way round"
    assert [each.design for each in made.family.values() if each] == ["ladder"]
    renamed = plan("ladder", steps=[{"name": "other", "title": "as before", "set": {"skip": True}}])
    assert renamed.family.keys() == made.family.keys()
    back = plan(
        "one-at-a-time", steps=[{"name": "a", "set": {"skip": False}}], settings={**STUDY["settings"], "skip": True}
    )
    assert back.family.keys() == made.family.keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": [{"name": "a", "set": {"flip": True}}]},
        {"steps": [{"name": "a", "set": {"skip": True, "flip": True}}]},
        {"steps": ONE_STEP, "settings": {**STUDY["settings"], "groups": 2}},
    ],
    ids=str,
)
def test_other_settings_have_another_key(changes: dict[str, Any]) -> None:
    assert not plan("ladder", **changes).family.keys() & plan("ladder", steps=ONE_STEP).family.keys()


def test_the_family_is_all_that_is_tested() -> None:
    for designs, count in [
        (["ladder"], 6), (["one-at-a-time"], 6), (["ladder", "one-at-a-time"], 6 + 4), (["leave-one-out"], 4),
        ([{"factorial": ["bn", "skip"]}], 3), (["path"], 4), (["path", "ladder"], 4 + 6),
    ]:  # fmt: skip
        assert len(plan(*designs).family) == count
    assert list(plan("path").family.values()) == [None] * 4


@pytest.mark.parametrize(
    ("designs", "seeds"),
    [(["path", "ladder"], 2), (["ladder", "path", "one-at-a-time"], 2), (["ladder"], {"looks": [3, 5]})],
)
def test_what_is_frozen_does_not_depend_on_results(designs: list[Any], seeds: Any) -> None:
    made = plan(*designs, seeds=seeds)
    frozen = json.dumps(made.frozen())
    for value in range(6):
        told = {name: Told("finished", float(int(name, 16) % 89 - value)) for name in made.trials()}
        made = make_plan(made.study, told)
        assert json.dumps(made.frozen()) == frozen
    assert made.study.grows
    assert len(made.trials()) > len(make_plan(made.study).trials())


def test_equal_arms_of_two_designs_are_no_fault() -> None:
    steps = [{"name": "a", "set": {"skip": True}}, {"name": "b", "set": {"depth": 5}}]
    assert len(plan("ladder", "one-at-a-time", "leave-one-out", steps=steps).trials()) == 2 * 4


def test_names_that_clash() -> None:
    steps = [{"name": "a", "set": {"skip": True}}, {"name": "only-a", "set": {"depth": 5}}]
    assert faults("ladder", "one-at-a-time", steps=steps) == ["two arms would be called `only-a`"]
    assert len(plan("ladder", steps=steps).arms) == 3


def test_requires_off_the_path() -> None:
    steps = [
        {"name": "a", "branch": True, "set": {"skip": True}},
        {"name": "b", "branch": True, "set": {"norm": "b"}},
        {"name": "c", "requires": ["a", "b"], "set": {"depth": 5}},
    ]
    assert faults("ladder", steps=steps) == ["step `c` requires `a` and `b`, not on its path in the ladder"]
    assert faults("leave-one-out", steps=steps) == [
        "step `c` requires `a` and `b`, a branch, which the full model of leave-one-out never has"
    ]
    assert plan("one-at-a-time", steps=steps).arm("only-c").steps == ("a", "b", "c")
