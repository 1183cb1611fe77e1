from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ablate.analyse.analysis import analyse
from ablate.analyse.findings import Counts
from ablate.analyse.results import read_results
from ablate.errors import StoreError
from ablate.plan.trials import make_plan
from ablate.store.facts import StoredStudy, find_study, record_plan
from ablate.store.store import open_store
from tests.truth import DIVERGED, FAILED, WAITING, Fate, fill, truth_study


def test_planned_is_finished_and_diverged_and_missing(tmp_path: Path) -> None:
    fates = {
        ("batchnorm", 2): FAILED,
        ("depth-6", 3): DIVERGED,
        ("residual", 4): WAITING,
        ("residual", 5): Fate(state="running"),
    }
    filled = fill(tmp_path, truth_study(), fates)
    counts = analyse(filled.store, filled.stored).counts
    assert counts == Counts(planned=30, finished=26, diverged=1, failed=1, running=1, waiting=1)
    assert (counts.missing, counts.done) == (3, 27)


def test_a_study_that_has_not_run_has_a_plan_and_no_numbers(tmp_path: Path) -> None:
    filled = fill(tmp_path, truth_study(), dict.fromkeys([("baseline", 1)], WAITING))
    later = truth_study(seeds=[8, 9])
    record_plan(filled.store, make_plan(later))
    stored = find_study(filled.store, "basenet")
    newest = StoredStudy(**{**stored.__dict__, "id": stored.id + 1, "version": 2, "spec": later.spec()})
    analysis = analyse(filled.store, newest)
    assert analysis.counts == Counts(planned=12, waiting=12)
    assert analysis.arm("baseline").cells["val_acc"].mean is None
    assert analysis.arm("baseline").seconds is None


def test_arms_that_were_left_out_of_a_run_wait_at_every_seed(tmp_path: Path) -> None:
    plan = make_plan(truth_study(designs=["ladder", "one-at-a-time"], seeds=3))
    store = open_store(tmp_path / "ablate.db", create=True)
    record_plan(store, plan.restricted({"baseline", "depth-6"}))
    _, results = read_results(store, find_study(store))
    places = [(arm, role, [trial.seed for trial in trials]) for (arm, role), trials in results.items()]
    assert places == [(arm.name, "main", [1, 2, 3]) for arm in plan.arms]
    planned = {(each.arm, each.seed): each.trial.fingerprint for each in plan.replicates}
    found = {(arm, trial.seed): trial.fingerprint for (arm, _), trials in results.items() for trial in trials}
    assert found == planned
    assert analyse(store, find_study(store)).counts == Counts(planned=len(plan.trials()), waiting=len(plan.trials()))


def test_what_stands_in_the_store_is_not_planned_once_more(tmp_path: Path) -> None:
    """The fingerprints of 100,000 trials take a while."""
    filled = fill(tmp_path, truth_study(seeds=2))
    plan, results = read_results(filled.store, filled.stored)
    assert "replicates" not in vars(plan)
    found = {(arm, trial.seed): trial.fingerprint for (arm, _), trials in results.items() for trial in trials}
    assert found == {(each.arm, each.seed): each.trial.fingerprint for each in plan.replicates}


def test_results_come_in_plan_order_whatever_the_order_of_names_and_numbers(tmp_path: Path) -> None:
    steps = [{"name": name, "set": {"model.depth": depth}} for depth, name in ((8, "deep"), (6, "deeper"), (2, "bare"))]
    filled = fill(tmp_path, truth_study(steps=steps, seeds=[8, 3, 9], confirm_seeds=[20, 11]))
    plan, results = read_results(filled.store, filled.stored)
    assert [arm.name for arm in plan.arms] == ["baseline", "deep", "deeper", "bare"]
    assert "replicates" not in vars(plan)
    assert {place: tuple(trial.seed for trial in trials) for place, trials in results.items()} == {
        (arm.name, role): seeds for role, seeds in (("main", (8, 3, 9)), ("confirm", (20, 11))) for arm in plan.arms
    }
    assert [role for _, role in results] == ["main"] * 4 + ["confirm"] * 4
    assert [arm for arm, _ in results] == 2 * [arm.name for arm in plan.arms]
    planned = {(each.arm, each.role, each.seed): each.trial.fingerprint for each in plan.replicates}
    found = {(*place, trial.seed): trial.fingerprint for place, trials in results.items() for trial in trials}
    assert found == planned


