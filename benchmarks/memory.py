"""Host memory of a study by the number of its slots: data held once for all workers, beside a copy for each.

    python -m benchmarks.memory

A tiny network is trained on all of CIFAR-10 by 1, 4 and 8 workers at once. Counted is the proportional set size of all
processes of `ablate run`, in which a page that n processes share counts a n-th in each: their sum is what the machine
holds. The other arm is the same study where the data folder takes no prepared parts, so that each worker reads its own.
CIFAR-10 is looked for as in every study (ABLATE_DATA), else downloaded.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ablate.train import cifar
from ablate.train.classification import train_classifier
from ablate.train.context import Context
from benchmarks.rounds import heading

SLOTS = (1, 4, 8)
POLL_S = 0.05
STUDY = """
schema: ablate/v1
name: memory
task: benchmarks.memory:train
metrics: {val_acc: {goal: max}}
settings:
  data: {name: cifar10, split_seed: 0, validation: 5000}
  augment: {flip: true, crop: 4}
  normalise: true
  train: {epochs: 1, batch: 256, optimizer: sgd, lr: 0.01}
steps: []
seeds: SEEDS
"""


def train(settings: Mapping[str, Any], context: Context) -> dict[str, float]:
    """The study's task: next to no network, so that the data are what there is to hold."""
    return train_classifier(
        settings,
        context,
        lambda data: nn.Sequential(
            nn.Conv2d(3, 4, 4, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, data.classes)
        ),
    )


def held_mib(root: int) -> float:
    """Return the proportional set size of a process and all below it."""
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        found = re.search(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)
        total += int(found[1]) if found else 0
        waiting += map(int, children)
    return total / 1024


def peak_mib(folder: Path, slots: int, *, shared: bool) -> float:
    """Run the study by so many workers at once and return the most that its processes held together."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    run, data = folder / "run", folder / "run" / "data"
    data.mkdir(parents=True)
    source = cifar.SOURCES["cifar10"]
    cifar.provide(source, cifar.data_folder())
    for place in {Path(name).parent for pair in source.train + source.test for name in pair}:
        if (cifar.data_folder() / place).exists():
            (data / place).symlink_to((cifar.data_folder() / place).resolve())
    if not shared:
        (data / "prepared").touch()  # a file, where the folder would be
    (run / "memory.yaml").write_text(STUDY.replace("SEEDS", str(slots)))
    words = ["run", "memory.yaml", "--jobs", str(slots), "--data-dir", str(data), "--store", str(run / "ablate.db")]
    process = subprocess.Popen(
        [sys.executable, "-m", "ablate", *words],
        cwd=run,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "ABLATE_NO_MIRROR": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    most = 0.0
    while process.poll() is None:
        most = max(most, held_mib(process.pid))
        time.sleep(POLL_S)
    assert process.returncode == 0
    return most


def main() -> None:
    """Measure, and print a table as Markdown; end with 1 where a worker more adds as much as a copy of the data."""
    print(heading("Memory", "python -m benchmarks.memory"))
    with tempfile.TemporaryDirectory(prefix="ablate-memory-") as made:
        found = {shared: [peak_mib(Path(made), slots, shared=shared) for slots in SLOTS] for shared in (True, False)}
    size = 45_000 * 3072 / 2**20
    print(f"45,000 training images are {size:.0f} MiB. Peak of all processes together:\n")
    print(f"| slots | {' | '.join(map(str, SLOTS))} | each worker more |\n|:--|{'--:|' * (len(SLOTS) + 1)}")
    added = {}
    for shared, name in ((True, "data held once"), (False, "a copy in each worker")):
        added[shared] = (found[shared][-1] - found[shared][0]) / (SLOTS[-1] - SLOTS[0])
        cells = " | ".join(f"{each:,.0f} MiB" for each in found[shared])
        print(f"| {name} | {cells} | {added[shared]:.0f} MiB |")
    sys.exit(added[True] > size)


if __name__ == "__main__":
    main()
