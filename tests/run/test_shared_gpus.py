"""Several trials on one GPU: who gets which part, and what becomes of memory that runs out.

The GPUs are fakes: `nvidia-smi` is a script, and memory is a file in which each process writes down what it holds.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from ablate.plan.sharing import Shared, candidates, chosen
from ablate.plan.trials import open_plan
from ablate.run.outcomes import decide
from ablate.run.slots import YIELD_S, Slot, SlotPool
from ablate.store.claims import Ending
from ablate.study.schema import Resources
from ablate.train.context import Context
from ablate.train.memory import gpu_error_in, is_out_of_memory, may_be_gpu_memory
from ablate.train.pace import TURNS, Beside
from tests.command import ablate, finish, query, start
from tests.run import test_fused_runs as fused
from tests.run.test_slots import UUIDS, _own_locks, nvidia_smi
from tests.run.test_stops import wait_until, workers_of
from tests.run.test_troubles import SMI
from tests.studies import TOY, TOY_STUDY, write_study

__all__ = ["_own_locks", "nvidia_smi"]

GPU = "GPU-1111"
PARTS = [f"{GPU}#{number}" for number in (1, 2, 3)]


@pytest.fixture
def one_gpu(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with one GPU, of whose memory others than ablate hold little."""
    folder = project / "bin"
    folder.mkdir()
    (folder / "nvidia-smi").write_text(SMI.format(used="640"))
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def all_of(pool: SlotPool) -> list[Slot]:
    """Take every slot that there is."""
    return list(iter(pool.acquire, None))


# --- slots


def test_each_gpu_is_so_many_slots(nvidia_smi: Path) -> None:  # noqa: ARG001
    pool = SlotPool(Resources(gpus=1, per_gpu=3), threads=2)
    slots = all_of(pool)
    assert [slot.name for slot in slots] == [f"{gpu}#{part}" for part in (1, 2, 3) for gpu in UUIDS]
    for slot in slots:
        assert slot.gpus == (slot.environment["CUDA_VISIBLE_DEVICES"],) == (slot.name.partition("#")[0],)
        assert slot.environment["OMP_NUM_THREADS"] == "2"
        assert slot.own_gpus == (), "what it draws is not this slot's alone"
    assert len({slot.occupied for slot in slots}) == 6
    assert len({slot.shared for slot in slots}) == 2
    pool.release(slots[3])
    [again] = all_of(pool)
    assert again.name == slots[3].name
    assert len(all_of(SlotPool(Resources(gpus=1, per_gpu=3), threads=1, jobs=4))) == 0


def test_so_many_jobs_are_spread_over_the_gpus(nvidia_smi: Path) -> None:  # noqa: ARG001
    slots = all_of(SlotPool(Resources(gpus=1, per_gpu=4), threads=1, jobs=3))
    assert [slot.gpus for slot in slots] == [(UUIDS[0],), (UUIDS[1],), (UUIDS[0],)]


def test_runs_share_the_parts_of_a_gpu(one_gpu: Path) -> None:  # noqa: ARG001
    first, second = (SlotPool(Resources(gpus=1, per_gpu=3), threads=1) for _ in range(2))
    [one, two, three] = all_of(first)
    assert second.acquire() is None
    assert (first.others_on(GPU), second.others_on(GPU)) == (0, 3)
    first.release(two)
    assert first.acquire() is None, "it is the other's turn"
    found = second.acquire()
    assert found is not None
    assert found.name == two.name
    assert first.others_on(GPU) == 1
    for slot in (one, three):
        first.release(slot)
    second.release(found)


def test_who_wants_a_gpu_whole_gets_it_once_its_parts_are_free(one_gpu: Path) -> None:  # noqa: ARG001
    """And who shares it takes no part of it meanwhile: else they would never be free together."""
    sharing, whole = (SlotPool(Resources(gpus=1, per_gpu=number), threads=1) for number in (3, 1))
    slots = all_of(sharing)
    assert whole.acquire() is None
    for slot in slots[1:]:
        sharing.release(slot)
        time.sleep(YIELD_S + 0.05)  # it would take it again by now
        assert sharing.acquire() is None
        assert whole.acquire() is None
    sharing.release(slots[0])
    taken = whole.acquire()
    assert taken is not None
    assert (taken.name, taken.shared, taken.own_gpus) == (GPU, (), (GPU,))
    assert sharing.acquire() is None, "it is taken"
    whole.release(taken)
    wait_until(lambda: sharing.acquire() is not None)
    assert whole.acquire() is None


