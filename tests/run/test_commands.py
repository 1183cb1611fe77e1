"""Studies of commands: a user's own scripts, run unchanged by the real `ablate run`."""

from __future__ import annotations

import json
import os
import re
import signal
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from ablate.study.command import finder
from ablate.study.schema import Task
from ablate.train.command import _missing, _resumable, _write_settings
from ablate.train.folder import AttemptFolder, Work
from ablate.train.sources import PrintedJson
from tests.command import ablate, finish, query, start
from tests.numbers import NUMBERS
from tests.run.test_stops import running, wait_until

SCRIPT = """
import argparse, json, os, sys, time
from helper import gain

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, required=True)
parser.add_argument("--amp", action="store_true")
parser.add_argument("--widths", type=int, nargs="+", default=[])
parser.add_argument("--seed", type=int)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--out")
parser.add_argument("--resume")
parser.add_argument("--pause", type=float, default=0)
args = parser.parse_args()

total, first = 0.0, 1
if args.resume:
    first, total = json.load(open(args.resume))
for epoch in range(first, args.epochs + 1):
    time.sleep(args.pause)
    total += gain(args.lr, args.amp, args.widths) + args.seed / 100 * epoch
    print(json.dumps({"epoch": epoch, "acc": total}), flush=True)
    if args.out:
        with open(args.out + ".new", "w") as file:
            json.dump([epoch + 1, total], file)
        os.replace(args.out + ".new", args.out)
"""

HELPER = """
def gain(lr, amp, widths):
    return 10 * lr + 2 * amp + sum(widths)
"""


def write(project: Path, task: Any, *, script: str = SCRIPT, **changes: Any) -> Path:
    (project / "train.py").write_text(textwrap.dedent(script))
    (project / "helper.py").write_text(HELPER)
    study = {
        "schema": "ablate/v1",
        "name": "mine",
        "task": task,
        "metrics": {"acc": {"goal": "max"}},
        "settings": {"train": {"lr": 0.1, "amp": False}, "model": {"widths": [1]}},
        "steps": [
            {"name": "amp", "set": {"train.amp": True}},
            {"name": "wide", "set": {"model.widths": [1, 2, 3]}},
        ],
        "seeds": 2,
        **changes,
    }
    path = project / "mine.yaml"
    path.write_text(json.dumps(study, indent=1))
    return path


ARGPARSE = {
    "command": "python train.py --lr {train.lr} --amp {train.amp} --widths {model.widths} --seed {seed}",
    "flags": "argparse",
}


def means(project: Path) -> dict[str, float]:
    report = json.loads(ablate("report", "--json", cwd=project).stdout)
    return {arm["name"]: round(arm["metrics"]["acc"]["mean"], 6) for arm in report["arms"]}


EXPECTED = {"baseline": 6.09, "amp": 12.09, "wide": 27.09}  # 3 epochs of the gain, and (1 + 2 + 3) 1.5 / 100


def test_a_script_with_flags_is_a_study(project: Path) -> None:
    path = write(project, ARGPARSE)
    done = ablate("run", str(path), cwd=project)
    assert done.returncode == 0, done.stderr
    assert means(project) == EXPECTED
    epochs = query(project, f"{NUMBERS} SELECT DISTINCT epoch FROM number ORDER BY epoch")
    assert epochs == [(None,), (1,), (2,), (3,)]
    logged = ablate("logs", "mine", "wide", "--seed", "2", cwd=project).stdout
    assert "train.py --lr 0.1 --amp --widths 1 2 3 --seed 2\n" in logged

    # its code is known: what the script imports from beside it is part of it
    (project / "helper.py").write_text(HELPER.replace("10 * lr", "20 * lr"))
    asked = ablate("run", str(path), cwd=project)
    assert asked.returncode == 2
    assert "has changed since 6 finished trials" in asked.stderr


