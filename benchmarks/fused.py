"""Seeds of an arm in one model: what each number of them costs, and whether `fuse: auto` finds the best.

    python -m benchmarks.fused [--rounds 3] [--seeds 8] [--images 256] [--epochs 2]

Six networks, from one whose layers take less time than to call them to one that keeps a core busy, on made-up images.
In each round, all seeds of each network are trained with each candidate, whole trainings by the loops themselves,
evaluation and checkpoints with them; beside it, the planner measures as `ablate run` has it measure, and chooses. Its
choices are held against the candidate that is the best in the median of the rounds. All by the CPU time of one thread,
which hardly sees who else uses the machine; a study's time then follows from its groups and its slots.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ablate.plan.fusing import CANDIDATES, chosen, groups_of, length
from ablate.run.fusing import BUDGET_S
from ablate.train.classification import train_classifier
from ablate.train.context import Context, Interrupted
from ablate.train.pace import measure
from ablate.train.together import Asked, train_together
from benchmarks.networks import resnet9
from benchmarks.rounds import heading, told

SIZE, CLASSES, SLOTS, WANTED = 32, 10, 2, 0.97


@dataclass(frozen=True)
class Net:
    build: Callable[[], nn.Module]
    batch: int


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def narrow(*widths: int) -> Callable[[], nn.Module]:
    return lambda: resnet9(channels=3, classes=CLASSES, widths=widths)  # type: ignore[arg-type]


ZOO = {
    "two linear layers": Net(mlp, 8),
    "ResNet-9, 4 to 16": Net(narrow(4, 8, 16, 16), 8),
    "ResNet-9, 4 to 16, larger batch": Net(narrow(4, 8, 16, 16), 64),
    "ResNet-9, 8 to 32": Net(narrow(8, 16, 32, 32), 16),
    "ResNet-9, 16 to 64": Net(narrow(16, 32, 64, 64), 8),
    "ResNet-9, 16 to 64, larger batch": Net(narrow(16, 32, 64, 64), 128),
}


def make_images(folder: Path, count: int) -> None:
    """Write noise as PNG files, so many to train on and 64 each to validate and test."""
    chance = np.random.default_rng(0)
    for part, images in (("train", count + 64), ("test", 64)):
        for number in range(images):
            place = folder / part / f"class-{number % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(chance.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(place / f"{number:05}.png")


def settings_of(net: Net, images: Path, epochs: int) -> dict[str, Any]:
    return {
        "data": {"name": "folder", "path": str(images), "size": SIZE, "split_seed": 0, "validation": 64},
        "augment": {"flip": True, "crop": 4},
        "normalise": True,
        "train": {"epochs": epochs, "batch": net.batch, "optimizer": "sgd", "momentum": 0.9, "lr": 0.01},
    }


def asked(net: Net, settings: Mapping[str, Any], seed: int) -> Asked:
    context = Context(seed=seed, metrics=("val_acc",), memory_format=torch.channels_last)
    return Asked(settings, context, lambda _: net.build())


def trained(net: Net, settings: Mapping[str, Any], fuse: int) -> float:
    """Train one model of ``fuse`` seeds and return its CPU seconds."""
    group = [asked(net, settings, seed) for seed in range(fuse)]
    began = time.process_time()
    if fuse == 1:
        train_classifier(settings, group[0].context, group[0].build_model)
    else:
        train_together(group, fuse)
    return time.process_time() - began


def planned(net: Net, settings: Mapping[str, Any]) -> tuple[dict[int, float], float]:
    """Return the seconds of an iteration that the planner finds, and how long it took to."""
    one, began = asked(net, settings, 0), time.process_time()
    with contextlib.suppress(Interrupted):
        measure(one, CANDIDATES, BUDGET_S)
    return {int(fuse): float(pace) for fuse, pace in one.context.facts.items() if fuse.isdecimal()}, (
        time.process_time() - began
    )


def main() -> None:
    """Print one table as Markdown; end with 1 where the choice is missed for a network."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rounds", 3), ("seeds", 8), ("images", 256), ("epochs", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    words = " ".join(f"--{name} {value}" for name, value in vars(given).items())
    print(heading("Seeds in one model", f"python -m benchmarks.fused {words}"))
    torch.set_num_threads(1)
    seeds = {"arm": range(given.seeds)}
    columns = " | ".join(f"{fuse} in one" for fuse in CANDIDATES[1:])
    print(
        f"{given.seeds} seeds of one arm on {SLOTS} slots; {given.rounds} rounds: median (least … most). How many times"
    )
    print("as fast as one by one the whole study is, what `auto` chose in each round, the median speed of that by that")
    print("of the best, and how long it took to decide.\n")
    print(f"| network | batch | {columns} | chosen | of the best | s |\n|:--|--:|{'--:|' * 6}")
    missed = False
    with tempfile.TemporaryDirectory(prefix="ablate-fused-") as made:
        tempfile.tempdir = made
        images = Path(made) / "images"
        make_images(images, given.images)
        trained(ZOO["two linear layers"], settings_of(ZOO["two linear layers"], images, 1), 1)  # imports, prepared data
        for name, net in ZOO.items():
            settings = settings_of(net, images, given.epochs)
            speeds: dict[int, list[float]] = {fuse: [] for fuse in CANDIDATES[1:]}
            choices, took = [], []
            for _ in range(given.rounds):
                costs = {fuse: trained(net, settings, fuse) for fuse in CANDIDATES}
                study = {fuse: length({"arm": costs}, seeds, SLOTS, fuse) for fuse in CANDIDATES}
                paces, seconds = planned(net, settings)
                choice = chosen({"arm": paces}, seeds, SLOTS)
                for fuse, found in speeds.items():
                    found.append(study[1] / study[fuse])
                choices.append(choice)
                took.append(seconds)
            usual = {1: 1.0} | {fuse: statistics.median(found) for fuse, found in speeds.items()}
            parts = [usual[choice] / max(usual.values()) for choice in choices]
            missed |= statistics.median(parts) < WANTED
            cells = " | ".join(told(found, 2) for found in speeds.values())
            told_choices = ", ".join(map(str, choices))
            print(
                f"| {name} | {net.batch} | {cells} | {told_choices} | {told(parts, 2)} | {told(took)} |",
                flush=True,
            )
    models = ", ".join(str(groups_of(seeds["arm"], fuse)) for fuse in CANDIDATES)
    print(f"\nWanted: {WANTED} of the best, with {BUDGET_S:g} s of measuring. The models of a study: {models}.")
    sys.exit(missed)


if __name__ == "__main__":
    main()
