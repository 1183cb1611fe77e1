"""What is concluded of numbers that were chosen for it: verdicts, p-values, and what a table prints of them."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from rich.console import Console
from scipy.stats import false_discovery_control, ttest_ind, ttest_rel

from ablate.analyse.analysis import analyse
from ablate.analyse.findings import Analysis, Comparison, Conclusion, Effect
from ablate.plan.trials import Plan
from ablate.report import markdown, terminal
from ablate.report.table import verdict_text
from tests.truth import DIVERGED, FAILED, WAITING, Fate, fill, truth_study

Values = Mapping[str, Sequence[float]]  # by arm, one for each seed from 1 on
Fates = Mapping[tuple[str, int], Fate]


def metric(**options: Any) -> dict[str, Any]:
    return {"metrics": {"val_acc": {"goal": "max", **options}}}


def chosen(folder: Path, values: Values, fates: Fates | None = None, **changes: Any) -> Analysis:
    """Return the analysis of arms with these values: a baseline, and one step at a time."""

    def measure(plan: Plan, arm: str, seed: int) -> dict[str, float]:
        value = values["+".join(plan.arm(arm).steps) or "baseline"][seed - 1]
        return {"val_acc": value, "loss": 100 - value + (len(arm) * 7 + seed * 13) % 11}

    names = [name for name in values if name != "baseline" and "+" not in name]
    study = truth_study(
        **{
            "settings": {"on": dict.fromkeys(names, False)},
            "steps": [{"name": name, "set": {f"on.{name}": True}} for name in names],
            "designs": ["one-at-a-time"],
            "seeds": len(values["baseline"]),
            **metric(),
            **changes,
        }
    )
    filled = fill(folder, study, fates, measure)
    return analyse(filled.store, filled.stored)


def effects(analysis: Analysis, design: int = 0, name: str = "val_acc") -> dict[str, Effect]:
    rows = analysis.designs[design].comparisons
    return {row.name.removeprefix("only-"): row.effects[name] for row in rows}


def concluded(analysis: Analysis, design: int = 0) -> dict[str, Conclusion]:
    found = {name: effect.conclusion for name, effect in effects(analysis, design).items()}
    return {name: test for name, test in found.items() if test is not None}


def verdicts(analysis: Analysis) -> dict[str, str]:
    return {name: verdict_text(test, analysis.primary) for name, test in concluded(analysis).items()}


# --- which verdict -------------------------------------------------------------------------------------------------

BASE = (30.0, 31.0, 29.5, 30.5, 29.0)
RISEN = (34.0, 35.1, 33.4, 34.6, 32.9)  # +4 with noise of 0.1


def shifted(values: Sequence[float], by: Sequence[float]) -> list[float]:
    return [value + each for value, each in zip(values, by, strict=True)]


# (values of the step, options of the metric, verdict), each over the baseline above; the first rule that holds is taken
CASES: dict[str, tuple[Sequence[float], dict[str, Any], str]] = {
    "n = 2, however large": ((90.0, 91.0), {}, "not tested"),
    "n = 2, and equal": (BASE[:2], {}, "not tested"),
    "n = 3 and equal": (BASE[:3], {}, "identical"),
    "equal, within any margin": (BASE, {"margin": 50}, "identical"),
    "one value for all seeds": ((40.0,) * 5, {}, "no seed effect"),
    "one value for all seeds, beside the margin": ((30.0,) * 5, {"margin": 50}, "no seed effect"),
    "the same difference at every seed": (shifted(BASE, (1.0,) * 5), {}, "not tested"),
    "above": (RISEN, {}, "better"),
    "below": (shifted(BASE, (-4.0, -4.1, -3.9, -4.2, -3.8)), {}, "worse"),
    "above, not within the margin": (RISEN, {"margin": 4.0}, "better"),
    "above, within the margin": (RISEN, {"margin": 4.2}, "better (<4.2)"),
    "lower is better": (RISEN, {"goal": "min"}, "worse"),
    "lower is better, within the margin": (RISEN, {"goal": "min", "margin": 4.2}, "worse (<4.2)"),
    "about zero, within the margin": (shifted(BASE, (0.1, -0.1, 0.05, -0.1, 0.1)), {"margin": 0.5}, "no effect >0.5"),
    "about zero, without a margin": (shifted(BASE, (0.1, -0.1, 0.05, -0.1, 0.1)), {}, "unresolved"),
    "about zero, wider than the margin": (shifted(BASE, (2, -2, 1, -2, 2)), {"margin": 0.5}, "unresolved"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_first_rule_that_holds_gives_the_verdict(tmp_path: Path, case: str) -> None:
    values, options, expected = CASES[case]
    analysis = chosen(tmp_path, {"baseline": BASE[: len(values)], "step": values}, **metric(**options))
    assert verdicts(analysis) == {"step": expected}
    test = concluded(analysis)["step"]
    untested = expected in ("not tested", "identical", "no seed effect")
    assert ((test.p is None), (test.adjusted is None), (test.bound is None)) == (untested,) * 3


def test_nothing_is_concluded_while_planned_seeds_are_to_come(tmp_path: Path) -> None:
    """A verdict that comes early is one look more than alpha allows for; a failed seed never comes."""
    values = {"baseline": BASE, "step": RISEN, "other": RISEN}
    analysis = chosen(tmp_path, values, {("only-step", 5): WAITING, ("only-other", 5): FAILED})
    assert verdicts(analysis) == {"step": "not tested", "other": "better"}


# --- what must not matter ------------------------------------------------------------------------------------------


def drawn(seed: int, n: int = 5) -> dict[str, list[float]]:
    """Draw arms with effects from none to large."""
    chance = random.Random(seed)
    shared = [chance.gauss(0, 1) for _ in range(n)]
    sizes = {"baseline": 0.0, "none": 0.0, "small": 0.7, "large": 6.0, "loss": -6.0}
    return {arm: [40 + size + each + chance.gauss(0, 0.6) for each in shared] for arm, size in sizes.items()}


def told(analysis: Analysis) -> dict[str, tuple[float | str | None, ...]]:
    """Return what a table says of each comparison that has no unit."""
    return {name: (test.verdict, test.p, test.adjusted, test.equivalent) for name, test in concluded(analysis).items()}


def close(found: Mapping[str, tuple[Any, ...]], expected: Mapping[str, tuple[Any, ...]]) -> bool:
    return found.keys() == expected.keys() and all(
        each[0] == expected[name][0] and each[1:] == pytest.approx(expected[name][1:], rel=1e-6)
        for name, each in found.items()
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_constant_and_a_unit_change_no_conclusion(tmp_path: Path, seed: int) -> None:
    values = drawn(seed)
    plain = chosen(tmp_path / "plain", values, **metric(margin=1.0))
    moved = chosen(tmp_path / "moved", {a: [v - 273.15 for v in vs] for a, vs in values.items()}, **metric(margin=1.0))
    scaled = chosen(tmp_path / "scaled", {a: [v / 100 for v in vs] for a, vs in values.items()}, **metric(margin=0.01))
    assert close(told(moved), told(plain))
    assert close(told(scaled), told(plain))
    for name, effect in effects(plain).items():
        assert effect.interval is not None
        sizes = (effect.mean, effect.sd, effect.se, effect.interval.low, effect.interval.high)
        for other, scale in ((moved, 1.0), (scaled, 100.0)):
            same = effects(other)[name]
            assert same.interval is not None
            found = (same.mean, same.sd, same.se, same.interval.low, same.interval.high)
            assert [scale * (each or 0) for each in found] == pytest.approx(sizes)


@pytest.mark.parametrize("seed", range(4))
def test_the_goal_decides_between_better_and_worse_and_nothing_else(tmp_path: Path, seed: int) -> None:
    values = drawn(seed)
    highest = chosen(tmp_path / "max", values, **metric(margin=1.0))
    lowest = chosen(tmp_path / "min", values, **metric(margin=1.0, goal="min"))
    flip = {"better": "worse", "worse": "better"}
    assert told(lowest) == {name: (flip.get(str(v), v), *rest) for name, (v, *rest) in told(highest).items()}
    assert {"better", "worse"} <= {test.verdict for test in concluded(highest).values()}
    for name, effect in effects(highest).items():
        same = effects(lowest)[name]
        assert (same.mean, same.interval, same.differences) == (effect.mean, effect.interval, effect.differences)


def test_the_order_of_steps_moves_rows_and_no_p_value(tmp_path: Path) -> None:
    values = drawn(1)
    names = [name for name in values if name != "baseline"]
    found = []
    for number, order in enumerate((names, names[::-1], [*names[2:], *names[:2]])):
        arms = {"baseline": values["baseline"], **{name: values[name] for name in order}}
        analysis = chosen(tmp_path / str(number), arms)
        assert list(concluded(analysis)) == order
        found.append(told(analysis))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("goal", ["max", "min"])
@pytest.mark.parametrize("declared", [-1e6, 10.0, 40.0, 47.0, 1e6])
def test_a_diverged_seed_never_flatters_an_arm(tmp_path: Path, goal: str, declared: float) -> None:
    """Whatever is declared for it: at best it counts as much as the worst seed that finished."""
    values = drawn(2)
    analysis = chosen(tmp_path, values, {("only-large", 3): DIVERGED}, **metric(goal=goal, on_diverged=declared))
    cell = analysis.arm("only-large").cells["val_acc"]
    finished = [value for seed, value in enumerate(values["large"], start=1) if seed != 3]
    worst = min([declared, *finished]) if goal == "max" else max([declared, *finished])
    assert (cell.values[3], cell.scored, cell.n) == (worst, (3,), 5)
    assert cell.mean is not None
    assert (cell.mean <= fmean(finished)) if goal == "max" else (cell.mean >= fmean(finished))


# --- p-values ------------------------------------------------------------------------------------------------------


def test_p_is_scipy_s_and_holm_s_step_down_is_over_all_of_them(tmp_path: Path) -> None:
    values = drawn(0)
    found = concluded(chosen(tmp_path, values))
    for name, test in found.items():
        assert test.p == pytest.approx(ttest_rel(values[name], values["baseline"]).pvalue)
    highest = 0.0
    for rank, test in enumerate(sorted(found.values(), key=lambda each: each.p or 1)):
        highest = max(highest, min(1.0, (len(found) - rank) * (test.p or 1)))
        assert test.adjusted == pytest.approx(highest)


def test_benjamini_hochberg_where_it_is_asked_for(tmp_path: Path) -> None:
    analysis = chosen(tmp_path, drawn(0), analysis={"correction": "bh"})
    found = list(concluded(analysis).values())
    assert [test.adjusted for test in found] == pytest.approx(false_discovery_control([test.p for test in found]))
    text = markdown.render(analysis)
    assert "| p (FDR) |" in text
    assert "Benjamini-Hochberg (FDR) over the 4 comparisons" in text


def test_without_pairing_two_arms_are_two_samples(tmp_path: Path) -> None:
    """A seed that is missing on one side stays on the other."""
    values = drawn(3)
    analysis = chosen(tmp_path, values, {("only-large", 3): FAILED}, analysis={"pairing": "none"})
    for name, effect in effects(analysis).items():
        own = [value for seed, value in enumerate(values[name], start=1) if (name, seed) != ("large", 3)]
        expected = ttest_ind(own, values["baseline"], equal_var=False)
        ends = expected.confidence_interval(0.95)
        assert effect.interval is not None
        assert effect.conclusion is not None
        assert (effect.method, effect.n) == ("welch", len(own))
        assert (effect.interval.low, effect.interval.high) == pytest.approx((ends.low, ends.high))
        assert effect.conclusion.p == pytest.approx(expected.pvalue)


def test_a_comparison_that_two_designs_share_counts_once(tmp_path: Path) -> None:
    """The ladder's first rung is that step alone; its last is what leave-one-out finds of the last step."""
    chance = random.Random(5)
    arms = ("baseline", "a", "b", "c", "a+b", "a+c", "b+c", "a+b+c")
    values = {arm: [chance.gauss(40, 1) for _ in range(4)] for arm in arms}
    analysis = chosen(tmp_path, values, designs=["ladder", "one-at-a-time", "leave-one-out"])
    assert analysis.family.size == 3 + 3 + 3 - 2
    ladder, alone, left_out = (effects(analysis, design) for design in range(3))
    assert ladder["a"].conclusion == alone["a"].conclusion
    assert ladder["c"].conclusion == left_out["without-c"].conclusion
    assert ladder["a"].conclusion is not None
    ps = [test.p for design in range(3) for test in concluded(analysis, design).values() if test.p is not None]
    least = min(test.adjusted or 1 for design in range(3) for test in concluded(analysis, design).values())
    assert least == pytest.approx(min(1, 7 * min(ps)))


