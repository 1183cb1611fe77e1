"""Studies with a known answer through the whole house: plan, run in real workers, store, analyse, report."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_rel

from ablate.analyse.analysis import analyse
from ablate.analyse.findings import Analysis, Comparison, Effect
from ablate.report.designs import ESTIMANDS
from ablate.run import studies
from ablate.run.studies import worker_server
from ablate.run.workers import Workers
from ablate.stats.intervals import crossed_estimate
from ablate.store.facts import find_study
from ablate.store.integrity import store_flaws
from ablate.store.store import open_store
from tests import truth_task
from tests.command import Call, ablate, finish, query, start
from tests.truth_task import EXAMPLES, truth, value

PARTS = ("wide", "skip", "dropout", "bias")
SETTINGS: dict[str, Any] = {
    "model": dict.fromkeys(PARTS, False),
    "gain": {"wide": 8.0, "skip": 4.0, "dropout": -2.5, "bias": 0.0},
    "together": 3.0,
    "noise": 0.7,
    "diverges_at": 0,
    "starves_at": 0,
    "pause": 0.0,
    "scores": "right",
}
STEPS = [{"name": part, "set": {f"model.{part}": True}} for part in PARTS]
STUDY: dict[str, Any] = {
    "schema": "ablate/v1",
    "name": "truth",
    "task": "truth_task:train",
    "metrics": {"acc": {"goal": "max", "unit": "%", "margin": 1.4}},
    "settings": SETTINGS,
    "steps": STEPS,
    "designs": ["one-at-a-time"],
    "seeds": 5,
}


def write(project: Path, **changes: Any) -> Path:
    """Write the truth study, with some of its keys replaced, and its task; JSON is YAML."""
    (project / ".git").mkdir(exist_ok=True)
    shutil.copy(truth_task.__file__, project / "truth_task.py")
    path = project / "truth.yaml"
    path.write_text(json.dumps({**STUDY, **changes}, indent=1))
    return path


def found(project: Path) -> Analysis:
    """Return the analysis of a project's study, once its store is known to be sound."""
    store = open_store(project / "runs" / "ablate.db", read_only=True)
    try:
        assert store_flaws(store) == []
        return analyse(store, find_study(store, "truth"))
    finally:
        store.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Workers]:
    """One worker server for the runs of this file: it has imported torch and nothing of any study."""
    with worker_server() as workers:
        workers.start()
        workers.start = lambda *_: None  # type: ignore[method-assign]  # each run would start its own
        yield workers


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, server: Workers) -> Call:
    monkeypatch.setattr(studies, "worker_server", lambda: contextlib.nullcontext(server))
    return Call(capsys, monkeypatch)


def run(call: Call, project: Path, *, exits: int = 0, **changes: Any) -> Analysis:
    """Write the study with these changes, run it and return its analysis."""
    done = call("run", write(project, **changes).name, cwd=project)
    assert done.returncode == exits, done.stderr
    return found(project)


def rows(analysis: Analysis, design: str) -> dict[str, Comparison]:
    return {row.name: row for each in analysis.designs if each.name == design for row in each.comparisons}


def effect(row: Comparison) -> Effect:
    return row.effects["acc"]


def verdicts(analysis: Analysis, design: str) -> dict[str, str]:
    tests = {name: effect(row).conclusion for name, row in rows(analysis, design).items()}
    return {name: test.verdict for name, test in tests.items() if test is not None}


def attempts(project: Path) -> list[tuple[str, int]]:
    """Return (outcome, claim) of every attempt."""
    return query(project, "SELECT outcome, claim FROM attempt ORDER BY id")


def seeds_trained(project: Path) -> dict[str, int]:
    sql = "SELECT arm.name, count(*) FROM arm JOIN replicate r ON r.arm = arm.id JOIN trial t ON t.id = r.trial"
    return dict(query(project, f"{sql} WHERE t.state = 'done' GROUP BY 1"))


def prose(text: str) -> str:
    return " ".join(text.split())


