"""The largest study: 1,000 arms × 100 seeds. What `ablate report` and `ablate status` take of it.

    python -m benchmarks.scale [--arms 1000] [--seeds 100]

A store is filled with that many finished trials, and each command is run in a process of its own. CPU seconds are those
of the process and its children; beside them stands the same command on a study of six trials, which is the start.
Memory is the most that the process had resident.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select, update

from ablate.plan.trials import make_plan
from ablate.store.claims import attempt_folder, end_runner, register_runner
from ablate.store.facts import record_plan, stored_metrics, stored_number
from ablate.store.store import Store, open_store
from ablate.store.tables import arm, attempt, measurement, replicate, trial
from ablate.study.document import Document
from ablate.study.schema import Study, from_document

EPOCHS = (1, 2, 3)
REPEATS = 3
COMMANDS = (["status"], ["report"], ["report", "--markdown"], ["report", "--html"], ["report", "--csv"])
ENVIRONMENT = {
    "ablate": "0.1.0",
    "cpu": "EPYC",
    "python": "3.11.7",
    "threads": "1",
    "torch": "2.15.0",
    "data_sha256": "d",
}


def large_study(arms: int, seeds: int) -> Study:
    """Return a study of so many arms (a baseline, and one step each), each compared with the baseline."""
    steps = [
        {"name": f"width-{number}", "title": f"{number} channels", "set": {"model.width": number}}
        for number in range(1, arms)
    ]
    values = {
        "schema": "ablate/v1",
        "name": "large",
        "question": "Which width is best?",
        "task": "large:train",
        "metrics": {"val_acc": {"goal": "max", "unit": "%"}, "test_acc": {"goal": "max", "unit": "%"}},
        "settings": {"model": {"width": 0, "depth": 4}, "train": {"lr": 0.1, "epochs": 3}},
        "steps": steps,
        "designs": ["one-at-a-time"],
        "seeds": seeds,
    }
    return from_document(values, Document("large.yaml", values, {}), "")


def make_store(path: Path, study: Study) -> None:
    """Fill a new store with a study."""
    store = open_store(path, create=True)
    fill(store, study)
    store.close()


def fill(store: Store, study: Study) -> None:
    """Record the plan as a run does, and then all of its trials as finished, in bulk."""
    study_id = record_plan(store, make_plan(study))
    facts = {"host": "here", "boot_id": "b", "lock_file": "l", "command": "ablate run large.yaml"}
    register_runner(store, runner_id="r", study_id=study_id, facts=facts)
    store.write(lambda connection: _finish(connection, study_id))
    end_runner(store, "r")


def _finish(connection: Connection, study_id: int) -> None:
    query = (
        select(trial.c.id, trial.c.fingerprint, trial.c.seed, arm.c.position)
        .join(replicate, replicate.c.trial == trial.c.id)
        .join(arm, arm.c.id == replicate.c.arm)
        .where(arm.c.study == study_id)
    )
    rows = list(connection.execute(query))
    connection.execute(update(trial).values(state="done", claim=1, result_claim=1))
    connection.execute(insert(attempt), [_attempt(row) for row in rows])
    for start in range(0, len(rows), 10_000):
        connection.execute(
            insert(measurement), [each for row in rows[start : start + 10_000] for each in _on_the_way(row)]
        )


def _attempt(row: Any) -> dict[str, Any]:
    return {
        "trial": row.id,
        "claim": 1,
        "runner": "r",
        "slot": "cpu:0",
        "folder": attempt_folder(row.fingerprint, 1),
        "started": 1e9 + row.id,
        "ended": 1e9 + row.id + 60,
        "outcome": "ok",
        "exit_code": 0,
        "seconds": 60.0,
        "code_sha256": "c0de",
        "environment_json": json.dumps(ENVIRONMENT),
        "metrics_json": stored_metrics(_at_end(row)),
    }


def _value(row: Any) -> float:
    return 60 + 5 * (row.position / 1000) + random.Random(row.id).gauss(0, 1)


def _at_end(row: Any) -> dict[str, float]:
    value = _value(row)
    beside = {"parameters": 1e6 + row.position, "flops": 35e6, "images_per_s": 5200.0}
    return {"val_acc": value, "train_loss": 1 - value / 100, "test_acc": value - 1, **beside}


def _on_the_way(row: Any) -> Iterator[dict[str, Any]]:
    value = _value(row)
    for epoch in EPOCHS:
        for metric, number in (("val_acc", value), ("train_loss", 1 - value / 100)):
            yield {"trial": row.id, "claim": 1, "metric": metric, "epoch": epoch, **stored_number(number)}


@dataclass(frozen=True)
class Spent:
    """What one run of a command took: CPU seconds, resident bytes at most, and the bytes it printed."""

    seconds: float
    resident: int
    printed: int


def spent(words: list[str], folder: Path) -> Spent:
    """Run `ablate …` and return what it took."""
    command = [sys.executable, "-m", "ablate", *words]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        printed = len(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"ablate {' '.join(words)} ended with exit code {process.returncode}")
    return Spent(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, printed)  # Linux says it in KiB


def measured(words: list[str], folder: Path) -> tuple[Spent, float]:
    """Return what the run in the middle took, and the spread of the CPU seconds (most less least)."""
    found = sorted((spent(words, folder) for _ in range(REPEATS)), key=lambda each: each.seconds)
    return found[len(found) // 2], found[-1].seconds - found[0].seconds


def main() -> None:
    """Fill two stores, measure, and print one table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ablate-scale-") as made:
        folder = Path(made)
        for name, study in (("small", large_study(2, 3)), ("large", large_study(given.arms, given.seeds))):
            # in a process of its own: the kernel counts the memory of what starts a command as the command's
            filling = multiprocessing.Process(target=make_store, args=(folder / f"{name}.db", study))
            filling.start()
            filling.join()
        size = (folder / "large.db").stat().st_size
        print(f"{given.arms:,} arms × {given.seeds:,} seeds, SQLite, {size / 1e6:.0f} MB; medians of {REPEATS}.\n")
        print("| command | CPU s, 2 arms × 3 seeds | CPU s | spread | beyond the start | MB of memory | KB printed |")
        print("|:--|--:|--:|--:|--:|--:|--:|")
        for words in COMMANDS:
            start, _ = measured([*words, "--store", "small.db"], folder)
            large, spread = measured([*words, "--store", "large.db"], folder)
            seconds = f"{start.seconds:.2f} | {large.seconds:.2f} | {spread:.2f} | {large.seconds - start.seconds:.2f}"
            print(
                f"| `ablate {' '.join(words)}` | {seconds} | {large.resident / 1e6:,.0f} | {large.printed / 1e3:,.0f} |"
            )


if __name__ == "__main__":
    main()
