"""Trials of one network per GPU hour: one by one, compiled, as CUDA graphs, in one model, several processes at once.

    python -m benchmarks.gpu [--device cuda] [--rounds 3] [--epochs 4] [--quick]

Each way trains by the loops themselves, in processes of its own, on made-up images of CIFAR's size, in bfloat16 and
channels_last; the first epoch (imports, compilers, captures) does not count. Beside them stand two loops that others
write: torchvision's transforms image by image through a DataLoader with a worker for each core, and the whole data set
on the device with batched flips and crops, as speed runs have it. Ways take turns, and ratios are within a round.

What a device could do is measured in the same run: the rate of matrix products and of copies. The roof of a network is
the longer of its floating-point operations (three times those of its forward pass) by the former, and of its memory
traffic by the latter: 14 passes over the outputs of its convolutions and linear layers, for convolution, BatchNorm and
ReLU in both directions. No training of the network as it stands can be quicker by much.

Without a GPU all of it runs on the CPU, in float32 with narrow networks and few images, to show that it runs: its
figures then say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ablate.train.classification import count_flops, train_classifier
from ablate.train.context import Context
from ablate.train.together import Asked, train_together
from benchmarks.fused import make_images
from benchmarks.rounds import heading, told
from studies.basenet import BaseNet
from studies.resnet9 import ResNet9
from studies.resnet32 import CifarResNet

SIZE, CLASSES, PADDING, PASSES = 32, 10, 4, 14
EPOCH = 50_000  # images of an epoch in the tables
TRIAL = 30  # epochs of a trial, where trials per hour are told
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TABULATED = {
    "stem": 64,
    "widths": [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3,
    "kernel": 3,
    "padding": 1,
    "pool_after": [16],
    "norm": "before_relu",
    "convs": 2,
    "groups": 1,
    "residual": True,
    "residual_scale": 0.1,
    "hidden": 50,
    "hidden_norm": False,
    "output_norm": True,
}


@dataclass(frozen=True)
class Net:
    """A network, and the batch that it is trained with."""

    build: Callable[[], nn.Module]
    batch: int


def resnet32(depth: int, *widths: int) -> nn.Module:
    return CifarResNet({"stem": 3, "depth": depth, "widths": [*widths]}, channels=3, classes=CLASSES)


def resnet9(*widths: int) -> nn.Module:
    return ResNet9({"widths": [*widths], "residual": True}, channels=3, size=SIZE, classes=CLASSES)


def basenet(**changed: Any) -> nn.Module:
    return BaseNet(TABULATED | changed, channels=3, size=SIZE, classes=CLASSES)


NETS: dict[str, dict[str, Net]] = {
    "cuda": {
        "ResNet-32": Net(lambda: resnet32(32, 16, 32, 64), 128),
        "ResNet-9": Net(lambda: resnet9(64, 128, 256, 512, 512), 512),
        "BaseNet": Net(basenet, 128),
    },
    "cpu": {
        "ResNet-32": Net(lambda: resnet32(8, 4, 8, 8), 16),
        "ResNet-9": Net(lambda: resnet9(4, 4, 8, 8, 8), 32),
        "BaseNet": Net(lambda: basenet(stem=4, widths=[4, 8], pool_after=[2]), 16),
    },
}


@dataclass(frozen=True)
class Way:
    """How trials of a network are computed: ``seeds`` in one model, and so many processes at once."""

    seeds: int = 1
    processes: int = 1
    compile: bool = False
    graphs: bool = False
    loop: str = "ablate"


OTHERS = {"PIL and DataLoader": Way(loop="dataloader"), "data set on the device": Way(loop="resident")}


def ways_of(net: str, device: str) -> dict[str, Way]:
    """Return the ways that are measured, by name; the first is what others are held against."""
    ways = {"one process": Way(), "compile": Way(compile=True)}
    if device == "cuda":
        ways |= {"graphs": Way(graphs=True), "compile, graphs": Way(compile=True, graphs=True)}
    if net != "BaseNet":  # which is bound by arithmetic: seeds or processes side by side have nothing to win
        most = {"cuda": (2, 4, 8, 16), "cpu": (2, 4)}[device]
        ways |= {f"{seeds} in one model": Way(seeds=seeds) for seeds in most}
        if device == "cuda":
            ways |= {f"{seeds} in one model, graphs": Way(seeds=seeds, graphs=True) for seeds in most}
        ways |= {f"{count} processes": Way(processes=count) for count in {"cuda": (2, 4, 8), "cpu": (2,)}[device]}
    return ways | OTHERS


# --- one way, in a process of its own


def trained(net: Net, way: Way, device: str, images: Path, epochs: int) -> dict[str, float]:
    """Train, and return images per second of all models together, and what an epoch takes with all that is in it."""
    torch.set_num_threads(1)
    if way.loop != "ablate":
        rates = list(plain_rates(net, way.loop, device, images, epochs))
        return {"rate": statistics.median(rates[1:])}
    folder = Path(tempfile.mkdtemp())
    asked = [
        Asked(
            settings_of(net, images, epochs),
            Context(
                seed=seed,
                folder=folder / str(seed),
                device=device,
                dtype=dtype_of(device),
                memory_format=torch.channels_last,
                compile=way.compile,
                graphs=way.graphs,
            ),
            lambda _: net.build(),
        )
        for seed in range(way.seeds)
    ]
    if way.seeds == 1:
        train_classifier(asked[0].settings, asked[0].context, asked[0].build_model)
    else:
        train_together(asked, way.seeds)
    lines = [json.loads(line) for line in (folder / "0" / "metrics.jsonl").read_text().splitlines()]
    times = [line["time"] for line in lines]
    found = {
        "rate": statistics.median(line["values"]["images_per_s"] for line in lines[1:]),
        "epoch_s": (times[-1] - times[0]) / (len(times) - 1),
        "compile_s": float(asked[0].context.facts.get("compile_seconds", 0)),
    }
    return found | ({"step_s": step_seconds(net, device)} if way == Way() else {})


def settings_of(net: Net, images: Path, epochs: int) -> dict[str, Any]:
    return {
        "data": {"name": "folder", "path": str(images), "size": SIZE, "split_seed": 0, "validation": 64},
        "augment": {"flip": True, "crop": PADDING},
        "normalise": True,
        "train": {"epochs": epochs, "batch": net.batch, "optimizer": "sgd", "momentum": 0.9, "lr": 0.01},
    }


def dtype_of(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda")


def step_of(net: Net, device: str) -> Callable[[Tensor, Tensor], None]:
    """Return a training step as a script has it."""
    model = net.build().to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(x: Tensor, y: Tensor) -> None:
        with autocast(device):
            loss = cross_entropy(model(x.contiguous(memory_format=torch.channels_last)).float(), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def step_seconds(net: Net, device: str) -> float:
    """Return what an iteration takes of which nothing but forward, backward and update is left: always one batch."""
    step = step_of(net, device)
    x, y = torch.randn(net.batch, 3, SIZE, SIZE, device=device), torch.randint(CLASSES, (net.batch,), device=device)
    return seconds_of(lambda: step(x, y), device, {"cuda": 30, "cpu": 5}[device])


def seconds_of(work: Callable[[], object], device: str, times: int) -> float:
    for _ in range(3):
        work()
    synchronise(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    synchronise(device)
    return (time.perf_counter() - began) / times


# --- loops that others write


class Filed(Dataset[tuple[Tensor, int]]):
    """Images in memory, each a PIL image for torchvision's transforms."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.rglob("*.png"))
        self._images = [Image.open(path).copy() for path in paths]
        self._labels = [int(path.parent.name.removeprefix("class-")) for path in paths]
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(SIZE, padding=PADDING),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self._transform(self._images[place]), self._labels[place]

    def whole(self, device: str) -> tuple[Tensor, Tensor]:
        """Return all images, normalised, and their labels on the device."""
        fixed = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        images = torch.stack([fixed(image) for image in self._images])
        return images.to(device, dtype_of(device)), torch.tensor(self._labels, device=device)


