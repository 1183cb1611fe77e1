"""`ablate run` in real processes: what is trained, what is not, and how each way to end an attempt is kept."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

from tests.command import ablate, query, results
from tests.numbers import NUMBERS
from tests.studies import TOY, TOY_STUDY, write_study


def attempts(project: Path) -> list[tuple[str, int]]:
    """Return (arm, seed) of every attempt, in order."""
    return query(
        project,
        """SELECT DISTINCT a.name, r.seed, at.id FROM attempt at JOIN replicate r ON r.trial = at.trial
           JOIN arm a ON a.id = r.arm ORDER BY at.id""",
    )


def test_a_study_is_run_once_and_grows_without_retraining(project: Path) -> None:
    path = write_study(project)
    first = ablate("run", str(path), cwd=project)
    assert first.returncode == 0, first.stderr
    assert "toy: 6 trials done (6 attempts)" in first.stderr
    assert "two" in first.stdout
    assert "6 trials planned = 6 finished + 0 diverged + 0 missing" in " ".join(first.stdout.split())
    before = results(project)

    again = ablate("run", str(path), cwd=project)
    assert again.returncode == 0
    assert "(trained nothing new)" in again.stderr
    assert len(attempts(project)) == 6
    assert again.stdout == first.stdout

    with path.open("a") as file:
        file.write("designs: [ladder]\n")
    path.write_text(path.read_text().replace("seeds: 2", "  - name: four\n    set: {level: 4}\nseeds: 2"))
    assert ablate("run", str(path), cwd=project).returncode == 0
    assert {place[:2] for place in attempts(project)[6:]} == {("four", 1), ("four", 2)}

    path.write_text(path.read_text().replace("seeds: 2", "seeds: 3"))
    assert ablate("run", str(path), cwd=project).returncode == 0
    assert {place[:2] for place in attempts(project)[8:]} >= {(arm, 3) for arm in ("baseline", "two", "three", "four")}
    assert query(project, "SELECT count(*) FROM attempt") == [(12,)]
    assert set(before) <= set(results(project))


def test_results_do_not_depend_on_slots_or_order(tmp_path: Path) -> None:
    found = []
    for number, options in enumerate((["-j", "1"], ["-j", "4"], ["--only", "three,two"])):
        folder = tmp_path / str(number)
        (folder / ".git").mkdir(parents=True)
        path = write_study(folder)
        assert ablate("run", str(path), *options, cwd=folder).returncode == 0
        found.append(results(folder))
    assert found[0] == found[1]
    assert set(found[2]) <= set(found[0])


FATES = """
import ctypes, math, os, signal, sys, time

def train(settings, context):
    fate = settings["fate"]
    print("fate:", fate)
    context.record(epoch=1, acc=0.5)
    if fate == "error":
        raise ValueError("boom\\nsecond line")
    if fate == "exit":
        sys.exit(0)
    if fate == "os-exit":
        os._exit(0)
    if fate == "segfault":
        ctypes.string_at(0)
    if fate == "missing":
        return {"accuracy": 1.0}
    if fate == "text":
        return {"acc": "high"}
    if fate == "nothing":
        return None
    if fate == "nan":
        return {"acc": math.nan}
    if fate == "diverged":
        from ablate.train.context import Diverged
        raise Diverged("loss is inf in epoch 1")
    if fate == "memory":
        raise MemoryError("no more")
    if fate == "cuda-memory":
        import torch
        raise torch.OutOfMemoryError("CUDA out of memory")
    if fate == "timeout":
        time.sleep(60)
    if fate == "stdin":
        return {"acc": float(len(sys.stdin.read()))}
    if fate == "noise":
        sys.stdout.write("\\x1b[2Jcleared\\n")
        os.chdir("/")
        os.umask(0)
    return {"acc": 1.0}
