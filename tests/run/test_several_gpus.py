"""One trial on several GPUs: it has them to itself, and its processes end with it. The GPUs are fakes, DDP is not."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from ablate.errors import EnvironmentFault
from ablate.plan.trials import open_plan
from ablate.run.energy import Meter, total
from ablate.run.slots import SlotPool, shortage
from ablate.study.schema import Resources
from tests.command import ablate, finish, query, start
from tests.run.test_slots import UUIDS, _own_locks, nvidia_smi
from tests.run.test_stops import wait_until, workers_of
from tests.studies import TOY_STUDY, write_study

__all__ = ["_own_locks", "nvidia_smi"]

STUDY = """
schema: ablate/v1
name: ddp
task:
  command: >-
    python -m torch.distributed.run --standalone --nproc-per-node 2
    ddp.py --lr {{lr}} --seed {{seed}} --folder {{folder}} --pause {{pause}}
metrics: {{loss: {{goal: min}}}}
settings: {{lr: 0.1, pause: {pause}}}
steps: [{{name: faster, set: {{lr: 0.2}}}}]
seeds: 1
resources: {{gpus: 2}}
"""

# as a user would write it, but for the back end: gloo where there is no CUDA
DDP = """
import argparse, json, os, time
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--seed", type=int)
parser.add_argument("--folder")
parser.add_argument("--pause", type=float)
given = parser.parse_args()
dist.init_process_group("gloo")
torch.set_num_threads(1)
rank = dist.get_rank()
with open(f"{given.folder}/rank{rank}.json", "w") as file:
    json.dump({"visible": os.environ["CUDA_VISIBLE_DEVICES"], "size": dist.get_world_size(), "pid": os.getpid()}, file)
torch.manual_seed(given.seed)
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=given.lr)
inputs = torch.randn(64, 4)
targets = inputs.sum(1, keepdim=True)
share = slice(rank, None, dist.get_world_size())
for epoch in range(1, 4):
    time.sleep(given.pause)
    loss = (model(inputs[share]) - targets[share]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if rank == 0:
        print(json.dumps({"epoch": epoch, "loss": loss.item()}), flush=True)
dist.destroy_process_group()
"""


def write(project: Path, *, pause: float) -> Path:
    (project / "ddp.py").write_text(DDP)
    path = project / "ddp.yaml"
    path.write_text(STUDY.format(pause=pause))
    return path


def ranks(project: Path) -> list[Path]:
    return sorted(project.glob("runs/trials/*/*/artifacts/rank*.json"))


@pytest.mark.slow
def test_a_trial_of_two_processes_has_two_gpus(project: Path, nvidia_smi: Path) -> None:  # noqa: ARG001
    done = ablate("run", str(write(project, pause=0.0)), cwd=project, timeout=280)
    assert done.returncode == 0, done.stderr
    told = [json.loads(path.read_text()) for path in ranks(project)]
    assert [(each["visible"], each["size"]) for each in told] == [(",".join(UUIDS), 2)] * 4
    assert set(query(project, "SELECT slot FROM attempt")) == {("+".join(UUIDS),)}
    assert all(json.loads(text)["gpus"] == "2" for (text,) in query(project, "SELECT environment_json FROM attempt"))
    first, last = query(
        project, "SELECT min(value), max(value) FROM measurement WHERE epoch IN (1, 3) GROUP BY claim, epoch"
    )
    assert last < first, "it has learnt"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["nobody", "worker", "runner", "all"])
def test_all_processes_of_a_trial_end_with_it(project: Path, nvidia_smi: Path, victim: str) -> None:  # noqa: ARG001
    path = write(project, pause=60.0)
    process = start("run", str(path), "--only", "baseline", cwd=project)
    wait_until(lambda: len(ranks(project)) == 2 and all(path.stat().st_size for path in ranks(project)), seconds=120)
    pids = [json.loads(path.read_text())["pid"] for path in ranks(project)]
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    if victim == "nobody":
        process.send_signal(signal.SIGTERM)
    if victim in ("worker", "all"):
        for pid in workers_of(project):
            os.killpg(pid, signal.SIGKILL)
    if victim in ("runner", "all"):
        process.kill()
    wait_until(lambda: not any(is_running(pid) for pid in pids))
    process.terminate()
    finish(process)


def is_running(pid: int) -> bool:
    """Tell whether a process is there, and no zombie that nobody has reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_slot_of_two_gpus_leaves_no_other(nvidia_smi: Path) -> None:  # noqa: ARG001
    pools = [SlotPool(Resources(gpus=count), threads=1) for count in (2, 1)]
    both = pools[0].acquire()
    assert both is not None
    assert (both.gpus, both.environment["CUDA_VISIBLE_DEVICES"]) == (tuple(UUIDS), ",".join(UUIDS))
    assert len(both.occupied) == 2
    assert pools[1].acquire() is None
    pools[0].release(both)
    one = pools[1].acquire()
    assert one is not None
    assert pools[0].acquire() is None, "one of two is not enough"
    pools[1].release(one)
    wait_until(lambda: pools[0].acquire() is not None)  # it had been hungry, and the other one has yielded


def test_more_gpus_than_there_are_is_said(project: Path, nvidia_smi: Path) -> None:  # noqa: ARG001
    assert shortage(Resources(gpus=3), threads=1) == "a trial asks for 3 GPUs, and there are 2"
    with pytest.raises(EnvironmentFault, match=r"resources\.gpus=2"):
        SlotPool(Resources(gpus=3), threads=1)
    done = ablate("run", str(write_study(project, TOY_STUDY + "resources: {gpus: 3}\n")), cwd=project)
    assert (done.returncode, "a trial asks for 3 GPUs, and there are 2" in done.stderr) == (4, True)


def test_how_many_gpus_take_part_is_part_of_a_trial(project: Path) -> None:
    prints = []
    for gpus in (0, 1, 2, 4):
        path = write_study(project, TOY_STUDY + f"resources: {{gpus: {gpus}}}\n")
        prints.append(next(iter(open_plan(path).trials())))
    assert len(set(prints)) == 4


def test_a_scheduler_s_share_of_the_cores_bounds_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    for share, size in (("1", 1), (str(cores + 7), SlotPool(Resources(), threads=1).size), ("", cores)):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", share)
        assert SlotPool(Resources(), threads=1).size <= size
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert "there are 1" in shortage(Resources(cpus=2), threads=1)


def test_the_meters_of_several_gpus_are_summed() -> None:
    assert total([Meter(3, False), Meter(4, True)]) == Meter(7, True)
    assert total([Meter(3, False), None]) is None
    assert total([]) is None
