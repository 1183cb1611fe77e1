"""Which rows are in bold: judged on numbers that were chosen for it, and on ten thousand studies of noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from ablate.analyse.analysis import analyse
from ablate.analyse.best import best_arms
from ablate.analyse.findings import Analysis, ArmResult, Cell, Counts, Effect, Interval
from ablate.plan.trials import Plan
from ablate.report.markdown import render
from ablate.stats.corrections import holm
from ablate.stats.intervals import paired_estimate
from ablate.study.schema import Study
from tests.truth import DIVERGED, FAILED, WAITING, Fate, fill, truth_study

VALUES = {
    "baseline": [50.0, 51.0, 49.0, 50.5],
    "a": [60.0, 61.5, 58.8, 60.1],
    "b": [60.3, 60.9, 59.4, 60.6],
    "c": [57.0, 58.1, 55.9, 57.6],
}


def studied(
    folder: Path,
    values: Mapping[str, list[float]],
    fates: Mapping[tuple[str, int], Fate] | None = None,
    **changes: object,
) -> Analysis:
    def measure(plan: Plan, arm: str, seed: int) -> dict[str, float]:
        value = values["+".join(plan.arm(arm).steps) or "baseline"][seed - 1]
        return {"val_acc": value, "loss": 100 - value + (len(arm) * 7 + seed * 13) % 11}

    names = [name for name in values if name != "baseline"]
    study = truth_study(**{
        "settings": {"on": dict.fromkeys(names, False)},
        "steps": [{"name": name, "set": {f"on.{name}": True}} for name in names],
        "metrics": {"val_acc": {"goal": "max"}},
        "designs": ["one-at-a-time"],
        "seeds": len(values["baseline"]),
        **changes,
    })  # fmt: skip
    filled = fill(folder, study, fates, measure)
    return analyse(filled.store, filled.stored)


def best(analysis: Analysis) -> set[str]:
    return {name.removeprefix("only-") for name in analysis.designs[0].best}


def test_it_is_the_best_mean_and_what_a_paired_test_cannot_tell_from_it(tmp_path: Path) -> None:
    assert best(studied(tmp_path, VALUES)) == {"a", "b"}
    others = ["baseline", "a", "c"]
    ps = holm([ttest_rel(VALUES["b"], VALUES[name]).pvalue for name in others])
    assert [name for name, p in zip(others, ps, strict=True) if p is not None and p >= 0.05] == ["a"]


def test_of_a_loss_the_least_is_best_and_alpha_is_the_studys(tmp_path: Path) -> None:
    low = {"metrics": {"val_acc": {"goal": "min"}}}
    assert best(studied(tmp_path / "min", VALUES, **low)) == {"baseline"}
    strict = studied(tmp_path / "strict", VALUES, analysis={"alpha": 4e-4})
    assert best(strict) == {"a", "b", "c"}


def test_where_nothing_is_shown_to_be_worse_nothing_is_marked(tmp_path: Path) -> None:
    analysis = studied(tmp_path, VALUES, analysis={"alpha": 1e-7})
    assert best(analysis) == set()
    assert "Bold" not in render(analysis)


@pytest.mark.parametrize("seeds", [1, 2])
def test_below_three_seeds_nothing_is_best(tmp_path: Path, seeds: int) -> None:
    analysis = studied(tmp_path, VALUES, seeds=seeds)
    assert best(analysis) == set()
    assert "Bold" not in render(analysis)


def test_nothing_is_best_while_seeds_are_to_come(tmp_path: Path) -> None:
    assert best(studied(tmp_path, VALUES, {("only-c", 4): WAITING})) == set()


def test_at_looks_p_is_held_against_its_share_of_alpha(tmp_path: Path) -> None:
    looks = {"seeds": {"looks": [3, 4], "weights": [0.0001, 0.9999]}}
    waiting = {(arm, 4): WAITING for arm in ("baseline", "only-a", "only-b", "only-c")}
    assert best(studied(tmp_path / "first", VALUES, waiting, **looks)) == set()  # the first look's share tells nothing
    assert best(studied(tmp_path / "last", VALUES, **looks)) == {"a", "b"}
    assert best(studied(tmp_path / "none", VALUES, {("only-c", 3): WAITING}, **looks)) == set()


def test_an_arm_that_diverged_or_has_too_few_seeds_is_no_candidate(tmp_path: Path) -> None:
    values = {**VALUES, "d": [99.0, 99.5, 98.8, 99.3]}
    assert best(studied(tmp_path / "all", values)) == {"d"}
    assert best(studied(tmp_path / "diverged", values, {("only-d", 2): DIVERGED})) == {"a", "b"}
    fates = {("only-d", 1): FAILED, ("only-d", 2): FAILED}
    assert best(studied(tmp_path / "failed", values, fates)) == {"a", "b"}


def test_an_arm_that_a_declared_comparison_shows_to_be_worse_is_not_among_them(tmp_path: Path) -> None:
    noisy = {"baseline": [50.0, 51.0, 49.0], "a": [44.0, 45.1, 42.9], "b": [70.0, 52.0, 33.0], "c": [49.0, 52.0, 51.0]}
    analysis = studied(tmp_path, noisy)
    (design,) = analysis.designs
    verdicts = {row.arm: row.effects["val_acc"].conclusion for row in design.comparisons}
    assert verdicts["only-a"] is not None
    assert verdicts["only-a"].verdict == "worse"
    assert best(analysis) == {"baseline", "b", "c"}  # b's seeds differ so much that nothing is told from it by itself


def test_a_ladder_a_path_and_a_factorial_have_theirs(tmp_path: Path) -> None:
    values = {"baseline": [50, 51, 49], "a": [60, 61, 59.5], "b": [50.2, 51, 49], "a+b": [60.2, 60.8, 59.6]}
    for design in ("ladder", "factorial", "path"):
        filled = fill(
            tmp_path / design,
            truth_study(
                settings={"on": {"a": False, "b": False}},
                steps=[{"name": name, "set": {f"on.{name}": True}} for name in ("a", "b")],
                metrics={"val_acc": {"goal": "max"}},
                designs=[design],
                seeds=3,
            ),
            {},
            lambda plan, arm, seed: {"val_acc": float(values["+".join(plan.arm(arm).steps) or "baseline"][seed % 3])},
        )
        (found,) = analyse(filled.store, filled.stored).designs
        steps = {arm.name: arm.steps for arm in filled.plan.arms}
        assert {steps[name] for name in found.best} == {("a",), ("a", "b")}, design


def test_markdown_prints_the_means_in_bold_and_says_what_it_is(tmp_path: Path) -> None:
    text = render(studied(tmp_path, VALUES))
    assert "| **60.1** ± 1.1 |" in text
    assert text.count("| **60.") == 2
    assert text.count("**") == 4
    assert "Bold: the best mean of val_acc, and those not shown to be worse (difference to the best, Holm" in text


@pytest.mark.parametrize(("arms", "seeds"), [(2, 3), (6, 3), (6, 5), (20, 5)])
def test_an_arm_that_is_really_best_is_rarely_left_out(arms: int, seeds: int) -> None:
    """All arms equal, or half of them far behind: in at least 95 % of studies a given best arm is in bold."""
    draws = np.random.default_rng(7)
    for behind in (0, arms // 2):
        missed = 0
        for _ in range(400):
            values = draws.normal(size=(arms, seeds))
            values[arms - behind :] -= 30
            found = _found(values)
            missed += bool(found) and "0" not in found
        assert missed <= 0.05 * 400 + 4 * (0.05 * 0.95 * 400) ** 0.5


def _found(values: np.ndarray) -> tuple[str, ...]:
    study: Study = truth_study()
    seeds = range(values.shape[1])
    arms = [_arm(str(i), dict(zip(seeds, map(float, row), strict=True))) for i, row in enumerate(values)]

    def difference(one: str, other: str) -> Effect:
        got = paired_estimate([(1.0, list(values[int(one)])), (-1.0, list(values[int(other)]))])
        ends = got.interval(0.05)
        assert ends is not None
        return Effect("val_acc", got.n, got.mean, got.sd, got.se, Interval(*ends, 0.95), {}, df=got.df)

    return best_arms(study, arms, difference, worse=())


def _arm(name: str, values: dict[int, float]) -> ArmResult:
    cell = Cell("val_acc", len(values), sum(values.values()) / len(values), 1.0, 0.5, values)
    return replace(ArmResult(name, name, (), (), {}, Counts()), cells={"val_acc": cell})
