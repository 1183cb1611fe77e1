"""What is run for a failpoint to be met: a project as it is before, and a command."""

from __future__ import annotations

import hashlib
import io
import shutil
import sqlite3
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.failpoints.forge import TRACE, Done, Forge
from tests.mirror.drawn import content
from tests.store.test_migrations import DUMP
from tests.studies import write_study

# without torch of its own, it writes all that a task can write, and its data come from an archive beside it
TASK = """
import hashlib, os, pathlib, time
from ablate.errors import DataError
from ablate.train import cifar

HERE = pathlib.Path(__file__).parent
cifar.BASE_URL = HERE.as_uri() + "/"
cifar.SHA256 = {"tiny/all.bin": (HERE / "tiny.sha256").read_text()}
TINY = cifar.Source("Tiny", "tiny.tar.gz", ("labels",), (("tiny/all.bin", "none"),), ())

def draw(*key):
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "big") / 2**32

def first(name):
    # whether this was asked for, and happens for the first time
    asked = os.environ.get("TOY") == name and not (HERE / name).exists()
    (HERE / name).touch() if asked else None
    return asked

def steal(context):
    from ablate.store import claims
    from ablate.store.store import open_store
    store = open_store(HERE / "runs" / "ablate.db")
    for held in claims.held_trials(store):
        if str(context.folder).endswith(held.folder):
            lost = claims.Ending("lost", "waiting")
            assert claims.take_back(store, held, lost)

def wait_until_heard(context, epoch):
    # what was recorded is in the store while the trial runs: a busy machine would see its end first
    import sqlite3
    query = "SELECT 1 FROM measurement m JOIN attempt a ON (a.trial, a.claim) = (m.trial, m.claim)"
    query += " WHERE m.epoch = ? AND a.folder = ?"
    folder = "/".join(pathlib.Path(context.folder).parts[-3:])
    connection = sqlite3.connect(f"file:{HERE / 'runs' / 'ablate.db'}?mode=ro", uri=True, timeout=60)
    while not connection.execute(query, (epoch, folder)).fetchone():
        context.raise_if_stopped()
        time.sleep(0.02)
    connection.close()

def prepare():
    import torch
    from ablate.train.images import Images
    from ablate.train.prepared import prepared
    folder = HERE / "data" / "prepared"
    folder.mkdir(exist_ok=True)
    (folder / "old.part").touch()
    os.utime(folder / "old.part", (0, 0))
    made = Images(torch.ones(2, 1, 1, 1, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    assert prepared(folder, {"files": []}, lambda: made).sha256 == made.sha256

def train(settings, context):
    if (HERE / "broken").exists() and settings["level"] == 2:
        raise ValueError("broken")
    cifar.provide(TINY, HERE / "data")
    if first("flood"):
        os.write(1, b"a line\\n" * (3 << 20))
    if first("stuck"):
        time.sleep(60)
    if first("stolen"):
        steal(context)
    if first("pictured"):
        from ablate.train.events import Events
        events = Events(context.folder)
        events.scalars([{"epoch": 1, "acc": 0.5}])
        events.close()
    if first("prepared"):
        prepare()
    state = context.resume() or {"epoch": 0, "sum": 0.0}
    done, total = state["epoch"], state["sum"]
    for epoch in range(done + 1, 4):
        context.raise_if_stopped()
        total += draw(settings["level"], context.seed, epoch)
        context.record(epoch=epoch, epochs=3, acc=total / epoch)
        if os.environ.get("TOY") == "heard":
            wait_until_heard(context, epoch)
        context.checkpoint({"epoch": epoch, "sum": total})
    context.artifact("note.txt", b"kept")
    context.scores([1, 2], [total, total])
    return {"acc": total}
"""

STUDY = """
schema: ablate/v1
name: toy
task: toy:train
metrics: {acc: {goal: max}}
settings: {level: 1}
steps:
  - name: two
    set: {level: 2}
seeds: 1
"""

RUN = ("run", "toy.yaml")
FIGURES = ("report", "--figures", "figures")
EXPORT = ("export", "--tensorboard", "events")
IMPORT = ("import", "toy.yaml", "--csv", "results.csv")


