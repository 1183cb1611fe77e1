"""Designs that cross steps: which models there are, which effects can be estimated, and the way that a path takes."""

from __future__ import annotations

from math import fsum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate.errors import StudyError
from ablate.plan.arms import Arm, Contrast
from ablate.plan.outcomes import Told
from ablate.plan.trials import Plan, make_plan
from tests.plans import plan, seeds_of, stages, step, study, tell

TIED = {
    "nothing": "abc",
    "requires": ["a", step("b", requires=["a"]), "c"],
    "a chain": ["a", step("b", requires=["a"]), step("c", requires=["b"])],
    "conflicts": ["a", step("b", conflicts=["a"]), "c"],
    "a conflict said above": [step("a", conflicts=["b"]), "b", "c"],
    "a group": [step("a", group="g"), step("b", group="g", branch=True), "c"],
    "both": ["a", step("b", requires=["a"], conflicts=["c"]), "c"],
}


def effects(made: Plan) -> dict[str, Contrast]:
    return {each.name: each for each in made.contrasts if not each.arm}


@pytest.mark.parametrize(
    ("steps", "arms", "over"),
    [
        ("nothing", "baseline only-a only-b only-c only-a+b only-a+c only-b+c full",
         {"a": 8, "b": 8, "c": 8, "a × b": 8, "a × c": 8, "b × c": 8, "a × b × c": 8}),
        ("requires", "baseline only-a only-c only-b only-a+c full", {"a": 4, "b": 4, "c": 6, "a × c": 4, "b × c": 4}),
        ("a chain", "baseline only-a only-b full", {"a": 2, "b": 2, "c": 2}),
        ("conflicts", "baseline only-a only-b only-c only-a+c only-b+c",
         {"a": 4, "b": 4, "c": 6, "a × c": 4, "b × c": 4}),
        ("a conflict said above", "baseline only-a only-b only-c only-a+c only-b+c",
         {"a": 4, "b": 4, "c": 6, "a × c": 4, "b × c": 4}),
        ("a group", "baseline only-a only-b only-c full only-b+c", {"a": 4, "b": 4, "c": 6, "a × c": 4, "b × c": 4}),
        ("both", "baseline only-a only-c only-b only-a+c", {"a": 4, "b": 2, "c": 4, "a × c": 4}),
    ],
)  # fmt: skip
def test_factorial(steps: str, arms: str, over: dict[str, int]) -> None:
    made = plan({"factorial": ["a", "b", "c"]}, steps=TIED[steps])
    assert [arm.name for arm in made.arms] == arms.split()
    found = {name: len(each.weights) for name, each in effects(made).items() if "in any order" not in name}
    assert found == over
    for name, each in effects(made).items():
        assert each.tested == (name.count("×") < 2 and "in any order" not in name)
        assert fsum(weight for _, weight in each.weights) == pytest.approx(0)
        whole = "in any order" in name or len(each.weights) == 8
        assert each.note == (
            "" if whole else f"over the {len(each.weights)} of {len(made.arms)} models in which it applies"
        )
    orders = [name.removesuffix(" in any order") for name in effects(made) if "in any order" in name]
    assert orders == (["a", "b", "c"] if steps in ("nothing", "requires", "a chain") else [])
    assert len(made.family) == sum(each.tested for each in made.contrasts)


def test_weights_of_a_factorial() -> None:
    made = effects(plan({"factorial": ["c", "a"]}, steps=TIED["nothing"]))
    assert list(made) == ["a", "c", "a × c", "a in any order", "c in any order"], "in the order of the file"
    assert dict(made["a"].weights) == {"baseline": -0.5, "only-a": 0.5, "only-c": -0.5, "only-a+c": 0.5}
    assert dict(made["a × c"].weights) == {"baseline": 0.5, "only-a": -0.5, "only-c": -0.5, "only-a+c": 0.5}
    assert dict(made["a in any order"].weights) == dict(made["a"].weights), "of two, the mean over orders is the effect"


def test_a_factorial_of_branches_alone_begins_at_the_baseline() -> None:
    made = plan("factorial", steps=[step(name, branch=True, **{"from": "baseline"}) for name in "ab"])
    assert [arm.name for arm in made.arms] == ["baseline"], "branches are crossed where they are named"
    made = plan({"factorial": ["a", "b"]}, steps=[step(name, branch=True, **{"from": "baseline"}) for name in "ab"])
    assert [arm.name for arm in made.arms] == ["baseline", "only-a", "only-b", "only-a+b"]


def test_models_are_compared_with_the_largest() -> None:
    made = plan({"factorial": ["a", "b"]}, steps="abc")
    rows = [(each.arm, each.other, each.tested) for each in made.contrasts if each.arm]
    assert rows == [(arm, "only-a+b", False) for arm in ("baseline", "only-a", "only-b")]
    assert not [each for each in plan("factorial", steps=TIED["conflicts"]).contrasts if each.arm]