def plain_rates(net: Net, loop: str, device: str, folder: Path, epochs: int) -> Iterator[float]:
    """Yield the images per second of each epoch."""
    step, data = step_of(net, device), Filed(folder / "train")
    batches = loaded(net, data, device) if loop == "dataloader" else resident(net, data, device)
    for _ in range(epochs):
        began, seen = time.perf_counter(), 0
        for x, y in batches():
            step(x, y)
            seen += len(y)
        synchronise(device)
        yield seen / (time.perf_counter() - began)


def loaded(net: Net, data: Filed, device: str) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    workers = len(os.sched_getaffinity(0))
    loader = DataLoader(
        data, net.batch, shuffle=True, num_workers=workers, persistent_workers=True, pin_memory=device == "cuda"
    )

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in loader:
            yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)

    return batches


def resident(net: Net, data: Filed, device: str) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    images, labels = data.whole(device)
    padded = nn.functional.pad(images, [PADDING] * 4, mode="reflect")
    pixels = torch.arange(SIZE, device=device)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        flipped = torch.where(torch.rand(len(images), 1, 1, 1, device=device) < 0.5, padded, padded.flip(3))
        for index in torch.randperm(len(images), device=device).split(net.batch):
            top, left = torch.randint(2 * PADDING + 1, (2, len(index), 1), device=device)
            rows, columns = (top + pixels)[:, :, None], (left + pixels)[:, None, :]
            yield flipped[index[:, None, None], :, rows, columns].permute(0, 3, 1, 2), labels[index]

    return batches