def test_a_gpu_that_nobody_has_is_taken_by_whoever_comes_first(one_gpu: Path) -> None:  # noqa: ARG001
    """Else two runs that want it whole in turns would keep one that shares it away for ever."""
    sharing, first, second = (SlotPool(Resources(gpus=1, per_gpu=number), threads=1) for number in (2, 1, 1))
    parts = all_of(sharing)
    assert first.acquire() is None
    for part in parts:
        sharing.release(part)
    taken = second.acquire()
    assert taken is not None
    second.release(taken)
    wait_until(lambda: sharing.acquire() is not None)  # though the first still wishes for it


def test_a_run_that_wants_one_whole_and_dies_is_waited_for_no_longer(one_gpu: Path) -> None:  # noqa: ARG001
    sharing, whole = (SlotPool(Resources(gpus=1, per_gpu=number), threads=1) for number in (2, 1))
    [first, _] = all_of(sharing)
    assert whole.acquire() is None
    sharing.release(first)
    whole.rest()  # as the kernel does for it
    wait_until(lambda: sharing.acquire() is not None)


def test_a_gpu_without_memory_takes_fewer_and_at_last_one_alone(one_gpu: Path) -> None:  # noqa: ARG001
    pool, other = (SlotPool(Resources(gpus=1, per_gpu=3), threads=1) for _ in range(2))
    slots = all_of(pool)
    assert pool.back_off(GPU, 3) == 2
    assert pool.back_off(GPU, 3) is None, "two of one crowd end for one reason"
    assert not pool.may_stay(slots[0])
    pool.release(slots[0])
    assert pool.acquire() is None, "two are there"
    assert pool.may_stay(slots[1])
    pool.release(slots[1])
    assert pool.acquire() is not None
    assert pool.back_off(GPU, 2) == 1
    assert pool.back_off(GPU, 1) is None, "never none"
    pool = SlotPool(Resources(gpus=1, per_gpu=3), threads=1)
    pool.back_off(GPU, 2)
    assert pool.acquire() is None, "others have parts of it"
    assert other.acquire() is None, "and take no more of them"


# --- runs

# what is held stands in a file until its process is gone; ROOM is in trials
DEVICE = """
import fcntl, os, time
from pathlib import Path
import torch

HERE = Path(__file__).parent

def wait_for(condition):
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.01)

def lines(name):
    return (HERE / name).read_text().splitlines() if (HERE / name).exists() else []

def arrive(name):
    with open(HERE / name, "a") as file:
        file.write(f"{os.getpid()}\\n")
    return len(lines(name))

def allocate(size):
    with open(HERE / "gpu", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        held = [line.split() for line in file.read().splitlines()]
        others = [(pid, int(part)) for pid, part in held if os.path.exists(f"/proc/{pid}") and pid != str(os.getpid())]
        file.truncate(0)
        file.write("".join(f"{pid} {part}\\n" for pid, part in [*others, (os.getpid(), size)]))
        with open(HERE / "at-once", "a") as log:
            log.write(f"{len(others) + 1} {os.environ['CUDA_VISIBLE_DEVICES']}\\n")
        if sum(part for _, part in others) + size > ROOM:
            arrive("refused")
            raise ERROR
"""
ERROR = 'torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")'
# the first CROWD trials wait for each other, and hold what they have until one of them was refused
CROWDED = """
def train(settings, context):
    is_first = arrive("arrived") <= CROWD
    if is_first:
        wait_for(lambda: len(lines("arrived")) >= CROWD)
    allocate(1)
    if is_first:
        wait_for(lambda: len(lines("refused")) >= CROWD - ROOM)
    return toy(settings, context)
"""


def task(*, room: int, crowd: int, error: str = ERROR, body: str = CROWDED) -> str:
    return f"{TOY.replace('def train', 'def toy')}{DEVICE}\nROOM, CROWD = {room}, {crowd}\nERROR = {error}\n{body}"


