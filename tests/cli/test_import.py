"""Results made elsewhere: they find their trials or are refused, all at once, and nothing is written but all of them.

``import.txt`` among the golden files holds what a person reads of each refusal; ABLATE_UPDATE_GOLDEN=1 renews it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ablate.plan.matching import matched
from ablate.plan.trials import open_plan
from ablate.store import foreign
from tests.command import Call, ablate, query
from tests.numbers import NUMBERS
from tests.postgres import Server
from tests.studies import write_study

GOLDEN = Path(__file__).parents[1] / "golden" / "cli" / "import.txt"
UPDATING = bool(os.environ.get("ABLATE_UPDATE_GOLDEN"))
STUDY = """
schema: ablate/v1
name: toy
task: toy:train
metrics: {acc: {goal: max, unit: "%"}, loss: {goal: min}}
settings: {model: {width: 1, norm: none, layers: [1, 2]}, train: {lr: 0.1, flip: false, epochs: 3}}
steps:
  - {name: wide, set: {model.width: 2}}
  - {name: fast, set: {train.lr: 0.2, train.flip: true}}
seeds: 3
"""
TASK = 'def train(settings, context):\n    return {"acc": 50.0 + context.seed, "loss": 1.0}\n'
HEAD = "arm,seed,acc,loss\n"
BASELINE = "baseline,1,71.5,0.9\nbaseline,2,72,1.1\nbaseline,3,70.25,1\n"
WIDE = "wide,1,75.5,0.8\nwide,2,76,0.9\nwide,3,74.25,0.7\n"
FAST = "fast,1,75,0.8\nfast,2,77,0.9\nfast,3,74,0.7\n"
ROWS = f"""{NUMBERS} SELECT a.name, r.seed, t.source, t.state, e.outcome, m.metric, m.epoch, m.value, m.kind
          FROM replicate r JOIN arm a ON a.id = r.arm JOIN trial t ON t.id = r.trial
          JOIN attempt e ON e.trial = t.id AND e.claim = t.result_claim
          JOIN number m ON m.trial = t.id AND m.claim = t.result_claim
          ORDER BY a.position, r.seed, m.epoch, m.metric"""


@pytest.fixture
def toy(project: Path) -> Path:
    write_study(project, STUDY, task=TASK)
    return project


def written(folder: Path, text: str | bytes, name: str = "results.csv") -> str:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return name


# --- refusals --------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str | bytes, list[str]]] = {
    "unknown-arm": (HEAD + "baseline,1,71,1\nwyde,1,72,1\n", []),
    "unknown-seed": (HEAD + "baseline,4,71,1\n", []),
    "same-trial-twice": (HEAD + "baseline,1,71,1\nwide,1,72,1\nbaseline,1,71,1\n", []),
    "same-epoch-twice": ("arm,seed,epoch,acc,loss\nbaseline,1,1,71,1\nbaseline,1,1,72,1\n", []),
    "metric-missing": ("arm,seed,accuracy\nbaseline,1,71\n", []),
    "metric-empty": (HEAD + "baseline,1,71,\n", []),
    "metric-empty-in-last-epoch": ("arm,seed,epoch,acc,loss\nwide,1,1,71,1\nwide,1,2,72,\n", []),
    "no-number": (HEAD + "baseline,1,good,1\nwide,1,71.5%,1\nfast,1,1_000,1\n", []),
    "decimal-comma": ("arm;seed;acc;loss\nbaseline;1;71,5;1\n", []),
    "seed-no-whole-number": (HEAD + "baseline,one,71,1\nwide,-1,71,1\nfast,1.5,71,1\n", []),
    "seed-missing": ("arm,acc,loss\nbaseline,71,1\n", []),
    "arm-missing": ("seed,acc,loss\n1,71,1\n", []),
    "column-unknown": ("arm,seed,acc,loss,train.Lr,host\nbaseline,1,71,1,0.1,me\n", []),
    "column-twice": ("arm,seed,acc,acc,loss\nbaseline,1,71,71,1\n", []),
    "settings-of-no-arm": ("model.width,train.lr,seed,acc,loss\n3,0.1,1,71,1\n1,0.2,1,71,1\n", []),
    "settings-not-of-its-arm": ("arm,train.lr,seed,acc,loss\nwide,0.3,1,71,1\n", []),
    "setting-of-another-type": ("train.lr,train.flip,seed,acc,loss\nlow,maybe,1,71,1\n", []),
    "several-faults": (HEAD + "wyde,1,71,1\nbaseline,9,71,1\nbaseline,1,x,1\nbaseline,2,1,y\n", []),
    "cells-too-few": (HEAD + "baseline,1,71,1\nwide,1,72\n", []),
    "only-a-header": (HEAD, []),
    "empty": ("", []),
    "not-utf-8": (HEAD.encode() + "baseline,1,71,1 ° \n".encode("latin-1"), []),
    "utf-16": ((HEAD + BASELINE).encode("utf-16"), []),
    "quote-not-closed": (HEAD + 'baseline,"1,71,1\n', []),
    "field-too-large": (HEAD + f"baseline,{'1' * 200_000},71,1\n", []),
    "control-characters": (HEAD + "b\x1b[31mase\x00,1,71,1\nbaseline,1,\x1b]0;x\x07,1\n", []),
    "map-without-column": (HEAD + BASELINE, ["--map", "acc=accuracy"]),
    "map-malformed": (HEAD + BASELINE, ["--map", "acc"]),
    "map-of-nothing": ("arm,seed,a,loss\nbaseline,1,71,1\n", ["--map", "akk=a"]),
    "only-other-arms": (HEAD + FAST, ["--only", "wide"]),
    "no-arm-of-that-name": (HEAD + BASELINE, ["--only", "wyde"]),
}
SEEN: dict[str, str] = {}


def golden_blocks() -> dict[str, str]:
    blocks = re.split(r"^### (\S+)\n", GOLDEN.read_text() if GOLDEN.exists() else "", flags=re.MULTILINE)[1:]
    return dict(zip(blocks[::2], blocks[1::2], strict=True))


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_words_and_nothing_is_written(case: str, toy: Path, call: Call) -> None:
    text, options = REFUSED[case]
    written(toy, text)
    before = sorted(toy.rglob("*"))
    done = call("import", "toy.yaml", "--csv", "results.csv", *options, cwd=toy)
    assert (done.returncode, done.stdout) == (2, "")
    assert sorted(toy.rglob("*")) == before
    lines = done.stderr.splitlines()
    assert all(re.match(r"(error|hint): \S", line) and line.isprintable() and len(line) < 300 for line in lines)
    SEEN[case] = done.stderr
    if not UPDATING:
        assert done.stderr == golden_blocks().get(case)


def test_all_refusals_are_kept() -> None:
    if UPDATING and SEEN.keys() == REFUSED.keys():
        GOLDEN.write_text("".join(f"### {case}\n{SEEN[case]}" for case in REFUSED))
    assert list(golden_blocks()) == list(REFUSED)


def test_refused_beside_what_is_there_nothing_changes(toy: Path, call: Call) -> None:
    written(toy, HEAD + BASELINE)
    assert call("import", "toy.yaml", "--csv", "results.csv", cwd=toy).returncode == 0
    before = query(toy, ROWS)
    written(toy, HEAD + WIDE + BASELINE.replace("72,", "73,"))
    done = call("import", "toy.yaml", "--csv", "results.csv", cwd=toy)
    assert done.returncode == 2
    assert done.stderr == (
        "error: results.csv:6: `baseline` seed 2 was imported before, with other numbers\n"
        "hint: `--replace` takes these instead\n"
    )
    assert query(toy, ROWS) == before


@pytest.mark.parametrize("what", ["missing", "folder", "pipe", "large"])
def test_what_is_no_file_is_not_read(what: str, toy: Path, call: Call) -> None:
    path = toy / "results.csv"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "large":
        with path.open("wb") as file:
            file.truncate(foreign.LARGEST + 1)
    done = call("import", "toy.yaml", "--csv", "results.csv", cwd=toy)
    assert done.returncode == 2
    why = {
        "missing": "the file can't be read: No such file or directory",
        "folder": "this is no file",
        "pipe": "this is no file",
        "large": "the file is too large: at most 67,108,864 bytes are read",
    }
    assert done.stderr == f"error: results.csv: {why[what]}\n"


def test_one_source_and_no_more(toy: Path, call: Call) -> None:
    for options in ([], ["--csv", "a", "--mlflow", "b"]):
        done = call("import", "toy.yaml", *options, cwd=toy)
        assert done.returncode == 2
        assert "name one source: --csv FILE, or --mlflow PATH" in done.stderr


# --- what is imported ------------------------------------------------------------------------------------------------


def test_by_arm_by_settings_and_as_excel_writes_it_are_the_same(
    call: Call, tmp_path_factory: pytest.TempPathFactory
) -> None:
    by_settings = "model.width,train.lr,train.flip,seed,acc,loss\n" + "".join(
        f"{start}{line.partition(',')[2]}\n"
        for start, lines in (("1,.1,False,", BASELINE), ("2,0.10,false,", WIDE), ("2,2e-1,TRUE,", FAST))
        for line in lines.splitlines()
    )
    excel = "\ufeff" + (HEAD + BASELINE + WIDE + FAST).replace(",", ";").replace("\n", "\r\n")
    quoted = '"arm" , "seed",acc,loss\n'.replace(" , ", ",") + (BASELINE + WIDE + FAST).replace(
        "baseline", '"baseline"'
    )
    mapped = "who,run,top1,loss,host\n" + "".join(f"{line},me\n" for line in (BASELINE + WIDE + FAST).splitlines())
    found = []
    for text, options in (
        (HEAD + BASELINE + WIDE + FAST, []),
        (by_settings, []),
        (excel, []),
        (quoted, []),
        (mapped, ["--map", "arm=who", "--map", "seed=run", "--map", "acc = top1", "--ignore", "ho*"]),
    ):
        folder = tmp_path_factory.mktemp("one")
        (folder / ".git").mkdir()
        write_study(folder, STUDY, task=TASK)
        written(folder, text)
        done = call("import", "toy.yaml", "--csv", "results.csv", *options, cwd=folder)
        assert done.stderr == "toy: 9 trials imported\n"
        found.append(query(folder, ROWS))
    assert all(rows == found[0] for rows in found)
    assert found[0][:2] == [
        ("baseline", 1, "imported", "done", "ok", "acc", None, 71.5, "num"),
        ("baseline", 1, "imported", "done", "ok", "loss", None, 0.9, "num"),
    ]
    assert len(found[0]) == 18


def test_epochs_and_a_diverged_seed(toy: Path, call: Call) -> None:
    text = "arm,seed,epoch,acc,loss\n" + "".join(
        f"wide,1,{epoch},{70 + epoch},{'' if epoch < 3 else 0.5}\n" for epoch in (3, 1, 2)
    )
    written(toy, text + "wide,2,1,nan,inf\n")
    assert call("import", "toy.yaml", "--csv", "results.csv", cwd=toy).stderr == "toy: 2 trials imported\n"
    rows = [row[1:2] + row[4:] for row in query(toy, ROWS)]
    assert rows == [
        (1, "ok", "acc", None, 73.0, "num"),
        (1, "ok", "loss", None, 0.5, "num"),
        (1, "ok", "acc", 1, 71.0, "num"),
        (1, "ok", "acc", 2, 72.0, "num"),
        (1, "ok", "acc", 3, 73.0, "num"),
        (1, "ok", "loss", 3, 0.5, "num"),
        (2, "diverged", "acc", None, None, "nan"),
        (2, "diverged", "loss", None, None, "+inf"),
        (2, "diverged", "acc", 1, None, "nan"),
        (2, "diverged", "loss", 1, None, "+inf"),
    ]
    assert "1 diverged" in call("status", cwd=toy).stdout


def test_twice_is_once_and_other_numbers_only_replace_when_told_to(toy: Path, call: Call) -> None:
    written(toy, HEAD + BASELINE)
    call("import", "toy.yaml", "--csv", "results.csv", cwd=toy)
    rows, attempts = query(toy, ROWS), query(toy, "SELECT * FROM attempt")
    written(toy, "loss,acc,seed,arm\n0.9,71.50,1,baseline\n")  # another file, the same numbers
    again = call("import", "toy.yaml", "--csv", "results.csv", cwd=toy)
    assert (again.returncode, again.stderr) == (0, "toy: 0 trials imported, 1 there already\n")
    assert (query(toy, ROWS), query(toy, "SELECT * FROM attempt")) == (rows, attempts)
    written(toy, HEAD + BASELINE.replace("72,", "74,"))
    assert call("import", "toy.yaml", "--csv", "results.csv", cwd=toy).returncode == 2
    done = call("import", "toy.yaml", "--csv", "results.csv", "--replace", cwd=toy)
    assert done.stderr == "toy: 1 trial imported, 2 there already\n"
    assert [row[7] for row in query(toy, ROWS) if row[5] == "acc"] == [71.5, 74.0, 70.25]
    assert "the store is sound" in call("doctor", "--verify", cwd=toy).stdout
    assert "B, toy after, against A, toy before" in call("compare", "toy", cwd=toy).stdout, "what was replaced is kept"


def test_what_was_trained_here_is_never_overwritten(toy: Path, call: Call) -> None:
    assert ablate("run", "toy.yaml", "--only", "wide", cwd=toy).returncode == 0
    before = query(toy, ROWS)
    written(toy, HEAD + WIDE + FAST)
    done = call("import", "toy.yaml", "--csv", "results.csv", "--replace", cwd=toy)
    assert done.returncode == 2
    assert done.stderr.startswith("error: results.csv:2: `wide` seed 1 was trained here\nhint: what ablate trained is")
    assert query(toy, ROWS) == before
    written(toy, HEAD + FAST)
    assert call("import", "toy.yaml", "--csv", "results.csv", cwd=toy).stderr == "toy: 3 trials imported\n"
    assert "the store is sound" in call("doctor", "--verify", cwd=toy).stdout


def test_what_failed_here_may_come_from_elsewhere(toy: Path, call: Call) -> None:
    (toy / "toy.py").write_text("def train(settings, context):\n    raise ValueError('no')\n")
    assert ablate("run", "toy.yaml", "--only", "baseline", cwd=toy).returncode == 1
    written(toy, HEAD + BASELINE)
    assert call("import", "toy.yaml", "--csv", "results.csv", cwd=toy).stderr == "toy: 3 trials imported\n"
    assert "the store is sound" in call("doctor", "--verify", cwd=toy).stdout
    assert "imported from results.csv, its result stands" in call("show", "baseline", cwd=toy).stdout


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of which two arms were imported and one was trained here. Only to be read."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / ".git").mkdir()
    write_study(folder, STUDY, task=TASK)
    written(folder, HEAD + BASELINE + WIDE)
    assert ablate("import", "toy.yaml", "--csv", "results.csv", cwd=folder).returncode == 0
    done = ablate("run", "toy.yaml", cwd=folder)
    assert "9 trials done (3 attempts)" in done.stderr, "only what is missing is run"
    again = ablate("run", "toy.yaml", "--fresh", cwd=folder)
    assert "9 trials done (trained nothing new)" in again.stderr, "what was imported is not trained again"
    return folder


def test_the_report_says_what_was_imported(mixed: Path, call: Call) -> None:
    report = call("report", "--markdown", cwd=mixed).stdout
    assert "seeds 1-3 were imported (results.csv), not run here." in report
    assert report.count("declared after results were seen.") == 1, "nobody knows when they were made"
    assert "4.17" in report or "+4" in report
    trials = [
        trial for arm in json.loads(call("report", "--json", cwd=mixed).stdout)["arms"] for trial in arm["trials"]
    ]
    assert [trial["source"] for trial in trials] == ["imported"] * 6 + ["trained"] * 3
    assert "imported_from" in call("report", "--csv", cwd=mixed).stdout.splitlines()[0]


def test_every_command_bears_imported_trials(mixed: Path, call: Call) -> None:
    shown = call("show", "wide", cwd=mixed).stdout
    assert "attempt 1: imported from results.csv, its result stands" in shown
    assert re.search(r"imported_sha256:\s+[0-9a-f]{64}", shown)
    assert "trials/" not in shown
    assert "9 of 9 trials done" in call("status", cwd=mixed).stdout
    logs = call("logs", "wide", cwd=mixed)
    assert (logs.returncode, logs.stderr.splitlines()[-1]) == (
        2,
        "error: `wide` seed 3 was imported: it has no log here",
    )
    doctor = call("doctor", "--verify", cwd=mixed).stdout
    assert "the store is sound" in doctor
    assert "store:" not in doctor
    assert "9 trials done" in call("watch", cwd=mixed).stderr or "9 of 9 trials done" in call("watch", cwd=mixed).stderr


def test_the_mirror_shows_imported_trials(mixed: Path, call: Call) -> None:
    import optuna

    assert call("mirror", "--rebuild", cwd=mixed).returncode == 0
    storage = f"sqlite:///{mixed}/runs/mirror.db"
    (study,) = (optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage))
    values = sorted(trial.value for trial in study.trials if trial.value is not None)
    assert values == sorted([71.5, 72.0, 70.25, 75.5, 76.0, 74.25, 51.0, 52.0, 53.0])


def test_compare_with_a_study_of_imported_trials(mixed: Path, call: Call) -> None:
    write_study(
        mixed, STUDY.replace("name: toy", "name: other").replace("epochs: 3", "epochs: 4"), name="other", task=TASK
    )
    written(mixed, HEAD + BASELINE.replace("7", "6", 1) + WIDE, "other.csv")
    assert call("import", "other.yaml", "--csv", "other.csv", cwd=mixed).returncode == 0
    done = call("compare", "toy", "other", "--markdown", cwd=mixed)
    assert done.returncode == 0
    assert "imported (results.csv)" in done.stdout
    assert "has no study ``" in call("compare", "toy", "", cwd=mixed).stderr, "an empty name is no name left out"
    another = STUDY.replace("name: toy", "name: another").replace("acc:", "f1:").replace("epochs: 3", "epochs: 5")
    write_study(mixed, another, name="another", task=TASK)
    written(mixed, HEAD.replace("acc", "f1") + BASELINE, "another.csv")
    assert call("import", "another.yaml", "--csv", "another.csv", cwd=mixed).returncode == 0
    unlike = call("compare", "toy", "another", cwd=mixed)
    assert (unlike.returncode, unlike.stderr) == (
        2,
        "error: compare: `toy` has no metric `f1`, the primary one of `another`\n"
        "hint: it has `acc`, `loss`; the first of the later study is compared\n",
    )


def test_the_same_on_postgresql(toy: Path, postgres: Server) -> None:
    url = postgres.new_database()
    written(toy, HEAD + BASELINE + WIDE)
    for said in ("6 trials imported\n", "0 trials imported, 6 there already\n"):
        done = ablate("import", "toy.yaml", "--csv", "results.csv", "--store", url, cwd=toy)
        assert done.stderr == f"toy: {said}"
    written(toy, HEAD + BASELINE.replace("72,", "74,"))
    assert ablate("import", "toy.yaml", "--csv", "results.csv", "--store", url, cwd=toy).returncode == 2
    assert "the store is sound" in ablate("doctor", "--verify", "--store", url, cwd=toy).stdout
    assert "not finished: 6 of 9 trials" in ablate("report", "--store", url, cwd=toy).stdout


numbers = st.floats(width=64)


@given(st.lists(st.tuples(numbers, numbers), min_size=9, max_size=9), st.permutations(range(9)))
@settings(
    max_examples=100, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_every_number_arrives_as_it_was_written(toy: Path, values: list[tuple[float, float]], order: list[int]) -> None:
    plan = open_plan(toy / "toy.yaml")
    places = [(arm.name, seed) for arm in plan.arms for seed in (1, 2, 3)]
    lines = [f"{places[i][0]},{places[i][1]},{values[i][0]!r},{values[i][1]!r}\n" for i in order]
    written(toy, HEAD + "".join(lines))
    table = foreign.read_csv(toy / "results.csv", metrics=plan.study.metrics, names={})
    found = {(each.arm, each.trial.seed): each for each in matched(plan, table)}
    assert found.keys() == set(places)
    prints = {(each.arm, each.seed): each.trial.fingerprint for each in plan.replicates}
    for place, (acc, loss) in zip(places, values, strict=True):
        assert found[place].trial.fingerprint == prints[place]
        for name, value in (("acc", acc), ("loss", loss)):
            got = found[place].metrics[name]
            assert got == value or (math.isnan(got) and math.isnan(value))


@given(st.binary(max_size=300))
@settings(
    max_examples=200, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_any_bytes_are_rows_or_refused(toy: Path, data: bytes) -> None:
    from ablate.errors import StudyError

    plan = open_plan(toy / "toy.yaml")
    for text in (data, HEAD.encode() + data, HEAD.encode() + b"baseline,1," + data + b",1\n"):
        written(toy, text)
        try:
            table = foreign.read_csv(toy / "results.csv", metrics=plan.study.metrics, names={})
            matched(plan, table)
        except StudyError as error:
            assert all(fault.message and fault.where for fault in error.faults)  # noqa: PT017


# --- MLflow ----------------------------------------------------------------------------------------------------------

MLFLOW = """
import mlflow
mlflow.set_experiment("ladder")
for width, lr in ((1, 0.1), (2, 0.1), (2, 0.2)):
    for seed in (1, 2, 3):
        with mlflow.start_run(run_name=f"{width}-{lr}"):
            mlflow.log_params({"model.width": width, "train.lr": lr, "train.flip": lr > 0.1, "seed": seed})
            mlflow.set_tag("team", "a\\nb")
            for epoch in (1, 2, 3):
                mlflow.log_metric("val/acc", 70 + epoch + width + seed / 8, step=epoch)
            mlflow.log_metric("loss", float("nan") if seed == 3 and lr > 0.1 else 0.5)
            mlflow.log_metric("train/loss", 0.1)
