"""`execution: {compile: true}`: compiled once for all seeds of an arm, with bits that depend on the trial alone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ablate.errors import AblateError, EnvironmentFault
from ablate.plan.trials import open_plan
from ablate.run.studies import worker_server
from ablate.run.timing import time_arms
from ablate.train import toolchain
from ablate.train.classification import train_classifier
from ablate.train.compiled import prepare_compiler
from ablate.train.context import Context, Interrupted
from ablate.train.data import ImageData
from ablate.train.together import Asked, train_together
from ablate.train.toolchain import WHOLE
from tests.command import ablate, query, results
from tests.studies import write_study

TRAIN = {"epochs": 2, "batch": 64, "lr": 0.1, "optimizer": "sgd", "momentum": 0.9}
SETTINGS: dict[str, Any] = {
    "data": {"name": "digits", "split_seed": 0, "validation": 100, "subset": 150},  # 2 batches of 64, and one of 22
    "augment": {"flip": False, "crop": 1},
    "normalise": True,
    "train": TRAIN,
}
pytestmark = pytest.mark.timeout(1200)  # a compiler beside other work
UNREPEATED = {"train_seconds", "images_per_s", "peak_memory_mb"}


def net(data: ImageData) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(data.channels, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(36, data.classes),
    )


def trained(
    folder: Path, *, seed: int = 1, build: Callable[[ImageData], nn.Module] = net, batch: int = 64, **more: Any
) -> tuple[str, Context]:
    """Return a hash of the metrics that repeat and of the weights, and the context."""
    folder.mkdir(exist_ok=True)
    context = Context(seed=seed, folder=folder, **({"compile": True} | more))
    built: list[nn.Module] = []

    def keep(data: ImageData) -> nn.Module:
        built.append(build(data))
        return built[0]

    metrics = train_classifier(SETTINGS | {"train": TRAIN | {"batch": batch}}, context, keep)
    digest = hashlib.sha256(repr({k: v for k, v in metrics.items() if k not in UNREPEATED}).encode())
    for weight in built[0].state_dict().values():
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest(), context


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The compiler's files of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


# --- what a machine must have


@pytest.mark.parametrize(
    ("is_gpu", "environment", "lack"),
    [
        (False, {"CXX": "/nowhere/g++ -m64"}, "a C++ compiler, and there is no `/nowhere/g++ -m64`"),
        (False, {"CXX": "sh -c"}, ""),
        (True, {"CC": "/nowhere/gcc"}, "a C compiler, and there is no `/nowhere/gcc`"),
        (True, {"PATH": "/nowhere"}, "a C compiler, and there is no `gcc` or `clang`"),
        (False, {"PATH": "/nowhere"}, "a C++ compiler, and there is no `g++`"),
    ],
)
def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, is_gpu: bool, environment: dict[str, str], lack: str
) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert toolchain.missing(is_gpu=is_gpu) == (f"torch.compile needs {lack}" if lack else "")


def test_without_a_compiler_it_ends_before_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    settings = SETTINGS | {"data": {"name": "cifar10", "split_seed": 0, "validation": 100}}
    with pytest.raises(EnvironmentFault, match="there is no `/nowhere/g\\+\\+`"):
        train_classifier(settings, Context(seed=1, folder=tmp_path, compile=True), net)


def test_a_run_without_a_compiler_is_refused_before_anything_is_written(project: Path) -> None:
    write_study(project, STUDY, task=TASK)
    ran = ablate("run", "toy.yaml", cwd=project, CXX="/nowhere/g++")
    assert ran.returncode == 4
    assert ran.stderr == (
        "toy: 2 arms × 3 seeds, 6 trials\n"
        "error: toy.yaml:12: torch.compile needs a C++ compiler, and there is no `/nowhere/g++`\n"
        "hint: install it (on Debian and Ubuntu: `apt install g++ python3-dev`), or take `compile` out of `execution`\n"
    )
    assert not (project / "runs").exists()
    looked = ablate("doctor", cwd=project, CXX="/nowhere/g++").stdout
    assert "warning  torch.compile needs a C++ compiler, and there is no `/nowhere/g++`: no study can run" in looked


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies there is run as code."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "open"))
    with pytest.raises(EnvironmentFault, match="others may write to the folder of torch's compiler"):
        prepare_compiler(torch.device("cpu"))


# --- a compiler that is killed


SLOW = """
out=$(echo "$@" | sed 's/.*-o \\([^ ]*\\).*/\\1/')
echo half > "$out"
[ -e go ] || { touch begun; sleep 600; }
[ -e fail ] && exit 3
echo whole > "$out"
"""


def test_what_a_killed_compiler_leaves_is_not_taken_for_its_result(tmp_path: Path) -> None:
    (tmp_path / "slow").write_text(SLOW)
    command = ["sh", str(WHOLE), "sh slow", "-O2", "in put.cpp", "-o", str(tmp_path / "lib.so"), "-lm"]
    killed = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "lib.so").exists()
    (tmp_path / "go").touch()
    (tmp_path / "fail").touch()
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 1
    assert not (tmp_path / "lib.so").exists()
    (tmp_path / "fail").unlink()
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (tmp_path / "lib.so").read_text() == "whole\n"
    assert [path.name for path in tmp_path.glob("lib.so.*") if path.name != f"lib.so.{killed.pid}"] == []


def test_a_real_compiler_is_given_its_arguments_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "in put.cpp").write_text("#include <cstdio>\nint main() { std::puts(WORD); }\n")
    words = ["-O0", '-DWORD="two  words"', "in put.cpp", "-o", "out put"]
    subprocess.run(["sh", str(WHOLE), toolchain.cpp_compiler(), *words], cwd=tmp_path, check=True)
    assert subprocess.check_output([tmp_path / "out put"], text=True) == "two  words\n"
    told = subprocess.check_output(["sh", str(WHOLE), toolchain.cpp_compiler(), "--version"], text=True)
    assert told == subprocess.check_output([toolchain.cpp_compiler(), "--version"], text=True)


# --- the bits, and how often it is compiled

AGAIN = """
import sys
from pathlib import Path
import torch
from tests.train.test_compiled import trained
torch.set_num_threads(1)
digest, context = trained(Path(sys.argv[1]))
print("told", digest, context.facts["compiles"])
"""


def in_a_new_process(folder: Path, **environment: str) -> list[str]:
    """Train seed 1 in a fresh interpreter; return the hash and how often it compiled."""
    ran = subprocess.run(
        [sys.executable, "-c", AGAIN, str(folder)],
        env={**os.environ, "PYTHONHASHSEED": "0", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.rpartition("told ")[2].split()


@pytest.mark.slow
def test_seeds_of_an_arm_are_compiled_once_and_the_past_leaves_their_bits(tmp_path: Path) -> None:
    """An arm with other batches came before, by which torch would make code for any batch; then seed 2."""
    _, other = trained(tmp_path / "other", batch=48)
    _, second = trained(tmp_path / "2", seed=2)
    digest, first = trained(tmp_path / "1")
    again, repeated = trained(tmp_path / "again")
    assert [each.facts["compiles"] for each in (other, second, first, repeated)] == ["1", "1", "0", "0"]
    assert float(second.facts["compile_seconds"]) > 0
    assert digest == again
    eager, uncompiled = trained(tmp_path / "eager", compile=False)
    assert eager != digest, "then it was not compiled at all"
    assert "compiles" not in uncompiled.facts
    assert in_a_new_process(tmp_path / "files") == [digest, "1"]
    assert in_a_new_process(tmp_path / "cold", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "none")) == [digest, "1"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_attempt_ends_in_the_same_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    more = {"dtype": dtype, "memory_format": torch.channels_last}
    whole, _ = trained(tmp_path / "whole", **more)
    asked = iter([*[False] * 4, True])
    with pytest.raises(Interrupted):
        trained(tmp_path / "cut", stop_requested=asked.__next__, **more)
    resumed, context = trained(tmp_path / "on", earlier=[str(tmp_path / "cut")], **more)
    assert context.resumed_from == "cut"
    assert context.facts["compiles"] == "0"
    assert resumed == whole


def together_in(folder: Path, seeds: list[int]) -> tuple[dict[int, float], list[str]]:
    """Train seeds in a model of three; return the validation loss of each, and how often each compiled."""
    contexts = [Context(seed=seed, folder=folder / str(seed), compile=True) for seed in seeds]
    ends = train_together([Asked(SETTINGS, context, without_dropout) for context in contexts], 3)
    losses = {seed: end["val_loss"] for seed, end in zip(seeds, ends, strict=True) if isinstance(end, dict)}
    return losses, [context.facts["compiles"] for context in contexts]


def without_dropout(data: ImageData) -> nn.Module:
    return nn.Sequential(*[layer for layer in net(data) if not isinstance(layer, nn.Dropout)])  # type: ignore[arg-type]


@pytest.mark.slow
def test_seeds_in_one_model_are_compiled_once_and_have_their_bits_whoever_is_there(tmp_path: Path) -> None:
    whole, first = together_in(tmp_path / "whole", [1, 2, 3])
    others, second = together_in(tmp_path / "others", [2, 4])
    alone, third = together_in(tmp_path / "alone", [3])
    assert [first, second, third] == [["1"] * 3, ["0"] * 2, ["0"]]
    assert (others[2], alone[3]) == (whole[2], whole[3])
    assert len({*whole.values(), others[4]}) == 4


@pytest.mark.slow
def test_a_mistake_of_the_network_reads_as_ever(tmp_path: Path) -> None:
    def wrong(data: ImageData) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(63, data.classes))

    with pytest.raises(RuntimeError, match=r"mat1 and mat2 shapes cannot be multiplied"):
        trained(tmp_path / "a", build=wrong)


@pytest.mark.slow
def test_a_compiler_that_fails_is_quoted_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad").write_text(
        'case "$*" in *--version*|*-dump*|*-E*) exec g++ "$@";; esac\n'
        'echo "kernel.cpp:3: error: no such thing as a vector" >&2; exit 1\n'
    )
    monkeypatch.setenv("CXX", f"sh {tmp_path / 'bad'}")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "none"))
    with pytest.raises(AblateError) as failed:
        trained(tmp_path / "a", build=lambda data: nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(64, data.classes)))
    assert str(failed.value) == (
        "error: the network can't be compiled: kernel.cpp:3: error: no such thing as a vector\n"
        "hint: take `compile` out of `execution`"
    )


@pytest.mark.slow
def test_a_full_disk_is_no_fault_of_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() or sys.platform != "linux":
        pytest.skip("only root may mount a small disk")
    (disk := tmp_path / "disk").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(disk / "files"))
        with pytest.raises(EnvironmentFault, match="can't be written: No space left on device") as failed:
            trained(tmp_path / "a", build=lambda data: nn.Sequential(net(data), nn.Sigmoid()))
        assert str(disk) in str(failed.value)
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        digest, _ = trained(tmp_path / "b", build=lambda data: nn.Sequential(net(data), nn.Sigmoid()))
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "roomy"))
        torch._dynamo.reset()
        assert trained(tmp_path / "c", build=lambda data: nn.Sequential(net(data), nn.Sigmoid()))[0] == digest
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


# --- whole runs

TASK = """
from torch import nn
from ablate.train.classification import train_classifier

