"""Training scripts of public packages are studies as they are: fetched from the package index, none of their code here.

The studies are those of docs/commands.md; what ablate says is compared with what the scripts themselves wrote.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.command import ablate, finish, query, start
from tests.numbers import NUMBERS
from tests.packages import unpacked
from tests.run.test_commands import children, parent_of
from tests.run.test_stops import wait_until

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "commands.md"
EPOCHS = f"""{NUMBERS} SELECT a.name, r.seed, m.epoch, m.value FROM trial t
    JOIN replicate r ON r.trial = t.id JOIN arm a ON a.id = r.arm
    JOIN number m ON m.trial = t.id AND m.claim = t.result_claim
    WHERE t.state = 'done' AND m.metric = '{{}}' ORDER BY 1, 2, m.epoch IS NULL, m.epoch"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def packages(name: str, folder: Path) -> Path:
    return unpacked(HERE / "public" / f"{name}.txt", folder)


def study(name: str, project: Path) -> Path:
    """Write a study of the page into the project."""
    found = re.search(rf"^```yaml {name}.yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{PAGE.name} has no {name}.yaml"
    path = project / f"{name}.yaml"
    path.write_text(found[1])
    return path


def write_mnist(folder: Path, *, images: int) -> None:
    """Write the digits of scikit-learn as the files of MNIST: five sixths to train on, the rest to test."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels, labels = load_digits(return_X_y=True)
    large = np.kron(pixels[:images].reshape(-1, 8, 8) * 15.9, np.ones((3, 3)))
    large = np.pad(large, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    cut = images * 5 // 6
    for part, name in ((slice(cut), "train"), (slice(cut, images), "t10k")):
        for values, kind in ((large[part], "images-idx3"), (labels[:images][part].astype(np.uint8), "labels-idx1")):
            header = np.array([0x0800 + values.ndim, *values.shape], ">u4").tobytes()
            (raw / f"{name}-{kind}-ubyte").write_bytes(header + values.tobytes())


def values(project: Path, metric: str) -> dict[tuple[str, int], list[tuple[int | None, float]]]:
    """Return the values of each finished trial: per epoch, and at last the result."""
    found: dict[tuple[str, int], list[tuple[int | None, float]]] = {}
    for arm, seed, epoch, value in query(project, EPOCHS.format(metric)):
        found.setdefault((arm, seed), []).append((epoch, value))
    return found


def means(project: Path, metric: str) -> dict[str, float]:
    report = json.loads(ablate("report", "--json", cwd=project).stdout)
    return {arm["name"]: arm["metrics"][metric]["mean"] for arm in report["arms"]}


def test_a_module_of_rl_zoo3_with_event_files(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("huggingface_hub")
    path = study("cartpole", project)
    search = {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{packages('rl_zoo3', tmp_path_factory.mktemp('rl'))}"}
    done = ablate("run", str(path), cwd=project, timeout=300, **search)
    assert done.returncode == 0, done.stderr

    told = values(project, "reward")
    own = {}
    for (folder,) in query(project, "SELECT folder FROM attempt"):
        log = Path(folder) if Path(folder).is_absolute() else project / "runs" / folder
        arguments = json.loads((log / "artifacts" / "settings.json").read_text())
        evaluations = np.load(next(log.rglob("evaluations.npz")))
        arm = "no-gae" if arguments["gae_lambda"] == 1.0 else "baseline"
        own[arm, arguments["seed"]] = dict(zip(evaluations["timesteps"], evaluations["results"].mean(1), strict=True))
    assert sorted(own) == [("baseline", 1), ("baseline", 2), ("no-gae", 1), ("no-gae", 2)]
    for trial, rewards in own.items():
        *epochs, (last, result) = told[trial]
        assert dict(epochs) == pytest.approx(rewards, rel=1e-6)  # event files hold float32
        assert [epoch for epoch, _ in epochs] == [512, 1024]
        assert (last, result) == (None, epochs[-1][1])
    for arm, mean in means(project, "reward").items():
        assert mean == pytest.approx(np.mean([own[arm, seed][1024] for seed in (1, 2)]), rel=1e-6)

    # a hyperparameter that the algorithm does not know, and one that nobody hands over
    unknown = path.read_text().replace("gae_lambda:{", "gae_lamda:{")
    path.write_text(unknown)
    failed = ablate("run", str(path), "--only", "baseline", cwd=project, timeout=300, **search)
    assert failed.returncode == 1
    assert "unexpected keyword argument 'gae_lamda'" in failed.stderr
    path.write_text(unknown.replace("settings: {", "settings: {clip_range: 0.2, "))
    refused = ablate("validate", str(path), cwd=project)
    assert refused.returncode == 2
    assert "the command never mentions `clip_range`" in refused.stderr


def test_the_script_of_schedulefree_with_printed_lines(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    package = packages("schedulefree", tmp_path_factory.mktemp("schedulefree")) / "schedulefree-1.4.1"
    write_mnist(project / "data", images=240)
    folder = project / "mnist"
    folder.mkdir()
    shutil.copy(package / "examples" / "mnist" / "main.py", folder)
    path = study("schedule-free", folder)
    search = {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{package}"}
    done = ablate("run", str(path), cwd=project, timeout=300, **search)
    assert done.returncode == 0, done.stderr
    told = values(project, "accuracy")
    assert sorted(told) == [("baseline", 1), ("baseline", 2), ("high-lr", 1), ("high-lr", 2)]

    # the script by itself prints the same
    command = [sys.executable, "main.py", "--epochs", "2", "--batch-size", "20", "--lr", "0.01", "--seed", "2"]
    environment = {**os.environ, **search, "OMP_NUM_THREADS": "1"}
    alone = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    printed = [float(value) for value in re.findall(r"Accuracy: .*\(([\d.]+)%\)", alone.stdout)]
    assert len(printed) == 2, alone.stderr
    assert told["high-lr", 2] == [*enumerate(printed, start=1), (None, printed[-1])]
    assert len({tuple(each) for each in told.values()}) == 4  # arms and seeds do differ

    path.write_text(path.read_text().replace("--epochs", "--epoch-count"))
    failed = ablate("run", str(path), "--only", "baseline", cwd=project, **search)
    assert failed.returncode == 1
    assert "unrecognized arguments: --epoch-count 2" in failed.stderr


RESUMED = """
schema: ablate/v1
name: resumed
task:
  command: >-
    python mnist_save_resume_engine.py --epochs {epochs} --lr {lr} --deterministic {deterministic}
    --log_dir {folder} --resume_from {resume}/checkpoint_*.pt
  flags: argparse
  environment:
    SEED: "{seed}"  # which it does not read: it seeds itself
    TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD: "1"  # its checkpoints hold arrays of NumPy, which torch.load would refuse
  metrics_from: {tensorboard: "{folder}", names: {accuracy: valdation/avg_accuracy}}
metrics: {accuracy: {goal: max}}
settings: {epochs: 4, lr: 0.05, deterministic: true}
seeds: [1]
"""


def test_the_script_of_ignite_goes_on_from_its_newest_checkpoint(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    package = packages("ignite", tmp_path_factory.mktemp("ignite")) / "pytorch_ignite-0.5.5"
    search = {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{package}"}
    ways = {}
    for way in ("killed", "whole"):
        folder = project / way
        (folder / ".git").mkdir(parents=True)
        write_mnist(folder, images=120)
        shutil.copy(package / "examples" / "mnist" / "mnist_save_resume_engine.py", folder)
        (folder / "resumed.yaml").write_text(RESUMED)
        if way == "killed":
            process = start("run", "resumed.yaml", cwd=folder, **search)
            saved = lambda here=folder: list(here.glob("runs/trials/*/1/artifacts/checkpoint_2.pt"))  # noqa: E731
            wait_until(lambda: bool(saved()), seconds=200)  # noqa: B023
            os.kill(parent_of(children(saved()[0].parent)[0]), signal.SIGKILL)
            finish(process, timeout=300)
        done = ablate("run", "resumed.yaml", cwd=folder, timeout=300, **search)
        assert done.returncode == 0, done.stderr
        ways[way] = values(folder, "accuracy")
    [(resumed,)] = query(project / "killed", "SELECT resumed_from FROM attempt WHERE outcome = 'ok'")
    assert resumed == 1
    assert "Resume from the checkpoint" in ablate("logs", "resumed", cwd=project / "killed").stdout
    assert [epoch for epoch, _ in ways["killed"]["baseline", 1]] == [1, 2, 3, 4, None]
    assert ways["killed"] == ways["whole"]