@dataclass(frozen=True)
class Scene:
    """A command that meets a failpoint in a project, and those that set all right again."""

    project: str = "new"
    command: tuple[str, ...] = RUN
    environment: Mapping[str, str] = field(default_factory=dict)
    also: str = ""  # failpoints that lead to this one
    settle: tuple[tuple[str, ...], ...] = (RUN,)


SCENES = {  # by the beginning of a failpoint's name
    "add_measurements": Scene(environment={"TOY": "heard"}),
    "aside": Scene("stray"),
    "crash": Scene(also="record_plan-uncommitted:raise"),
    "events": Scene(environment={"TOY": "pictured"}),
    "export": Scene("done", EXPORT, settle=(EXPORT,)),
    "export-mlflow": Scene(
        "done", ("export", "--mlflow", "runs-of-mlflow"), settle=(("export", "--mlflow", "runs-of-mlflow"),)
    ),
    "export-wandb": Scene("done", ("export", "--wandb", "offline"), settle=(("export", "--wandb", "offline"),)),
    "figure": Scene("tuned", FIGURES, settle=(FIGURES,)),
    "fence": Scene(environment={"TOY": "stolen"}),
    "log-begun": Scene(environment={"TOY": "flood"}),
    "log-moved": Scene(environment={"TOY": "flood"}),
    "log-opened-fresh": Scene(environment={"FORGE_THREADED": "1"}),
    "mirror": Scene("done", ("mirror",), settle=(("mirror",),)),
    "mirror-aside": Scene("torn", ("mirror",), settle=(("mirror",),)),
    "mirror-delete": Scene("mirrored", ("mirror", "--rebuild"), settle=(("mirror",),)),
    "mirror-log": Scene(environment={"ABLATE_NO_MIRROR": "0"}, settle=(RUN, ("mirror",))),
    "mirror-trial-changed": Scene("half mirrored", ("mirror",), settle=(("mirror",),)),
    "note": Scene("new", (*RUN, "--set", "resources.timeout=1s"), {"TOY": "stuck"}),
    "output": Scene("command"),
    "prepared": Scene(environment={"TOY": "prepared"}),
    "record_results": Scene("elsewhere", IMPORT, settle=(IMPORT,)),
    "reopen": Scene("failed", ("retry",), settle=(("retry",), RUN)),
    "retrain": Scene("changed", (*RUN, "--fresh"), settle=((*RUN, "--fresh"),)),
    "settings": Scene("command"),
    "starter": Scene("done", ("init", "mine"), settle=(("init", "again"),)),
    "sweep": Scene("half written"),
    "take_back": Scene("orphaned"),
    "timing": Scene("new", ("plan", "toy.yaml", "--time")),
    "upgrade": Scene("old", ("status",), settle=(("status",),)),
}


def scene_of(failpoint: str) -> Scene:
    beginnings = [each for each in SCENES if failpoint.startswith(each)]
    return SCENES[max(beginnings, key=len)] if beginnings else Scene()


class Stage:
    """Projects made ready once, and copied for each scene."""

    def __init__(self, folder: Path, forge: Forge) -> None:
        self._folder = folder
        self._forge = forge
        self._made: dict[str, Path] = {}

    def run(self, *words: str, project: Path, **environment: str) -> Done:
        (project / "tmp").mkdir(exist_ok=True)
        return self._forge(*words, cwd=project, **{"TMPDIR": str(project / "tmp"), **environment})

    def copy(self, name: str, to: Path) -> Path:
        if name not in self._made:
            project = self._folder / name.replace(" ", "-")
            MAKERS[name](self, project)
            self._made[name] = project
        shutil.copytree(self._made[name], to, symlinks=True)
        return to

    def settle(self, scene: Scene, project: Path) -> None:
        """Do what a user does once the fault is gone; attempts that counted as errors are put back in the queue."""
        for words in scene.settle:
            done = self.run(*words, project=project)
            if done.code == 1 and words[0] == "run":
                assert self.run("retry", project=project).code == 0
                done = self.run(*words, project=project)
            assert done.code == 0, done.err


