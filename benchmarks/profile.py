"""Where the time of a study goes: the flagship study's quick profile, by one slot, every second of it accounted for.

    python -m benchmarks.profile [--only ARM …]

The study is run as `ablate run studies/basenet.yaml --profile quick --jobs 1`, with its task wrapped in clocks: what
the loop calls is timed by name, and what it does not call is the rest. Between trials the store's own times tell: when
a trial was claimed, and when its end was written. The sum of all rows is the time of the command.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ablate.train import classification
from ablate.train.augment import Augmenter
from ablate.train.context import Context
from ablate.train.data import ImageData
from benchmarks.rounds import heading

ROOT = Path(__file__).parents[1]
LIMIT = 3.0  # % of the time that may be neither training, evaluation nor the start of processes
WORK = ("training", "augmentation", "evaluation")
STARTS = ("start of the command", "start of the workers")

clock: Counter[str] = Counter()
_running: list[str] = []


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose time is added to ``name``, unless it is called by another one that is timed."""

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        if _running:
            return function(*arguments, **named)
        _running.append(name)
        started = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            clock[name] += time.perf_counter() - started
            _running.pop()

    return call


def train(settings: Mapping[str, Any], context: Context) -> dict[str, float]:
    """The task of the study, with clocks around what the loop calls. Each worker is a process of its own."""
    import basenet

    begun, clocked = time.time(), classification.__dict__
    load = clocked["load"]

    def load_timed(*arguments: Any, **named: Any) -> ImageData:
        data: ImageData = timed("data", load)(*arguments, **named)
        return dataclasses.replace(data, read_test=timed("data", data.read_test))

    names = {"evaluate": "evaluation", "normalise": "augmentation", "count_flops": "count of operations"}
    clocked |= {"load": load_timed, **{name: timed(what, clocked[name]) for name, what in names.items()}}
    for owner, whose in (
        (Augmenter, {"draws": "augmentation", "batch": "augmentation", "cut_out": "augmentation"}),
        (ImageData, {"sha256": "data"}),
        (Context, {"checkpoint": "checkpoints", "record": "records", "scores": "records"}),
        (basenet.BaseNet, {"__init__": "model"}),
    ):
        for name, what in whose.items():
            setattr(owner, name, timed(what, getattr(owner, name)))
    metrics = basenet.train(settings, context)
    clock["training"] = metrics["train_seconds"] - clock["augmentation"]
    context.fact("clock", json.dumps({"begun": begun, "ended": time.time(), **clock}))
    return metrics


def run(folder: Path, only: list[str]) -> tuple[float, float]:
    """Run the study in ``folder``; return when the command began and ended."""
    text = (
        (ROOT / "studies" / "basenet.yaml").read_text().replace("task: basenet:train", "task: benchmarks.profile:train")
    )
    (folder / "basenet.yaml").write_text(text)
    words = ["run", "basenet.yaml", "--profile", "quick", "--jobs", "1", "--store", str(folder / "ablate.db")]
    words += ["--only", ",".join(only)] if only else []
    path = os.pathsep.join([str(ROOT), str(ROOT / "studies")])
    began = time.time()
    subprocess.run(
        [sys.executable, "-m", "ablate", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return began, time.time()


def account(folder: Path, began: float, ended: float) -> tuple[Counter[str], int]:
    """Return the seconds of the command by what they were spent on, and the number of trials."""
    with sqlite3.connect(folder / "ablate.db") as store:
        rows = store.execute("SELECT started, ended, environment_json FROM attempt ORDER BY started").fetchall()
    found: Counter[str] = Counter()
    free = began
    for number, (claimed, finished, facts) in enumerate(rows):
        known = json.loads(json.loads(facts)["clock"])
        first, last = known.pop("begun"), known.pop("ended")
        found["between trials" if number else "start of the command"] += claimed - free
        found["start of the workers"] += first - claimed
        found.update(known)
        found["else in the loop"] += last - first - sum(known.values())
        found["end of the trials"] += finished - last
        free = finished
    found["end of the command"] += ended - free
    return found, len(rows)


def main() -> None:
    """Run, and print a table as Markdown; end with 1 where more than the limit is neither work nor a start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="ARM")
    given = parser.parse_args()
    print(heading("Profile", " ".join(["python -m benchmarks.profile", *(f"--only {arm}" for arm in given.only)])))
    with tempfile.TemporaryDirectory(prefix="ablate-profile-") as made:
        began, ended = run(Path(made), given.only)
        found, trials = account(Path(made), began, ended)
    whole = ended - began
    print(f"`studies/basenet.yaml --profile quick`, one slot: {trials} trials in {whole:.1f} s.\n")
    print("| what | s | % | ms per trial |\n|:--|--:|--:|--:|")
    for name, seconds in found.most_common():
        print(f"| {name} | {seconds:.2f} | {100 * seconds / whole:.1f} | {1000 * seconds / trials:.1f} |")
    rest = 100 * sum(seconds for name, seconds in found.items() if name not in WORK + STARTS) / whole
    print(f"\nNeither training, augmentation, evaluation nor process starts: {rest:.1f} %; wanted: under {LIMIT:g}.")
    sys.exit(rest >= LIMIT)


if __name__ == "__main__":
    main()