def half_width(effect: Effect) -> float:
    assert effect.interval is not None
    return (effect.interval.high - effect.interval.low) / 2


# --- what was put in -----------------------------------------------------------------------------------------------


def with_parts(*parts: str, **changes: Any) -> dict[str, Any]:
    """Return the settings of a model with these parts."""
    return {**SETTINGS, "model": {part: part in parts for part in PARTS}, **changes}


def v(*parts: str) -> float:
    return truth(with_parts(*parts))


def subsets(parts: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(p for i, p in enumerate(parts) if number >> i & 1) for number in range(2 ** len(parts))]


def others(*parts: str) -> list[tuple[str, ...]]:
    return subsets([part for part in PARTS if part not in parts])


def main_effect(part: str) -> float:
    return fmean(v(part, *rest) - v(*rest) for rest in others(part))


def interaction(a: str, b: str) -> float:
    """Half of what b changes about the effect of a."""
    return fmean((v(a, b, *c) - v(b, *c)) - (v(a, *c) - v(*c)) for c in others(a, b)) / 2


def in_any_order(part: str) -> float:
    orders = [order[: order.index(part)] for order in permutations(PARTS)]
    return fmean(v(part, *before) - v(*before) for before in orders)


PAIRS = [(a, b) for place, a in enumerate(PARTS) for b in PARTS[place + 1 :]]
GREEDY = ("wide", "skip", "bias", "dropout")
TRUTH: dict[str, dict[str, float]] = {
    "ladder": {part: v(*PARTS[: i + 1]) - v(*PARTS[:i]) for i, part in enumerate(PARTS)},
    "leave-one-out": {f"without-{p}": v(*PARTS) - v(*(o for o in PARTS if o != p)) for p in PARTS},
    "one-at-a-time": {f"only-{part}": v(part) - v() for part in PARTS},
    "both": {
        **{part: (v(part) - v() + v(*PARTS) - v(*(o for o in PARTS if o != part))) / 2 for part in PARTS},
        "remainder": 0.0,  # no three parts interact
    },
    "factorial": {
        **{part: main_effect(part) for part in PARTS},
        **{f"{a} × {b}": interaction(a, b) for a, b in PAIRS},
        **{f"{part} in any order": in_any_order(part) for part in PARTS},
        "wide × skip × dropout": 0.0,
    },
    # the half with I = ABCD: no part is summed with a pair, and each pair with its complement
    "fractional": {
        **{part: main_effect(part) for part in PARTS},
        "wide × skip": interaction("wide", "skip"),
        "wide × dropout": 0.0,
        "wide × bias": 0.0,
    },
    "path": {part: v(*GREEDY[: i + 1]) - v(*GREEDY[:i]) for i, part in enumerate(GREEDY)},
}
SIZES = {"wide": "better", "skip": "better", "dropout": "worse", "bias": "no effect", "wide × skip": "better"}


