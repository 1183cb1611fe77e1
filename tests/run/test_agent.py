"""Agents: they run what waits in a store, beside each other, and leave when nothing is left for them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from ablate.run import options
from ablate.run.options import Allocation
from ablate.store.store import Store, open_store
from ablate.store.tables import arm, attempt, measurement, replicate, runner, trial
from tests.command import ablate, finish, start
from tests.nodes import Node
from tests.numbers import numbers_of_results
from tests.postgres import Server
from tests.run.leased import LEASED
from tests.run.test_stops import wait_until
from tests.studies import TOY, TOY_STUDY, write_study

SLOW_TOY = TOY_STUDY.replace("epochs: 3, pause: 0.0", "epochs: 20, pause: 0.05")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place for a store, which commands find by themselves."""
    place = str(project / "runs" / "ablate.db")
    if request.param == "postgresql":
        server: Server = request.getfixturevalue("postgres")
        place = server.new_database()
    monkeypatch.setenv("ABLATE_STORE", place)
    return place


@pytest.fixture
def on_server(postgres: Server, project: Path, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: ARG001
    place = postgres.new_database()
    monkeypatch.setenv("ABLATE_STORE", place)
    return place


def rows(url: str, query: Any) -> list[Any]:
    store = open_store(url, folder=Path("runs"))
    try:
        return store.read(lambda connection: list(connection.execute(query)))
    finally:
        store.close()


def write(url: str, statement: Any) -> None:
    store: Store = open_store(url, folder=Path("runs"))
    store.write(lambda connection: connection.execute(statement))
    store.close()


FAILING = """
def train(settings, context):
    raise ValueError("boom")
"""


def numbers(url: str) -> list[tuple[Any, ...]]:
    """Return every number of every finished trial."""
    return sorted(numbers_of_results(lambda query: rows(url, query)), key=str)


def outcomes(url: str) -> list[str]:
    return sorted(str(row.outcome) for row in rows(url, select(attempt.c.outcome)))


def queue(path: Path, *options: str) -> None:
    done = ablate("run", str(path), "--queue", *options, cwd=path.parent)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """What the slow toy study gives where one run does it all."""
    folder = tmp_path_factory.mktemp("quiet")
    (folder / ".git").mkdir()
    assert ablate("run", str(write_study(folder, SLOW_TOY)), cwd=folder).returncode == 0
    return numbers(str(folder / "runs" / "ablate.db"))


def test_a_queue_is_shared_by_agents_and_runs(project: Path, url: str, quiet: list[tuple[Any, ...]]) -> None:
    path = write_study(project, SLOW_TOY)
    done = ablate("run", str(path), "--queue", cwd=project)
    assert "6 wait for agents, 0 run" in done.stderr
    assert rows(url, select(attempt.c.id)) == [], "nothing was trained"
    others = [start("agent", cwd=project), start("agent", "toy", cwd=project), start("run", str(path), cwd=project)]
    for process in others:
        assert (finish(process), process.returncode)[1] == 0
    assert outcomes(url) == ["ok"] * 6
    assert numbers(url) == quiet
    status = ablate("status", cwd=project)
    assert "toy: 6 of 6 trials done" in status.stdout, status.stderr


def test_an_agent_takes_so_many_trials_and_no_more(project: Path, url: str) -> None:
    queue(write_study(project))
    done = ablate("agent", "--max-trials", "4", "-j", "3", cwd=project)
    assert (done.returncode, "4 attempts made" in done.stderr) == (0, True), done.stderr
    assert outcomes(url) == ["ok"] * 4
    done = ablate("agent", "--max-trials", "4", cwd=project)
    assert (done.returncode, "2 attempts made" in done.stderr) == (0, True), done.stderr
    assert outcomes(url) == ["ok"] * 6


def test_other_code_than_that_of_finished_trials_is_said(project: Path, url: str) -> None:
    path = write_study(project)
    queue(path)
    done = ablate("status", cwd=project)
    assert "ablate agent toy" in done.stdout, "what goes on with what was queued"
    assert "other code" not in ablate("agent", "--max-trials", "2", cwd=project).stderr
    (project / "toy.py").write_text((project / "toy.py").read_text() + "\n# another version\n")
    done = ablate("agent", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "warning: toy: 2 finished trials had other code than there is here" in done.stderr
    assert outcomes(url) == ["ok"] * 6


def test_an_agent_says_how_many_trials_failed(project: Path, url: str) -> None:
    queue(write_study(project, task=FAILING))
    done = ablate("agent", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "6 trials failed: `ablate status` says why, `ablate retry` has them tried again" in done.stderr
    assert outcomes(url) == ["error"] * 6


@pytest.mark.slow
def test_an_agent_that_waits_is_given_more(project: Path, url: str) -> None:
    queue(write_study(project))
    waiting = start("agent", "--idle-timeout", "600s", cwd=project)
    wait_until(lambda: outcomes(url) == ["ok"] * 6)
    queue(write_study(project, TOY_STUDY.replace("name: toy", "name: more"), name="more", task=TOY), "--seeds", "5,6")
    wait_until(lambda: outcomes(url) == ["ok"] * 12)
    waiting.send_signal(signal.SIGUSR2)
    said = finish(waiting)
    assert waiting.returncode == 75, said
    assert "nothing is lost; resume with: ablate agent --idle-timeout 600s" in said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_warned_agent_releases_its_trials_with_a_checkpoint(
    project: Path, url: str, quiet: list[tuple[Any, ...]], number: signal.Signals
) -> None:
    queue(write_study(project, SLOW_TOY))
    warned = start("agent", "-j", "2", cwd=project)
    wait_until(lambda: len(rows(url, select(measurement.c.id))) > 4)
    warned.send_signal(number)
    said = finish(warned)
    assert warned.returncode == (143 if number == signal.SIGTERM else 75), said
    assert rows(url, select(trial.c.id).where(trial.c.state == "running")) == []
    assert set(outcomes(url)) <= {"interrupted", "ok"}
    done = ablate("agent", cwd=project)
    assert done.returncode == 0, done.stderr
    assert any(row.resumed_from for row in rows(url, select(attempt.c.resumed_from)))
    assert numbers(url) == quiet


def test_an_agent_takes_no_trial_that_its_allocation_can_not_hold(project: Path, url: str) -> None:
    path = write_study(project)
    assert ablate("run", str(path), "--seeds", "1", cwd=project).returncode == 0
    of_two = select(replicate.c.trial).join(arm, arm.c.id == replicate.c.arm).where(arm.c.name == "two")
    write(url, update(attempt).where(attempt.c.trial.in_(of_two)).values(seconds=3000.0))
    queue(path)
    now = time.time()
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_START_TIME": f"{now - 3000:.0f}",
        "SLURM_JOB_END_TIME": f"{now + 1500:.0f}",
    }
    done = ablate("agent", cwd=project, **slurm)
    assert done.returncode == 75, done.stderr
    assert "what waits is longer than what is left of this allocation" in done.stderr
    left = (
        select(arm.c.name, replicate.c.seed).select_from(replicate).join(arm).join(trial).where(trial.c.state != "done")
    )
    assert {tuple(row) for row in rows(url, left)} == {("two", 2)}
    slurm["SLURM_JOB_END_TIME"] = f"{now + 9000:.0f}"
    assert ablate("agent", cwd=project, **slurm).returncode == 0
    assert outcomes(url) == ["ok"] * 6


def test_a_trial_that_no_allocation_holds_goes_from_one_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options.time, "time", lambda: 900.0)
    whole = Allocation(began=0.0, ends=1000.0)
    assert [whole.has_room(seconds) for seconds in (99.0, 101.0, 1000.0, 1001.0)] == [True, False, False, True]


def test_an_agent_passes_over_what_its_machine_can_not_run(project: Path, url: str) -> None:
    large = write_study(
        project, TOY_STUDY.replace("name: toy", "name: large") + "resources: {cpus: 4000}\n", name="large"
    )
    queue(large)
    done = ablate("agent", cwd=project)
    assert done.returncode == 4
    assert "large: passed over: a trial asks for 4000 CPU cores, and there are" in done.stderr
    broken = (
        TOY_STUDY.replace("name: toy", "name: broken")
        .replace("toy:train", "gone:train")
        .replace("seeds: 2", "seeds: 4")
    )
    (project / "gone.py").write_text(TOY)
    queue(write_study(project, broken, name="broken"))
    (project / "gone.py").write_text("import nowhere_to_be_found\n")
    queue(write_study(project))
    done = ablate("agent", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "broken: passed over: the task `gone:train` can't be imported" in done.stderr
    assert outcomes(url) == ["ok"] * 6


def test_what_an_agent_can_not_do_is_said_in_a_line(project: Path) -> None:
    assert "there is no store yet" in ablate("agent", cwd=project).stderr
    queue(write_study(project))
    unknown = ablate("agent", "tox", cwd=project)
    assert (unknown.returncode, "has no study `tox`" in unknown.stderr) == (3, True)
    assert "is no time: 90s, 30m, 4h or 2d" in ablate("agent", "--idle-timeout", "soon", cwd=project).stderr


# --- machines that share nothing but the store ----------------------------------------------------------------------


@pytest.fixture
def nodes(tmp_path: Path) -> tuple[Node, Node]:
    return Node("n1", tmp_path / "nodes"), Node("n2", tmp_path / "nodes")


def on(node: Node, *words: str, cwd: Path, lease_s: float = 4.0) -> subprocess.Popen[str]:
    """Start `ablate …` on a node, with a short lease."""
    return subprocess.Popen(
        node.command(*LEASED, *words),
        cwd=cwd,
        env={**os.environ, **node.environment, "ABLATE_TEST_LEASE_S": str(lease_s)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def epochs_at(url: str) -> int:
    return len(rows(url, select(measurement.c.id)))


@pytest.mark.slow
def test_a_node_that_died_is_waited_for_and_its_trials_go_on(
    project: Path, on_server: str, nodes: tuple[Node, Node], quiet: list[tuple[Any, ...]]
) -> None:
    """The queue is empty when the second agent comes: it stays until it knows that the first one is dead."""
    queue(write_study(project, SLOW_TOY), "--only", "baseline", "--seeds", "1,2")
    first = on(nodes[0], "agent", "-j", "2", cwd=project)
    wait_until(lambda: epochs_at(on_server) > 4)
    os.killpg(first.pid, signal.SIGKILL)
    finish(first)
    second = on(nodes[1], "agent", cwd=project)
    said = finish(second)
    assert second.returncode == 0, said
    assert outcomes(on_server) == ["lost", "lost", "ok", "ok"]
    assert {row.host for row in rows(on_server, select(runner.c.host).where(runner.c.lock_file != ""))} == {"n1", "n2"}
    assert all(row.resumed_from for row in rows(on_server, select(attempt).where(attempt.c.outcome == "ok")))
    assert numbers(on_server) == [row for row in quiet if row[0] in {each[0] for each in numbers(on_server)}]


@pytest.mark.slow
def test_an_agent_leaves_what_the_living_hold(project: Path, on_server: str, nodes: tuple[Node, Node]) -> None:
    long = SLOW_TOY.replace("pause: 0.05", "pause: 2.0")
    queue(write_study(project, long), "--only", "baseline", "--seeds", "1")
    first = on(nodes[0], "agent", cwd=project)
    wait_until(lambda: rows(on_server, select(attempt.c.id)))
    second = on(nodes[1], "agent", cwd=project)
    said = finish(second)
    assert (second.returncode, "0 attempts made" in said) == (0, True), said
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    finish(first)
    assert outcomes(on_server) == ["interrupted"]


@pytest.mark.slow
def test_a_node_frozen_past_its_lease_may_write_nothing_more(
    project: Path, on_server: str, nodes: tuple[Node, Node], quiet: list[tuple[Any, ...]]
) -> None:
    queue(write_study(project, SLOW_TOY), "--only", "baseline", "--seeds", "1")
    frozen = on(nodes[0], "agent", cwd=project, lease_s=2.0)
    wait_until(lambda: epochs_at(on_server) > 2)
    os.kill(frozen.pid, signal.SIGSTOP)  # its worker runs on, and ends with a result
    second = on(nodes[1], "agent", cwd=project, lease_s=2.0)
    said = finish(second)
    assert second.returncode == 0, said
    os.kill(frozen.pid, signal.SIGCONT)
    said = finish(frozen)
    assert frozen.returncode == 0, said
    found = rows(on_server, select(attempt.c.claim, attempt.c.outcome).order_by(attempt.c.claim))
    assert [tuple(row) for row in found] == [(1, "lost"), (2, "ok")]
    assert numbers(on_server) == [row for row in quiet if row[0] == numbers(on_server)[0][0]]


@pytest.mark.slow
def test_without_a_shared_folder_a_trial_starts_afresh_and_says_so(
    project: Path, on_server: str, nodes: tuple[Node, Node], quiet: list[tuple[Any, ...]]
) -> None:
    path = write_study(project, SLOW_TOY)
    queue(path, "--only", "baseline", "--seeds", "1")
    first = on(nodes[0], "agent", cwd=project)
    wait_until(lambda: epochs_at(on_server) > 2)
    os.killpg(first.pid, signal.SIGKILL)
    finish(first)
    elsewhere = project / "elsewhere"
    (elsewhere / "runs").mkdir(parents=True)
    second = on(nodes[1], "agent", str(write_study(elsewhere, SLOW_TOY)), cwd=elsewhere)
    said = finish(second)
    assert second.returncode == 0, said
    assert "baseline seed 1: earlier attempts left their checkpoints on another machine" in said
    assert f"{elsewhere / 'runs'} is not shared with it: it starts afresh" in said
    found = rows(on_server, select(attempt.c.outcome, attempt.c.resumed_from).order_by(attempt.c.claim))
    assert [tuple(row) for row in found] == [("lost", None), ("ok", None)]
    assert numbers(on_server) == [row for row in quiet if row[0] == numbers(on_server)[0][0]]


@pytest.mark.slow
def test_the_server_restarts_while_agents_work(
    project: Path, on_server: str, postgres: Server, quiet: list[tuple[Any, ...]]
) -> None:
    queue(write_study(project, SLOW_TOY))
    agents = [start("agent", "-j", "1", cwd=project) for _ in range(2)]
    wait_until(lambda: epochs_at(on_server) > 4)
    postgres.restart()
    for process in agents:
        assert (finish(process), process.returncode)[1] == 0
    assert numbers(on_server) == quiet
    assert set(outcomes(on_server)) <= {"ok", "lost"}