WAYS: dict[str, tuple[Any, str]] = {
    "settings file": (
        {"command": "python run.py {settings.json} {seed}"},
        "import json; s = json.load(open(sys.argv[1])); seed = int(sys.argv[2]); assert s['seed'] == seed; tell = say",
    ),
    "YAML file": (
        {"command": "python run.py {settings.yaml} {seed}"},
        "import yaml; s = yaml.safe_load(open(sys.argv[1])); seed = int(sys.argv[2]); tell = say",
    ),
    "environment": (
        {
            "command": "python run.py",
            "environment": {"LR": "{train.lr}", "AMP": "{train.amp}", "SEED": "{seed}", "S": "{settings.json}"},
        },
        "e = os.environ; s = {'train': {'lr': float(e['LR']), 'amp': e['AMP'] == 'true'},"
        " 'model': json.load(open(e['S']))['model']}; seed = int(e['SEED']); tell = say",
    ),
    "pattern": (
        {
            "command": "python run.py {settings.json} {seed}",
            "metrics_from": {"pattern": r"epoch (?P<epoch>\d+): top-1 (?P<acc>[\d.]+) %"},
        },
        "s = json.load(open(sys.argv[1])); seed = int(sys.argv[2]);"
        " tell = lambda epoch, acc: print(f'epoch {epoch}: top-1 {acc!r} %')",
    ),
    "CSV": (
        {
            "command": "python run.py {settings.json} {seed} {folder}",
            "metrics_from": {"csv": "{folder}/log.csv", "names": {"acc": "top1"}},
        },
        "s = json.load(open(sys.argv[1])); seed = int(sys.argv[2]); log = open(sys.argv[3] + '/log.csv', 'w');"
        " log.write('epoch,top1\\n'); tell = lambda epoch, acc: log.write(f'{epoch},{acc!r}\\n')",
    ),
    "JSON file": (
        {
            "command": "python run.py {settings.json} {seed} {folder}",
            "metrics_from": {"json": "{folder}/m.json", "names": {"acc": "test.acc"}},
        },
        "s = json.load(open(sys.argv[1])); seed = int(sys.argv[2]);"
        " tell = lambda epoch, acc: json.dump({'test': {'acc': acc}}, open(sys.argv[3] + '/m.json', 'w'))",
    ),
    "TensorBoard": (
        {
            "command": "python run.py {settings.json} {seed} {folder}",
            "metrics_from": {"tensorboard": "{folder}", "names": {"acc": "acc/val"}},
        },
        "from torch.utils.tensorboard import SummaryWriter; s = json.load(open(sys.argv[1])); seed = int(sys.argv[2]);"
        " w = SummaryWriter(sys.argv[3]); tell = lambda epoch, acc: (w.add_scalar('acc/val', acc, epoch), w.flush())",
    ),
}

RUN = """
import json, os, sys
def say(epoch, acc):
    print(json.dumps({"epoch": epoch, "acc": acc}))
READ
from helper import gain
total = 0.0
for epoch in (1, 2, 3):
    total += gain(s["train"]["lr"], s["train"]["amp"], s["model"]["widths"]) + seed / 100 * epoch
    tell(epoch, total)
"""


@pytest.mark.parametrize("way", WAYS)
def test_settings_go_in_and_metrics_come_out(project: Path, way: str) -> None:
    task, read = WAYS[way]
    (project / "run.py").write_text(RUN.replace("READ", read))
    done = ablate("run", str(write(project, task, seeds=[1, 2])), cwd=project)
    assert done.returncode == 0, done.stderr + "".join(
        p.read_text() for p in project.glob("runs/trials/*/1/stdout.log")
    )
    tolerance = 1e-5 if way == "TensorBoard" else 1e-9  # its scalars are float32
    assert means(project) == pytest.approx(EXPECTED, abs=tolerance)


@pytest.mark.parametrize(
    ("script", "outcome", "said"),
    [
        ("raise SystemExit(3)", "error", "the command exited with code 3"),
        ("print('{\"accuracy\": 3}')", "error", "the command left no `acc`, which the study declares"),
        ('print(\'{"acc": "3 %"}\')', "error", "`acc` is '3 %', which is no number"),
        ("print('{\"acc\": NaN}')", "diverged", "acc is nan at the end"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed", None),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed", None),
        ("import time\nwhile True: time.sleep(1)", "timeout", None),
    ],
)
def test_how_a_command_ends_is_how_its_attempt_ends(project: Path, script: str, outcome: str, said: str | None) -> None:
    study = {"steps": [], "seeds": [1], "resources": {"timeout": 8}}
    task = {"command": "python train.py {settings.json} --seed {seed}"}
    done = ablate("run", str(write(project, task, script=script, **study)), cwd=project)
    assert done.returncode == (0 if outcome == "diverged" else 1), done.stderr
    outcomes = query(project, "SELECT DISTINCT outcome, error FROM attempt")
    assert outcomes == [(outcome, said)]
    if outcome in LOGGED:
        logged = ablate("logs", cwd=project).stdout
        assert LOGGED[outcome] in logged
        assert "Current thread" not in logged  # of the worker, which only waits