def test_fractional() -> None:
    made = plan({"fractional": ["a", "b", "c", "d"]}, steps="abcde")
    assert len(made.arms) == 8
    assert [(each.name, each.title) for each in effects(made).values()] == [
        ("a", "a [A + BCD]"), ("b", "b [B + ACD]"), ("c", "c [C + ABD]"), ("d", "d [D + ABC]"),
        ("a × b", "AB + CD"), ("a × c", "AC + BD"), ("a × d", "AD + BC"),
    ]  # fmt: skip
    assert all(each.tested and len(each.weights) == 8 for each in effects(made).values())
    assert len(plan({"fractional": list("abcdefg"), "resolution": "III"}, steps="abcdefg").arms) == 8
    assert len(plan("fractional", steps="abcdefg").arms) == 16


def test_what_designs_share_is_trained_once() -> None:
    made = plan("ladder", "one-at-a-time", "leave-one-out", "factorial", "path", {"fractional": ["a", "b", "c"],
                "resolution": "III"}, steps="abc", seeds=3)  # fmt: skip
    by_arm = {each.arm: each.trial.fingerprint for each in made.replicates}
    assert len(set(by_arm.values())) == 8
    assert len(made.trials()) == 3 * 8
    assert " ".join(made.rows["factorial"]) == "baseline only-a only-b only-c only-a+b only-a+c only-b+c full"
    assert set(made.rows["fractional"]) < set(made.rows["factorial"])
    assert made.rows["path"] == ("baseline", "only-a", "only-b", "only-c")
    assert by_arm["c"] == by_arm["full"]
    assert by_arm["without-c"] == by_arm["b"] == by_arm["only-a+b"]


FAULTS = [
    ("factorial", ["a", step("b", sets="a")], ["factorial: the arms `only-a` and `only-b` have the same settings"]),
    ("factorial", ["a", step("b", sets="ab")], ["factorial: step `a` leaves the settings unchanged in the arm `full`"]),
    ("factorial", ["a", step("b", sets="ab"), step("c", sets="ac", conflicts=["a"])],
     ["factorial: step `a` leaves the settings unchanged in the arm `only-a+b`"]),
    ("factorial", ["a", step("b", sets="a"), step("c", sets="a")],
     ["factorial: the arms `only-a` and `only-b` have the same settings",
      "factorial: the arms `only-a` and `only-c` have the same settings"]),
    ("factorial", ["a", {"name": "b", "set": {"b": False}}, "c"],
     ["factorial: step `b` leaves the settings unchanged in the arm `only-b`"]),
    ({"factorial": ["a", "c"]}, ["a", "b", step("c", requires=["b"])],
     ["factorial: step `c` requires `b`, which the design does not cross"]),
    ({"factorial": ["a", "b", "c"]},
     [step("a", group="g"), step("b", group="g", branch=True), step("c", requires=["a", "b"])],
     ["factorial: no combination can have `c`: it requires alternatives of one group"]),
    ("fractional", ["a", "b", "c"], ["no fraction of 3 steps has resolution IV, the default"]),
    ("fractional", ["a", "b", "c", step("d", requires=["a", "b"])],
     ["fractional can't cross `d` with `a` and `b`: not every combination can be"]),
    ("fractional", [step("a", group="g"), "b", step("c", group="g"), "d"],
     ["fractional can't cross `c` with `a`: not every combination can be"]),
    ("fractional", ["a", "b", "c", step("d", conflicts=["b"])],
     ["fractional can't cross `d` with `b`: not every combination can be"]),
    ("path", ["a", step("b", sets="ab")], ["path: the steps `a` and `b` both set `a`, and one undoes the other"]),
    ("path", ["a", step("b", sets="a", conflicts=["a"])],
     ["path: the arms `only-a` and `only-b` have the same settings"]),
    ("path", ["a", {"name": "b", "set": {"b": False}}],
     ["path: the arms `baseline` and `only-b` have the same settings"]),
    ("path", ["a", {"name": "b", "set": {"a": False}, "requires": ["a"]}, "c"],
     ["path: the arms `baseline` and `only-b` have the same settings"]),
    ("path", [step("a", branch=True), step("b", requires=["a"]), "c"],
     ["step `b` requires `a`, a branch, which a path never has"]),
]  # fmt: skip


@pytest.mark.parametrize(("design", "steps", "expected"), FAULTS)
def test_faults(design: Any, steps: list[Any], expected: list[str]) -> None:
    with pytest.raises(StudyError) as error:
        plan(design, steps=steps)
    assert [fault.message for fault in error.value.faults] == expected


# --- the greedy path -----------------------------------------------------------------------------------------------