def shared(number: int | str, study: str = TOY_STUDY) -> str:
    return f"{study}resources: {{gpus: 1, per_gpu: {number}}}\n"


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """What the toy study gives on a GPU of its own for each trial, by settings and seed."""
    folder = tmp_path_factory.mktemp("calm")
    (folder / ".git").mkdir()
    write_study(folder)
    assert ablate("run", "toy.yaml", cwd=folder).returncode == 0
    return numbers(folder)


def numbers(project: Path) -> dict[str, float]:
    rows = query(
        project,
        """SELECT t.settings_json, t.seed, m.epoch, m.value FROM trial t JOIN measurement m
           ON m.trial = t.id AND m.claim = t.result_claim WHERE t.state = 'done'""",
    )
    return {str(key): value for *key, value in rows}


def outcomes(project: Path) -> dict[str, int]:
    return dict(query(project, "SELECT outcome, count(*) FROM attempt GROUP BY 1"))


def most_at_once(project: Path) -> list[int]:
    return [int(line.split()[0]) for line in (project / "at-once").read_text().splitlines()]


def test_trials_share_a_gpu_and_measure_the_same(project: Path, one_gpu: Path, calm: dict[str, float]) -> None:  # noqa: ARG001
    write_study(project, shared(3), task=task(room=3, crowd=3))
    done = ablate("run", "toy.yaml", cwd=project)
    assert done.returncode == 0, done.stderr
    assert numbers(project) == calm
    assert max(most_at_once(project)) == 3
    assert {line.split()[1] for line in (project / "at-once").read_text().splitlines()} == {GPU}
    assert {slot for (slot,) in query(project, "SELECT slot FROM attempt")} == set(PARTS)
    assert PARTS[1] in ablate("show", "baseline", cwd=project).stdout + ablate("show", "two", cwd=project).stdout


def test_how_many_share_a_gpu_is_no_part_of_a_trial(project: Path) -> None:
    whole = open_plan(write_study(project, TOY_STUDY + "resources: {gpus: 1}\n", name="whole"))
    some = open_plan(write_study(project, shared(3), name="some"))
    assert list(some.trials()) == list(whole.trials())
    assert "per_gpu" not in whole.study.spec()["resources"], "what a store has of a study stays as it was"
    profiled = TOY_STUDY + "resources: {gpus: 1}\nprofiles:\n  packed: {resources: {per_gpu: 4}}\n"
    assert open_plan(write_study(project, profiled), profile="packed").study.resources.sharers == 4


@pytest.mark.parametrize(
    ("room", "isolation", "error"),
    [
        (2, "process", ERROR),
        (2, "warm", ERROR),
        (1, "process", ERROR),  # two are refused, and the second counts for the same crowd
        (2, "process", 'RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED")'),  # how it fails with little left
    ],
)
def test_memory_that_runs_out_among_several_is_no_failure(
    project: Path,
    one_gpu: Path,  # noqa: ARG001
    calm: dict[str, float],
    room: int,
    isolation: str,
    error: str,
) -> None:
    study = shared(3) + f"execution: {{isolation: {isolation}}}\n"
    write_study(project, study, task=task(room=room, crowd=3, error=error))
    done = ablate("run", "toy.yaml", cwd=project)
    assert done.returncode == 0, done.stderr
    assert numbers(project) == calm
    outcome = "oom" if error == ERROR else "error"
    assert outcomes(project)["ok"] == 6
    assert outcomes(project)[outcome] >= 3 - room
    assert query(project, "SELECT DISTINCT errors FROM trial") == [(0,)], "no retry is used up"
    said = [f"{GPU} has no memory for 3 trials at once: from now on 2 trials"]
    more = [f"{GPU} has no memory for 2 trials at once: from now on 1 trial"]  # if two meet
    assert [line for line in done.stderr.splitlines() if "from now on" in line] in (said, said + more * (room == 1))
    assert f"{outcome}, goes back in the queue" in done.stderr
    first = most_at_once(project).index(3) + 1
    assert max(most_at_once(project)[first + 3 - room :]) <= 2
    errors = [text for (text,) in query(project, f"SELECT error FROM attempt WHERE outcome = '{outcome}'")]
    assert "; 3 trials were on this GPU at once" in errors[0]
    told = "".join(ablate("show", arm, cwd=project).stdout for arm in ("baseline", "two", "three"))
    assert "3 trials were on this GPU at once" in " ".join(told.split())


