"""Studies that tune, through the real command: the task is the one of docs/tuning.md, whose truth is known."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from statistics import median

import optuna
import pytest

from tests.command import Call, ablate, finish, query, results, start
from tests.run.test_stops import wait_until
from tests.studies import write_study

TASK = """
import math, random, time

BEST = {"plain": (0.01, 70.0), "residual": (0.1, 72.0)}

def train(settings, context):
    lr, top = BEST[settings["block"]]
    if settings["lr"] > settings["breaks_above"]:
        raise RuntimeError("too hot")
    noise = random.Random(f"{settings['block']} {context.seed}").gauss(0, 0.3)
    top = top - 12 * math.log10(settings["lr"] / lr) ** 2 + noise
    for epoch in range(1, settings["epochs"] + 1):
        time.sleep(settings["pause"])
        context.raise_if_stopped()
        context.record(epoch=epoch, epochs=settings["epochs"], acc=top * (1 - 0.5 ** epoch))
    return {"acc": top}
"""

STUDY = """
schema: ablate/v1
name: toy
task: toy:train
metrics: {acc: {goal: max, unit: "%"}}
settings: {block: plain, lr: 0.01, epochs: 3, pause: 0.0, breaks_above: 10.0}
steps:
  - {name: residual, set: {block: residual}}
