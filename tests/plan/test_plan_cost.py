"""What a plan costs: what is known, what is guessed, and what is said to be unknown."""

from __future__ import annotations

import copy
from typing import Any

from ablate.plan.cost import Cost, cost_of
from ablate.plan.trials import Plan, make_plan
from ablate.study.document import Document
from ablate.study.schema import from_document

STUDY: dict[str, Any] = {
    "schema": "ablate/v1",
    "name": "demo",
    "task": "demo:train",
    "metrics": {"acc": {"goal": "max"}},
    "settings": {"a": 0, "b": 0},
    "steps": [{"name": "x", "set": {"a": 1}}, {"name": "y", "set": {"b": 1}}],
    "seeds": 3,
}


def plan(**changes: Any) -> Plan:
    value = copy.deepcopy({**STUDY, **changes})
    return make_plan(from_document(value, Document("study.yaml", value, {}), ""))


def prints(made: Plan, arm: str) -> list[str]:
    return [each.trial.fingerprint for each in made.replicates if each.arm == arm]


def cost(made: Plan, **known: Any) -> Cost:
    return cost_of(made, **{"states": {}, "seconds": {}, "estimates": {}, **known})


def test_nothing_is_known() -> None:
    found = cost(plan())
    assert (found.trials, found.done, found.failed, found.to_do, found.seconds) == (9, 0, 0, 9, 0.0)
    assert found.unknown == ("baseline", "x", "y")
    assert [(arm.arm, arm.planned, arm.trial_s) for arm in found.arms] == [
        ("baseline", 3, None),
        ("x", 3, None),
        ("y", 3, None),
    ]


def test_stored_attempts_come_before_a_timing() -> None:
    made = plan()
    first, second, _ = prints(made, "x")
    found = cost(made, seconds={first: 10.0, second: 20.0}, estimates={"x": 99.0, "y": 5.0}, states={first: "done"})
    x, y = found.arms[1:]
    assert (x.trial_s, x.measured, x.done) == (15.0, True, 1)
    assert (y.trial_s, y.measured) == (5.0, False)
    assert found.seconds == 2 * 15.0 + 3 * 5.0
    assert (found.to_do, found.unknown) == (8, ("baseline",))


def test_done_and_failed_trials_cost_nothing_more() -> None:
    made = plan()
    a, b, c = prints(made, "y")
    states = {a: "done", b: "failed", c: "running", "of another study": "done"}
    found = cost(made, states=states, estimates={"y": 7.0})
    assert (found.done, found.failed, found.to_do, found.seconds) == (1, 1, 7, 7.0)
    assert (found.arms[2].done, found.arms[2].failed) == (1, 1)


def test_an_arm_that_is_done_is_not_unknown() -> None:
    made = plan()
    states = dict.fromkeys(prints(made, "baseline"), "done")
    assert cost(made, states=states).unknown == ("x", "y")


def test_shared_trials_are_counted_once() -> None:
    made = plan(designs=["ladder", "one-at-a-time"])
    found = cost(made, estimates=dict.fromkeys(["baseline", "x", "y", "only-x", "only-y"], 2.0))
    assert found.trials == len(made.trials()) == 3 * 4  # x and only-x are the same
    assert found.seconds == 3 * 4 * 2.0
    assert sum(arm.planned for arm in found.arms) == 3 * 5
