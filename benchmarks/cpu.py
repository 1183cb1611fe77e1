"""A small study on CPU cores, end to end: `ablate run` with each preset, beside a plain loop over arms and seeds.

    python -m benchmarks.cpu [--rounds 3] [--epochs 3]

4 arms × 4 seeds of a narrow ResNet-9 on images of CIFAR's size (made up, 10 classes). The plain loop is what a
researcher writes: torchvision's transforms on PIL images through a DataLoader (of the images in memory; more workers
only take cores from the training), float32, all threads, one trial at a time, all trials in one process. Each arm
begins with nothing: ablate's time holds the start of its processes, the decoding of the image files, its store,
checkpoints and records.

What is compared is trials per hour, by the clock and by CPU time: the latter hardly sees who else uses the machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ablate.train.classification import train_classifier
from ablate.train.context import Context
from benchmarks.networks import resnet9
from benchmarks.rounds import heading, measured, ratios, told

TRAIN, VALIDATION, TEST, CLASSES, SIZE = 1024, 256, 512, 10, 32
BATCH, SEEDS = 128, 4
ARMS: dict[str, dict[str, float]] = {
    "baseline": {"lr": 0.05, "weight_decay": 0.0, "label_smoothing": 0.0},
    "slow": {"lr": 0.01, "weight_decay": 0.0, "label_smoothing": 0.0},
    "decay": {"lr": 0.05, "weight_decay": 5e-4, "label_smoothing": 0.0},
    "smooth": {"lr": 0.05, "weight_decay": 0.0, "label_smoothing": 0.1},
}
WANTED = {"exact": 1.6, "fast": 3.0}
STUDY = f"""
schema: ablate/v1
name: small
task: benchmarks.cpu:train
metrics: {{val_acc: {{goal: max, unit: "%"}}}}
settings:
  data: {{name: folder, path: images, size: {SIZE}, split_seed: 0, validation: {VALIDATION}}}
  augment: {{flip: true, crop: 4}}
  normalise: true
  train: {{epochs: EPOCHS, batch: {BATCH}, optimizer: sgd, momentum: 0.9, lr: 0.05, weight_decay: 0.0,
    label_smoothing: 0.0}}
steps:
  - {{name: slow, set: {{train.lr: 0.01}}}}
  - {{name: decay, set: {{train.weight_decay: 0.0005}}}}
  - {{name: smooth, set: {{train.label_smoothing: 0.1}}}}
designs: [one-at-a-time]
seeds: {SEEDS}
"""


def train(settings: Mapping[str, Any], context: Context) -> dict[str, float]:
    """The study's task."""
    return train_classifier(settings, context, lambda data: resnet9(channels=3, classes=data.classes))


def make_images(folder: Path) -> None:
    """Write the images as PNG files: noise around a colour for each class."""
    chance = np.random.default_rng(0)
    colours = chance.integers(64, 192, (CLASSES, 3))
    for part, count in (("train", TRAIN + VALIDATION), ("test", TEST)):
        for number in range(count):
            place = folder / part / f"class-{number % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = colours[number % CLASSES] + chance.normal(0, 40, (SIZE, SIZE, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{number:05}.png")


# --- the plain loop


class InMemory(Dataset[tuple[Any, int]]):
    def __init__(self, paths: list[Path], transform: Any) -> None:
        self._images = [np.asarray(Image.open(path)) for path in paths]
        self._labels = [int(path.parent.name.removeprefix("class-")) for path in paths]
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, place: int) -> tuple[Any, int]:
        return self._transform(Image.fromarray(self._images[place])), self._labels[place]


