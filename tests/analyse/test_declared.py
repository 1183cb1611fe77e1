"""What is declared after results were seen is said beside them, and each comparison ever declared counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ablate.analyse.analysis import analyse
from ablate.analyse.findings import Analysis, Conclusion
from ablate.plan.trials import Plan, make_plan
from ablate.report import markdown
from ablate.stats.corrections import holm
from ablate.stats.replication import anytime_p
from ablate.store.claims import Ending, claim_trial, finish, register_runner
from ablate.store.facts import find_study, grown_plan, record_plan
from ablate.store.store import Store, open_store
from ablate.study.schema import Study
from tests.truth import OWN, truth_study

STEPS = [{"name": name, "set": {f"on.{name}": True}} for name in ("a", "b", "c")]
GAINS = {"a": 5.0, "b": -2.0, "c": 0.05, "d": 1.0, "e": 0.8}
STUDY: dict[str, Any] = {
    "settings": {"on": dict.fromkeys(GAINS, False)},
    "metrics": {"val_acc": {"goal": "max"}, "loss": {"goal": "min"}},
    "steps": STEPS,
    "designs": ["one-at-a-time"],
    "seeds": 4,
}
SEEDS_ADDED = "seeds added after results; the error rate is not guaranteed"
SEEDS_CHANGED = "seeds changed after results; the error rate is not guaranteed"
MARGIN = {"metrics": {"val_acc": {"goal": "max", "margin": 1.0}, "loss": {"goal": "min"}}}


def measured(steps: tuple[str, ...], seed: int) -> dict[str, float]:
    number = sum(2 ** "abcde".index(step) for step in steps)
    own = OWN[(seed * (1 + number % 4) + number) % 5] * (1 + 0.1 * (seed % 3))
    value = 40 + sum(GAINS[step] for step in steps) + own + seed % 4
    return {"val_acc": value, "loss": 100 - value / 2 + own}


def study_of(**changes: Any) -> Study:
    return truth_study(**{**STUDY, **changes})


def declare(store: Store, **changes: Any) -> Study:
    """Record a version of the study, as `ablate run` does before its first trial."""
    study = study_of(**changes)
    record_plan(store, make_plan(study))
    return study


def run(store: Store, study: Study) -> Analysis:
    """Finish all that a version asks for, as far as its results lead."""
    while finish_all(store, plan := grown_plan(store, study), record_plan(store, plan)):
        pass
    return analyse(store, find_study(store, study.title))


def finish_all(store: Store, plan: Plan, study_id: int) -> int:
    """Finish the trials that wait, as a runner of their own, and return how many."""
    runner = f"r{next(RUNNERS)}"
    facts = {"host": "here", "boot_id": "b", "lock_file": "l", "command": "ablate run"}
    register_runner(store, runner_id=runner, study_id=study_id, facts=facts)
    steps = {each.trial.fingerprint: plan.arm(each.arm).steps for each in plan.replicates}
    count = 0
    while claim := claim_trial(store, runner_id=runner, study_id=study_id, arms=None, slot="cpu:0", lease_s=1e9):
        finish(store, claim, Ending("ok", "done", seconds=1.0), measured(steps[claim.fingerprint], claim.seed))
        count += 1
    return count


RUNNERS = iter(range(10**6))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "ablate.db", create=True)


def concluded(analysis: Analysis) -> dict[str, Conclusion]:
    rows = [row for design in analysis.designs for row in design.comparisons]
    tests = {row.name.removeprefix("only-"): row.effects[analysis.primary.name].conclusion for row in rows}
    return {name: test for name, test in tests.items() if test is not None}


def remarks(analysis: Analysis) -> dict[str, tuple[str, ...]]:
    return {name: test.remarks for name, test in concluded(analysis).items()}


# changes of the study, and the remark on every comparison that was seen before
CHANGES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "more seeds": ({"seeds": 6}, (SEEDS_ADDED,)),
    "other seeds": ({"seeds": [2, 3, 4, 5, 6]}, (SEEDS_CHANGED,)),
    "fewer seeds": ({"seeds": 3}, (SEEDS_CHANGED,)),
    "looks": ({"seeds": {"looks": [3, 6]}}, (SEEDS_CHANGED,)),
    "a margin": (MARGIN, ("margin set after data",)),
    "a score for what diverges": (
        {"metrics": {"val_acc": {"goal": "max", "on_diverged": 1.0}, "loss": {"goal": "min"}}},
        ("on_diverged set after data",),
    ),
    "another goal": (
        {"metrics": {"val_acc": {"goal": "min"}, "loss": {"goal": "min"}}},
        ("the goal changed after results",),
    ),
    "another metric": (
        {"metrics": {"loss": {"goal": "max"}, "val_acc": {"goal": "max"}}},
        ("the primary metric changed after results",),
    ),
    "another level": ({"analysis": {"alpha": 0.1}}, ("the analysis changed after results",)),
    "another engine": ({"analysis": {"pairing": "none"}}, ("the analysis changed after results",)),
    "seeds and a margin": ({"seeds": 6, **MARGIN}, (SEEDS_ADDED, "margin set after data")),
    "words": ({"question": "What is it good for?", "assumed": {"a": "nothing"}}, ()),
    "a design of the same comparisons": ({"designs": ["one-at-a-time", "factorial"]}, ()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_after_results_is_said_of_each_comparison(store: Store, change: str) -> None:
    changes, expected = CHANGES[change]
    assert set(remarks(run(store, declare(store))).values()) == {()}
    analysis = run(store, declare(store, **changes))
    (design, *_) = analysis.designs
    tests = {row.name: row.effects[analysis.primary.name].conclusion for row in design.comparisons}
    assert {name: test.remarks for name, test in tests.items() if test} == dict.fromkeys(tests, expected)
    anytime = holm(
        [anytime_p(list(row.effects[analysis.primary.name].differences.values())) for row in design.comparisons]
    )
    for row, p in zip(design.comparisons, anytime, strict=True):
        effect = row.effects[analysis.primary.name]
        assert effect.conclusion is not None
        if SEEDS_ADDED in expected:
            assert effect.conclusion.anytime == p
            assert effect.conclusion.p is not None
            assert p is not None
            assert p > effect.conclusion.p
        else:
            assert effect.conclusion.anytime is None


@pytest.mark.parametrize("change", CHANGES)
def test_before_the_first_result_everything_may_change(store: Store, change: str) -> None:
    declare(store)
    assert set(remarks(run(store, declare(store, **CHANGES[change][0]))).values()) == {()}


def test_a_later_word_makes_nothing_undone(store: Store) -> None:
    """Back at what was declared first, it stands as it did; and what was added stays added, whatever else is edited."""
    run(store, declare(store))
    run(store, declare(store, seeds=6))
    assert set(remarks(run(store, declare(store, seeds=6, question="And now?"))).values()) == {(SEEDS_ADDED,)}
    first = run(store, declare(store))
    assert first.version == 1
    assert set(remarks(first).values()) == {()}


def test_a_comparison_is_new_where_its_results_were_seen_before_it_was_declared(store: Store) -> None:
    """A step that is added later has results of its own to come; a design whose trials are all there has not."""
    run(store, declare(store))
    more = [*STEPS, {"name": "d", "set": {"on.d": True}}]
    assert set(remarks(run(store, declare(store, steps=more))).values()) == {()}
    analysis = run(store, declare(store, designs=["one-at-a-time", "ladder"]))
    found = remarks(analysis)
    assert found["a"] == (), "it is the comparison of `a` alone"
    assert found["b"] == found["c"] == (), "their rungs were trained after they were declared"
    analysis = run(store, declare(store, designs=["ladder", {"leave-one-out": {"except": ["a", "b"]}}]))
    assert remarks(analysis)["without-c"] == (), "it is the last rung"
    analysis = run(store, declare(store, steps=[STEPS[0], {**STEPS[2], "from": "baseline"}], designs=["ladder"]))
    assert remarks(analysis)["c"] == (), "it is `c` alone"
    swapped = [STEPS[1], {**STEPS[0], "from": "b"}]
    assert remarks(run(store, declare(store, steps=swapped, designs=["ladder"]))) == {
        "a": ("declared after results were seen",),  # both of its arms were there
        "b": (),
    }


def test_each_comparison_ever_declared_counts_once(store: Store) -> None:
    sizes = []
    for steps in (STEPS, STEPS[:2], STEPS, [*STEPS[:1], {"name": "d", "set": {"on.d": True}}], STEPS[:1]):
        family = run(store, declare(store, steps=steps)).family
        sizes.append((family.declared, family.withdrawn))
    assert sizes == [(3, 0), (2, 1), (3, 0), (2, 2), (1, 3)]
    only = concluded(analyse(store, find_study(store, "basenet")))["a"]
    assert only.p is not None
    assert only.adjusted == pytest.approx(4 * only.p)


def test_a_comparison_declared_and_never_run_counts_too(store: Store) -> None:
    """It was declared, and what it would have shown can't be told from the reason for which it was dropped."""
    declare(store)
    analysis = run(store, declare(store, steps=STEPS[:2]))
    assert (analysis.family.declared, analysis.family.withdrawn) == (2, 1)


