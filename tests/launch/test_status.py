"""What is told of agents when nodes are silent or dead, and when an engine can't be asked: the store's word stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import insert

from ablate.launch.launcher import Start, agents_folder, keep
from ablate.plan.trials import open_plan
from ablate.store import claims
from ablate.store.facts import record_plan
from ablate.store.store import open_store
from ablate.store.tables import runner
from tests.cli.test_watch import STUDY
from tests.command import Call, start
from tests.studies import write_study

SAID_S = {"n1": 5, "n2": 45, "n3": 300, "n4": 300}  # seconds since a node was heard of


@pytest.fixture
def told(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study with agents on four nodes: one at work, one silent, two dead, of which one held nothing."""
    monkeypatch.setenv("PATH", "/nonexistent")
    plan = open_plan(write_study(project))
    store = open_store(project / "runs" / "ablate.db", create=True)
    study = record_plan(store, plan)
    now = store.now()
    rows = [
        {"id": host, "study": study, "host": host, "boot_id": host, "lock_file": f"{host}.lock", "command": "agent"}
        | {"started": now - 400, "heartbeat": now - said}
        for host, said in SAID_S.items()
    ]
    store.write(lambda connection: connection.execute(insert(runner), rows))
    for number, host in enumerate(("n1", "n2", "n3"), 1):
        facts = {"agent": f"slurm-17_{number}"}
        claims.claim_trial(store, runner_id=host, study_id=study, arms=None, slot="cpu0", environment=facts)
    store.close()
    return project


def kept(project: Path) -> Path:
    keep(Start("slurm", "17", 4, ("toy",), 0.0), agents_folder())
    return project / "runs" / "agents" / "slurm-17.json"


def test_a_stranger_sees_who_works_who_is_silent_and_who_is_dead(told: Path, call: Call) -> None:
    kept(told)
    done = call("agents", "status", cwd=told)
    assert done.returncode == 0, done.stderr
    engine, *lines = done.stdout.splitlines()
    assert engine == "slurm-17: 4 agents: slurm does not say: there is no `squeue` here"
    assert [line.partition(": ")[0] for line in lines] == ["n1 (slurm-17_1)", "n2 (slurm-17_2)", "n3 (slurm-17_3)"]
    life = [line.partition(": ")[2] for line in lines]
    assert life[0].startswith("alive, since ")
    assert life[0].endswith(", 1 trial running")
    assert life[1].startswith("silent for ")
    assert life[1].endswith(" s (after 1 min others take over what it holds), 1 trial running")
    assert life[2].startswith("dead, last heard of 5 min")
    assert life[2].endswith(" ago, 1 trial left behind")
    assert done.stderr.splitlines() == [
        "2 runners at work, by the store",
        "1 trial of the dead will go on with who works on that study, now or next",
    ]


def test_the_study_s_own_status_says_the_same(told: Path, call: Call) -> None:
    said = call("status", "toy", cwd=told).stdout
    for words in ("n1 (slurm-17_1): alive, since", "n2 (slurm-17_2): silent for", "n3 (slurm-17_3): dead, last heard"):
        assert words in said
    assert "n4" not in said


def test_agents_of_an_engine_that_is_gone_can_be_forgotten(told: Path, call: Call) -> None:
    file = kept(told)
    done = call("agents", "cancel", "slurm-17", cwd=told)
    assert done.returncode == 4
    assert f"hint: where it is gone for good, remove {file}\n" in done.stderr
    assert json.loads(file.read_text())["handle"] == "17"


def test_watching_says_that_it_waits_for_agents(project: Path, call: Call) -> None:
    assert call("run", str(write_study(project, STUDY)), "--queue", cwd=project).returncode == 0
    kept(project)
    watch = start("watch", "toy", cwd=project)
    said = ""
    try:
        assert watch.stderr is not None
        while "nobody is at work" not in said:
            line = watch.stderr.readline()
            assert line, said
            said += line
        assert "waits for agents that were started from here (`ablate agents status` shows them)" in said
        assert watch.poll() is None
    finally:
        watch.kill()
        watch.communicate()