def train(settings, context):
    def build(data):
        width = settings["model"]["width"]
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, data.classes)
        )
    return train_classifier(settings, context, build)
"""
STUDY = """
schema: ablate/v1
name: toy
task: toy:train
metrics: {val_acc: {goal: max}}
settings:
  model: {width: 8}
  data: {name: digits, split_seed: 0, validation: 100, subset: 100}
  augment: {flip: false, crop: 1}
  normalise: true
  train: {epochs: 3, batch: 32, optimizer: sgd, lr: 0.1, momentum: 0.9}
execution: {compile: true, isolation: warm}
steps:
  - name: wide
    set: {model.width: 12}
seeds: 3
"""


def compiles(project: Path) -> dict[str, list[str]]:
    """Return how often the attempts of each arm compiled, in the order in which they ended."""
    rows = query(
        project,
        "SELECT t.settings_json, a.environment_json FROM attempt a JOIN trial t ON t.id = a.trial "
        "WHERE a.outcome = 'ok' ORDER BY a.ended",
    )
    found: dict[str, list[str]] = {}
    for settings, environment in rows:
        found.setdefault(json.loads(settings)["model"]["width"], []).append(json.loads(environment)["compiles"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("fuse", [1, 2])
def test_a_warm_worker_compiles_each_arm_once(project: Path, fuse: int) -> None:
    write_study(project, STUDY.replace("isolation: warm", f"isolation: warm, fuse: {fuse}"), task=TASK)
    ran = ablate("run", "toy.yaml", "--jobs", "1", cwd=project, timeout=1000)
    assert ran.returncode == 0, ran.stderr
    assert {arm: sorted(of_arm) for arm, of_arm in compiles(project).items()} == {
        8: ["0"] * (3 - fuse) + ["1"] * fuse,
        12: ["0"] * (3 - fuse) + ["1"] * fuse,
    }
    logs = "".join(path.read_text() for path in project.glob("runs/trials/*/*/stdout.log"))
    assert "Traceback" not in logs


@pytest.mark.slow
def test_workers_that_are_killed_as_they_compile_leave_nothing_broken(tmp_path: Path) -> None:
    """Two at once, in processes of their own, killed at two moments; then the same numbers as in a calm run."""
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    for project in (calm, rough):
        (project / ".git").mkdir(parents=True)
        study = STUDY.replace("isolation: warm", "isolation: process").replace("seeds: 3", "seeds: 1")
        write_study(project, study, task=TASK)
    ran = ablate("run", "toy.yaml", cwd=calm, timeout=1000, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "calmly"))
    assert ran.returncode == 0, ran.stderr
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "roughly")}
    files = 0
    for number in range(2):
        process = subprocess.Popen(
            [sys.executable, "-m", "ablate", "run", "toy.yaml"],
            cwd=rough,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 600
        while (now := len(list((tmp_path / "roughly").rglob("*.cpp")))) <= files:
            assert time.monotonic() < deadline, f"kill {number}: nothing is being compiled"
            assert process.poll() is None
            time.sleep(0.02)
        files = now
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = ablate("run", "toy.yaml", cwd=rough, timeout=1000, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "roughly"))
    assert done.returncode == 0, done.stderr
    assert results(rough) == results(calm)
    assert len(results(calm)) > 30


@pytest.mark.slow
def test_the_time_of_a_study_has_its_compiling_once(project: Path) -> None:
    """The first epoch has it, and is no measure of the other 99."""
    study = write_study(project, STUDY.replace("epochs: 3", "epochs: 100"), task=TASK)
    with worker_server() as workers:
        plan = open_plan(study).restricted(["baseline"])
        [timing] = time_arms(plan, workers, study_folder=project, environment={})
    assert timing.error == ""
    assert timing.first_record_s is not None
    assert timing.trial_s is not None
    assert timing.trial_s < 10 * timing.first_record_s