# --- what the device could do


@dataclass(frozen=True)
class Roof:
    """Measured rates: floating-point operations and bytes per second."""

    bfloat16: float
    float32: float
    copied: float

    def images_per_s(self, net: Net, device: str) -> tuple[float, float]:
        """Return the rate that arithmetic and memory leave to a network, and what of it is arithmetic's alone."""
        flops, outputs = 3 * count_flops(net.build(), torch.zeros(1, 3, SIZE, SIZE)), outputs_of(net.build())
        peak, size = (self.bfloat16, 2) if device == "cuda" else (self.float32, 4)
        return min(peak / flops, self.copied / (PASSES * size * outputs)), peak / flops


def measured_roof(device: str) -> Roof:
    side, count = {"cuda": (8192, 1 << 28), "cpu": (1024, 1 << 23)}[device]

    def product(dtype: torch.dtype) -> float:
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        return 2 * side**3 / seconds_of(lambda: a @ b, device, 10)

    torch.set_num_threads(1)
    source, target = (torch.zeros(count, device=device) for _ in range(2))
    copied = 2 * 4 * count / seconds_of(lambda: target.copy_(source), device, 10)
    return Roof(product(torch.bfloat16), product(torch.float32), copied)


def outputs_of(model: nn.Module) -> int:
    """Return how many numbers the convolutions and linear layers give for one image."""
    sizes: list[int] = []
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(lambda _layer, _inputs, out: sizes.append(out[0].numel()))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, SIZE, SIZE))
    return sum(sizes)


# --- all ways, in turns


def started(name: str, way: Way, given: argparse.Namespace, images: Path) -> subprocess.Popen[str]:
    one = json.dumps({"net": name, "way": vars(way), "images": str(images)})
    words = ["--device", given.device, "--epochs", str(given.epochs), "--one", one]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", *words],
        stdout=subprocess.PIPE,
        text=True,
        # what torch's compiler makes is this run's own, so that its first time is one; later rounds find it
        env={
            **os.environ,
            "TMPDIR": str(images.parent),
            "TORCHINDUCTOR_CACHE_DIR": str(images.parent / "compiled"),
            "PYTHONHASHSEED": "0",
        },
    )


def run(name: str, way: Way, given: argparse.Namespace, images: Path) -> dict[str, float]:
    """Run a way in its processes and return what they found: the rates summed up, all else of the first."""
    processes = [started(name, way, given, images) for _ in range(way.processes)]
    said = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        return {}
    found = [json.loads(each.splitlines()[-1]) for each in said]
    return {**found[0], "rate": sum(each["rate"] for each in found)}


def table(name: str, given: argparse.Namespace, images: Path, roof: Roof) -> dict[str, float]:
    """Measure a network's ways in turns, print their table, and return the median rates of those that ran."""
    net, ways = NETS[given.device][name], ways_of(name, given.device)
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(given.rounds):
        order = list(ways) if number % 2 == 0 else list(reversed(ways))
        rounds.append({way: run(name, ways[way], given, images) for way in order})
    limit, arithmetic = roof.images_per_s(net, given.device)
    print(f"## {name}, batch {net.batch}\n")
    print(f"The roof is {limit:,.0f} images/s; of arithmetic alone {arithmetic:,.0f}.\n")
    print(f"| way | images/s | of one process | s per {EPOCH:,} | trials per hour | MFU (%) | of the roof (%) |")
    print("|:--|--:|--:|--:|--:|--:|--:|")
    first, *_ = ways
    medians = {}
    for way in ways:
        both = [(each[way]["rate"], each[first]["rate"]) for each in rounds if each[way] and each[first]]
        if not both:
            print(f"| {way} | failed | | | | | |")
            continue
        rate, ratios = statistics.median(rate for rate, _ in both), [rate / base for rate, base in both]
        medians[way] = rate
        print(
            f"| {way} | {rate:,.0f} | {told(ratios, 2)} | {EPOCH / rate:.3g} | {3600 * rate / EPOCH / TRIAL:.3g} "
            f"| {100 * rate / arithmetic:.1f} | {100 * rate / limit:.1f} |"
        )
    print()
    compiling = [each[way]["compile_s"] for each in rounds for way in ways if ways[way].compile and each[way]]
    if compiling:
        least = f", and {min(compiling):.1f} s from its files" if given.rounds > 1 else ""
        print(f"Compiling took {max(compiling):.1f} s at first{least}.")
    if all(each[first] for each in rounds):
        tell_shares(net, [each[first] for each in rounds], given)
    return medians


