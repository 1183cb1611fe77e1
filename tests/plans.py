"""Small plans for tests, and what is told of their trials."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from ablate.plan.arms import Arm
from ablate.plan.outcomes import Told
from ablate.plan.trials import Plan, make_plan
from ablate.study.document import Document
from ablate.study.schema import Study, from_document

SETTINGS = dict.fromkeys("abcdefgh", False)

# what becomes of an arm's trial at a seed: its value, or a word for what went wrong
Outcome = Callable[[Arm, int], float | str]


def step(name: str, *, sets: str = "", **keys: Any) -> dict[str, Any]:
    """Return a step that turns on the setting of its name, or those that ``sets`` names."""
    return {"name": name, "set": dict.fromkeys(sets or name, True), **keys}


def study(*designs: Any, steps: Any = "abc", metric: dict[str, Any] | None = None, **changes: Any) -> Study:
    value = {
        "schema": "ablate/v1",
        "name": "demo",
        "task": "json:loads",
        "metrics": {"acc": {"goal": "max", **(metric or {})}},
        "settings": SETTINGS,
        "steps": [each if isinstance(each, dict) else step(each) for each in steps],
        "designs": list(designs) or ["ladder"],
        "seeds": 2,
        **copy.deepcopy(changes),
    }
    return from_document(value, Document("study.yaml", value, {}), "")


def plan(*designs: Any, **changes: Any) -> Plan:
    return make_plan(study(*designs, **changes))


def tell(made: Plan, outcome: Outcome) -> dict[str, Told]:
    """Return what becomes of all trials that a plan asks for."""
    told = {}
    for each in made.replicates:
        got = outcome(made.arm(each.arm), each.seed)
        told[each.trial.fingerprint] = Told(got) if isinstance(got, str) else Told("finished", float(got))  # type: ignore[arg-type]
    return told


def stages(of: Study, outcome: Outcome) -> list[Plan]:
    """Return the plans of a study that is told what becomes of all that it asks for, until it asks for nothing more."""
    plans = [make_plan(of)]
    while True:
        more = make_plan(of, tell(plans[-1], outcome))
        if more.trials().keys() == plans[-1].trials().keys():
            return [*plans[:-1], more]
        plans.append(more)


def seeds_of(made: Plan, role: str = "main") -> dict[str, tuple[int, ...]]:
    """Return the seeds that each arm is given."""
    found: dict[str, tuple[int, ...]] = {}
    for each in made.replicates:
        if each.role == role:
            found[each.arm] = (*found.get(each.arm, ()), each.seed)
    return found