def test_memory_that_is_refused_to_one_alone_is_a_failure_with_a_hint(project: Path, one_gpu: Path) -> None:  # noqa: ARG001
    study = shared(2).replace("seeds: 2", "seeds: 1")
    write_study(project, study, task=task(room=0, crowd=1, body="def train(settings, context):\n    allocate(1)\n"))
    done = ablate("run", "toy.yaml", "--only", "baseline", cwd=project)
    assert done.returncode == 1, done.stderr
    assert query(project, "SELECT state, claim FROM trial WHERE claim > 0") == [("failed", 1)]
    assert "hint: a smaller batch, or `execution: {dtype: bfloat16}`, takes less memory" in done.stderr
    assert "from now on" not in done.stderr


def test_an_arm_that_never_fits_fails_when_it_is_alone(project: Path, one_gpu: Path) -> None:  # noqa: ARG001
    body = """
def train(settings, context):
    is_large = settings["level"] == 3
    allocate(9 if is_large else 1)
    return toy(settings, context)
"""
    write_study(project, shared(3), task=task(room=8, crowd=0, body=body))
    done = ablate("run", "toy.yaml", cwd=project)
    assert done.returncode == 1, done.stderr
    assert Counter(query(project, "SELECT state FROM trial")) == {("done",): 4, ("failed",): 2}
    assert outcomes(project)["oom"] <= 6, "two for each number of trials at once, at most"


def test_who_was_crowded_out_waits_and_loses_no_retry() -> None:
    ending = Ending("oom", "", error="CUDA out of memory")
    crowded = decide(ending, retries=0, errors=1, idle_deaths=2, progressed=False, shared=True, crowded=True)
    assert (crowded.state, crowded.reason, crowded.errors, crowded.idle_deaths) == ("waiting", None, 1, 2)


@pytest.mark.parametrize(
    ("error", "is_oom", "may_be_gpu"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True, True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True, True),
        (RuntimeError("CUDA driver error: out of memory"), True, True),
        (RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"), True, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True, True),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `x`"), True, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), False, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), False, True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), False, True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True, False),
        (MemoryError(), True, False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"), False, False),
        (RuntimeError("out of luck"), False, False),
        (ValueError("CUDA out of memory"), False, False),
    ],
)
def test_what_says_that_memory_was_refused(error: Exception, is_oom: bool, may_be_gpu: bool) -> None:
    assert (is_out_of_memory(error), may_be_gpu_memory(error)) == (is_oom, may_be_gpu)


PRINTED = "epoch 1\nTraceback (most recent call last):\n  File t.py, line 1\n{}\n"
REFUSED = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        (PRINTED.format(REFUSED), REFUSED),
        (PRINTED.format(f"[rank1]: {REFUSED}") + "torch.distributed.elastic: failed\nChildFailedError:\n", REFUSED),
        (PRINTED.format("RuntimeError: CUDA error: out of memory"), "RuntimeError: CUDA error: out of memory"),
        (PRINTED.format("ValueError: no"), ""),
        ("caught: CUDA out of memory, going on with half the batch\n" + PRINTED.format("ValueError: no"), ""),
        ("", ""),
    ],
)
def test_a_command_s_error_is_found_in_what_it_printed(printed: str, found: str) -> None:
    assert gpu_error_in(printed) == found


# torch's error without torch, which takes a script a second to import
SCRIPT = f"""
import sys
{TOY.replace("def train", "def toy")}{DEVICE.replace("import torch", "")}
class OutOfMemoryError(RuntimeError):
    __module__ = "torch"
ROOM, CROWD = 1, 2
ERROR = {ERROR.removeprefix("torch.")}
class Context:
    seed = int(sys.argv[2])
    resume = raise_if_stopped = checkpoint = lambda *_: None
    def record(self, *, epoch, epochs, acc):
        print('{{"epoch": %d, "acc": %r}}' % (epoch, acc))
{CROWDED}
train({{"level": int(sys.argv[1]), "epochs": 3, "pause": 0.0}}, Context())
"""


