"""Slots: who gets which core or GPU, and that no two ever hold the same."""

from __future__ import annotations

import itertools
import os
import stat
import tempfile
from pathlib import Path

import pytest

from ablate.errors import EnvironmentFault
from ablate.run.progress import HUNGRY
from ablate.run.slots import SlotPool, usable_cores, usable_gpus
from ablate.study.schema import Resources
from tests.command import ablate, finish, query, start
from tests.studies import TOY_STUDY, write_study

UUIDS = ["GPU-11111111-aaaa-bbbb-cccc-000000000001", "GPU-22222222-aaaa-bbbb-cccc-000000000002"]


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host of its own for each test: what one leaves held must not be missing in the next."""
    (tmp_path / "locks").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "locks"))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with two GPUs, as far as `nvidia-smi` can tell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "nvidia-smi"
    lines = "\n".join(f"echo '{uuid}, {index}, NVIDIA Fake, 80 GB'" for index, uuid in enumerate(UUIDS))
    script.write_text(f"#!/bin/sh\n{lines}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return script


def test_gpus_are_known_by_uuid(nvidia_smi: Path) -> None:  # noqa: ARG001
    assert [gpu.uuid for gpu in usable_gpus()] == UUIDS


@pytest.mark.parametrize(
    ("visible", "left"), [("1", [1]), ("1,0", [1, 0]), (UUIDS[0], [0]), ("GPU-2222", [1]), ("7", []), ("", [])]
)
def test_an_inherited_restriction_holds(
    nvidia_smi: Path,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    visible: str,
    left: list[int],
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if not left:
        with pytest.raises(EnvironmentFault, match="CUDA_VISIBLE_DEVICES leaves none"):
            usable_gpus()
    else:
        assert [gpu.uuid for gpu in usable_gpus()] == [UUIDS[index] for index in left]


def test_a_broken_nvidia_smi_is_no_gpu(nvidia_smi: Path) -> None:
    nvidia_smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed, because it could, not'\nexit 9\n")
    with pytest.raises(EnvironmentFault, match="nvidia-smi finds none"):
        usable_gpus()


def test_two_pools_never_hold_the_same_gpu(nvidia_smi: Path) -> None:  # noqa: ARG001
    pools = [SlotPool(Resources(gpus=1), threads=1) for _ in range(2)]
    first, second = pools[0].acquire(), pools[1].acquire()
    assert first is not None
    assert second is not None
    assert {first.name, second.name} == set(UUIDS)
    assert first.environment["CUDA_VISIBLE_DEVICES"] == first.name
    assert pools[0].acquire() is None
    pools[1].release(second)
    third = pools[0].acquire()
    assert third is not None
    assert third.name == second.name


def test_cores_are_taken_in_groups_of_what_a_trial_needs() -> None:
    cores = len(usable_cores())
    pool = SlotPool(Resources(), threads=1)
    slots = [pool.acquire() for _ in range(cores)]
    assert all(slot is not None for slot in slots)
    assert pool.acquire() is None
    assert SlotPool(Resources(), threads=1).acquire() is None  # another run finds none left
    for slot in slots:
        assert slot is not None
        pool.release(slot)
    whole = SlotPool(Resources(cpus=cores), threads=1)
    assert whole.acquire() is not None
    assert whole.acquire() is None


def test_more_jobs_than_cores_are_the_users_own_choice() -> None:
    cores = len(usable_cores())
    pool = SlotPool(Resources(), threads=1, jobs=cores + 2)
    slots = [pool.acquire() for _ in range(cores + 2)]
    names = [slot.name for slot in slots if slot is not None]
    assert len(set(names)) == cores + 2
    assert pool.acquire() is None


def test_fewer_jobs_leave_cores_to_others() -> None:
    pool = SlotPool(Resources(), threads=1, jobs=1)
    assert pool.acquire() is not None
    assert pool.acquire() is None


def test_a_group_that_does_not_fit_the_host_takes_what_there_is() -> None:
    pool = SlotPool(Resources(cpus=4096), threads=1)
    assert pool.size == 1
    assert pool.acquire() is not None


GPU_TASK = """
import os, time
def train(settings, context):
    began = time.monotonic()
    time.sleep(0.15)
    visible = os.environ["CUDA_VISIBLE_DEVICES"]
    print("CUDA_VISIBLE_DEVICES", visible)
    context.artifact("held.txt", f"{visible} {began} {time.monotonic()}".encode())
    return {"acc": 1.0}
"""


def test_three_runners_on_two_gpus_never_share_one(project: Path, nvidia_smi: Path) -> None:  # noqa: ARG001
    study = TOY_STUDY.replace("seeds: 2", "seeds: 5") + "resources: {gpus: 1}\n"
    path = write_study(project, study, task=GPU_TASK.replace("context.artifact", "context.artifact"))
    # the task is told to train on a GPU that isn't there: it only looks at what it was given
    runs = [start("run", str(path), cwd=project) for _ in range(3)]
    for process in runs:
        said = finish(process)
        assert process.returncode == 0, said
    assert query(project, "SELECT count(*) FROM attempt WHERE outcome = 'ok'") == [(15,)]

    held: dict[str, list[tuple[float, float]]] = {uuid: [] for uuid in UUIDS}
    for file in project.glob("runs/trials/*/*/artifacts/held.txt"):
        uuid, began, ended = file.read_text().split()
        held[uuid].append((float(began), float(ended)))
        assert f"CUDA_VISIBLE_DEVICES {uuid}" in (file.parent.parent / "stdout.log").read_text()
    assert sum(map(len, held.values())) == 15
    assert all(held.values()), "both GPUs were used"
    for times in held.values():
        times.sort()
        assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(times))
    assert query(project, "SELECT count(DISTINCT runner) FROM attempt")[0][0] >= 2, "the runs took turns"


def test_a_dry_pool_is_said_before_anything_is_written(project: Path) -> None:
    path = write_study(project, TOY_STUDY + "resources: {gpus: 1}\n")
    done = ablate("run", str(path), cwd=project, PATH="/nonexistent")
    assert done.returncode == 4
    assert not (project / "runs").exists()


def test_a_run_without_a_slot_says_what_it_waits_for(project: Path) -> None:
    path = write_study(project)
    pool = SlotPool(Resources(), threads=1)
    held = [pool.acquire() for _ in range(pool.size)]
    assert all(held)
    run = start("run", str(path), cwd=project)
    assert run.stderr is not None
    said = ""
    while HUNGRY not in said:
        line = run.stderr.readline()
        assert line, f"it ended, and said:\n{said}"
        said += line
    for slot in held:
        assert slot is not None
        pool.release(slot)
    rest = finish(run)
    assert run.returncode == 0, rest
    assert "trials done" not in said
    assert query(project, "SELECT count(*) FROM attempt WHERE outcome = 'ok'") != [(0,)]


def test_more_slots_than_cores_are_as_many_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when one of them that was taken early is given back before a later one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    pool = SlotPool(Resources(), threads=1, jobs=4)
    slots = [pool.acquire() for _ in range(4)]
    assert all(slots)
    assert pool.acquire() is None
    for given_back in (slots[2], slots[0], slots[3], slots[1]):
        assert given_back is not None
        pool.release(given_back)
        found = list(itertools.islice(iter(pool.acquire, None), 5))
        assert len(found) == 1, "one place was free"