def _new(_: Stage, project: Path) -> None:
    project.mkdir()
    write_study(project, STUDY, task=TASK)
    pixels = bytes(range(256)) * 16
    (project / "tiny.sha256").write_text(hashlib.sha256(pixels).hexdigest())
    with tarfile.open(project / "tiny.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("tiny/all.bin")
        member.size = len(pixels)
        archive.addfile(member, io.BytesIO(pixels))
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for words in (["init", "-q"], ["add", "toy.yaml"], ["commit", "-qm", "study"]):
        subprocess.run([*git, *words], cwd=project, check=True)
    with (project / "toy.yaml").open("a") as file:
        file.write("# a change that no commit has\n")


def _command(stage: Stage, project: Path) -> None:
    stage.copy("new", project)
    (project / "toy.yaml").write_text(STUDY.replace("toy:train", '{command: "sh train.sh {level} {seed}"}'))
    (project / "train.sh").write_text('echo "{\\"acc\\": $1.$2}"\n')


def _tuned(stage: Stage, project: Path) -> None:
    stage.copy("new", project)
    tuned = STUDY.replace("{level: 1}", "{level: 1, rate: 1}")
    (project / "toy.yaml").write_text(tuned + "tune: {rate: {choices: [1, 2]}}\nbudget: {sampler: grid}\n")
    done = stage.run(*RUN, project=project)
    assert done.code == 0, done.err


def _elsewhere(stage: Stage, project: Path) -> None:
    stage.copy("new", project)
    (project / "results.csv").write_text("arm,seed,acc\nbaseline,1,0.5\ntwo,1,0.25\n")


def _stray(stage: Stage, project: Path) -> None:
    stage.copy("done", project)
    (project / "runs" / "ablate.db").unlink()


def _done(stage: Stage, project: Path) -> None:
    stage.copy("new", project)
    done = stage.run(*RUN, project=project)
    assert done.code == 0, done.err


def _failed(stage: Stage, project: Path) -> None:
    stage.copy("new", project)
    (project / "broken").touch()
    assert stage.run(*RUN, project=project).code == 1
    (project / "broken").unlink()


def _changed(stage: Stage, project: Path) -> None:
    stage.copy("done", project)
    with (project / "toy.py").open("a") as file:
        file.write("# other code\n")


def _orphaned(stage: Stage, project: Path) -> None:
    stage.copy("new", project)
    killed = stage.run(*RUN, project=project, TOY="heard", ABLATE_FAILPOINT="add_measurements-committed:kill")
    assert killed.code == -9, killed.err


def _half_written(stage: Stage, project: Path) -> None:
    stage.copy("orphaned", project)
    for folder in project.glob("runs/trials/*/1/checkpoint"):
        (folder / ".9.pt.4711").write_bytes(b"half")


def _mirrored(stage: Stage, project: Path) -> None:
    stage.copy("done", project)
    assert stage.run("mirror", project=project).code == 0


def _half_mirrored(stage: Stage, project: Path) -> None:
    stage.copy("orphaned", project)
    assert stage.run("mirror", project=project).code == 0
    assert stage.run(*RUN, project=project).code == 0


def _torn(stage: Stage, project: Path) -> None:
    stage.copy("done", project)
    (project / "runs" / "mirror.db").write_bytes(b"no database" * 100)


def _old(_: Stage, project: Path) -> None:
    (project / "runs").mkdir(parents=True)
    with closing(sqlite3.connect(project / "runs" / "ablate.db")) as file:
        file.executescript(DUMP.read_text())


MAKERS: Mapping[str, Callable[[Stage, Path], None]] = {
    "new": _new,
    "done": _done,
    "failed": _failed,
    "changed": _changed,
    "command": _command,
    "orphaned": _orphaned,
    "mirrored": _mirrored,
    "half mirrored": _half_mirrored,
    "half written": _half_written,
    "elsewhere": _elsewhere,
    "tuned": _tuned,
    "stray": _stray,
    "torn": _torn,
    "old": _old,
}


def passes(trace: Path) -> dict[str, int]:
    """Return how often each failpoint was passed, in the process that passed it most often."""
    counts: dict[tuple[str, str], int] = {}
    for line in trace.read_text().splitlines():
        process, name = line.split()
        counts[process, name] = counts.get((process, name), 0) + 1
    found: dict[str, int] = {}
    for (_, name), count in counts.items():
        found[name] = max(count, found.get(name, 0))
    return found


__all__ = ["RUN", "TRACE", "Scene", "Stage", "content", "passes", "scene_of"]