def tell_shares(net: Net, found: list[Mapping[str, float]], given: argparse.Namespace) -> None:
    """Say what part of an epoch its steps are not: augmentation, evaluation, records, checkpoints."""
    steps = given.images / net.batch
    epoch = statistics.median(each["epoch_s"] for each in found)
    step = statistics.median(each["step_s"] for each in found)
    print(
        f"One process: a step takes {1000 * step:.3g} ms on one batch again and again, an epoch of {given.images:,} "
        f"images {epoch:.3g} s with all that is in it;\naugmentation, evaluation, records and checkpoints are "
        f"{100 * max(0.0, 1 - steps * step / epoch):.1f} % of that.\n"
    )


def main() -> None:
    """Print one table for each network; on a GPU end with 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="one round of three epochs, and on a GPU 10,000 images")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    is_dry = given.device == "cuda" and not torch.cuda.is_available()
    given.device = "cpu" if is_dry else given.device
    if given.one:
        one = json.loads(given.one)
        net, way = NETS[given.device][one["net"]], Way(**one["way"])
        print(json.dumps(trained(net, way, given.device, Path(one["images"]), given.epochs)))
        return
    words = " --quick" if given.quick else f" --rounds {given.rounds} --epochs {given.epochs}"
    if given.quick:
        given.rounds, given.epochs = 1, 3
    given.images = 128 if given.device == "cpu" else 10_000 if given.quick else EPOCH
    print(heading("Trials per GPU hour", f"python -m benchmarks.gpu{words}"))
    if given.device == "cpu":
        print(
            "**A dry run on a CPU**: narrow networks, small batches, few images, float32, a thread a process.\n"
            "It shows that every way but the CUDA graphs runs; no figure here says anything about a GPU.\n"
        )
    else:
        print(f"On {torch.cuda.get_device_name()}.\n")
    roof = measured_roof(given.device)
    print(
        f"Rounds: {given.rounds}, of {given.epochs} epochs of {given.images:,} images. Matrix products reach "
        f"{roof.bfloat16 / 1e12:.3g} TFLOP/s in bfloat16 and {roof.float32 / 1e12:.3g} in float32, copies "
        f"{roof.copied / 1e9:.4g} GB/s (read and written).\nRates are those of all models together; a trial is {TRIAL} "
        f"epochs of {EPOCH:,} images.\n"
    )
    with tempfile.TemporaryDirectory(prefix="ablate-gpu-") as made:
        images = Path(made) / "images"
        make_images(images, given.images)
        found = {name: table(name, given, images, roof) for name in NETS[given.device]}
    sys.exit(not tell_goals(found) and given.device == "cuda")


def tell_goals(found: Mapping[str, Mapping[str, float]]) -> bool:
    """Print what was wanted of a GPU and what there is; return whether all of it was reached. The ways are ablate's."""
    reached = True
    for name, wanted in {
        "ResNet-32": "10 times one process",
        "ResNet-9": "0.56 s an epoch",
        "BaseNet": "18.4 s an epoch",
    }.items():
        ours = {way: rate for way, rate in found[name].items() if way not in OTHERS}
        best = max(ours, key=lambda way: ours[way])
        seconds, times = EPOCH / ours[best], ours[best] / ours.get("one process", float("inf"))
        reached &= {"ResNet-32": times >= 10, "ResNet-9": seconds <= 0.56, "BaseNet": seconds <= 18.4}[name]
        print(
            f"- {name}: wanted {wanted}; the best is `{best}`, {times:.2f} times one process, {seconds:.3g} s an epoch."
        )
    return reached


if __name__ == "__main__":
    main()