def test_other_studies_and_profiles_have_families_of_their_own(store: Store) -> None:
    run(store, declare(store))
    other = declare(store, name="other", steps=STEPS[:1])
    assert run(store, other).family.size == 1


def test_looks_of_a_later_version_stop_by_the_family_that_its_verdicts_count(store: Store) -> None:
    """What a comparison stopped for is what its table says, with those of earlier versions counted in both."""
    many = [{"name": name, "set": {f"on.{name}": True}} for name in GAINS]
    looks = {"looks": [3, 5, 8, 12]}
    run(store, declare(store, steps=many, seeds=looks))
    for step in many:
        analysis = run(store, declare(store, steps=[step], seeds=looks))
        assert analysis.family.size == len(many)
        (test,) = concluded(analysis).values()
        assert test.verdict in ("better", "worse", "no effect") or test.look == 4, step["name"]


@pytest.mark.parametrize(
    "seeds", [{"looks": [3, 5, 8]}, {"mode": "precision", "half_width": 0.3, "pilot": 4, "most": 8}]
)
def test_a_comparison_that_two_designs_share_has_one_answer(store: Store, seeds: dict[str, Any]) -> None:
    """The ladder's last rung is what leave-one-out finds of its step: with as many seeds, and the same interval."""
    analysis = run(store, declare(store, seeds=seeds, designs=["ladder", "leave-one-out"]))
    rows = {row.name: row.effects["val_acc"] for design in analysis.designs for row in design.comparisons}
    assert rows["c"] == rows["without-c"]


def test_a_path_that_is_on_its_way_can_be_reported(store: Store) -> None:
    study = declare(store, designs=["path"], seeds=3)
    first = make_plan(study)
    finish_all(store, first, record_plan(store, first))  # every candidate for the first step
    analysis = analyse(store, find_study(store, "basenet"))
    assert [row.name for row in analysis.designs[0].comparisons] == ["only-a"]
    assert (analysis.counts.finished, analysis.counts.waiting) == (4 * 3, 2 * 3)
    assert "**not finished: 12 of 18 trials have a result" in markdown.render(analysis)
