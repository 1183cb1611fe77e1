"""Augmented batches: ablate's, cut from one tensor, beside torchvision's, image by image through a DataLoader.

    python -m benchmarks.data [--images 50000] [--rounds 5]

First every image of one epoch is held against torchvision's operators with the same draws, bit for bit: random crop
with 4 pixels of padding, flip, ToTensor, Normalize, on made-up images of CIFAR's shape. Then an epoch of batches of 128
is made by each arm, in turn, with one thread; ablate's includes the order and all draws. Last, an epoch of a small
ResNet is trained, and the time that its steps took is held against the whole of it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import functional

from ablate.train.augment import Augmenter, AugmentSettings, normalise
from ablate.train.classification import batches_of_epoch
from ablate.train.context import Context
from benchmarks.networks import resnet9
from benchmarks.rounds import heading, measured, ratios, told

BATCH, PADDING, STEPS = 128, 4, 30
WORKERS = sorted({0, 1, len(os.sched_getaffinity(0)), 2 * len(os.sched_getaffinity(0))})
CHOSEN = AugmentSettings(flip=True, crop=PADDING)
MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])


class Filed(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's CIFAR10 hands them out: an array in memory, a PIL image for each, then its transforms."""

    def __init__(self, images: Tensor) -> None:
        self._images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(images.shape[2], padding=PADDING),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN.tolist(), STD.tolist()),
            ]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images[place])), 0


def epoch(augmenter: Augmenter, count: int, number: int) -> None:
    context = Context(seed=1)
    batches = batches_of_epoch(count, BATCH, context.generator("order", number))
    draws = augmenter.draws(context.generator("augment", number))
    for index in batches:
        normalise(augmenter.batch(index, draws), MEAN, STD)


def differing(augmenter: Augmenter, images: Tensor) -> int:
    """Return how many images of an epoch are not torchvision's to the last bit."""
    draws = augmenter.draws(torch.Generator().manual_seed(1))
    pictures = images.permute(0, 2, 3, 1).contiguous().numpy()
    wrong = 0
    for index in torch.arange(len(images)).split(BATCH):
        ours = normalise(augmenter.batch(index, draws), MEAN, STD)
        for mine, place in zip(ours, index.tolist(), strict=True):
            picture = functional.pad(Image.fromarray(pictures[place]), [PADDING])
            top, left = int(draws.offset_y[place]), int(draws.offset_x[place])
            picture = functional.crop(picture, top, left, *images.shape[2:])
            picture = functional.hflip(picture) if draws.flip[place] else picture
            theirs = functional.normalize(functional.to_tensor(picture), MEAN.tolist(), STD.tolist())
            wrong += not torch.equal(mine, theirs)
    return wrong


def share_of_steps(augmenter: Augmenter) -> float:
    """Return which part of an epoch its steps are: forward, backward and update, of all that happens until its end."""
    model = resnet9(channels=3, classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    context = Context(seed=1)
    labels = torch.randint(0, 10, (STEPS * BATCH,))
    started, steps = time.process_time(), 0.0
    draws = augmenter.draws(context.generator("augment", 1))
    for index in batches_of_epoch(STEPS * BATCH, BATCH, context.generator("order", 1)):
        images = normalise(augmenter.batch(index, draws), MEAN, STD)
        begun = time.process_time()
        loss = cross_entropy(model(images), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += time.process_time() - begun
    return 100 * steps / (time.process_time() - started)


def main() -> None:
    """Compare the bits, measure the arms, print one table as Markdown; end with 1 where a bit or a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores, to find the best number
    print(heading("Data", f"python -m benchmarks.data --images {given.images} --rounds {given.rounds}"))
    images = torch.randint(
        0, 256, (given.images, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    augmenter = Augmenter(images, CHOSEN)
    wrong = differing(augmenter, images)
    print(f"Of {given.images:,} images, {wrong} differ from torchvision's in any bit.\n")

    def loader(workers: int) -> None:
        for _ in DataLoader(Filed(images), BATCH, shuffle=True, num_workers=workers):
            pass

    arms = {f"torchvision, {workers} workers": (lambda workers=workers: loader(workers)) for workers in WORKERS}
    found = measured({"ablate": lambda: epoch(augmenter, given.images, 1), **arms}, given.rounds)
    print(f"Batches of {BATCH}, medians of {given.rounds} rounds (least … most):\n")
    print("| arm | images/s | ablate is so many times as fast | by CPU time |\n|:--|--:|--:|--:|")
    times = {}
    for name in ("ablate", *arms):
        rate = told([given.images / each[name].wall_s for each in found], 0)
        times[name] = ratios(found, name, "ablate", "wall_s")
        print(f"| {name} | {rate} | {told(times[name])} | {told(ratios(found, name, 'ablate', 'cpu_s'))} |")
    first = sorted(times["torchvision, 0 workers"])[given.rounds // 2]
    best = sorted(min(each[name].wall_s for name in arms) / each["ablate"].wall_s for each in found)[given.rounds // 2]
    shares = [share_of_steps(augmenter) for _ in range(given.rounds)]
    share = sorted(shares)[given.rounds // 2]
    print(
        f"\nWanted: 15 times as fast as without workers ({first:.1f}), 10 as with the best number of them ({best:.1f})."
    )
    print(f"\nA ResNet-9 of 16, 32, 64 and 64 channels, batches of {BATCH}, one thread, float32: its steps are")
    print(f"{told(shares)} % of an epoch's CPU time; wanted: 95.")
    sys.exit(0 if not wrong and first >= 15 and best >= 10 and share >= 95 else 1)


if __name__ == "__main__":
    main()