@pytest.fixture(scope="module")
def every_design(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file with one list of steps and every design, run once by the real command."""
    project = tmp_path_factory.mktemp("designs")
    designs = ["ladder", "leave-one-out", "one-at-a-time", "factorial", {"fractional": list(PARTS)}, "path"]
    done = ablate("run", str(write(project, designs=designs)), cwd=project)
    assert done.returncode == 0, done.stderr
    return project


@pytest.fixture(scope="module")
def designs(every_design: Path) -> Analysis:
    return found(every_design)


@pytest.mark.parametrize("design", TRUTH)
def test_each_design_finds_what_was_put_in(designs: Analysis, design: str) -> None:
    table = rows(designs, design)
    if design == "path":  # its rows are named by their arms
        assert [row.title for row in table.values()] == list(GREEDY)
        table = {row.title: row for row in table.values()}
    for name, expected in TRUTH[design].items():
        measured = effect(table[name])
        assert measured.mean == pytest.approx(expected, abs=1e-9), name
        assert measured.interval is not None
        assert measured.interval.low < expected < measured.interval.high, name
        test = measured.conclusion
        part = name.removeprefix("only-").removeprefix("without-")
        if test is not None:
            assert test.verdict == SIZES.get(part, "no effect"), name
        else:
            assert design == "both" or part not in SIZES, name


def test_intervals_and_p_values_are_those_of_scipy_on_the_task_s_own_numbers(designs: Analysis) -> None:
    for row in rows(designs, "ladder").values():
        parts = PARTS[: PARTS.index(row.name) + 1]
        arms = [[value(with_parts(*those), seed) for seed in range(1, 6)] for those in (parts, parts[:-1])]
        expected = ttest_rel(*arms)
        ends = expected.confidence_interval(0.95)
        interval, test = effect(row).interval, effect(row).conclusion
        assert interval is not None
        assert test is not None
        assert (interval.low, interval.high) == pytest.approx((ends.low, ends.high))
        assert test.p == pytest.approx(expected.pvalue)


def test_rows_that_designs_share_are_trained_once(every_design: Path, designs: Analysis) -> None:
    """16 models × 5 seeds, and the 5 models of the path on fresh seeds; of the named rows there are far more."""
    assert attempts(every_design) == [("ok", 1)] * (16 * 5 + 5 * 5)
    assert designs.counts.planned == 105
    assert sum(len(arm.trials) for arm in designs.arms) > 105
    # 4 rungs, 4 removed, 4 alone; the first rung is alone, the last is removed; 4 effects and 6 interactions; 7 of the
    # fraction; 4 of the path
    assert designs.family.size == 4 + 4 + 4 - 2 + 10 + 7 + 4
    path = next(each for each in designs.designs if each.name == "path")
    assert path.role == "confirm"
    assert path.counts.planned == (1 + 4 + 3 + 2 + 1) * 5 + 5 * 5, "what it tried, and what it chose on fresh seeds"
    assert {tuple(effect(row).differences) for row in path.comparisons} == {(6, 7, 8, 9, 10)}


def test_each_design_has_its_table_and_says_what_it_estimates(every_design: Path, call: Call) -> None:
    report = call("report", "truth", "--markdown", cwd=every_design).stdout
    sections = dict(
        zip(re.findall("^### truth: (.*)", report, re.M), re.split("^### .*", report, flags=re.M)[1:], strict=True)
    )
    both = sections.pop("leave-one-out beside one-at-a-time")
    plain = [name for name in sections if name in ESTIMANDS]
    assert plain == ["ladder", "leave-one-out", "one-at-a-time", "factorial", "fractional", "path"]
    for name in plain:
        assert ESTIMANDS[name] in sections[name]
        assert "Holm over the 31 comparisons of the study." in sections[name]
    assert r"\[A + BCD\]" in sections["fractional"]
    assert "a fraction of all models can't tell them apart" in sections["fractional"]
    assert "measured again on fresh seeds" in sections["path"]
    assert "Its interval holds zero: nothing speaks against reading the means as shares" in both
    # what is printed is what was put in
    lines = {line.split(" | ")[1]: line for line in sections["ladder"].splitlines() if line.startswith("| ")}
    assert re.search(r"\+7\.0+ \[.*\] \| <\.001 \| better", lines["skip"])
    assert re.search(r"-2\.50* \[.*\] \| \.?\d+ \| worse", lines["dropout"])


# --- seeds that results call for -----------------------------------------------------------------------------------

LOOKS = (3, 5, 8)
WEIGHTS = (0.2, 0.3, 0.5)
GROWING: dict[str, Any] = {
    "settings": {
        **SETTINGS,
        "gain": {"wide": 20.0, "skip": 0.9, "dropout": -3.0, "bias": 0.0},
        "pause": 0.08,
    },
    "metrics": {"acc": {"goal": "max", "margin": 0.6}},
    "seeds": {"looks": list(LOOKS), "weights": list(WEIGHTS)},
}


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's adjusted p-values, written afresh."""
    highest, adjusted = 0.0, {}
    for rank, name in enumerate(sorted(ps, key=lambda each: ps[each])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[name]))
        adjusted[name] = highest
    return adjusted