def test_a_command_that_is_crowded_out_goes_back_too(project: Path, one_gpu: Path) -> None:  # noqa: ARG001
    (project / "toy_script.py").write_text(SCRIPT)
    study = TOY_STUDY.replace("toy:train", '{command: "python toy_script.py {level} {seed}"}')
    study = study.replace(", epochs: 3, pause: 0.0, extra: 0", "")
    write_study(project, shared(2, study))
    done = ablate("run", "toy.yaml", cwd=project)
    assert done.returncode == 0, done.stderr
    assert outcomes(project) == {"ok": 6, "oom": 1}
    [(error,)] = query(project, "SELECT error FROM attempt WHERE outcome = 'oom'")
    assert error == f"the command exited with code 1: {REFUSED}; 2 trials were on this GPU at once"
    assert f"{GPU} has no memory for 2 trials at once: from now on 1 trial" in done.stderr


KILLED = """
def train(settings, context):
    arrive("arrived")
    wait_for(lambda: len(lines("arrived")) >= 3)
    (HERE / f"{settings['level']}-{context.seed}-{context.folder.name}").touch()
    if not lines("go"):
        keep = context.checkpoint
        context.checkpoint = lambda state: (keep(state), wait_for(lambda: lines("go")))
    return toy(settings, context)
"""


@pytest.mark.parametrize("isolation", ["process", "warm"])
def test_a_worker_killed_in_its_part_leaves_the_others_alone(
    project: Path,
    one_gpu: Path,  # noqa: ARG001
    calm: dict[str, float],
    isolation: str,
) -> None:
    study = shared(3) + f"execution: {{isolation: {isolation}}}\n"
    write_study(project, study, task=task(room=3, crowd=0, body=KILLED))
    process = start("run", "toy.yaml", cwd=project)
    wait_until(lambda: len(list(project.glob("runs/trials/*/1/checkpoint/manifest.json"))) == 3, seconds=120)
    victim = workers_of(project)[0]
    os.killpg(victim, signal.SIGKILL)
    wait_until(lambda: outcomes(project).get("killed") == 1, seconds=60)
    (project / "go").write_text("go\n")
    said = finish(process)
    assert process.returncode == 0, said
    assert outcomes(project) == {"ok": 6, "killed": 1}
    assert query(project, "SELECT count(*) FROM attempt WHERE resumed_from = 1") == [(1,)]
    assert numbers(project) == calm
    assert "from now on" not in said


def test_an_agent_gives_each_gpu_as_many(project: Path, one_gpu: Path, calm: dict[str, float]) -> None:  # noqa: ARG001
    write_study(project, shared(3), task=task(room=3, crowd=3))
    assert ablate("run", "toy.yaml", "--queue", cwd=project).returncode == 0
    done = ablate("agent", "--exit-when-empty", cwd=project)
    assert done.returncode == 0, done.stderr
    assert numbers(project) == calm
    assert max(most_at_once(project)) == 3


# --- per_gpu: auto


@pytest.mark.parametrize(
    ("held", "cores", "numbers"),
    [
        (10, 64, [1, 2, 4, 8, 9]), (10, 6, [1, 2, 4, 6]), (10, 1, [1]), (30, 64, [1, 2, 3]), (46, 64, [1]),
        (95, 64, [1]), (45, 64, [1, 2]), (1, 64, [1, 2, 4, 8, 16, 32, 64]), (1, 4, [1, 2, 4]), (0, 2, [1, 2]),
    ],
)  # fmt: skip
def test_what_is_measured_has_room_in_memory_and_on_cores(held: int, cores: int, numbers: list[int]) -> None:
    assert candidates(held=held, total=100, cores=cores) == numbers


def paces(**of_number: float) -> Shared:
    return {int(number[1:]): {"a": {1: pace}} for number, pace in of_number.items()}