LOGGED = {"killed": "ablate: the command was ended by SIG", "timeout": "ablate: the attempt ran into its timeout\n"}


@pytest.mark.parametrize(
    ("names", "printed", "message"),
    [
        ({}, '{"accuracy": 3}', "the command left no `acc`, which the study declares\n"
         "hint: it left `accuracy`; where that is meant, say `metrics_from: {names: {acc: accuracy}}`"),
        ({}, '{"val": {"acc": 3, "loss": 1}}', "the command left no `acc`, which the study declares\n"
         "hint: it left `val.acc` and `val.loss`; where that is meant, say `metrics_from: {names: {acc: val.acc}}`"),
        ({"acc": "top5"}, '{"acc": 1, "top1": 3}', "the command left no `top5`, read as `acc`\n"
         "hint: it left `acc` and `top1`; where that is meant, say `metrics_from: {names: {acc: top1}}`"),
        ({}, "done", "the command left no `acc`, which the study declares\n"
         "hint: there is no a.csv; `ablate logs` shows what it printed, docs/commands.md what is read"),
    ],
)  # fmt: skip
def test_a_metric_that_did_not_arrive(names: dict[str, str], printed: str, message: str) -> None:
    source = PrintedJson(["acc"], names)
    assert list(source.printed(printed)) == []
    assert str(_missing("acc", source, "there is no a.csv")) == f"error: {message}"


BESIDE = """
import json, subprocess, sys
sys.stderr.write("\\r 10 % of the first epoch")
sys.stderr.flush()
print(json.dumps({"epoch": 1, "acc": 1.5}), flush=True)
left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("left", left.pid, flush=True)
sys.stdout.close()
sys.stderr.write("\\r" + json.dumps({"epoch": 2, "acc": 2.5}) + "\\n")
"""


def test_both_streams_are_read_and_nothing_is_left_running(project: Path) -> None:
    task = {"command": "python train.py {settings.json} --seed {seed}"}
    done = ablate("run", str(write(project, task, script=BESIDE, steps=[], seeds=[1])), cwd=project)
    assert done.returncode == 0, done.stderr
    values = query(project, "SELECT epoch, value FROM measurement ORDER BY epoch")
    assert values == [(1, 1.5), (2, 2.5)]
    left = re.search(r"left (\d+)", ablate("logs", cwd=project).stdout)
    assert left is not None
    wait_until(lambda: not alive(int(left[1])))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


RESUMED = {
    "command": "python train.py --lr {train.lr} --amp {train.amp} --widths {model.widths} --seed {seed} "
    "--pause 0.4 --epochs 8 --out {folder}/last.json --resume {resume}/last.json",
    "flags": "argparse",
}


@pytest.mark.parametrize("how", ["stop", "kill the worker", "kill the runner"])
def test_a_command_goes_on_from_its_own_checkpoint(project: Path, how: str) -> None:
    path = write(project, RESUMED, steps=[], seeds=[1])
    quiet = project / "quiet"
    quiet.mkdir()
    process = start("run", str(path), cwd=project)
    saved = lambda: list(project.glob("runs/trials/*/1/artifacts/last.json"))  # noqa: E731
    wait_until(lambda: bool(saved()))
    command = children(saved()[0].parent)
    assert command
    if how == "stop":
        process.send_signal(signal.SIGTERM)
        assert "nothing is lost" in finish(process)
        assert process.returncode == 143
    elif how == "kill the worker":
        os.kill(parent_of(command[0]), signal.SIGKILL)
        finish(process)
    else:
        process.kill()
        finish(process)
    wait_until(lambda: not [pid for pid in command if Path(f"/proc/{pid}").exists()])  # it dies with its worker
    done = ablate("run", str(path), cwd=project)
    assert done.returncode == 0, done.stderr
    second = query(project, "SELECT resumed_from FROM attempt WHERE outcome = 'ok'")
    assert second == [(1,)]
    assert means(project) == {"baseline": pytest.approx(8 * 2 + 0.36, abs=1e-6)}
    assert query(project, "SELECT count(*) FROM trial WHERE state = 'done'") == [(1,)]