def replayed() -> dict[str, tuple[int, str]]:
    """Return the seeds at which each part's comparison should stop, and its verdict, from the task's own numbers."""
    settings = {part: {**GROWING["settings"], "model": with_parts(part)["model"]} for part in ("", *PARTS)}
    effects, nones = dict.fromkeys(PARTS, 1.0), dict.fromkeys(PARTS, 1.0)
    stopped: dict[str, tuple[int, str]] = {}
    for count, weight in zip(LOOKS, WEIGHTS, strict=True):
        for part in set(PARTS) - stopped.keys():
            d = [value(settings[part], seed) - value(settings[""], seed) for seed in range(1, count + 1)]
            se, mean = np.std(d, ddof=1) / count**0.5, fmean(d)
            effects[part] = min(effects[part], 2 * student.sf(abs(mean) / se, count - 1) / weight)
            nones[part] = min(nones[part], student.cdf((abs(mean) - 0.6) / se, count - 1) / weight)
        effect, none = holm(effects), holm(nones)
        for part in set(PARTS) - stopped.keys():
            if effect[part] < 0.05:
                stopped[part] = (count, "better" if settings[part]["gain"][part] > 0 else "worse")
            elif none[part] < 0.05:
                stopped[part] = (count, "no effect")
    return stopped | {part: (LOOKS[-1], "unresolved") for part in PARTS if part not in stopped}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with looks, run to its end by one command."""
    project = tmp_path_factory.mktemp("looks")
    done = ablate("run", str(write(project, **GROWING)), cwd=project)
    assert done.returncode == 0, done.stderr
    assert "more trials that the results call for" in done.stderr
    return project


def conclusions(project: Path) -> dict[str, Effect]:
    """Return all that a table prints of the comparisons but for times."""
    return {row.name: effect(row) for row in rows(found(project), "one-at-a-time").values()}


def test_looks_give_each_comparison_the_seeds_that_it_needs_and_no_more(undisturbed: Path, call: Call) -> None:
    expected = replayed()
    assert len({count for count, _ in expected.values()}) > 2, "large effects stop early, small ones go on"
    analysis = found(undisturbed)
    assert verdicts(analysis, "one-at-a-time") == {f"only-{part}": verdict for part, (_, verdict) in expected.items()}
    assert {name: each.n for name, each in conclusions(undisturbed).items()} == {
        f"only-{part}": count for part, (count, _) in expected.items()
    }
    most = max(count for count, _ in expected.values())
    counts = {f"only-{part}": count for part, (count, _) in expected.items()} | {"baseline": most}
    assert seeds_trained(undisturbed) == counts
    for name, each in conclusions(undisturbed).items():  # repeated intervals, at each look's share of alpha
        share = 0.05 * WEIGHTS[LOOKS.index(each.n)]
        assert each.se is not None
        assert half_width(each) == pytest.approx(student.isf(share / 2, each.n - 1) * each.se), name

    again = call("run", "truth.yaml", cwd=undisturbed)
    assert "(trained nothing new)" in again.stderr
    assert attempts(undisturbed) == [("ok", 1)] * sum(counts.values())
    report = prose(call("report", "truth", "--markdown", cwd=undisturbed).stdout)
    assert "Seeds were added at looks of 3, 5, 8, to unsettled comparisons only" in report
    assert "| 1 of 3 |" in report


def wait_until(condition: Any, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


def has_grown(project: Path) -> bool:
    """Tell whether trials beyond the first look were asked for, and one of them was begun."""
    with contextlib.suppress(Exception):
        return bool(query(project, "SELECT 1 FROM attempt a JOIN trial t ON t.id = a.trial WHERE t.seed > 3"))
    return False


def test_a_growing_study_that_is_killed_comes_to_the_same_table(project: Path, undisturbed: Path, call: Call) -> None:
    path = write(project, **GROWING)
    process = start("run", str(path), cwd=project)
    wait_until(lambda: has_grown(project))
    process.kill()
    finish(process)
    assert seeds_trained(project) != seeds_trained(undisturbed), "killed in the middle"
    done = call("run", str(path), cwd=project)
    assert done.returncode == 0, done.stderr
    assert conclusions(project) == conclusions(undisturbed)
    assert seeds_trained(project) == seeds_trained(undisturbed)


def test_two_runs_at_once_let_one_study_grow(project: Path, undisturbed: Path) -> None:
    path = write(project, **GROWING)
    runs = [start("run", str(path), "-j", "1", cwd=project) for _ in range(2)]
    for process in runs:
        said = finish(process)
        assert process.returncode == 0, said
    assert conclusions(project) == conclusions(undisturbed)
    assert attempts(project) == [("ok", 1)] * sum(seeds_trained(undisturbed).values())
    assert query(project, "SELECT count(*), max(started) < min(ended) FROM runner") == [(2, 1)]


def test_a_declared_precision_is_reached_without_a_look_at_the_effects(project: Path, call: Call) -> None:
    """The noisy part would need more seeds than the study allows; all others get what Stein's rule says."""
    seeds = {"mode": "precision", "half_width": 0.5, "pilot": 4, "most": 12}
    noisy = {"name": "noisy", "set": {"model.bias": True, "noise": 6.0}}
    analysis = run(call, project, seeds=seeds, steps=[*STEPS[:3], noisy])
    needed = {}
    for part in (*PARTS[:3], "noisy"):
        changed = with_parts("bias", noise=6.0) if part == "noisy" else with_parts(part)
        d = [value(changed, seed) - value(SETTINGS, seed) for seed in range(1, 5)]
        wanted = int(np.ceil((student.isf(0.025, 3) * np.std(d, ddof=1) / 0.5) ** 2))
        needed[f"only-{part}"] = min(12, max(4, wanted))
    assert len(set(needed.values())) > 2
    assert seeds_trained(project) == {**needed, "baseline": 12}
    for name, row in rows(analysis, "one-at-a-time").items():
        assert effect(row).n == needed[name]
        assert (half_width(effect(row)) <= 0.5) == (name != "only-noisy"), name
    assert "the results call for" not in call("run", "truth.yaml", cwd=project).stderr
    assert len(attempts(project)) == sum(needed.values()) + 12


