"""Agents on a real Slurm of two nodes: they share a study, and outlive nodes, preemption and their time."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import ablate, finish, start
from tests.engines import studies
from tests.engines.slurm import Cluster, cluster
from tests.engines.studies import Told
from tests.postgres import Server
from tests.test_docs import ROOT, run_blocks

PAGE = ROOT / "docs" / "clusters.md"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
GPUS = {f"GPU-n{node}-{index}" for node in (1, 2) for index in (0, 1)}
PASSWORD = "canary-password-of-the-store"


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@pytest.fixture
def login(slurm: Cluster, project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A shell on the login node, in a project folder that all nodes share."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    (project / "runs").mkdir()
    yield slurm
    slurm.ask("scancel", "-u", "root")
    slurm.wait(lambda: not slurm.ask("squeue", "-h"), "end of what a test has left")


@pytest.fixture(scope="module")
def guarded(postgres: Server) -> Server:
    postgres.guard("researcher", PASSWORD)
    return postgres


@pytest.fixture
def url(guarded: Server, project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store that wants a password, which is in a file of the user's."""
    place = guarded.new_database().replace("ablate@", "researcher@")
    passwords = project / "pgpass"
    passwords.touch(mode=0o600)
    passwords.write_text(f"127.0.0.1:*:*:researcher:{PASSWORD}\n")
    monkeypatch.setenv("PGPASSFILE", str(passwords))
    monkeypatch.setenv("ABLATE_STORE", place)
    return place