try:
    with mlflow.start_run():
        mlflow.log_params({"model.width": 7, "seed": 1})
        raise ValueError
except ValueError:
    pass
with mlflow.start_run() as run:
    mlflow.log_param("model.width", 8)
mlflow.delete_run(run.info.run_id)
"""


def run_with_mlflow(folder: Path, url: str, code: str = MLFLOW) -> None:
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("mlflow-skinny is not installed")
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": url,
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True, capture_output=True)


@pytest.fixture(scope="module")
def mlruns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that MLflow itself has written: nine that finished, one that failed and one that was deleted."""
    folder = tmp_path_factory.mktemp("mlflow")
    run_with_mlflow(folder, f"file:{folder}/mlruns")
    return folder / "mlruns"


@pytest.fixture(scope="module")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs in a database."""
    folder = tmp_path_factory.mktemp("mlflow-database")
    run_with_mlflow(folder, f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


def test_runs_of_a_database_are_those_of_the_folder(toy: Path, call: Call, mlruns: Path, mlflow_database: Path) -> None:
    options = ["--map", "acc=val/acc"]
    done = call("import", "toy.yaml", "--mlflow", str(mlflow_database), *options, cwd=toy)
    assert (done.returncode, done.stderr) == (
        0,
        "toy: 9 trials imported\npassed over: 2 runs that did not finish or were deleted\n",
    )
    again = call(
        "import", "toy.yaml", "--mlflow", str(mlflow_database.parent), *options, cwd=toy
    )  # the folder it lies in
    assert again.stderr.startswith("toy: 0 trials imported, 9 there already\n")
    of_database = query(toy, ROWS)
    shutil.rmtree(toy / "runs")
    assert call("import", "toy.yaml", "--mlflow", str(mlruns), *options, cwd=toy).returncode == 0
    assert len(of_database) > 27
    assert sorted(map(repr, of_database)) == sorted(map(repr, query(toy, ROWS)))


def test_a_database_with_several_experiments_is_asked_which(toy: Path, call: Call, mlflow_database: Path) -> None:
    database = toy / "mlflow.db"
    shutil.copy(mlflow_database, database)
    run_with_mlflow(
        toy, f"sqlite:///{database}", MLFLOW.replace('"ladder"', '"later"').replace("(1, 2, 3):", "(1, 2):")
    )
    options = ["--mlflow", "mlflow.db", "--map", "acc=val/acc"]
    done = call("import", "toy.yaml", *options, cwd=toy)
    assert done.returncode == 2
    assert done.stderr == (
        "error: mlflow.db: runs of 2 experiments are there\nhint: name one with --experiment: `ladder`, `later`\n"
    )
    wrong = call("import", "toy.yaml", *options, "--experiment", "lader", cwd=toy)
    assert "no experiment `lader` with runs is there\nhint: did you mean `ladder`?" in wrong.stderr
    done = call("import", "toy.yaml", *options, "--experiment", "later", cwd=toy)
    assert done.stderr.startswith("toy: 6 trials imported\n")
    folder = call("import", "toy.yaml", "--mlflow", ".", *options[2:], "--experiment", "later", cwd=toy)
    assert folder.stderr.startswith("toy: 0 trials imported, 6 there already\n")


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (["DROP TABLE tags"], "this is no database of MLflow: it has no table tags"),
        (
            [
                "DROP TABLE tags",
                "CREATE VIEW tags AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i FROM n",
            ],
            "it has no table tags",
        ),
        (["UPDATE metrics SET step = -5"], "has a value at step -5"),
        (["UPDATE OR REPLACE metrics SET step = 'x', timestamp = x'00ff', value = 'y'"], "2 runs that did not finish"),
        (["UPDATE OR REPLACE params SET key = CAST(x'1b5b' AS TEXT)"], "unknown column `\\x1b[`"),
        (["DELETE FROM runs"], "no run of MLflow is there"),
    ],
)
def test_hostile_databases(toy: Path, call: Call, mlflow_database: Path, statements: list[str], said: str) -> None:
    shutil.copy(mlflow_database, toy / "mlflow.db")
    with contextlib.closing(sqlite3.connect(toy / "mlflow.db")) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    done = call("import", "toy.yaml", "--mlflow", "mlflow.db", "--map", "acc=val/acc", cwd=toy)
    assert said in done.stderr
    assert done.returncode in ((0, 2) if "did not finish" in said else (2,))
    assert all(line.isprintable() for line in done.stderr.splitlines())


def test_infinities_and_files_that_are_no_database(toy: Path, call: Call, mlflow_database: Path) -> None:
    shutil.copy(mlflow_database, toy / "mlflow.db")
    with contextlib.closing(sqlite3.connect(toy / "mlflow.db")) as connection:
        connection.execute("UPDATE metrics SET value = -1.7976931348623157e308, is_nan = 0 WHERE key = 'loss'")
        connection.commit()
    assert call("import", "toy.yaml", "--mlflow", "mlflow.db", "--map", "acc=val/acc", cwd=toy).returncode == 0
    assert {row[8] for row in query(toy, ROWS) if row[5] == "loss"} == {"-inf"}
    (toy / "mlflow.db").write_text("notes, and no database " * 100)
    done = call("import", "toy.yaml", "--mlflow", "mlflow.db", cwd=toy)
    assert done.returncode == 2
    assert "the database can't be read: file is not a database" in done.stderr


def test_runs_of_mlflow(toy: Path, call: Call, mlruns: Path) -> None:
    options = ["--mlflow", str(mlruns), "--map", "acc=val/acc"]
    done = call("import", "toy.yaml", *options, cwd=toy)
    assert (done.returncode, done.stderr) == (
        0,
        "toy: 9 trials imported\npassed over: 2 runs that did not finish or were deleted\n",
    )
    rows = {(row[0], row[1]): row for row in query(toy, ROWS) if row[5] == "acc" and row[6] is None}
    assert {place: row[7] for place, row in rows.items()} == {
        (arm, seed): 73 + width + seed / 8
        for arm, width in (("baseline", 1), ("wide", 2), ("fast", 2))
        for seed in (1, 2, 3)
    }
    epochs = [row for row in query(toy, ROWS) if row[6] is not None]
    assert len(epochs) == 27
    assert call("import", "toy.yaml", *options, cwd=toy).stderr.startswith("toy: 0 trials imported, 9 there already\n")
    assert "the store is sound" in call("doctor", "--verify", cwd=toy).stdout
    experiment = max((path for path in mlruns.iterdir() if path.name.isdecimal()), key=lambda path: len(path.name))
    again = call("import", "toy.yaml", "--mlflow", str(experiment), "--map", "acc=val/acc", cwd=toy)
    assert again.stderr.startswith("toy: 0 trials imported, 9 there already\n")
    shown = call("show", "fast", cwd=toy).stdout
    assert re.search(r"attempt 1: imported from [0-9a-f]{32}, its result stands", shown)


def test_runs_that_do_not_say_enough(toy: Path, call: Call, mlruns: Path) -> None:
    done = call("import", "toy.yaml", "--mlflow", str(mlruns), cwd=toy)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {mlruns}: no column `acc`, a metric of the study\n"
        "hint: `--map acc=COLUMN` names it; did you mean `val/acc`?\n"
    )
    nothing = call("import", "toy.yaml", "--mlflow", str(toy), cwd=toy)
    assert (
        "no run of MLflow is there\nhint: name mlflow.db, the folder `mlruns`, an experiment in it, or a run"
        in nothing.stderr
    )
    assert "there is no such folder" in call("import", "toy.yaml", "--mlflow", "nowhere", cwd=toy).stderr


META = "lifecycle_stage: active\nrun_id: {name}\nstatus: 3\n"


def run_by_hand(folder: Path, name: str = "a1", *, arm: str = "wide", acc: str = "1000 71.5 0") -> Path:
    run = folder / "mlruns" / "0" / name
    for part in ("params", "metrics", "tags"):
        (run / part).mkdir(parents=True)
    (run / "meta.yaml").write_text(META.format(name=name))
    (run / "params" / "seed").write_text("1")
    (run / "tags" / "arm").write_text(arm)
    (run / "metrics" / "acc").write_text(f"{acc}\n")
    (run / "metrics" / "loss").write_text("1000 0.5\n")  # as old versions wrote it
    return run


def test_the_layout_by_hand_and_an_arm_as_a_tag(toy: Path, call: Call) -> None:
    run_by_hand(toy, acc="1000 70 1\n1001 71 2\n1002 72 2\n1003 69 1")
    assert call("import", "toy.yaml", "--mlflow", "mlruns", cwd=toy).stderr == "toy: 1 trial imported\n"
    assert [row[7] for row in query(toy, ROWS) if row[5] == "acc" and row[6] is None] == [72.0]


def test_a_folder_from_a_stranger_reaches_nothing_outside_it(toy: Path, call: Call) -> None:
    secret = toy / "secret.txt"
    secret.write_text("1000 99 0\n")
    run = run_by_hand(toy)
    (run / "metrics" / "acc").unlink()
    (run / "metrics" / "acc").symlink_to(secret)
    (run / "params" / "deep").symlink_to(toy)
    (run.parent / "other").symlink_to(toy)
    done = call("import", "toy.yaml", "--mlflow", "mlruns", cwd=toy)
    assert done.returncode == 2
    assert done.stderr.count("a symbolic link, which is not followed") == 3
    assert "99" not in done.stderr
    assert not (toy / "runs").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics/acc", "x" * 100, "no line of a metric: `time value step`"),
        ("metrics/acc", "1000 71 -5", "no line of a metric"),
        ("metrics/acc", "1000 \x1b[31m 0", "`acc` is no number: `\\x1b[31m`"),
        (
            "meta.yaml",
            "a: &a [1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
            "more than 50,000 values",
        ),
        ("meta.yaml", "- 1\n", "a study is a mapping"),
        ("params/seed", "1" * ((1 << 20) + 1), "the file is too large: at most 1,048,576 bytes are read"),
        ("params/model.\x1b[2Jwidth", "2", "unknown column `model.\\x1b[2Jwidth`"),
    ],
)
def test_hostile_files_of_a_run(toy: Path, call: Call, name: str, content: str, said: str) -> None:
    run = run_by_hand(toy)
    (run / name).write_text(content)
    done = call("import", "toy.yaml", "--mlflow", "mlruns", cwd=toy)
    assert done.returncode == 2
    assert said in done.stderr
    assert all(line.isprintable() for line in done.stderr.splitlines())


def test_a_pipe_in_the_place_of_a_metric(toy: Path, call: Call) -> None:
    run = run_by_hand(toy)
    (run / "metrics" / "acc").unlink()
    os.mkfifo(run / "metrics" / "acc")
    assert "this is no file" in call("import", "toy.yaml", "--mlflow", "mlruns", cwd=toy).stderr


def test_a_study_whose_own_file_is_wrong_says_that_first(toy: Path, call: Call) -> None:
    (toy / "toy.yaml").write_text(textwrap.dedent(STUDY).replace("goal: max", "goal: mx"))
    written(toy, "x\n")
    assert "did you mean `max`?" in call("import", "toy.yaml", "--csv", "results.csv", cwd=toy).stderr
