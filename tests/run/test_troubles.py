"""Memory that runs out, attempts that hang and logs that never end: each is told as what it was, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ablate.run.logs import follow
from ablate.run.memory import oom_kills
from ablate.run.outcomes import decide
from ablate.store.claims import Ending
from ablate.train import folder as attempt_folder
from ablate.train.folder import AttemptFolder
from tests.command import ablate, query, start
from tests.run.test_stops import recorded, wait_until
from tests.studies import write_study

STUDY = """
schema: ablate/v1
name: toy
task: toy:train
metrics: {acc: {goal: max}}
settings: {way: none}
seeds: 1
"""


def run_with(path: Path, project: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run a study to its end with a runner that was changed by some lines of Python."""
    lines = ["import sys", "from ablate.run import memory, options", code, "from ablate.cli import main", "main()"]
    command = [sys.executable, "-c", "\n".join(lines), "run", str(path), "--no-mirror", "-j", "1"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120, check=False)


def log_of(project: Path) -> Path:
    return max(project.glob("runs/trials/*/*/stdout.log"))


# --- memory

REFUSED = """
import torch

def train(settings, context):
    match settings["way"]:
        case "python":
            bytearray(1 << 60)
        case "torch":
            torch.empty(1 << 60, dtype=torch.uint8)
        case "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        case "driver":
            raise RuntimeError("CUDA error: out of memory")
        case "library":
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        case "other":
            raise RuntimeError("out of luck")
    return {"acc": 1.0}
"""


def test_memory_that_is_refused_is_out_of_memory_and_would_be_refused_again(project: Path) -> None:
    ways = ("python", "torch", "gpu", "driver", "library", "other")
    steps = "".join(f"  - name: {way}\n    set: {{way: {way}}}\n" for way in ways)
    study = STUDY + "designs: [one-at-a-time]\nresources: {retries: 1}\nsteps:\n" + steps
    done = ablate("run", str(write_study(project, study, task=REFUSED)), cwd=project)
    assert done.returncode == 1, done.stderr
    rows = query(
        project,
        """SELECT arm.name, t.state, a.outcome, t.claim, t.reason FROM arm JOIN replicate r ON r.arm = arm.id
           JOIN trial t ON t.id = r.trial JOIN attempt a ON a.trial = t.id AND a.claim = t.claim""",
    )
    found = {name.removeprefix("only-"): rest for name, *rest in rows}
    assert found["other"] == ["failed", "error", 2, "error: RuntimeError: out of luck"]
    for way in ("python", "torch", "gpu", "driver", "library"):
        state, outcome, attempts, reason = found[way]
        assert (state, outcome, attempts) == ("failed", "oom", 1), way
        assert reason.startswith("out of memory: ")
    assert "can't allocate memory" in found["torch"][3]
    assert "out of memory: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB." in done.stderr
    shown = ablate("status", cwd=project).stdout
    assert "out of memory: OutOfMemoryError: CUDA" in " ".join(shown.split())


SMI = """#!/bin/sh
case "$*" in
    *memory.used*) echo "{used}, 81559" ;;
    *uuid,index*) echo "GPU-1111, 0, NVIDIA Fake" ;;
    *) echo "NVIDIA Fake, 580.1" ;;
esac
"""


@pytest.mark.parametrize(("used", "attempts"), [("640", 1), ("70000", 2), ("[N/A]", 1)])
def test_a_gpu_that_others_use_as_well_is_tried_once_more(project: Path, used: str, attempts: int) -> None:
    smi = project / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(SMI.format(used=used))
    smi.chmod(0o755)
    path = write_study(project, STUDY.replace("none", "gpu") + "resources: {gpus: 1}\n", task=REFUSED)
    path_with_smi = f"{smi.parent}:{os.environ['PATH']}"
    done = ablate("run", str(path), cwd=project, PATH=path_with_smi, TMPDIR=str(project))
    assert done.returncode == 1, done.stderr
    [(state, claim, reason)] = query(project, "SELECT state, claim, reason FROM trial")
    assert (state, claim) == ("failed", attempts), done.stderr
    assert reason.startswith("out of memory: OutOfMemoryError: CUDA out of memory.")
    assert reason.endswith("others hold 70,000 of 81,559 MiB of this GPU") is (attempts == 2)


KILLED = """
import os, signal
from pathlib import Path

def train(settings, context):
    if settings["way"] == "counted":
        with open(Path(__file__).parent / "kills", "a") as file:
            file.write("x")
    if not (settings["way"] == "once" and context.folder.name == "2"):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"acc": 1.0}
"""
COUNTER = """
from pathlib import Path
memory.oom_kills = lambda: len(Path("kills").read_text())
"""


