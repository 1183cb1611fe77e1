"""What others take for a trial that does nothing: one line, seconds per trial by the wall clock and of CPU.

    python benchmarks/peers.py optuna-sqlite 200 2      # 200 trials, 2 workers

Each system as its documents start it, in a folder of its own, with its start left out. Nothing of ablate is imported.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HYDRA = """
import hydra

@hydra.main(version_base=None, config_path=None)
def train(settings):
    return 1.0

train()
"""


Taken = tuple[float, float]  # seconds by the wall clock, and of CPU: of this process and of children that have ended


def taken(work: Callable[[], object]) -> Taken:
    began, used = time.perf_counter(), _cpu()
    work()
    return time.perf_counter() - began, _cpu() - used


def _cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def subprocesses(trials: int, _: int) -> Taken:
    """A fresh interpreter that imports torch, one after another: the shell loop that people write."""
    command = [sys.executable, "-c", "import torch, os; os._exit(0)"]
    return taken(lambda: [subprocess.run(command, check=True) for _ in range(trials)])


def _optuna_storage(kind: str) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if kind == "sqlite":
        return optuna.storages.RDBStorage("sqlite:///optuna.db")
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("optuna.log"))


def _optimize(kind: str, trials: int) -> None:
    import optuna

    study = optuna.load_study(study_name="s", storage=_optuna_storage(kind), sampler=optuna.samplers.RandomSampler())
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=trials)


def optuna_study(kind: str, trials: int, workers: int) -> Taken:
    import optuna

    optuna.create_study(study_name="s", storage=_optuna_storage(kind))
    fork = multiprocessing.get_context("fork")
    each = [fork.Process(target=_optimize, args=(kind, trials // workers)) for _ in range(workers)]

    def work() -> None:
        for process in each:
            process.start()
        for process in each:
            process.join()

    return taken(work)


def optuna_report(kind: str, rows: int, _: int) -> Taken:
    """A number of an epoch, so many times."""
    import optuna

    study = optuna.create_study(storage=_optuna_storage(kind))
    trial = study.ask()
    return taken(lambda: [trial.report(1.0, epoch) for epoch in range(rows)])


def ray_tune(trials: int, workers: int) -> Taken:
    # it sends usage statistics, and one message even where it is told not to
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_USAGE_STATS_REPORT_URL="http://127.0.0.1:9/")
    import ray
    from ray import tune

    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="error")
    tuner = tune.Tuner(
        lambda config: {"acc": config["x"]},
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(num_samples=trials),
        run_config=tune.RunConfig(storage_path=os.getcwd(), verbose=0),
    )
    wall, _ = taken(tuner.fit)
    ray.shutdown()
    return wall, math.nan  # its processes are none of ours


def hydra_joblib(trials: int, workers: int) -> Taken:
    import hydra_plugins.hydra_joblib_launcher  # noqa: F401  whether it is there

    Path("app.py").write_text(HYDRA)

    def run(number: int) -> Taken:
        launcher = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={workers}"]
        values = ",".join(map(str, range(number)))
        command = [sys.executable, "app.py", "-m", *launcher, f"+x={values}"]
        return taken(lambda: subprocess.run(command, check=True, capture_output=True))

    few = 2 * workers
    whole, start = run(trials + few), run(few)
    return whole[0] - start[0], whole[1] - start[1]


SYSTEMS = {
    "subprocess": subprocesses,
    "optuna-sqlite": lambda trials, workers: optuna_study("sqlite", trials, workers),
    "optuna-journal": lambda trials, workers: optuna_study("journal", trials, workers),
    "optuna-sqlite-report": lambda rows, _: optuna_report("sqlite", rows, _),
    "optuna-journal-report": lambda rows, _: optuna_report("journal", rows, _),
    "ray-tune": ray_tune,
    "hydra-joblib": hydra_joblib,
}


if __name__ == "__main__":
    name, trials, workers = sys.argv[1], *map(int, sys.argv[2:])
    with tempfile.TemporaryDirectory(prefix="ablate-peer-") as folder:
        os.chdir(folder)
        try:
            wall, cpu = SYSTEMS[name](trials, workers)
        except ModuleNotFoundError as error:
            sys.exit(f"not installed: {error.name}")
        print(f"seconds {wall / trials} {cpu / trials}", flush=True)
        os.chdir("/")