"""

FATES_STUDY = """
schema: ablate/v1
name: fates
task: toy:train
metrics: {acc: {goal: max}}
settings: {fate: ok}
designs: [one-at-a-time]
seeds: 1
resources: {timeout: 8s, retries: 1}
steps:
"""

EXPECTED = {
    "error": ("failed", "error", 2, "error: ValueError: boom"),
    "exit": ("failed", "error", 2, "error: the task ended the process (exit 0) without returning metrics"),
    "os-exit": ("failed", "error", 2, "error: ended with exit code 0 and no result"),
    "segfault": ("failed", "killed", 3, "died 3 times in a row without progress"),
    "missing": ("failed", "error", 2, "error: the task returned no `acc`, which the study declares"),
    "text": ("failed", "error", 2, "error: the task returned `acc` = 'high', which is no number"),
    "nothing": ("failed", "error", 2, "error: the task returned NoneType, not metrics"),
    "nan": ("done", "diverged", 1, None),
    "diverged": ("done", "diverged", 1, None),
    "memory": ("failed", "oom", 1, "out of memory: MemoryError: no more"),
    "cuda-memory": ("failed", "oom", 1, "out of memory: OutOfMemoryError: CUDA out of memory"),
    "timeout": ("failed", "timeout", 1, "ran into its timeout"),
    "stdin": ("done", "ok", 1, None),
    "noise": ("done", "ok", 1, None),
}


def meet_fates(project: Path, isolation: str) -> tuple[Path, str]:
    """Run a study in which every arm ends in a way of its own; return its folder, and what was said."""
    (project / ".git").mkdir()
    steps = "".join(f"  - name: {fate}\n    set: {{fate: {fate}}}\n" for fate in EXPECTED)
    study = f"{FATES_STUDY}{steps}execution: {{isolation: {isolation}}}\n"
    path = write_study(project, study, name="fates", task=FATES)
    done = ablate("run", str(path), cwd=project)
    assert done.returncode == 1, done.stderr  # some trials failed
    return project, done.stderr


@pytest.fixture(scope="module")
def fates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return meet_fates(tmp_path_factory.mktemp("fates"), "process")


@pytest.fixture(scope="module")
def warm_fates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return meet_fates(tmp_path_factory.mktemp("warm-fates"), "warm")


@pytest.mark.parametrize("isolation", ["fates", "warm_fates"])
@pytest.mark.parametrize("fate", EXPECTED)
def test_each_way_to_end_is_kept_as_what_it_was(request: pytest.FixtureRequest, isolation: str, fate: str) -> None:
    project, _ = request.getfixturevalue(isolation)
    (row,) = query(
        project,
        f"""SELECT t.state, a.outcome, t.claim, t.reason FROM arm
            JOIN replicate r ON r.arm = arm.id JOIN trial t ON t.id = r.trial
            JOIN attempt a ON a.trial = t.id AND a.claim = t.claim WHERE arm.name = 'only-{fate}'""",
    )
    assert row == EXPECTED[fate]


def test_failures_are_shown_with_their_last_lines_and_the_way_on(fates: tuple[Path, str]) -> None:
    _, said = fates
    assert "ValueError: boom" in said
    assert "fate: error" in said
    assert "failed: only-error seed 1: error: ValueError: boom" in said
    assert "hint: `ablate logs fates ARM` shows why; once that is mended, `ablate retry fates` puts them back" in said
    assert "\x1b" not in said


def test_a_segfault_names_its_signal(fates: tuple[Path, str]) -> None:
    project, _ = fates
    sql = "SELECT DISTINCT signal FROM attempt WHERE outcome = 'killed'"
    assert query(project, sql) == [(11,)]


def test_failed_trials_stay_failed_until_they_are_retried(fates: tuple[Path, str]) -> None:
    project, _ = fates
    count = query(project, "SELECT count(*) FROM attempt")
    again = ablate("run", "fates.yaml", cwd=project)
    assert again.returncode == 1
    assert query(project, "SELECT count(*) FROM attempt") == count

    (project / "toy.py").write_text("def train(settings, context):\n    return {'acc': 1.0}\n")
    retried = ablate("retry", "fates", "--only", "only-error", cwd=project)
    assert "1 failed trial back in the queue" in retried.stderr
    ablate("run", "fates.yaml", "--keep", cwd=project)
    assert query(project, "SELECT count(*) FROM attempt WHERE outcome = 'ok'") == [(4,)]


def test_a_task_that_can_not_be_imported_costs_no_trial(project: Path) -> None:
    path = write_study(project, task="import nonsense_module\ndef train(settings, context): ...\n")
    done = ablate("run", str(path), cwd=project)
    assert done.returncode == 2
    assert "toy.yaml:4: the task `toy:train` can't be imported: ModuleNotFoundError" in done.stderr
    assert "Traceback (most recent call last)" not in done.stderr.split("its last lines were:")[0]
    assert not (project / "runs").exists()


def test_missing_data_stops_the_run_and_blames_no_trial(project: Path) -> None:
    task = """
    from ablate.errors import DataError
    def train(settings, context):
        raise DataError("no such set", where="/data", hint="put it there")
    """
    path = write_study(project, task=textwrap.dedent(task))
    done = ablate("run", str(path), cwd=project)
    assert done.returncode == 4
    assert "error: /data: no such set\nhint: put it there" in done.stderr
    assert query(project, "SELECT DISTINCT state FROM trial") == [("waiting",)]


def test_a_gpu_study_without_a_gpu_says_what_to_do(project: Path) -> None:
    path = write_study(project, TOY_STUDY + "resources: {gpus: 1}\n")
    done = ablate("run", str(path), cwd=project, PATH=str(project))
    assert done.returncode == 4
    assert "\nerror: the study asks for a GPU and nvidia-smi finds none\nhint: " in done.stderr
    assert "--set resources.gpus=0" in done.stderr
    assert not (project / "runs").exists()


EXECUTION = "execution: {threads: 2, dtype: bfloat16, memory_format: channels_last}\n"


def test_the_worker_gets_what_execution_says_and_no_gpu(project: Path) -> None:
    task = """
    import os, torch
    def train(settings, context):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
        assert os.environ["PYTHONHASHSEED"] == "0"
        assert os.getsid(0) == os.getpid()
        assert context.dtype is torch.bfloat16
        assert context.memory_format is torch.channels_last
        return {"acc": torch.get_num_threads() + float(os.environ["OMP_NUM_THREADS"]) / 10}
    """
    path = write_study(project, TOY_STUDY + EXECUTION, task=textwrap.dedent(task))
    done = ablate("run", str(path), "--only", "baseline", "--seeds", "1", cwd=project)
    assert done.returncode == 0, done.stderr
    assert query(project, f"{NUMBERS} SELECT value FROM number WHERE epoch IS NULL") == [(2.2,)]


def test_what_the_first_worker_has_to_import_later_ones_find(project: Path) -> None:
    """The compiler of torch, which every optimizer imports: loaded by the server once the first trial keeps it idle."""
    task = """
    import __main__, sys, time
    def train(settings, context):
        assert __main__.__spec__.name == "ablate.train.server", "one thread still, or it would not be forked"
        if "torch._dynamo" in sys.modules:
            return {"acc": 1}
        time.sleep(2)
        return {"acc": 0}
    """
    path = write_study(project, task=textwrap.dedent(task))
    done = ablate("run", str(path), "--only", "baseline", "--seeds", "12", "--jobs", "1", cwd=project)
    assert done.returncode == 0, done.stderr
    ends = query(project, f"{NUMBERS} SELECT value FROM number WHERE epoch IS NULL ORDER BY trial")
    found = [value for (value,) in ends]
    assert len(found) == 12
    assert found == sorted(found)
    assert found[-1] == 1


def test_what_ablates_own_loop_imports_is_there_before_the_first_trial(project: Path) -> None:
    task = """
    import __main__, sys
    from ablate.train.classification import train_classifier
    def train(settings, context):
        assert __main__.__spec__.name == "ablate.train.server", "one thread still, or it would not be forked"
        return {"acc": "torch._dynamo" in sys.modules}
    """
    path = write_study(project, task=textwrap.dedent(task))
    done = ablate("run", str(path), "--only", "baseline", "--seeds", "4", "--jobs", "2", cwd=project)
    assert done.returncode == 0, done.stderr
    assert query(project, f"{NUMBERS} SELECT value FROM number WHERE epoch IS NULL") == [(1,)] * 4


def test_a_forked_worker_computes_the_bits_of_a_fresh_interpreter(project: Path) -> None:
    task = """
    import __main__, hashlib, torch
    def train(settings, context):
        print("process of", __main__.__spec__.name)
        torch.manual_seed(context.seed)
        from torch import nn
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 5))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for epoch in range(5):
            loss = net(torch.randn(16, 3, 8, 8)).square().mean()
            optimizer.zero_grad(); loss.backward(); optimizer.step()
        digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters()))
        return {"acc": int.from_bytes(digest.digest()[:6], "big")}
    """
    found = []
    for number, extra in enumerate(
        ("", "import threading, time\nthreading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()\n")
    ):
        folder = project / str(number)
        (folder / ".git").mkdir(parents=True)
        path = write_study(folder, task=textwrap.dedent(task))
        # a thread in the server, as a library that starts a pool at import would leave one
        (folder / "sitecustomize.py").write_text(extra)
        done = ablate("run", str(path), "--only", "baseline", cwd=folder, PYTHONPATH=f"{folder}:{os.getcwd()}")
        assert done.returncode == 0, done.stderr
        found.append([row[1:] for row in results(folder)])
        logs = "".join(log.read_text() for log in folder.glob("runs/trials/*/*/stdout.log"))
        assert f"process of ablate.train.{'worker' if extra else 'server'}" in logs
    assert found[0] == found[1]


def test_results_in_another_store(project: Path) -> None:
    path = write_study(project)
    elsewhere = project / "deep" / "er" / "my.db"
    done = ablate("run", str(path), "--store", str(elsewhere), "--only", "baseline", cwd=project)
    assert done.returncode == 0, done.stderr
    assert elsewhere.exists()
    assert not (project / "runs").exists()
    shown = ablate("report", "--store", str(elsewhere), "--markdown", cwd=project)
    assert "baseline" in shown.stdout


def test_the_toy_task_runs_in_a_notebook() -> None:
    from ablate.train.context import Context

    names: dict[str, object] = {}
    exec(TOY, names)
    train = names["train"]
    metrics = train({"level": 1, "epochs": 2, "pause": 0}, Context(seed=1))  # type: ignore[operator]
    assert 1 < metrics["acc"] < 2


def test_fresh_where_nothing_is_stale_trains_nothing(project: Path) -> None:
    write_study(project)
    assert ablate("run", "toy.yaml", cwd=project).returncode == 0
    again = ablate("run", "toy.yaml", "--fresh", cwd=project)
    assert again.returncode == 0, again.stderr
    assert "6 trials done (trained nothing new)" in again.stderr