@pytest.mark.parametrize(
    ("word", "file", "meant"),
    [
        ("{resume}/last.pt", "last.pt", "{resume}/last.pt"),
        ("--ckpt={resume}/last.pt", "last.pt", "--ckpt={resume}/last.pt"),
        ("+trainer.ckpt_path={resume}/last.pt", "last.pt", "+trainer.ckpt_path={resume}/last.pt"),  # as Hydra has it
        ("{resume}/{model.name}_{seed}.pt", "net_7.pt", "{resume}/net_7.pt"),
        ("--from={resume}/epoch_*.pt", "epoch_10.pt", "--from={resume}/epoch_10.pt"),
        ("{resume}/*/log*", "run 1/log[0]", "{resume}/run 1/log[0]"),
        ("{resume}", "anything", "{resume}"),
    ],
)
def test_a_checkpoint_is_found_by_what_the_word_says(tmp_path: Path, word: str, file: str, meant: str) -> None:
    old, new = (AttemptFolder(tmp_path / name).artifacts for name in "12")
    task = Task(command=f"python train.py --seed {{seed}} '{word}'")
    work = Work("", str(tmp_path), {}, 7, "", earlier=(str(new.parent), str(old.parent)))
    find = partial(finder, {"model": {"name": "net"}}, seed=7, folder=str(tmp_path))
    assert _resumable(task, work, find) == (None, {})
    (old / file).parent.mkdir(parents=True)
    new.mkdir(parents=True)
    for name in ("epoch_9.pt", "epoch_11.txt", file):
        (old / name).touch()
        os.utime(old / name, ns=(len(list(old.rglob("*"))),) * 2)
    folder, found = _resumable(task, work, find)
    assert folder == old
    filled = word.replace("{resume}", str(old)).replace("{model.name}", "net").replace("{seed}", "7")
    assert found == {filled: meant.replace("{resume}", str(old))}


def children(folder: Path) -> list[int]:
    """Return the processes that were started with a folder in their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if str(folder).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_the_live_view_hears_of_epochs_while_the_command_runs(project: Path) -> None:
    path = write(project, {**RESUMED, "command": RESUMED["command"] + " --pause 3"}, steps=[], seeds=[1])
    process = start("run", str(path), cwd=project)
    epochs = "SELECT count(*) FROM measurement"
    wait_until(lambda: running(project))
    wait_until(lambda: query(project, epochs) > [(0,)])
    assert query(project, "SELECT state FROM trial") == [("running",)]
    process.send_signal(signal.SIGTERM)
    finish(process)


def test_a_program_beside_the_study(project: Path) -> None:
    script = project / "bin" / "train"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\necho "{\\"acc\\": $2}"\n')
    study = {"steps": [], "seeds": [1]}
    path = write(project, {"command": "bin/train {settings.json} 7 {seed}"}, **study)
    refused = ablate("run", str(path), cwd=project)
    assert refused.returncode == 2
    assert "the program `bin/train` is not executable\nhint: `chmod +x bin/train`" in refused.stderr
    script.chmod(0o755)
    (project / "elsewhere").mkdir()
    done = ablate("run", str(path), cwd=project / "elsewhere")
    assert done.returncode == 0, done.stderr
    assert means(project) == {"baseline": 7.0}


def test_the_files_of_settings_are_read_back_as_they_were(tmp_path: Path) -> None:
    """By the reader that most scripts use, which knows YAML 1.1 and takes ``1e-05`` for text."""
    settings = {"lr": 1e-05, "large": 1e22, "text": ["no", "1e-3", "1:30", "010", "", "é\n"], "null": None, "on": True}
    _write_settings(tmp_path, settings, 7)
    assert yaml.safe_load((tmp_path / "settings.yaml").read_text()) == {**settings, "seed": 7}
    assert json.loads((tmp_path / "settings.json").read_text()) == {**settings, "seed": 7}
