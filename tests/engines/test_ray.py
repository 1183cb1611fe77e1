"""Agents on a real Ray of three nodes, with nothing to be dialled: they outlive their starter and a node. And beside
them, on one study, a run of this machine and agents on a real Slurm."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.test_watch import Terminal
from tests.command import ablate, finish, start
from tests.engines import slurm as slurms
from tests.engines import studies
from tests.engines.ray import Cluster, cluster, lonely_network
from tests.engines.studies import Told
from tests.postgres import Server, server
from tests.test_docs import ROOT, run_blocks

PAGE = ROOT / "docs" / "clusters.md"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
GPUS = {"GPU-r1-0", "GPU-r2-0", "GPU-r3-0"}


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Cluster, Server]]:
    """A cluster and a database server that only each other can reach."""
    with lonely_network(), server() as database, cluster() as nodes:
        yield nodes, database


@pytest.fixture
def url(site: tuple[Cluster, Server], project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (project / "runs").mkdir()
    place = site[1].new_database()
    monkeypatch.setenv("ABLATE_STORE", place)
    return place


def wait(site: tuple[Cluster, Server], condition: Callable[[], bool], what: str, *, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} in {seconds:.0f} s\n{site[0].logs()}"
        time.sleep(0.3)


def run(*words: str, cwd: Path, **environment: str) -> str:
    done = ablate(*words, cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_node_is_gone_and_nothing_is_lost(site: tuple[Cluster, Server], project: Path, url: str) -> None:
    path = studies.write(project, seeds=6, epochs=12, pause=3.0)
    run("run", str(path), "--queue", cwd=project)
    where = ["--address", site[0].address]
    # the program that starts them has ended before they begin
    name = run("agents", "start", "ray", "-n", "3", "--gpus", "1", *where, cwd=project).split()[-1]
    told = Told(url, project / "runs")
    wait(site, lambda: set(told.running(past=2)) == GPUS, "checkpoints on three nodes")
    assert f"{name}: 3 agents: 3 running" in run("agents", "status", cwd=project)
    site[0].remove("r3")
    assert told.states()["waiting"] > 0, "the study was over before anything happened"
    wait(site, lambda: "lost" in {row.outcome for row in told.attempts()}, "trial taken from the dead")
    site[0].add("r4")  # a place for the agent that Ray makes anew
    wait(site, lambda: "GPU-r4-0" in told.running(), "work on the new node")
    studies.hurry(project)
    wait(site, lambda: told.states() == {"done": 18}, "end of the study")
    told.check(path)
    assert any(row.resumed_from for row in told.attempts())
    for row in told.attempts():
        if row.outcome == "ok":
            facts = json.loads(row.environment_json)
            assert (facts["visible"], facts["omp"]) == (row.slot, "1"), "as on one machine"
    wait(site, lambda: f"{name}: 3 agents: none left" in run("agents", "status", cwd=project), "end of all")


def token_file(path: Path) -> Path:
    """Write the cluster's token as a user may have it."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{os.environ['RAY_AUTH_TOKEN']}\n")
    return path


WEIGHTS = """
import hashlib, os
import torch

def train(settings, context):
    torch.manual_seed(context.seed)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(20):
        loss = model(torch.randn(512, 64)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    digest = hashlib.sha256(b"".join(each.detach().numpy().tobytes() for each in model.parameters())).hexdigest()
    context.fact("weights", digest)
    context.fact("threads", str(torch.get_num_threads()))
    context.fact("around", str({name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}))
    return {"acc": settings["level"] + float(loss.detach())}
"""


