from __future__ import annotations

import hashlib
import io
import json
import os
import time
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from sqlalchemy import update

from ablate.analyse.standing import Standing, _planned, _tallied, run_command, standing
from ablate.report.status import print_standing
from ablate.run.provenance import command_line
from ablate.store.claims import register_runner
from ablate.store.history import history_of
from ablate.store.tables import attempt, runner
from tests.command import Call, ablate, finish, query, start
from tests.run.test_stops import SLOW_TOY, running, wait_until
from tests.studies import write_study
from tests.truth import DIVERGED, FAILED, WAITING, Fate, Filled, fill, truth_study

GOLDEN = Path(__file__).parents[1] / "golden" / "cli"
NOON = 1_700_049_600.0
RUNNING = Fate(state="running")
FATES = {
    ("batchnorm", 1): FAILED,
    ("batchnorm", 3): DIVERGED,
    ("depth-6", 2): RUNNING,
    ("residual", 2): RUNNING,
    ("residual", 5): WAITING,
    ("residual-scale", 5): WAITING,
}


@pytest.fixture
def half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Filled:
    """A study half done: its runner began 90 minutes before noon of some day, and was last heard of 40 s ago."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    filled = fill(tmp_path, truth_study(), FATES)
    values = {"started": NOON - 5400, "heartbeat": NOON - 40}
    filled.store.write(lambda connection: connection.execute(update(runner).values(values)))
    return filled


def printed(found: Standing, width: int, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    print_standing(found, Console(file=file, width=width), now=NOON)
    file.flush()
    return raw.getvalue().decode(encoding)


HEARD = {"alive": 4.0, "silent": 40.0, "dead": 40.0}  # seconds ago


@pytest.mark.parametrize("name", HEARD)
def test_status_reads_as_its_golden_file(half_way: Filled, name: str) -> None:
    changes = [update(runner).values(heartbeat=NOON - HEARD[name])]
    if name != "alive":
        changes.append(update(attempt).values(environment_json=json.dumps({"agent": "slurm-17_3"})))
    for change in changes:
        half_way.store.write(lambda connection, change=change: connection.execute(change))
    found = standing(half_way.store, half_way.stored, is_alive=lambda _: name != "dead")
    path = GOLDEN / f"status-{name}.txt"
    text = printed(found, 80)
    if os.environ.get("ABLATE_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), "see tests/report/test_goldens.py for how to renew it"


NO_METRIC = Fate(metrics={"macro_f1": 20.0})
HUGE = Fate(metrics={"val_acc": 1e301, "macro_f1": 20.0})
COUNTED = {
    "troubled": (FATES, {}),
    "without its metric": ({("batchnorm", 2): NO_METRIC, ("depth-6", 4): HUGE, ("baseline", 1): DIVERGED}, {}),
    "shared rows": ({("baseline", 1): FAILED, ("baseline", 2): WAITING}, {"designs": ["ladder", "one-at-a-time"]}),
    "fresh seeds": (FATES, {"confirm_seeds": [11, 12]}),
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_the_store_counts_is_what_the_plan_says(name: str, tmp_path: Path) -> None:
    fates, changes = COUNTED[name]
    filled = fill(tmp_path, truth_study(**changes), fates)
    counted = _tallied(filled.store, filled.stored, lambda _: True)
    assert counted is not None
    assert counted == _planned(filled.store, filled.stored, lambda _: True)
    assert counted.counts.failed + counted.counts.diverged > 0


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_but_a_command_is_wider_than_the_terminal(half_way: Filled, width: int) -> None:
    lines = printed(standing(half_way.store, half_way.stored, is_alive=lambda _: False), width).splitlines()
    assert [line for line in lines if cell_len(line) > width and not line.startswith("  ablate ")] == []


def test_a_terminal_without_utf8_gets_ascii(half_way: Filled) -> None:
    assert printed(standing(half_way.store, half_way.stored, is_alive=lambda _: True), 80, "ascii").isascii()


def test_the_command_to_go_on_is_the_one_last_used(half_way: Filled) -> None:
    def after(command: str) -> str:
        facts = {"host": "here", "boot_id": "b", "lock_file": "l", "command": command}
        register_runner(half_way.store, runner_id=command, study_id=half_way.stored.id, facts=facts)
        return run_command(half_way.stored, history_of(half_way.store, half_way.stored.id).runners)

    assert after("/bin/ablate agent other basenet -j 2") == "ablate agent basenet"
    queued = "ablate run basenet.yaml --queue --store postgresql+psycopg://db/lab --seeds 2"
    assert after(queued) == "ablate agent basenet --store postgresql+psycopg://db/lab"
    assert after("/venv/bin/ablate run basenet.yaml --set a.b=1") == "ablate run basenet.yaml --set a.b=1"
    # it says how many trials it runs, and those are of all arms
    assert after("ablate run basenet.yaml --only residual --seeds 2") == "ablate run basenet.yaml --seeds 2"


def test_the_command_to_go_on_names_the_file_from_where_one_stands(
    half_way: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = str(Path("basenet.yaml").absolute())
    monkeypatch.chdir(tmp_path)
    assert run_command(half_way.stored, history_of(half_way.store, half_way.stored.id).runners) == f"ablate run {whole}"


def test_arms_that_only_left_out_are_run_without_it(project: Path, call: Call) -> None:
    path = write_study(project)
    done = ablate("run", str(path), "--only", "two", cwd=project)
    assert done.returncode == 0, done.stderr
    said = call("status", cwd=project).stdout
    assert "toy: 4 of 6 trials done, 2 waiting" in said
    assert "  ablate run toy.yaml  # runs 2 trials\n" in said


def test_status_of_a_troubled_study_changes_nothing(troubled: Path, call: Call) -> None:
    def everything() -> dict[str, str]:
        files = sorted(path for path in (troubled / "runs").rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = everything()
    done = call("status", cwd=troubled)
    assert done.returncode == 0
    assert done.stderr == "study last run: toy\n"
    assert done.stdout.startswith("toy: 4 of 6 trials done, 1 diverged, 1 failed\n")
    assert "three seed 2: error: ValueError: no \\x1b[31m good" in done.stdout
    assert "  ablate logs toy three --seed 2  # what it printed\n" in done.stdout
    assert "  ablate retry toy  " in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert everything() == before
    for name in ("toy", "toy.yaml"):
        again = call("status", name, cwd=troubled)
        assert (again.stdout, again.stderr) == (done.stdout, "")
    unknown = call("status", "toj", cwd=troubled)
    assert (unknown.returncode, unknown.stdout) == (3, "")
    assert "did you mean `toy`?" in unknown.stderr


def test_status_tells_a_runner_alive_from_a_dead_one(project: Path, call: Call) -> None:
    path = write_study(project, SLOW_TOY.replace("epochs: 20", "epochs: 2000"))
    process = start("run", str(path), "-j", "2", cwd=project)
    try:
        wait_until(lambda: running(project) == 2)
        alive = " ".join(call("status", cwd=project).stdout.split())
        assert ": alive, since " in alive
        assert "2 trials running: baseline seed 1 and two seed 1" in alive
        assert "ablate watch toy" in alive
    finally:
        process.kill()
        finish(process)
    dead = " ".join(call("status", cwd=project).stdout.split())
    assert ": dead, last heard of " in dead
    assert "2 trials left behind: baseline seed 1 and two seed 1" in dead
    assert f"ablate run {path.name} -j 2" in dead
    assert "2 of them left behind by a dead runner" in dead
    assert query(project, "SELECT count(*) FROM trial WHERE state = 'running'") == [(2,)], "reading reaps nothing"


def test_status_and_report_while_a_run_writes(project: Path, call: Call) -> None:
    path = write_study(project, SLOW_TOY)
    process = start("run", str(path), "-j", "4", cwd=project)
    wait_until(lambda: running(project) > 0)
    seen = []
    while process.poll() is None:
        seen.append(call("status", cwd=project).stdout.splitlines()[0])
        report = call("report", "--json", cwd=project)
        assert report.returncode == 0, report.stderr
    said = finish(process)
    assert process.returncode == 0, said
    assert len(set(seen)) > 1
    assert call("status", cwd=project).stdout.startswith("toy: 6 of 6 trials done\n")


def test_the_password_of_a_store_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql+psycopg://me:se:c@ret@host/db?sslmode=require&password=canary&sslpassword=canary"
    monkeypatch.setattr("sys.argv", ["/venv/bin/ablate", "run", "a b.yaml", f"--store={url}", "--store", url])
    hidden = "postgresql+psycopg://me:***@host/db?***"
    assert command_line() == f"ablate run 'a b.yaml' '--store={hidden}' --store '{hidden}'"