@pytest.mark.parametrize(
    ("shared", "count", "gpus", "best"),
    [
        (paces(n1=1.0, n2=1.2, n4=2.0), 16, 1, 4),
        (paces(n1=1.0, n2=1.2, n4=2.4), 16, 1, 2),  # twice as many, each half as fast
        (paces(n1=1.0, n2=1.95), 16, 1, 1),  # less than 3 %
        (paces(n1=1.0, n2=1.2), 1, 1, 1),  # there is one trial
        (paces(n1=1.0, n2=1.2), 2, 2, 1),  # each has a GPU
        (paces(n1=1.0, n2=1.2), 4, 2, 2),
    ],
)
def test_as_many_share_a_gpu_as_end_the_study_first(shared: Shared, count: int, gpus: int, best: int) -> None:
    assert chosen(shared, {"a": range(1, count + 1)}, gpus=gpus, fuse=1) == best


def test_iterations_count_once_all_have_begun(tmp_path: Path) -> None:
    """By a record of each, which the slowest writes last."""
    peers = [Context(seed=1, folder=tmp_path / name) for name in ("quick", "slow")]
    watch = Beside(peers[0], [str(peer.folder) for peer in peers], seconds=0.0)
    assert not any(watch() for _ in range(50))
    assert peers[0].records == [{"epoch": 1}]
    peers[1].record(epoch=1)
    assert [watch() for _ in range(TURNS + 1)] == [False] * TURNS + [True]
    pace = watch.pace
    assert pace is not None
    assert 0 < pace < 60
    assert watch(), "it has been measured"
    assert watch.pace == pace


# the GPU is a fake, so it trains on the CPU; all else is as on a GPU
ON_CPU = fused.TASK.replace(
    '    print("seed", context.seed)', '    context.device = torch.device("cpu")\n    begin(settings, context)'
)
ON_CPU = (
    ON_CPU.replace("import os, signal\n", "import os, signal, torch\n")
    + """
def begin(settings, context):
    pass
"""
)
AUTO = fused.STUDY.replace("epochs: 3", "epochs: 1").replace("execution: {fuse: 2, isolation: warm}\n", "")
AUTO += "resources: {gpus: 1, per_gpu: auto}\n"
SAID = re.compile(r"^per_gpu: (\d) \((.*); measured in (\d+) s\)$", re.MULTILINE)


def sharing(project: Path) -> dict[str, object]:
    [(kept,)] = query(project, "SELECT plan_json FROM plan")
    found: dict[str, object] = json.loads(kept)["sharing"]
    return found


def test_auto_measures_once_and_keeps_its_choice(project: Path, one_gpu: Path) -> None:  # noqa: ARG001
    write_study(project, AUTO, task=ON_CPU)
    ran = ablate("run", "toy.yaml", "--only", "wide", cwd=project)
    assert ran.returncode == 0, ran.stderr
    told = SAID.search(ran.stderr)
    assert told, ran.stderr
    found = sharing(project)
    assert found["per_gpu"] == int(told[1])
    assert found["why"] == told[2]
    measured = found["paces"]
    assert isinstance(measured, dict)
    assert set(measured["1"]) == {"baseline", "wide"}
    assert all(pace > 0 for of_arm in measured.values() for pace in of_arm.values())
    assert set(found["held_mib"]) == {"baseline", "wide"}  # type: ignore[call-overload]
    if len(os.sched_getaffinity(0)) > 1:
        assert "2" in measured
        assert "2 at once: " in told[2]
    for words in ((), ("--set", f"resources.per_gpu={told[1]}"), ("--set", "resources.per_gpu=1")):
        again = ablate("run", "toy.yaml", "--only", "wide", *words, cwd=project)
        assert again.returncode == 0, again.stderr
        assert "6 trials done (trained nothing new)" in again.stderr
        assert "measured in" not in again.stderr