tune: {lr: {low: 0.001, high: 1, log: true}}
budget: 16
seeds: 3
"""


def effect(project: Path, call: Call) -> tuple[float, str]:
    """Return what the report says of the residual connection: its mean effect in points, and the verdict."""
    report = json.loads(call("report", "--json", cwd=project).stdout)
    found = report["designs"][0]["comparisons"][0]["effects"]["acc"]
    return found["mean"], found["conclusion"]["verdict"]


def roles(project: Path) -> dict[str, int]:
    rows = query(project, "SELECT role, count(*) FROM replicate r JOIN trial t ON t.id = r.trial GROUP BY role")
    return {role: count for role, count in rows}  # noqa: C416


def test_the_untuned_comparison_is_wrong_and_the_tuned_one_right(project: Path, call: Call) -> None:
    untuned = re.sub(r"^(tune|budget):.*\n", "", STUDY, flags=re.MULTILINE)
    done = ablate("run", str(write_study(project, untuned, task=TASK)), cwd=project)
    assert done.returncode == 0, done.stderr
    mean, verdict = effect(project, call)
    assert (mean < -9, verdict) == (True, "worse")  # the truth is +2
    done = ablate("run", str(write_study(project, STUDY, task=TASK)), cwd=project)
    assert done.returncode == 0, done.stderr
    assert "2 arms × (16 candidates + 3 seeds), 16 trials at first" in done.stderr
    mean, verdict = effect(project, call)
    assert (mean == pytest.approx(2, abs=0.7), verdict) == (True, "better")
    assert roles(project)["tune"] == 32
    tuning = json.loads(call("report", "--json", cwd=project).stdout)["tuning"]
    table = call("report", "--markdown", cwd=project).stdout.split("### toy: tuning")[1]
    for number, arm in enumerate(tuning["arms"]):
        means = [candidate["mean"] for candidate in arm["candidates"]]
        row = re.search(rf"^\| {number}\b.*$", table, re.MULTILINE)
        assert row, table
        best, middle = (float(cell) for cell in row[0].split("|")[-3:-1])
        assert (best, middle) == (pytest.approx(max(means), abs=0.06), pytest.approx(median(means), abs=0.06))
    chosen = query(project, "SELECT DISTINCT seed FROM replicate WHERE role = 'tune'")
    measured = query(project, "SELECT DISTINCT seed FROM replicate WHERE role = 'main'")
    assert not {*chosen} & {*measured}


def test_a_killed_run_that_two_others_finish_comes_to_the_same(project: Path, tmp_path: Path, call: Call) -> None:
    study = STUDY.replace("pause: 0.0", "pause: 0.02")
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    (quiet / ".git").mkdir()
    assert ablate("run", str(write_study(quiet, study, task=TASK)), cwd=quiet).returncode == 0
    path = write_study(project, study, task=TASK)
    first = start("run", str(path), cwd=project)
    wait_until(lambda: len(list(project.glob("runs/trials/*"))) > 5)
    first.kill()
    finish(first)
    others = [start("run", str(path), cwd=project) for _ in range(2)]
    said = [finish(each) for each in others]
    assert [each.returncode for each in others] == [0, 0], said
    assert results(project) == results(quiet)
    assert roles(project) == {"main": 6, "tune": 32}
    assert call("report", "--markdown", cwd=project).stdout.split("CPU time")[0] != ""
    assert call("doctor", "--verify", cwd=project).returncode == 0


def test_more_of_the_budget_goes_on_from_what_was_tried(project: Path) -> None:
    assert ablate("run", str(write_study(project, STUDY, task=TASK)), cwd=project).returncode == 0
    done = ablate("run", str(project / "toy.yaml"), "--set", "budget=20", cwd=project)
    assert done.returncode == 0, done.stderr
    attempts = query(project, "SELECT count(*), count(DISTINCT trial) FROM attempt")[0]
    assert attempts[0] == attempts[1]  # nothing was run twice
    assert 32 + 6 + 8 <= attempts[0] <= 32 + 6 + 8 + 6  # at most, the best is another one now


def test_candidates_that_fail_are_said_and_the_rest_is_measured(project: Path, call: Call) -> None:
    study = STUDY.replace("breaks_above: 10.0", "breaks_above: 0.2")
    done = ablate("run", str(write_study(project, study, task=TASK)), cwd=project)
    assert done.returncode == 1
    assert re.search(r"residual candidate \d+: error: RuntimeError: too hot", done.stderr)
    assert effect(project, call)[0] == pytest.approx(2, abs=0.7)
    status = call("status", cwd=project).stdout
    assert re.search(r"residual candidate \d+ seed 1000001: error: RuntimeError: too hot", status)
    assert re.search(r"Of those tried, \d failed\.", call("report", cwd=project).stdout)
    suggested = re.search(r"ablate (logs toy \S+ --seed 1000001 --candidate \d+)", status)
    assert suggested, status
    log = call(*suggested[1].split(), cwd=project)
    assert f"candidate {suggested[1].split()[-1]} seed 1000001, attempt 1 (error)" in log.stderr
    assert "RuntimeError: too hot" in log.stdout
    assert "has no candidate 99" in call("logs", "toy", "residual", "--candidate", "99", cwd=project).stderr


def test_an_arm_without_a_good_candidate_is_not_run_and_the_table_says_so(project: Path, call: Call) -> None:
    task = TASK.replace('settings["lr"] > ', 'settings["block"] == "residual" or settings["lr"] > ')
    done = ablate("run", str(write_study(project, STUDY, task=task)), cwd=project)
    assert done.returncode == 1
    report = call("report", "--markdown", cwd=project).stdout
    assert "| 1 | residual[^toy-1] | 0/3 | failed |" in report
    assert "No setting that was tried has a value, and so this arm was not run." in report
    assert roles(project)["main"] == 3
    assert call("doctor", "--verify", cwd=project).returncode == 0
    status = call("status", cwd=project).stdout
    shown = re.search(r"^ +ablate (logs .*?)(  #.*)?$", status, re.MULTILINE)
    assert shown, status
    assert "too hot" in call(*shlex.split(shown[1]), cwd=project).stdout  # of what ran, not of what never could
    again = re.search(r"tries (\d+) trials again", status)
    assert again, status
    assert f"toy: {again[1]} failed trials back in the queue" in call("retry", cwd=project).stderr


def test_a_best_one_at_the_edge_of_its_range_is_said(project: Path, call: Call) -> None:
    study = STUDY.replace("high: 1,", "high: 0.1,").replace("budget: 16", "budget: {candidates: 16, sampler: qmc}")
    assert ablate("run", str(write_study(project, study, task=TASK)), cwd=project).returncode == 0
    said = " ".join(call("report", "--markdown", cwd=project).stdout.split())
    assert re.search(r"lr = 0\.\d+ lies at the upper edge of its range \(0\.001 to 0\.1 \(log\)\): widen it", said)
    assert "At the edge of a range for 1 arm: see the table of tuning." in said


@pytest.mark.slow
def test_candidates_behind_the_others_are_pruned_and_nothing_else_is(project: Path, call: Call) -> None:
    study = STUDY.replace("epochs: 3, pause: 0.0", "epochs: 5, pause: 0.3")
    study = study.replace("budget: 16", "budget: {candidates: 16, sampler: qmc, prune: true}")
    done = ablate("run", str(write_study(project, study, task=TASK)), cwd=project, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"candidate \d+: pruned", done.stderr)
    pruned = query(
        project,
        """SELECT r.role, t.settings_json, t.state, count(m.epoch) FROM trial t JOIN replicate r ON r.trial = t.id
           JOIN attempt a ON a.trial = t.id AND a.outcome = 'pruned'
           LEFT JOIN measurement m ON m.trial = t.id GROUP BY t.id, r.role, t.settings_json, t.state""",
    )
    assert pruned
    assert {role for role, _, _, _ in pruned} == {"tune"}
    assert all(state == "done" and 1 <= epochs < 5 for _, _, state, epochs in pruned)
    for _, settings, _, _ in pruned:  # none of those that would have been good
        tried = json.loads(settings)
        best = {"plain": 0.01, "residual": 0.1}[tried["block"]]
        assert not best / 1.5 < tried["lr"] < best * 1.5
    assert effect(project, call)[1] == "better"
    assert call("mirror", cwd=project).returncode == 0
    mirror = optuna.load_study(study_name="toy v1", storage=f"sqlite:///{project / 'runs' / 'mirror.db'}")
    states = [trial.state.name for trial in mirror.trials]
    assert states.count("PRUNED") == len(pruned)
    assert states.count("COMPLETE") == len(states) - len(pruned)


def test_pruning_that_has_nothing_to_go_by_is_said_once(project: Path) -> None:
    study = STUDY.replace("budget: 16", "budget: {candidates: 4, sampler: qmc, prune: true}")
    task = TASK.replace(
        'context.record(epoch=epoch, epochs=settings["epochs"], acc', "context.record(epoch=epoch, other"
    )
    done = ablate("run", str(write_study(project, study, task=task)), cwd=project)
    assert done.returncode == 0, done.stderr
    said = "warning: `prune` has nothing to go by: the task records no acc at each epoch"
    assert done.stderr.count(said) == 1


def test_the_dashboard_has_the_tuned_settings_as_parameters(project: Path, call: Call) -> None:
    study = STUDY.replace("budget: 16", "budget: {candidates: 4, sampler: qmc}")
    assert ablate("run", str(write_study(project, study, task=TASK)), cwd=project).returncode == 0
    assert call("mirror", cwd=project).returncode == 0
    mirror = optuna.load_study(study_name="toy v1", storage=f"sqlite:///{project / 'runs' / 'mirror.db'}")
    tried = {trial.params["lr"] for trial in mirror.trials if trial.user_attrs["role"] == "tune"}
    measured = {trial.params["lr"] for trial in mirror.trials if trial.user_attrs["role"] == "main"}
    assert len(tried) == 4  # quasi-random: the same for both arms
    assert measured <= tried
    assert mirror.trials[0].distributions["lr"] == optuna.distributions.FloatDistribution(0.001, 1, log=True)
    assert call("mirror", cwd=project).stderr == call("mirror", cwd=project).stderr


def test_what_can_be_read_of_it(project: Path, call: Call) -> None:
    study = STUDY.replace("budget: 16", "budget: {candidates: 4, sampler: qmc, seeds: 2}")
    path = write_study(project, study, task=TASK)
    planned = call("plan", str(path), cwd=project).stdout
    assert "tuned for every arm: lr (0.001 to 1 (log)); 4 candidates by quasi-random" in " ".join(planned.split())
    assert "at most 22 trials" in planned
    done = ablate("run", str(path), "-j", "1", cwd=project)
    assert "baseline candidate 3 seed 1000002: acc" in done.stderr
    shown = call("show", "residual", cwd=project).stdout
    assert re.search(r"candidate 1, seed 1000001: done.*\n  lr: 0\.\d+\n", shown)
    rows = call("report", "--csv", cwd=project).stdout.splitlines()
    assert rows[0].startswith("arm,title,seed,role,state,outcome,attempts,seconds,candidate,acc,block,lr,")
    assert sum(",tune," in row for row in rows) == 16
    figures = call("report", "--figures", "figures", cwd=project).stdout.split()
    assert [Path(each).name for each in figures][-3:] == ["tuning.pdf", "tuning.svg", "tuning.png"]
    bytes_of = [(project / each).read_bytes() for each in figures]
    assert call("report", "--figures", "figures", cwd=project).returncode == 0
    assert [(project / each).read_bytes() for each in figures] == bytes_of
    assert (project / "figures" / "tuning.svg").read_text().count("residual") >= 1


def test_there_is_no_figure_where_nothing_has_a_value(project: Path, call: Call) -> None:
    study = write_study(project, task="def train(settings, context):\n    raise ValueError('no')\n")
    assert ablate("run", str(study), cwd=project).returncode == 1
    done = call("report", "--figures", "figures", cwd=project)
    assert done.returncode == 2
    assert "there is no figure for `toy`" in done.stderr
    assert not (project / "figures").exists()