def test_a_kill_by_the_kernel_for_memory_is_told_from_any_other(project: Path) -> None:
    """The kernel's counter is played by a file: a machine whose memory runs out is no place for tests."""
    (project / "kills").write_text("xx")  # of others, before us
    steps = "steps:\n  - name: counted\n    set: {way: counted}\n"
    path = write_study(project, STUDY + steps, task=KILLED)
    done = run_with(path, project, COUNTER)
    assert done.returncode == 1, done.stderr
    rows = query(project, "SELECT json_extract(settings_json, '$.way'), state, claim, reason FROM trial ORDER BY 1")
    assert rows == [
        ("counted", "failed", 2, "out of memory: killed by the kernel, which had no memory left"),
        ("none", "failed", 3, "died 3 times in a row without progress"),
    ]
    assert query(project, "SELECT outcome, count(*) FROM attempt GROUP BY 1") == [("killed", 3), ("oom", 2)]


def test_a_kill_for_memory_is_tried_once_more() -> None:
    killed = Ending("oom", "", signal=9)
    assert decide(killed, retries=0, errors=0, idle_deaths=0, progressed=False).state == "waiting"
    assert decide(killed, retries=0, errors=1, idle_deaths=0, progressed=True).state == "failed"
    refused = Ending("oom", "", error="OutOfMemoryError: CUDA out of memory")
    assert decide(refused, retries=3, errors=0, idle_deaths=0, progressed=False).state == "failed"


@pytest.mark.parametrize(
    ("groups", "file"),
    [("0::/job", "job/memory.events"), ("9:name=x:/\n4:cpu,memory:/job", "memory/job/memory.oom_control"), ("", "")],
)
def test_the_nearest_counter_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, file: str) -> None:
    (tmp_path / "groups").write_text(groups)
    (tmp_path / "vmstat").write_text("nr_free_pages 1\noom_kill 7\n")
    if file:
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("oom 9\noom_kill_disable 0\noom_kill 3\n")
    monkeypatch.setattr("ablate.run.memory._GROUPS", tmp_path / "groups")
    monkeypatch.setattr("ablate.run.memory._VMSTAT", tmp_path / "vmstat")
    monkeypatch.setattr("ablate.run.memory._MOUNT", tmp_path)
    assert oom_kills() == (3 if file else 7)


# --- stacks

SHORT_GRACE = """
original = options.Options
options.Options = lambda **values: original(**{**values, "grace_s": 1.0})
"""


@pytest.mark.parametrize(
    ("limit", "outcome", "stuck", "attempts"),
    [
        ("stall_timeout: 1s", "stalled", "time.sleep(60)", 2),
        ("timeout: 2s", "timeout", "max(range(10**12))", 1),  # in C, and never lets go of the interpreter
    ],
)
def test_an_attempt_that_hangs_tells_where(project: Path, limit: str, outcome: str, stuck: str, attempts: int) -> None:
    task = f"""
import threading, time

def beside():
    time.sleep(60)

def stuck_here():
    {stuck}

def train(settings, context):
    threading.Thread(target=beside, daemon=True).start()
    context.record(epoch=1, acc=0.0)
    stuck_here()
"""
    path = write_study(project, STUDY + f"resources: {{{limit}}}\n", task=task)
    done = run_with(path, project, SHORT_GRACE)
    assert done.returncode == 1, done.stderr
    assert query(project, "SELECT outcome FROM attempt") == [(outcome,)] * attempts
    log = log_of(project).read_text()
    assert "timeout; this is where its threads are:" in log
    assert "in stuck_here" in log
    assert "in beside" in log
    assert "in stuck_here" in done.stderr


def test_a_segfault_tells_where(project: Path) -> None:
    task = "import ctypes\ndef train(settings, context):\n    ctypes.string_at(0)\n"
    done = ablate("run", str(write_study(project, STUDY, task=task)), "--no-mirror", cwd=project)
    assert done.returncode == 1
    assert query(project, "SELECT DISTINCT signal FROM attempt") == [(signal.SIGSEGV,)]
    assert "Fatal Python error: Segmentation fault" in log_of(project).read_text()
    assert "in train" in done.stderr


# --- logs