def test_confirm_seeds_make_every_table_from_fresh_seeds_alone(project: Path, call: Call) -> None:
    analysis = run(call, project, designs=["ladder"], confirm_seeds=5, steps=STEPS[:2])
    for name, row in rows(analysis, "ladder").items():
        assert tuple(effect(row).differences) == (6, 7, 8, 9, 10)
        assert effect(row).mean == pytest.approx(TRUTH["ladder"][name], abs=1e-9)
        parts = PARTS[: PARTS.index(name) + 1]
        expected = [value(with_parts(*parts), seed) - value(with_parts(*parts[:-1]), seed) for seed in range(6, 11)]
        assert list(effect(row).differences.values()) == pytest.approx(expected)
    assert len(attempts(project)) == 3 * 10
    report = prose(call("report", "truth", cwd=project).stdout)
    assert "are of fresh seeds (6-10); seeds 1-5 are not in this table" in report


# --- what is declared, and when ------------------------------------------------------------------------------------


def test_a_diverged_seed_is_scored_and_both_verdicts_are_said(project: Path, call: Call) -> None:
    fragile = {"name": "fragile", "set": {"model.wide": True, "diverges_at": 2}}
    metrics = {"acc": {"goal": "max", "unit": "%", "on_diverged": 10.0}}
    analysis = run(call, project, steps=[fragile, STEPS[1]], metrics=metrics)
    cell = analysis.arm("only-fragile").cells["acc"]
    finished = [value(with_parts("wide"), seed) for seed in (1, 3, 4, 5)]
    assert (cell.scored, cell.values[2]) == ((2,), 10.0)
    assert cell.mean == pytest.approx((sum(finished) + 10) / 5)
    test = effect(rows(analysis, "one-at-a-time")["only-fragile"]).conclusion
    assert test is not None
    assert (test.verdict, test.if_dropped) == ("unresolved", "better")
    assert verdicts(analysis, "one-at-a-time")["only-skip"] == "better"
    assert attempts(project).count(("diverged", 1)) == 1
    report = prose(call("report", "truth", "--markdown", cwd=project).stdout)
    assert re.search(r"\| fragile\[.*\| 5 \| (\*\*)?32\.\d(\*\*)? ± \d+\.\d!", report)
    assert f"scored 10 (on_diverged). Finished seeds only: {fmean(finished):.2f} (n = 4)." in report
    assert "Converged 4/5, 95% CI 28-99%" in report
    assert "with the scored seeds left out instead, the verdict would be: better." in report