def plain_loop(images: Path, epochs: int) -> None:
    """Train all arms and seeds, one after the other, as a script would."""
    as_is = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.25,) * 3)]
    augmented = transforms.Compose([transforms.RandomCrop(SIZE, 4), transforms.RandomHorizontalFlip(), *as_is])
    paths = sorted((images / "train").rglob("*.png"), key=lambda path: path.name)
    parts = {
        "train": InMemory(paths[:TRAIN], augmented),
        "validation": InMemory(paths[TRAIN:], transforms.Compose(as_is)),
        "test": InMemory(sorted((images / "test").rglob("*.png")), transforms.Compose(as_is)),
    }
    loaders = {name: DataLoader(part, BATCH, shuffle=name == "train") for name, part in parts.items()}
    for name, chosen in ARMS.items():
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            model = resnet9(channels=3, classes=CLASSES)
            optimizer = torch.optim.SGD(
                model.parameters(), lr=chosen["lr"], momentum=0.9, weight_decay=chosen["weight_decay"]
            )
            for _ in range(epochs):
                model.train()
                for x, y in loaders["train"]:
                    loss = cross_entropy(model(x), y, label_smoothing=chosen["label_smoothing"])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                accuracy(model, loaders["validation"])
            print(f"{name} seed {seed}: {accuracy(model, loaders['test']):.1f} %", flush=True)


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader[tuple[Any, int]]) -> float:
    model.eval()
    right = sum(int((model(x).argmax(dim=1) == y).sum()) for x, y in loader)
    return 100 * right / len(loader.dataset)  # type: ignore[arg-type]


# --- both, measured


def run_study(images: Path, preset: str, epochs: int) -> None:
    """Run the study from nothing: no store, no prepared data, all of it in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="ablate-cpu-", dir=images.parent) as made:
        folder = Path(made)
        (folder / "small.yaml").write_text(f"{STUDY}execution: {{preset: {preset}}}\n".replace("EPOCHS", str(epochs)))
        (folder / "data").mkdir()
        (folder / "data" / "images").symlink_to(images)
        words = ["run", "small.yaml", "--store", str(folder / "runs" / "ablate.db"), "--data-dir", str(folder / "data")]
        finish([sys.executable, "-m", "ablate", *words], folder)


def finish(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "ABLATE_NO_MIRROR": "1"}
    subprocess.run(
        command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def main() -> None:
    """Measure the arms in turn and print one table as Markdown; end with 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--plain", type=Path, help="run the plain loop alone, on the images of this folder")
    given = parser.parse_args()
    if given.plain:
        plain_loop(given.plain, given.epochs)
        return
    print(heading("CPU studies", f"python -m benchmarks.cpu --rounds {given.rounds} --epochs {given.epochs}"))
    with tempfile.TemporaryDirectory(prefix="ablate-cpu-") as made:
        images = Path(made) / "images"
        make_images(images)
        # its idle threads sleep: by default they spin, which on a machine with other work doubles its CPU time
        plain = ["env", "OMP_WAIT_POLICY=passive", sys.executable, "-m", "benchmarks.cpu", "--plain", str(images)]
        plain += ["--epochs", str(given.epochs)]
        found = measured(
            {
                "plain": lambda: finish(plain, images.parent),
                **{preset: (lambda preset=preset: run_study(images, preset, given.epochs)) for preset in WANTED},
            },
            given.rounds,
        )
    trials = len(ARMS) * SEEDS
    print(
        f"{trials} trials of {TRAIN:,} images, {given.epochs} epochs; {given.rounds} rounds: median (least … most).\n"
    )
    print("| arm | s | CPU s | trials per hour | as many as the plain loop | by CPU time |\n|:--|--:|--:|--:|--:|--:|")
    missed = False
    for name in found[0]:
        wall, cpu = ([getattr(each[name], kind) for each in found] for kind in ("wall_s", "cpu_s"))
        by_clock, by_cpu = (ratios(found, "plain", name, kind) for kind in ("wall_s", "cpu_s"))
        rate = f"{3600 * trials / statistics.median(wall):.0f}"
        print(f"| {name} | {told(wall)} | {told(cpu)} | {rate} | {told(by_clock, 2)} | {told(by_cpu, 2)} |")
        missed |= statistics.median(by_clock) < WANTED.get(name, 0)
    flags = Path("/proc/cpuinfo").read_text()
    has = "has" if "avx512_bf16" in flags or "amx_bf16" in flags else "has no"
    wanted = ", ".join(f"{name} {times}" for name, times in WANTED.items())
    print(f"\nWanted by the clock, on cores that nobody else uses: {wanted}. This CPU {has} instructions for bfloat16.")
    sys.exit(missed)


if __name__ == "__main__":
    main()
