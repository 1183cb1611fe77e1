"""`make chaos`: all of it. Prints the figures and keeps them in benchmarks/results/chaos.md."""

from __future__ import annotations

import json
import os
import platform
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from tests.chaos.chaos import LEASE_S
from tests.chaos.evidence import Figures
from tests.chaos.sizes import KILLS, SIZES
from tests.chaos.table import markdown

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "chaos.md"

TEXT = """# Chaos

`make chaos` with seed {seed}, {date}: {minutes:.0f} minutes on {cores} shared cores, {versions}.

Three runners with two jobs each work on one study while their workers, their worker servers and they themselves are
killed or frozen at random moments, and replaced; then all is compared with a quiet run. The lease was {lease:g} s (the
default is 60 s), so that runners could be frozen past it: for half a lease up to three.

{table}

- A kill of a server ends its runner too, and so does one of a session: runner, server and workers in no order.
- Numbers are all metrics of all epochs and results, less times and memory. Tensors are those of the last checkpoint
  (model, optimizer, schedule) and of the final weights; the toy's checkpoints hold plain numbers. All were
  required to be equal bit by bit, `ablate doctor --verify` to find nothing, claims to have no gaps, and no death to use
  up a retry (`retries: 0`).
- A trial that dies three times in a row before its first checkpoint is set aside as poison, on purpose. Blows at random
  hit some that often: those were put back by `ablate retry`.
- Recovery is by the times in the store, and in brackets how many trials were seen. Left out are kills of workers whose
  runner was frozen or killed too before it could answer, and kills while the database server was away. "At work" means
  that another runner had a worker and was left in peace for two seconds; where none was, a new one had to start first.
  When a trial is claimed also depends on when a slot is free.
"""


def main() -> int:
    seed = os.environ.get("ABLATE_TEST_CHAOS_SEED") or str(random.SystemRandom().randrange(10**6))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "ABLATE_TEST_SOAK": "1", "ABLATE_TEST_CHAOS_SEED": seed}
        command = [sys.executable, "-m", "pytest", "-n", "0", "-s", "tests/chaos"]
        done = subprocess.run(command, env=environment | {"ABLATE_TEST_CHAOS_FIGURES": folder}, check=False)
        kept = sorted(Path(folder).glob("*.json"), key=lambda path: path.stat().st_mtime)
        figures = [Figures(**json.loads(path.read_text())) for path in kept]
    table = markdown(figures)
    print(f"\n{table}\n")
    if done.returncode or len(figures) < len(SIZES) or KILLS:
        return done.returncode
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, SQLite {sqlite3.sqlite_version}"
    RESULTS.write_text(
        TEXT.format(
            seed=seed,
            date=f"{datetime.now(UTC):%Y-%m-%d}",
            minutes=(time.monotonic() - began) / 60,
            cores=len(os.sched_getaffinity(0)),
            versions=versions,
            lease=LEASE_S,
            table=table,
        )
    )
    print(f"kept in {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