def test_a_seed_whose_memory_ran_out_is_missing_unless_a_value_is_declared_for_it(project: Path, call: Call) -> None:
    starved = {"name": "starved", "set": {"model.wide": True, "starves_at": 2}}
    metric: dict[str, Any] = {"goal": "max", "unit": "%"}
    study = {"steps": [starved, STEPS[1]], "exits": 1}
    missing = run(call, project, metrics={"acc": metric}, **study)
    assert sorted(missing.arm("only-starved").cells["acc"].values) == [1, 3, 4, 5]
    report = prose(call("report", "truth", "--markdown", cwd=project).stdout)
    assert "seed 2 failed (out of memory: MemoryError: no message); left out on both sides" in report

    declared = run(call, project, metrics={"acc": {**metric, "on_oom": 10.0}}, **study)
    cell = declared.arm("only-starved").cells["acc"]
    assert (cell.scored, cell.values[2]) == ((2,), 10.0)
    test = effect(rows(declared, "one-at-a-time")["only-starved"]).conclusion
    assert test is not None
    assert (test.verdict, test.if_dropped) == ("unresolved", "better")
    assert "on_oom set after data" in test.remarks
    report = prose(call("report", "truth", "--markdown", cwd=project).stdout)
    assert "! 1 of 5 seeds ran out of memory (seed 2) and is scored 10 (on_oom). Finished seeds only:" in report
    assert "Finished 4/5, 95% CI 28-99%" in report
    assert "failed (out of memory" not in report


def test_what_is_declared_after_results_is_said_beside_them(project: Path, call: Call) -> None:
    """Three seeds; then six; then a margin; then without a step: each time only what is missing is trained."""
    study: dict[str, Any] = {"designs": ["ladder"], "metrics": {"acc": {"goal": "max"}}}

    def report(**changes: Any) -> tuple[Analysis, str]:
        study.update(changes)
        return run(call, project, **study), prose(call("report", "truth", "--markdown", cwd=project).stdout)

    analysis, text = report(seeds=3)
    assert "after" not in text.replace("measured again", "")
    assert analysis.family.size == 4

    analysis, text = report(seeds=6)
    assert text.count("seeds added after results; the error rate is not guaranteed (") >= 1
    for row in rows(analysis, "ladder").values():
        test = effect(row).conclusion
        assert test is not None
        assert test.remarks == ("seeds added after results; the error rate is not guaranteed",)
        assert test.anytime is not None
        assert test.p is not None
        assert test.anytime > test.p
    assert len(attempts(project)) == 5 * 6

    _, text = report(metrics={"acc": {"goal": "max", "margin": 1.0}})
    assert "margin set after data." in text
    assert "Equivalence margin ±1, declared after results were seen." in text

    analysis, text = report(steps=STEPS[:3])
    assert (analysis.family.declared, analysis.family.withdrawn) == (3, 1)
    assert "Holm over the 4 comparisons of the study, 1 of them from other versions of the study." in text
    tests = [effect(row).conclusion for row in rows(analysis, "ladder").values()]
    least = min((test for test in tests if test), key=lambda test: test.p or 1)
    assert least.adjusted == pytest.approx(4 * (least.p or 1))
    assert len(attempts(project)) == 5 * 6