def test_a_trial_that_two_designs_share_counts_once(tmp_path: Path) -> None:
    """`batchnorm` of the ladder and `only-batchnorm` are one trial, trained once."""
    filled = fill(tmp_path, truth_study(designs=["ladder", "one-at-a-time"], seeds=3))
    analysis = analyse(filled.store, filled.stored)
    assert sum(len(arm.trials) for arm in analysis.arms) == 11 * 3
    # 6 arms of the ladder; of the 5 others, batchnorm's and that of its branch are there already
    assert analysis.counts.planned == (6 + 3) * 3
    assert [design.counts.planned for design in analysis.designs] == [6 * 3, 6 * 3]


def test_the_primary_metric_is_the_one_that_the_plan_froze(tmp_path: Path) -> None:
    """It is the first of the file, which need not be the first of the alphabet."""
    filled = fill(tmp_path, truth_study())
    assert analyse(filled.store, filled.stored).primary.name == "val_acc"


def test_facts_published_figures_and_time_belong_to_the_arm(tmp_path: Path) -> None:
    reference = {"source": "a paper", "values": {"val_acc": {"batchnorm": 31.0}}}
    filled = fill(tmp_path, truth_study(reference=reference), {("batchnorm", 2): FAILED})
    analysis = analyse(filled.store, filled.stored)
    arm = analysis.arm("batchnorm")
    assert arm.facts == {"parameters": 1_450_000, "flops": 45e6, "images_per_s": 5200}
    assert arm.published == {"val_acc": 31.0}
    assert arm.seconds == 47 + 61 + 68 + 75
    assert arm.failure == "out of memory: 23.1 GiB of 24 GiB in use"
    assert analysis.source == "a paper"


def test_trials_of_other_code_are_marked(tmp_path: Path) -> None:
    filled = fill(tmp_path, truth_study(), {("residual", 4): Fate(code="0ther")})
    analysis = analyse(filled.store, filled.stored)
    found = {arm.name: [(drift.fact, drift.seeds) for drift in arm.drifts] for arm in analysis.arms if arm.drifts}
    assert found == {"residual": [("code", (4,))]}


def test_a_study_without_steps_has_its_baseline(tmp_path: Path) -> None:
    filled = fill(tmp_path, truth_study(steps=[], designs=["ladder", "leave-one-out"]))
    analysis = analyse(filled.store, filled.stored)
    assert [design.arms for design in analysis.designs] == [("baseline",), ("full",)]
    assert analysis.arm("full").cells["val_acc"].mean == pytest.approx(30.0)


def test_a_study_of_another_version_of_ablate_is_refused(tmp_path: Path) -> None:
    filled = fill(tmp_path, truth_study(seeds=1))
    spec = {**filled.stored.spec, "novelty": 1}
    stored = StoredStudy(**{**filled.stored.__dict__, "spec": spec})
    with pytest.raises(StoreError) as caught:
        analyse(filled.store, stored)
    expected = "error: the study `basenet` was recorded by another version of ablate: `novelty` is unknown here"
    assert str(caught.value).splitlines()[0] == expected


def test_no_report_but_the_frame_loads_pandas() -> None:
    code = "import sys, ablate.analyse.analysis, ablate.report.terminal, ablate.report.markdown, ablate.report.csv\n"
    code += "import ablate.report.json, ablate.analyse.frames\n"
    code += "sys.exit(bool({'pandas', 'torch', 'scipy.stats'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