def test_auto_goes_back_where_so_many_have_no_memory(project: Path, one_gpu: Path) -> None:  # noqa: ARG001
    """The second of two is refused memory while it is measured, and the first does not wait for it for ever."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one core, and so never a second trial")
    refusing = DEVICE + f"ROOM, CROWD = 1, 0\nERROR = {ERROR}\ndef begin(settings, context):\n    allocate(1)\n"
    write_study(project, AUTO, task=ON_CPU + refusing)
    ran = ablate("run", "toy.yaml", "--only", "baseline", cwd=project)
    assert ran.returncode == 0, ran.stderr
    told = SAID.search(ran.stderr)
    assert told, ran.stderr
    assert told[1] == "1"
    assert told[2].startswith("against one at a time, 2 at once: no memory; `baseline` holds ")
    assert set(sharing(project)["paces"]) == {"1"}  # type: ignore[call-overload]
    assert outcomes(project) == {"ok": 3}


@pytest.mark.slow
def test_auto_leaves_a_gpu_to_one_where_an_arm_has_no_memory_even_alone(project: Path, one_gpu: Path) -> None:  # noqa: ARG001
    """That arm's trials fail, as they would have without it, and the others are trained."""
    refusing = f"def begin(settings, context):\n    if settings['model']['width'] == 12:\n        raise {ERROR}\n"
    write_study(project, AUTO, task=ON_CPU + refusing)
    ran = ablate("run", "toy.yaml", cwd=project)
    assert ran.returncode == 1, ran.stderr
    assert "per_gpu: 1 (an arm has no memory on a GPU of its own; measured in " in ran.stderr
    assert outcomes(project) == {"ok": 3, "oom": 3}


@pytest.mark.slow
def test_both_are_chosen_seeds_in_one_model_first(project: Path, one_gpu: Path) -> None:  # noqa: ARG001
    write_study(project, AUTO + "execution: {fuse: auto}\n", task=ON_CPU)
    ran = ablate("run", "toy.yaml", "--only", "baseline", cwd=project)
    assert ran.returncode == 0, ran.stderr
    chosen = re.findall(r"^(fuse|per_gpu): (\d) \(", ran.stderr, re.MULTILINE)
    assert [key for key, _ in chosen] == ["fuse", "per_gpu"]
    again = ablate("run", "toy.yaml", "--only", "baseline", cwd=project)
    assert "3 trials done (trained nothing new)" in again.stderr
    assert "measured in" not in again.stderr


def test_auto_is_refused_where_it_can_not_be_measured(project: Path, one_gpu: Path) -> None:  # noqa: ARG001
    path = write_study(project, shared("auto"))
    ran = ablate("run", "toy.yaml", cwd=project)
    assert ran.returncode == 2
    assert ran.stderr.partition("\n")[2] == (
        "error: toy.yaml:13: the arm `baseline` can't be measured for `per_gpu: auto`: the iterations of "
        "train_classifier are timed, and the task did not call it\n"
        "hint: write a number, or train by ablate.train.classification.train_classifier\n"
    )
    queued = ablate("run", str(path), "--queue", cwd=project)
    assert queued.returncode == 2
    assert "toy.yaml:13: `per_gpu: auto` has not been measured yet" in queued.stderr
    assert not (project / "runs").exists()


BESIDE = """
def train(settings, context):
    arrive("arrived")
    wait_for(lambda: len(lines("arrived")) >= 3 or lines("over"))
    allocate(1)
    wait_for(lambda: lines("refused") or lines("over"))
    return toy(settings, context)
"""


def test_memory_that_another_run_holds_is_no_failure_either(
    project: Path,
    one_gpu: Path,  # noqa: ARG001
    calm: dict[str, float],
) -> None:
    """Two of ours beside one of another run: ours is one fewer, and then waits for a GPU of its own."""
    other = SlotPool(Resources(gpus=1, per_gpu=3), threads=1)
    held = other.acquire()
    assert held is not None
    (project / "arrived").write_text("0\n")
    (project / "gpu").write_text(f"{os.getpid()} 1\n")
    write_study(project, shared(3), task=task(room=2, crowd=0, body=BESIDE))
    process = start("run", "toy.yaml", cwd=project)
    wait_until(lambda: (project / "refused").exists(), seconds=120)
    wait_until(lambda: outcomes(project).get("oom", 0) >= 1, seconds=60)
    (project / "over").write_text("over\n")
    (project / "gpu").write_text("")
    other.release(held)
    said = finish(process)
    assert process.returncode == 0, said
    assert numbers(project) == calm
    assert query(project, "SELECT DISTINCT errors FROM trial") == [(0,)]
    assert f"{GPU} has no memory for 3 trials at once: from now on 1 trial" in said
    assert query(project, "SELECT slot FROM attempt ORDER BY id DESC LIMIT 1") == [(GPU,)], "whole"