FLOOD = """
import os, time

def train(settings, context):
    print("the very beginning")
    context.record(epoch=1, acc=0.0)
    for number in range(3000):
        os.write(1, b"%06d %s\\n" % (number, b"x" * 65000))
    while os.fstat(1).st_size > 16 << 20:  # what is written in the moment of a cut is lost: let it be over
        time.sleep(0.01)
    print("the very end")
    return {"acc": 1.0}
"""


def test_a_flood_of_output_keeps_its_beginning_and_its_end(project: Path) -> None:
    process = start("run", str(write_study(project, STUDY, task=FLOOD)), "--no-mirror", cwd=project)
    wait_until(lambda: recorded(project))
    largest = 0
    while process.poll() is None:
        largest = max(largest, log_of(project).stat().st_size)
        time.sleep(0.005)
    process.communicate()
    assert process.returncode == 0
    print(f"195 MB written; the log was never seen larger than {largest / 1e6:.0f} MB")
    log = log_of(project)
    assert log.stat().st_size <= attempt_folder.LOG_CAP
    lines = log.read_bytes().splitlines()
    assert lines[0] == b"the very beginning"
    assert lines[-1] == b"the very end"
    assert b"[ablate cut this log at 16 MiB: what stood here is left out]" in lines
    shown = ablate("logs", "--lines", "1", cwd=project)
    assert "the very end" in shown.stdout


@pytest.fixture
def small_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AttemptFolder:
    """An attempt's folder, where logs are cut at 10 kB."""
    monkeypatch.setattr(attempt_folder, "LOG_HEAD", 5000)
    monkeypatch.setattr(attempt_folder, "LOG_TAIL", 3000)
    monkeypatch.setattr(attempt_folder, "LOG_CAP", 10000)
    monkeypatch.setattr(attempt_folder, "BLOCK", 1000)
    return AttemptFolder(tmp_path)


def test_a_log_is_cut_at_line_ends_and_goes_on_at_its_end(small_log: AttemptFolder) -> None:
    worker = os.open(small_log.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in range(2000):
        os.write(worker, b"line %d\n" % number)
        small_log.cap_log()
    os.close(worker)
    lines = small_log.log_file.read_text().splitlines()
    assert small_log.log_file.stat().st_size <= 10000
    assert [line for line in lines if not line.startswith("line ")] == [
        "[ablate cut this log at 0 MiB: what stood here is left out]"
    ]
    numbers = [int(line.removeprefix("line ")) for line in lines if line.startswith("line ")]
    assert numbers == sorted(numbers)
    assert (numbers[0], numbers[-1]) == (0, 1999)


def test_a_worker_that_writes_faster_than_its_log_is_cut_loses_lines_and_never_their_ends(
    small_log: AttemptFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = os.open(small_log.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    line = b"a line of a flood".ljust(299, b"!") + b"\n"
    os.write(worker, line * 40)
    pwrite = os.pwrite

    def pwrite_beside_a_flood(file: int, content: bytes, at: int) -> int:
        os.write(worker, line * 10)
        return pwrite(file, content, at)

    monkeypatch.setattr(os, "pwrite", pwrite_beside_a_flood)
    small_log.cap_log()
    monkeypatch.undo()
    os.write(worker, b"the very end\n")
    os.close(worker)
    lines = small_log.log_file.read_bytes().splitlines(keepends=True)
    note = b"[ablate cut this log at 0 MiB: what stood here is left out]\n"
    assert lines[-2:] == [note, b"the very end\n"]
    assert lines.count(note) == 2
    halves = [one for one in lines if one not in (line, note, b"the very end\n")]
    assert all(one.endswith(b"\n") and line.startswith(one[:-1]) for one in halves)
    assert len(halves) <= 1


def test_a_log_of_one_endless_line_is_cut_as_well(tmp_path: Path) -> None:
    folder = AttemptFolder(tmp_path)
    folder.log_file.write_bytes(b"\r" * (attempt_folder.LOG_CAP + 1))
    folder.cap_log()
    assert 0 < folder.log_file.stat().st_size < attempt_folder.LOG_CAP


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_who_follows_a_log_goes_on_after_a_cut(tmp_path: Path) -> None:
    log = tmp_path / "stdout.log"
    log.write_text("a flood\n" * 100)
    changes = [lambda: log.write_text("a flood\ncut\n"), lambda: append(log, "the end\n")]

    def wait(_: float) -> None:
        changes.pop(0)()

    shown = list(follow(log, last=None, ended=lambda: not changes, wait=wait))
    assert shown == ["a flood"] * 100 + ["the end"]