def test_only_declared_comparisons_of_the_primary_metric_are_tested(tmp_path: Path) -> None:
    metrics = {**metric()["metrics"], "loss": {"goal": "min"}}
    values = {"baseline": BASE, "a": RISEN, "a+b": shifted(RISEN, (1, 1.1, 0.8, 1, 1.2)), "b": BASE}
    analysis = chosen(tmp_path, values, metrics=metrics, designs=["ladder"])
    (design,) = analysis.designs
    assert design.total is not None
    rows: list[Comparison] = [*design.comparisons, design.total]
    assert [row.effects["val_acc"].conclusion is not None for row in rows] == [True, True, False]
    assert design.total.effects["val_acc"].interval is not None
    assert all(row.effects["loss"].conclusion is None for row in rows)
    assert any(row.effects["loss"].interval is not None for row in rows)


# --- what is printed -----------------------------------------------------------------------------------------------

# seeds with a result: the row of the step, without its time, and what is said below the table
PRINTED: dict[int, tuple[str, str]] = {
    0: ("1 | step | 0/5 | waiting | — | not tested", "5 missing (5 waiting)"),
    1: ("1 | step | 1 | 34.0 | +4.0", "1 seed per row: no intervals, no verdicts."),
    2: ("1 | step | 2 | 34.5 | +4.05", "2 seeds per row: means only, no intervals, no verdicts; those need 3 seeds."),
    3: (
        "1 | step | 3 | **34.2** ± 0.9 | +4.00 [+3.75, +4.25] | <.001 | better",
        "n=3: an effect needs to be about 3.3 sd of the differences",
    ),
    5: ("1 | step | 5 | **34.0** ± 0.9 | +4.00 [+3.88, +4.12] | <.001 | better", "(paired t, 5 shared seeds)"),
}


@pytest.mark.parametrize("n", PRINTED)
def test_what_is_printed_at_each_number_of_seeds(tmp_path: Path, n: int) -> None:
    count = n or 5
    fates = {} if n else dict.fromkeys([("only-step", seed) for seed in range(1, 6)], WAITING)
    analysis = chosen(tmp_path, {"baseline": BASE[:count], "step": RISEN[:count]}, fates)
    console = Console(file=io.StringIO(), width=100)
    terminal.print_report(analysis, console)
    on_terminal = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    in_markdown = markdown.render(analysis)
    row, note = PRINTED[n]
    assert f"\n| {row} |" in in_markdown
    assert f" {row.replace(' |', '').replace('**', '')} " in on_terminal
    for text in (on_terminal, in_markdown):
        assert note in text
        assert ("±" in text) == (n in (0, 3, 5))
        assert ("[" in text) == (n in (3, 5))
        assert (" verdict " in text) == (n in (0, 3, 5))
