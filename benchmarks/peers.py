"""What others take for a trial that does nothing: one line, seconds per trial, of a system named on the command line.

    python benchmarks/peers.py optuna-sqlite 200 2      # 200 trials, 2 workers

Each system as its documents start it, in a folder of its own, with its start left out. Nothing of ablate is imported.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HYDRA = """
import hydra

@hydra.main(version_base=None, config_path=None)
def train(settings):
    return 1.0

train()
"""


def subprocesses(trials: int, _: int) -> float:
    """A fresh interpreter that imports torch, one after another: the shell loop that people write."""
    began = time.perf_counter()
    for _ in range(trials):
        subprocess.run([sys.executable, "-c", "import torch, os; os._exit(0)"], check=True)
    return (time.perf_counter() - began) / trials


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


def optuna_study(kind: str, trials: int, workers: int) -> float:
    import optuna

    optuna.create_study(study_name="s", storage=_optuna_storage(kind))
    fork = multiprocessing.get_context("fork")
    each = [fork.Process(target=_optimize, args=(kind, trials // workers)) for _ in range(workers)]
    began = time.perf_counter()
    for process in each:
        process.start()
    for process in each:
        process.join()
    return (time.perf_counter() - began) / trials


def optuna_report(kind: str, rows: int, _: int) -> float:
    """Seconds for one number of one epoch."""
    import optuna

    study = optuna.create_study(storage=_optuna_storage(kind))
    trial = study.ask()
    began = time.perf_counter()
    for epoch in range(rows):
        trial.report(1.0, epoch)
    return (time.perf_counter() - began) / rows


def ray_tune(trials: int, workers: int) -> float:
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
    began = time.perf_counter()
    tuner.fit()
    took = time.perf_counter() - began
    ray.shutdown()
    return took / trials


def hydra_joblib(trials: int, workers: int) -> float:
    import hydra_plugins.hydra_joblib_launcher  # noqa: F401  whether it is there

    Path("app.py").write_text(HYDRA)

    def seconds(number: int) -> float:
        launcher = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={workers}"]
        values = ",".join(map(str, range(number)))
        began = time.perf_counter()
        subprocess.run([sys.executable, "app.py", "-m", *launcher, f"+x={values}"], check=True, capture_output=True)
        return time.perf_counter() - began

    few = 2 * workers
    return (seconds(trials + few) - seconds(few)) / trials


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
            taken = SYSTEMS[name](trials, workers)
        except ModuleNotFoundError as error:
            sys.exit(f"not installed: {error.name}")
        print(f"seconds {taken}", flush=True)
        os.chdir("/")