def run(*words: str, cwd: Path) -> str:
    done = ablate(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def logs_of_agents(project: Path) -> str:
    return "\n".join(f"--- {file}\n{file.read_text()[-3000:]}" for file in (project / "runs" / "agents").glob("*.log"))


def wait(slurm: Cluster, project: Path, condition: object, what: str, *, seconds: float = 300) -> None:
    try:
        slurm.wait(condition, what, seconds=seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{logs_of_agents(project)}") from None


def job(slurm: Cluster, name: str, element: int) -> dict[str, str]:
    told = slurm.ask("scontrol", "show", "job", f"{name.removeprefix('slurm-')}_{element}")
    return dict(re.findall(r"(\w+)=(\S*)", told))


def started(*words: str, cwd: Path) -> str:
    """Start agents and return their name."""
    done = ablate("agents", "start", "slurm", *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ablate agents cancel slurm-")
    return done.stdout.split()[-1]


def test_sixty_trials_on_two_nodes(login: Cluster, project: Path, url: str) -> None:
    path = studies.write(project, seeds=20, epochs=3, pause=0.05)
    run("run", str(path), "--queue", cwd=project)
    name = started("-n", "4", "--gpus", "1", "--time", "20m", "--sbatch", "--comment=x", cwd=project)
    told = Told(url, project / "runs")
    wait(login, project, lambda: told.states() == {"done": 60}, "end of the study")
    told.check(path)
    assert {row.slot for row in told.attempts()} == GPUS, "both nodes, both GPUs of each"
    for row in told.attempts():
        assert json.loads(row.environment_json)["visible"] == row.slot
        assert json.loads(row.environment_json)["omp"] == "1"
    wait(login, project, lambda: not login.ask("squeue", "-h"), "end of the agents")
    assert f"{name}: 4 agents: " in run("agents", "status", cwd=project)
    for file in (project / "runs" / "agents").iterdir():
        assert PASSWORD not in file.read_text()
    assert PASSWORD not in login.ask("scontrol", "show", "job", "-dd")


def test_agents_give_each_of_their_gpus_two_trials(login: Cluster, project: Path, url: str) -> None:
    path = studies.write(project, seeds=3, epochs=100, pause=1.0, per_gpu=2)
    run("run", str(path), "--queue", cwd=project)
    started("-n", "2", "--gpus", "1", "--cpus", "2", "--time", "20m", cwd=project)
    told = Told(url, project / "runs")
    wait(login, project, lambda: len(told.running()) == 4, "two trials on each of two GPUs")
    gpus = {slot.partition("#")[0] for slot in told.running()}
    assert set(told.running()) == {f"{gpu}#{part}" for gpu in gpus for part in (1, 2)}
    assert len(gpus & GPUS) == 2
    studies.hurry(project)
    wait(login, project, lambda: told.states() == {"done": 9}, "end of the study")
    told.check(path)
    told.check_shared()


def test_nodes_die_jobs_are_preempted_and_warned_and_nothing_is_lost(login: Cluster, project: Path, url: str) -> None:
    path = studies.write(project, seeds=20, epochs=12, pause=1.0)
    run("run", str(path), "--queue", cwd=project)
    name = started("-n", "4", "--gpus", "1", "--time", "20m", "--sbatch", "--partition=low", cwd=project)
    told = Told(url, project / "runs")

    def at_work(*slots: str) -> bool:
        return set(slots) <= set(told.running())

    # warned of the end of its time: it comes back, and goes on
    wait(login, project, lambda: at_work(*GPUS), "work on four GPUs")
    warned = next(each for each in range(1, 5) if job(login, name, each)["NodeList"] == "n1")
    login.ask("scancel", "--signal=USR2", f"{name.removeprefix('slurm-')}_{warned}")
    wait(login, project, lambda: job(login, name, warned)["Restarts"] == "1", "requeued agent")
    assert told.states()["waiting"] > 0, "the study was over before anything happened"

    # a node is gone, with all that ran on it
    wait(login, project, lambda: at_work("GPU-n2-0", "GPU-n2-1"), "work on node n2")
    lost = [each for each in range(1, 5) if job(login, name, each)["NodeList"] == "n2"]
    login.kill_node("n2")
    wait(login, project, lambda: "lost" in {row.outcome for row in told.attempts()}, "trials taken from the dead")
    assert told.states()["waiting"] > 0, "the study was over before anything happened"

    # someone more important wants node n1
    wait(login, project, lambda: at_work("GPU-n1-0"), "work on node n1")
    before = sum(row.outcome == "interrupted" for row in told.attempts())
    urgent = login.ask("sbatch", "--parsable", "-p", "high", "-w", "n1", "--gres=gpu:2", "--wrap", "sleep 1")
    wait(
        login,
        project,
        lambda: sum(row.outcome == "interrupted" for row in told.attempts()) > before,
        "trials released at a preemption",
    )
    wait(login, project, lambda: not login.ask("squeue", "-h", "-j", urgent), "end of the urgent job")

    # the node comes back, and with it what Slurm has put back into its queue
    wait(
        login, project, lambda: login.ask("sinfo", "-h", "-n", "n2", "-o", "%T").startswith("down"), "node that is down"
    )
    login.start_node("n2")
    assert [job(login, name, each)["Restarts"] for each in lost] == ["1"] * len(lost)
    studies.hurry(project)

    wait(login, project, lambda: told.states() == {"done": 60}, "end of the study")
    told.check(path)
    assert sum(row.resumed_from is not None for row in told.attempts()) >= 3
    wait(login, project, lambda: not login.ask("squeue", "-h"), "end of the agents")


def test_agents_are_cancelled_and_others_go_on(login: Cluster, project: Path, url: str) -> None:
    """Local, Slurm, and a run: on one study at once, and followed from a terminal."""
    path = studies.write(project, seeds=4, epochs=15, pause=4.0)
    run("run", str(path), "--queue", cwd=project)
    name = started("toy", "-n", "2", "--gpus", "1", cwd=project)
    told = Told(url, project / "runs")
    wait(login, project, lambda: len(told.running()) == 2, "two agents at work")
    seen = run("agents", "status", cwd=project)
    assert f"{name}: 2 agents: 2 running" in seen
    assert "2 runners at work, by the store" in seen
    local = start("agent", cwd=project, SLURMD_NODENAME="local")
    watching = start("watch", cwd=project)
    wait(login, project, lambda: any(slot.startswith("GPU-local") for slot in told.running()), "work on this machine")
    run("agents", "cancel", name, cwd=project)
    wait(login, project, lambda: not login.ask("squeue", "-h"), "end of the cancelled agents")
    assert [row.outcome for row in told.attempts()].count("interrupted") == 2
    studies.hurry(project)
    said = finish(local, timeout=300)
    assert local.returncode == 0, said
    told.check(path)
    followed = finish(watching, timeout=120)
    assert "[12/12]" in followed
    assert ablate("agents", "cancel", name, cwd=project).returncode == 2


def test_what_slurm_refuses_is_said(login: Cluster, project: Path, url: str) -> None:  # noqa: ARG001
    run("run", str(studies.write(project, seeds=1, epochs=1, pause=0.0)), "--queue", cwd=project)
    done = ablate("agents", "start", "slurm", "--sbatch", "--partition=nowhere", cwd=project)
    assert done.returncode == 4
    assert "`sbatch` refused: " in done.stderr
    assert "nowhere" in done.stderr
    assert list((project / "runs" / "agents").glob("*.json")) == []


def test_the_end_of_an_allocation_is_known(login: Cluster, project: Path) -> None:
    program = "from ablate.launch.slurm import allocation; import time; a = allocation(); print(a.ends - time.time())"
    (project / "end.py").write_text(program)
    left = login.ask("srun", "--time=30", sys.executable, str(project / "end.py"))
    assert 1000 < float(left) <= 1800, left


def test_the_walk_through(login: Cluster, project: Path, url: str) -> None:
    run_blocks(PAGE, project, engine="slurm")
    assert Told(url, project / "runs").states() == {"done": 9}
    wait(login, project, lambda: not login.ask("squeue", "-h"), "end of the agents")


SPANNING = """
schema: ablate/v1
name: span
task:
  command: >-
    srun --overlap --mem=0 --nodes=2 --ntasks=2 --ntasks-per-node=1
    {python} where.py --level {{level}} --seed {{seed}} --folder {{folder}}
metrics: {{acc: {{goal: max}}}}
settings: {{level: 1}}
steps:
  - {{name: two, set: {{level: 2}}}}
seeds: 1
resources: {{gpus: 2}}
"""
WHERE = """
import json, os, pathlib, sys
level, folder = sys.argv[2], pathlib.Path(sys.argv[6])
(folder / f"at-{os.environ['SLURMD_NODENAME']}").write_text(os.environ["SLURM_NTASKS"])
if os.environ["SLURM_PROCID"] == "0":
    print(json.dumps({"acc": float(level)}))
"""


def test_a_trial_spans_two_nodes(login: Cluster, project: Path, url: str) -> None:
    path = project / "span.yaml"
    path.write_text(SPANNING.format(python=sys.executable))
    (project / "where.py").write_text(WHERE)
    run("run", str(path), "--queue", cwd=project)
    started("-n", "1", "--gpus", "2", "--time", "20m", "--sbatch", "--nodes=2", "--sbatch", "--ntasks=2", cwd=project)
    told = Told(url, project / "runs")
    wait(login, project, lambda: set(told.states()) <= {"done", "failed"}, "end of the study")
    attempts = told.attempts()
    assert [row.outcome for row in attempts] == ["ok", "ok"], logs_of_agents(project)
    for row in attempts:
        found = {file.name: file.read_text() for file in (project / "runs" / row.folder / "artifacts").glob("at-*")}
        assert found == {"at-n1": "2", "at-n2": "2"}