# --- new examples as well as new seeds -----------------------------------------------------------------------------

POPULATION: dict[str, Any] = {
    "task": "truth_task:classify",
    "metrics": {"acc": {"goal": "max", "unit": "%", "on_diverged": 50.0}},
    "analysis": {"scope": "population"},
    "steps": [
        *STEPS[:2],
        {"name": "fragile", "set": {"model.wide": True, "model.skip": True, "diverges_at": 2}},
        {"name": "silent", "set": {"model.dropout": True, "scores": "none"}},
        {"name": "elsewhere", "set": {"model.bias": True, "scores": "others"}},
    ],
}


def test_scope_population_has_the_error_of_new_examples_too(project: Path, call: Call) -> None:
    analysis = run(call, project, **POPULATION)
    table = rows(analysis, "one-at-a-time")
    for part in ("wide", "skip"):
        measured = effect(table[f"only-{part}"])
        own = [truth_task.scores(with_parts(part), seed) for seed in range(1, 6)]
        expected = crossed_estimate(np.asarray(own) - [truth_task.scores(SETTINGS, seed) for seed in range(1, 6)])
        assert (measured.mean, measured.se, measured.df) == pytest.approx((expected.mean, expected.se, expected.df))
        over_seeds = list(measured.differences.values())
        seeds_only = student.isf(0.025, 4) * np.std(over_seeds, ddof=1) / 5**0.5
        assert half_width(measured) > seeds_only
        assert measured.conclusion is not None
        assert measured.conclusion.p == pytest.approx(expected.p)
    fragile = effect(table["only-fragile"])  # no scores stand for a run that diverged
    assert (fragile.mean, fragile.why) == (None, "no per-example scores of `only-fragile` at seed 2")
    assert fragile.conclusion is not None
    assert (fragile.conclusion.verdict, fragile.conclusion.if_dropped) == ("not tested", "better")
    assert effect(table["only-silent"]).mean is None
    assert effect(table["only-elsewhere"]).mean is None
    report = prose(call("report", "truth", cwd=project).stdout)
    assert "no difference: no per-example scores of `only-silent` at seed 1." in report
    assert "no difference: the arms were scored on different examples." in report
    assert "t over 5 seeds crossed with the test examples" in report
    assert "Scope: new seeds and new examples of the same kind, not this test set alone." in report


@pytest.mark.parametrize("scope", ["test-set", "population"])
def test_one_seed_compares_two_networks_and_no_more(project: Path, call: Call, scope: str) -> None:
    steps = [*STEPS[:2], {"name": "bias", "set": {"model.bias": True}}]
    analysis = run(call, project, **{**POPULATION, "analysis": {"scope": scope}, "steps": steps, "seeds": 1})
    report = call("report", "truth", "--markdown", cwd=project).stdout
    assert "these two networks" in report
    assert "which says nothing of the change itself" in report
    assert f"from test-set noise alone ({EXAMPLES} examples); ~ marks smaller differences" in prose(
        report.replace("\\", "")
    )
    for name, row in rows(analysis, "one-at-a-time").items():
        d = truth_task.scores(with_parts(name.removeprefix("only-")), 1)
        expected = fmean(d) - fmean(truth_task.scores(SETTINGS, 1))
        line = next(
            each
            for each in report.splitlines()
            if each.split(" | ")[1:2] and name.removeprefix("only-") in each.split(" | ")[1]
        )
        assert effect(row).mean == pytest.approx(expected)
        assert effect(row).interval is None
        shares = [fmean(each) / 100 for each in (d, truth_task.scores(SETTINGS, 1))]
        band = 196 * np.hypot(*(np.sqrt((1 - share) / (2 * EXAMPLES)) for share in shares))
        assert ("~" in line) == (abs(expected) < band), line