def test_on_ray_a_trial_sees_what_it_sees_on_one_machine(
    site: tuple[Cluster, Server],
    project: Path,
    url: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a GPU, where Ray would show all of them; with two threads, where Ray would set one.

    The cluster is found by itself, and its token in the user's home.
    """
    token_file(project / ".ray" / "auth_token")
    monkeypatch.setenv("HOME", str(project))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name)
    alone = tmp_path_factory.mktemp("alone")
    (alone / ".git").mkdir()
    facts = []
    for folder in (alone, project):
        path = studies.write(folder, seeds=2, epochs=1, pause=0.0, gpus=0)
        path.write_text(path.read_text() + "execution: {threads: 2}\n")
        (folder / "toy.py").write_text(WEIGHTS)
        if folder == alone:
            place = str(alone / "runs" / "ablate.db")
            run("run", str(path), cwd=alone, ABLATE_STORE=place)
        else:
            place = url
            run("run", str(path), "--queue", cwd=project)
            run("agents", "start", "ray", "-n", "2", "--cpus", "2", cwd=project)
            told = Told(url, project / "runs")
            wait(site, lambda told=told: told.states() == {"done": 6}, "end of the study")  # type: ignore[misc]
        rows = [json.loads(row.environment_json) for row in Told(place, folder / "runs").attempts()]
        facts.append({(row["weights"], row["threads"], row["around"]) for row in rows})
    assert facts[0] == facts[1]
    assert len({weights for weights, _, _ in facts[0]}) == 2, "of two seeds"


def test_agents_on_ray_are_cancelled(
    site: tuple[Cluster, Server], project: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token_file(project / "token")))
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    run("run", str(studies.write(project, seeds=4, epochs=500, pause=1.0)), "--queue", cwd=project)
    where = ["--address", site[0].address]
    # of four, one finds no GPU free and waits for a place
    name = run("agents", "start", "ray", "-n", "4", "--gpus", "1", *where, cwd=project).split()[-1]
    told = Told(url, project / "runs")
    wait(site, lambda: len(told.running()) == 3, "work on three nodes")
    assert f"{name}: 4 agents: 3 running, 1 pending" in run("agents", "status", cwd=project)
    run("agents", "cancel", name, cwd=project)
    wait(site, lambda: not told.running(), "release of the trials")
    assert {row.outcome for row in told.attempts()} == {"interrupted"}
    assert name not in run("agents", "status", cwd=project)


def test_agents_on_ray_give_each_of_their_gpus_two_trials(
    site: tuple[Cluster, Server], project: Path, url: str
) -> None:
    path = studies.write(project, seeds=3, epochs=100, pause=1.0, per_gpu=2)
    run("run", str(path), "--queue", cwd=project)
    run("agents", "start", "ray", "-n", "1", "--gpus", "1", "--address", site[0].address, cwd=project)
    told = Told(url, project / "runs")
    wait(site, lambda: len(told.running()) == 2, "two trials on one GPU")
    [gpu] = {slot.partition("#")[0] for slot in told.running()}
    assert set(told.running()) == {f"{gpu}#1", f"{gpu}#2"}
    studies.hurry(project)
    wait(site, lambda: told.states() == {"done": 9}, "end of the study")
    told.check(path)
    told.check_shared()


def test_a_cluster_that_is_not_there_is_said_so(project: Path, url: str) -> None:  # noqa: ARG001
    run("run", str(studies.write(project, seeds=1, epochs=1, pause=0.0)), "--queue", cwd=project)
    done = ablate("agents", "start", "ray", "--address", "127.0.0.1:9", cwd=project)
    assert done.returncode == 4
    assert "--address 127.0.0.1:9: no Ray cluster is there: " in done.stderr
    assert "Traceback" not in done.stderr


WITHOUT = {
    "another": ({"RAY_AUTH_TOKEN": "another"}, "another one was given"),
    "none": ({"RAY_AUTH_TOKEN": "", "HOME": "/nonexistent"}, "no token was found here"),
    "unasked": ({"RAY_AUTH_MODE": ""}, "RAY_AUTH_MODE=token is not set here"),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_without_its_token_a_cluster_lets_nobody_in(
    site: tuple[Cluster, Server], project: Path, url: str, name: str
) -> None:
    environment, why = WITHOUT[name]
    run("run", str(studies.write(project, seeds=1, epochs=1, pause=0.0)), "--queue", cwd=project)
    done = ablate("agents", "start", "ray", "--address", site[0].address, cwd=project, **environment)
    assert done.returncode == 4
    error, hint = done.stderr.splitlines()
    assert error == f"error: --address {site[0].address}: the Ray cluster wants its token, and {why}"
    assert hint.startswith("hint: RAY_AUTH_MODE=token, and its token in ~/.ray/auth_token, or a file that ")
    assert set(Told(url, project / "runs").states()) == {"waiting"}


def test_local_slurm_and_ray_work_on_one_study_at_once(
    site: tuple[Cluster, Server], project: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one more is added while they do. Whoever looks is shown all of them, by host and engine."""
    path = studies.write(project, seeds=4, epochs=20, pause=4.0)
    run("run", str(path), "--queue", cwd=project)
    told = Told(url, project / "runs")
    host = socket.gethostname()
    with slurms.cluster() as slurm:
        for name, value in slurm.environment.items():
            monkeypatch.setenv(name, value)
        local = start("run", str(path), "-j", "1", cwd=project, SLURMD_NODENAME="local")
        by_slurm = run("agents", "start", "slurm", "--gpus", "1", cwd=project).split()[-1]
        by_ray = run("agents", "start", "ray", "--gpus", "1", "--address", site[0].address, cwd=project).split()[-1]
        wait(site, lambda: len(told.running()) == 3, "work by all three")
        more = run("agents", "start", "slurm", "--gpus", "1", cwd=project).split()[-1]
        wait(site, lambda: len(told.running()) == 4, "work by the one that was added")
        slots = sorted(told.running())
        assert [slot.split("-")[1][0] for slot in slots] == ["l", "n", "n", "r"], slots

        machines = [host, *(f"{host} ({name})" for name in (f"{by_slurm}_1", f"{more}_1", f"{by_ray}-1"))]
        seen = run("status", cwd=project)
        assert all(f"  {each}: alive, since " in seen for each in machines), seen
        seen = run("agents", "status", cwd=project)
        assert all(f"{each}: alive, since " in seen for each in machines), seen
        assert all(f"{name}: 1 agent: 1 running\n" in seen for name in (by_slurm, more, by_ray)), seen
        terminal = Terminal("watch", cwd=project, rows=40, columns=200)
        drawn = [re.compile(rf"seed \d +{re.escape(each)} +epoch ") for each in machines]
        wait(site, lambda: all(each.search(terminal.read()) for each in drawn), "picture of all four")

        studies.hurry(project)
        said = finish(local, timeout=300)
        assert local.returncode == 0, said
        assert "12 of 12 trials done" in terminal.end(seconds=300)
        told.check(path)
        by = Counter(json.loads(row.environment_json).get("agent", "") for row in told.attempts())
        assert set(by) == {"", f"{by_slurm}_1", f"{more}_1", f"{by_ray}-1"}
        wait(site, lambda: not slurm.ask("squeue", "-h"), "end of the agents on Slurm")


def test_the_walk_through(
    site: tuple[Cluster, Server], project: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", site[0].address)
    run_blocks(PAGE, project, engine="ray")
    assert Told(url, project / "runs").states() == {"done": 9}