def worth(gains: dict[str, float], *, bad: dict[str, str] | None = None) -> Any:
    """Return what each trial gives: the gains of its steps, a little noise, and for some arms a word."""

    def outcome(arm: Arm, seed: int) -> float | str:
        return (bad or {}).get(arm.name, sum(gains[name] for name in arm.steps) + seed / 100)

    return outcome


GAINS = {"a": 1.0, "b": 3.0, "c": 2.0, "d": -1.0}


@pytest.mark.parametrize(
    ("goal", "steps", "bad", "way"),
    [
        ("max", "abc", {}, "only-b only-b+c full"),
        ("min", "abc", {}, "only-a only-a+c full"),
        ("max", "abcd", {}, "only-b only-b+c only-a+b+c full"),
        ("max", "abc", {"only-b": "failed"}, "only-c only-b+c full"),
        ("max", "abc", {"only-b": "diverged"}, "only-c only-b+c full"),
        ("max", "abc", {"only-b+c": "failed", "only-a+b": "failed"}, "only-b"),
        ("max", "abc", {"only-a": "failed", "only-b": "failed", "only-c": "diverged"}, ""),
        ("max", "abc", {"baseline": "failed"}, "only-b only-b+c full"),
        ("max", TIED["requires"], {}, "only-c only-a+c full"),
        ("max", TIED["conflicts"], {}, "only-b only-b+c"),
        ("max", ["a", step("b", branch=True, **{"from": "a"}), "c"], {}, "only-c full"),
        ("min", [step("a", conflicts=["c"]), "b", "c"], {}, "only-a only-a+b"),
    ],
)
def test_path(goal: str, steps: Any, bad: dict[str, str], way: str) -> None:
    *early, made = stages(study("path", steps=steps, metric={"goal": goal}), worth(GAINS, bad=bad))
    chosen = [each.arm for each in made.contrasts]
    assert chosen == way.split()
    assert [each.other for each in made.contrasts] == (["baseline", *chosen] if chosen else [""])[: len(chosen)]
    assert all(not seeds_of(each, "confirm") for each in early), "nothing is confirmed before the path is complete"
    on_the_way = dict.fromkeys(["baseline", *chosen] if chosen else [], (3, 4))
    assert seeds_of(made, "confirm") == on_the_way
    assert set(seeds_of(made)) == set(made.rows["path"])


def test_a_score_keeps_what_diverged_in_the_race() -> None:
    made = stages(study("path", metric={"on_diverged": 9.0}), worth(GAINS, bad={"only-b": "diverged"}))[-1]
    assert made.contrasts[0].arm == "only-b", "a study that gives what diverged a good value has said so"
    made = stages(study("path", metric={"on_diverged": 0.0}), worth(GAINS, bad={"only-b": "diverged"}))[-1]
    assert made.contrasts[0].arm == "only-c"


def test_the_first_of_equals_is_taken() -> None:
    made = stages(study("path"), worth(dict.fromkeys("abc", 1.0)))[-1]
    assert [each.arm for each in made.contrasts] == ["only-a", "only-a+b", "full"]


def test_what_is_confirmed() -> None:
    both = study("ladder", "path", confirm_seeds=[9])
    assert seeds_of(make_plan(both), "confirm") == dict.fromkeys(["baseline", "a", "b", "c"], (9,))
    made = stages(both, worth(GAINS))[-1]
    assert seeds_of(made, "confirm") == dict.fromkeys(["baseline", "a", "b", "c", "only-b", "only-b+c", "full"], (9,))
    made = stages(study("ladder", "path"), worth(GAINS))[-1]
    assert set(seeds_of(made, "confirm")) == {"baseline", "only-b", "only-b+c", "full"}


@given(st.lists(st.booleans(), min_size=40, max_size=40), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_telling_less_asks_for_less(known: list[bool], rng: Any) -> None:
    """In whatever order the facts come, a plan is a beginning of the one that all facts give."""
    of = study("path")
    whole = stages(of, worth(GAINS))[-1]
    facts = list(tell(whole, worth(GAINS)).items())
    rng.shuffle(facts)
    assert make_plan(of, dict(facts)) == whole
    made = make_plan(of, {name: told for (name, told), keep in zip(facts, known, strict=False) if keep})
    assert made.arms == whole.arms[: len(made.arms)]
    assert made.contrasts == whole.contrasts[: len(made.contrasts)]
    assert made.trials().keys() <= whole.trials().keys()
    assert made.frozen() == whole.frozen()


def test_a_path_waits_for_every_trial() -> None:
    of = study("path")
    told = tell(make_plan(of), worth(GAINS))
    for name in told:
        for state in ("waiting", "running"):
            assert make_plan(of, {**told, name: Told(state)}).contrasts == ()  # type: ignore[arg-type]
