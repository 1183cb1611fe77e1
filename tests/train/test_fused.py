"""Several seeds in one model are what each would be alone: exactly in float64; in float32, whoever the others are."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ablate.errors import AblateError
from ablate.train import worker
from ablate.train.classification import TrainSettings, build_optimizer, train_classifier
from ablate.train.context import Context, Diverged, Interrupted
from ablate.train.data import ImageData
from ablate.train.folder import AttemptFolder, Result, Work
from ablate.train.frozen import Frozen
from ablate.train.fused import (
    Unfusable,
    by_member,
    fuse,
    joined_optimizer_states,
    joined_states,
    own_optimizer_state,
    own_state,
    side_by_side,
)
from ablate.train.together import Asked, losses_of, train_together

SIZE, CLASSES, MEMBERS, BATCH = 8, 5, 3, 7
EXACT = 1e-12
LAYOUTS = [torch.contiguous_format, torch.channels_last]


class Residual(nn.Module):
    """F(x) scaled and added to a shortcut, as in BaseNet and the ResNets of CIFAR."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(0.1 * self.body(x) + self.shortcut(x))


class Functional(nn.Module):
    """What a forward pass may say without layers, and layers of other kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding="same", padding_mode="circular")
        self.norm = nn.GroupNorm(2, 6)
        self.wide = nn.Linear(6 * 4 * 4, CLASSES, bias=False)
        self.mean = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.gelu(self.norm(self.conv(x))), 2)
        flat, mean = functional.adaptive_avg_pool2d(x, 4), x.mean((2, 3))
        return self.wide(flat.reshape(flat.size(0), -1)) + self.mean(mean.reshape(mean.shape[0], -1)) / 2


NETS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, CLASSES)
    ),
    "norms": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES),
    ),
    "residual": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), Residual(4, 4, groups=2), Residual(4, 6, stride=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES),
    ),
    "functional": Functional,
}  # fmt: skip
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd"},
    "momentum": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-3, "label_smoothing": 0.1},
    "adam": {"optimizer": "adam", "weight_decay": 1e-2},
    "adamw": {"optimizer": "adamw", "weight_decay": 1e-2},
}


def built(net: Callable[[], nn.Module], count: int = MEMBERS) -> list[nn.Module]:
    models = []
    for seed in range(count):
        torch.manual_seed(seed)
        models.append(net())
    return models


def image(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def off(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Return the largest difference, relative to the largest number of its tensor."""
    assert list(found) == list(expected)
    pairs = [(found[name], value) for name, value in expected.items() if isinstance(value, Tensor)]
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-300)) for a, b in pairs)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("net", NETS)
def test_fused_training_is_separate_training_in_float64(net: str, optimizer: str, layout: torch.memory_format) -> None:
    """Ten iterations: weights, running statistics and the optimizer's state, under their own names."""
    train = TrainSettings(epochs=1, batch=BATCH, lr=0.02, **OPTIMIZERS[optimizer])
    models = [model.double().to(memory_format=layout) for model in built(NETS[net])]
    fused = fuse(models, image().double()).to(memory_format=layout)
    together, alone = build_optimizer(fused, train), [build_optimizer(model, train) for model in models]
    draws = torch.Generator().manual_seed(1)
    for _ in range(10):
        images = torch.randn(MEMBERS, BATCH, 3, SIZE, SIZE, generator=draws, dtype=torch.float64)
        labels = torch.randint(CLASSES, (MEMBERS, BATCH), generator=draws)
        together.zero_grad()
        losses_of(by_member(fused(side_by_side(images, layout)), MEMBERS), labels, train).sum().backward()
        together.step()
        for model, one, own, right in zip(models, alone, images, labels, strict=True):
            one.zero_grad()
            logits = model(own.contiguous(memory_format=layout))
            functional.cross_entropy(logits, right, label_smoothing=train.label_smoothing).backward()
            one.step()
    for place, (model, one) in enumerate(zip(models, alone, strict=True)):
        assert off(own_state(fused.state_dict(), place, MEMBERS), model.state_dict()) <= EXACT
        found, expected = own_optimizer_state(together.state_dict(), place, MEMBERS), one.state_dict()
        assert found["param_groups"] == expected["param_groups"]
        assert list(found["state"]) == list(expected["state"])
        for number, state in expected["state"].items():
            assert off(found["state"][number], state) <= EXACT


def test_states_that_are_taken_apart_and_joined_are_the_same() -> None:
    models = built(NETS["norms"])
    fused = fuse(models, image())
    optimizer = build_optimizer(fused, TrainSettings(epochs=1, batch=1, lr=0.1, optimizer="adam"))
    by_member(fused(side_by_side(image().expand(MEMBERS, -1, -1, -1, -1), LAYOUTS[0])), MEMBERS).sum().backward()
    optimizer.step()
    model, state = fused.state_dict(), optimizer.state_dict()
    again = joined_states([own_state(model, place, MEMBERS) for place in range(MEMBERS)])
    assert all(torch.equal(again[name], value) for name, value in model.items())
    joined = joined_optimizer_states([own_optimizer_state(state, place, MEMBERS) for place in range(MEMBERS)])
    for number, values in state["state"].items():
        assert all(torch.equal(joined["state"][number][name], value) for name, value in values.items())


class Hooked(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(192, 4))
        self[1].register_forward_hook(lambda *_: None)


class Tied(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(192, 192), nn.Linear(192, 192))
        self[2].weight = self[1].weight


class Scaled(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(192, 4))
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain


class Branching(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.mean() > 0 else -x)


class Moody(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if self.training else out / 2


class Joining(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x, -x], dim=1))


def linear(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4), *layers)


UNFUSABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dropout": (lambda: linear(nn.Dropout(0.1)), "`2` is Dropout(p=0.1"),
    "layer norm": (lambda: linear(nn.LayerNorm(4)), "`2` is LayerNorm((4,)"),
    "softmax over channels": (lambda: linear(nn.Softmax(dim=1)), "`2` is Softmax(dim=1)"),
    "a weight of its own": (Scaled, "it computes with `gain`, which is no layer"),
    "channels that are joined": (lambda: Joining(nn.Conv2d(6, 4, 8), nn.Flatten()), "`cat("),
    "flattened batch": (lambda: nn.Sequential(nn.Flatten(0), nn.Linear(1, 4)), "`0` is Flatten(start_dim=0"),
    "a decision by the data": (lambda: Branching(*linear()), "can't be followed without numbers"),
    "another pass in evaluation": (lambda: Moody(*linear()), "its forward pass differs in evaluation"),
    "a hook": (Hooked, "`1` has a hook"),
    "tied weights": (Tied, "a weight stands in it under two names"),
}


@pytest.mark.parametrize(("net", "why"), UNFUSABLE.values(), ids=UNFUSABLE)
def test_a_network_that_may_mix_its_seeds_is_refused(net: Callable[[], nn.Module], why: str) -> None:
    with pytest.raises(Unfusable) as refused:
        fuse(built(net), image())
    assert why in str(refused.value)


def test_a_network_that_depends_on_its_seed_is_refused() -> None:
    widths = itertools.count(4)
    with pytest.raises(Unfusable, match="architecture depends on the seed"):
        fuse(built(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, next(widths)))), image())


# --- the loop

SETTINGS: dict[str, Any] = {
    "data": {"name": "digits", "split_seed": 0, "validation": 100, "subset": 90},
    "augment": {"flip": True, "crop": 1, "brightness": 0.2, "cutout": 2},
    "normalise": True,
    "train": {"epochs": 3, "batch": 32, "lr": 0.05, "optimizer": "sgd", "momentum": 0.9},
}


def with_train(**values: Any) -> dict[str, Any]:
    return SETTINGS | {"train": SETTINGS["train"] | values}


def small_net(data: ImageData) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(data.channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(96, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, data.classes),
    )  # fmt: skip


def context(folder: Path, seed: int, **more: Any) -> Context:
    return Context(seed=seed, folder=folder / str(seed), metrics=("val_acc",), fingerprint=str(seed), **more)


def weights_of(folder: Path, seed: int | str) -> str:
    """Return the hash of the last checkpoint's weights."""
    newest = max((folder / str(seed) / "checkpoint").glob("*.pt"), key=lambda path: int(path.stem))
    digest = hashlib.sha256()
    for value in torch.load(newest)["state"]["model"].values():
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def repeats(metrics: dict[str, float] | Diverged) -> dict[str, float]:
    assert not isinstance(metrics, Diverged)
    return {n: v for n, v in metrics.items() if n not in ("train_seconds", "images_per_s", "peak_memory_mb")}


def trained(
    folder: Path, seeds: Sequence[int], *, members: int = 4, settings: dict[str, Any] = SETTINGS, **more: Any
) -> dict[int, tuple[str, dict[str, float]]]:
    """Return by seed the weights of the last checkpoint and the metrics that repeat."""
    asked = [Asked(settings, context(folder, seed, **more), small_net) for seed in seeds]
    found = zip(seeds, train_together(asked, members), strict=True)
    return {seed: (weights_of(folder, seed), repeats(metrics)) for seed, metrics in found}


@pytest.mark.parametrize("more", [{}, {"memory_format": torch.channels_last}, {"dtype": torch.bfloat16}], ids=str)
def test_a_seed_has_the_same_bits_whoever_is_trained_with_it(tmp_path: Path, more: dict[str, Any]) -> None:
    among = trained(tmp_path / "among", [1, 2, 3], **more)
    alone = trained(tmp_path / "alone", [3], **more)
    others = trained(tmp_path / "others", [6, 5, 8, 3], **more)
    assert among[3] == alone[3] == others[3]
    assert among[2] != among[3]


def test_a_seed_sees_what_it_sees_alone(tmp_path: Path) -> None:
    """Its first epoch has the same images, augmentation and initial weights: a float32 loss of the same size."""
    settings = with_train(epochs=1)
    fused = trained_metrics(tmp_path, [1, 2], settings)
    for seed, metrics in fused.items():
        alone = repeats(train_classifier(settings, context(tmp_path / "alone", seed), small_net))
        assert metrics == pytest.approx(alone, rel=1e-4)


def trained_metrics(folder: Path, seeds: Sequence[int], settings: dict[str, Any]) -> dict[int, dict[str, float]]:
    asked = [Asked(settings, context(folder, seed), small_net) for seed in seeds]
    return dict(zip(seeds, map(repeats, train_together(asked, 2)), strict=True))


@pytest.mark.parametrize("optimizer", [{}, {"optimizer": "adamw", "momentum": None, "keep": "best"}], ids=str)
def test_an_interrupted_seed_goes_on_among_others(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    """It waits for those that have done less, and ends in the bits that it would have had without a break."""
    settings = with_train(**optimizer)
    whole = trained(tmp_path / "whole", [1, 2, 3], settings=settings)
    first = [context(tmp_path / "first", seed) for seed in (1, 2)]
    first[0]._stop_requested = lambda: bool(first[1].records)
    with pytest.raises(Interrupted):
        train_together([Asked(settings, each, small_net) for each in first], 4)
    earlier = {seed: (str(tmp_path / "first" / str(seed)),) for seed in (1, 2)}
    later = tmp_path / "later"
    asked = [Asked(settings, context(later, seed, earlier=earlier.get(seed, ())), small_net) for seed in (3, 1)]
    found = dict(zip((3, 1), map(repeats, train_together(asked, 4)), strict=True))
    assert {seed: (weights_of(later, seed), found[seed]) for seed in (3, 1)} == {seed: whole[seed] for seed in (3, 1)}
    assert [record["epoch"] for record in asked[1].context.records] == [1, 2, 3]


def test_a_checkpoint_is_one_of_a_separate_trial(tmp_path: Path) -> None:
    """A trial that began in one model can be looked at, and gone on with, as any other."""
    settings = with_train(optimizer="adamw", momentum=None, keep="best")
    trained(tmp_path / "fused", [1, 2], settings=settings)
    train_classifier(settings, context(tmp_path / "alone", 1), small_net)
    fused, alone = (torch.load(tmp_path / kind / "1" / "checkpoint" / "2.pt")["state"] for kind in ("fused", "alone"))
    assert shape_of(fused) == shape_of(alone)


def shape_of(state: Any) -> Any:
    """Return what a state holds: names, shapes and kinds, and no numbers."""
    if isinstance(state, dict):
        return {name: shape_of(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [shape_of(value) for value in state]
    return (tuple(state.shape), state.dtype) if isinstance(state, Tensor) else type(state)


def test_a_seed_that_diverges_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    def exploding(data: ImageData) -> nn.Module:
        model = small_net(data)
        with torch.no_grad():
            model[-1].weight.fill_(float("inf"))
        return model

    sound = trained(tmp_path / "sound", [1, 2, 3])
    builders = {1: small_net, 2: exploding, 3: small_net}
    asked = [Asked(SETTINGS, context(tmp_path / "one", seed), build) for seed, build in builders.items()]
    first, second, third = train_together(asked, 4)
    assert isinstance(second, Diverged)
    assert str(second) == "train_loss is nan in epoch 1 of 3"
    assert repeats(first) == sound[1][1]
    assert repeats(third) == sound[3][1]
    assert [len(each.context.records) for each in asked] == [3, 1, 3]


REFUSED: list[tuple[dict[str, Any], Callable[[ImageData], nn.Module], str]] = [
    (with_train(schedule="plateau", plateau_epochs=1, plateau_factor=0.5), small_net, "a rate of its own"),
    (SETTINGS, lambda _: nn.Sequential(Frozen(nn.Flatten()), nn.Linear(64, 10)), "a Frozen part"),
]


@pytest.mark.parametrize(("settings", "build", "why"), REFUSED, ids=["plateau", "frozen"])
def test_what_parts_the_seeds_is_refused(
    tmp_path: Path, settings: dict[str, Any], build: Callable[[ImageData], nn.Module], why: str
) -> None:
    with pytest.raises(Unfusable, match=why):
        train_together([Asked(settings, context(tmp_path, seed), build) for seed in (1, 2)], 2)


def test_two_seeds_of_one_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AblateError, match=r"seeds \[1, 3\] have no places of their own among 2"):
        train_together([Asked(SETTINGS, context(tmp_path, seed), small_net) for seed in (1, 3)], 2)


# --- the worker

TASK = """
import random
import numpy as np, torch
from torch import nn
from ablate.train.classification import train_classifier

def train(settings, context):
    print("this is seed", context.seed)
    if settings.get("own_loop"):
        return {"val_acc": 1.0}
    if context.seed == settings.get("fails"):
        raise RuntimeError("no such luck")
    def build(data):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, data.classes))
        net[1].bias.data += random.random() + np.random.rand()
        return net
    metrics = train_classifier({k: v for k, v in settings.items() if k not in ("fails", "own_loop")}, context, build)
    return metrics | {"mine": context.seed, "drawn": random.random() + np.random.rand() + torch.rand(()).item()}
"""


def group(folder: Path, seeds: Sequence[int], **settings: Any) -> list[Result]:
    """Have a worker do the attempts of these seeds in one model, and return how each ended."""
    (folder / "quick.py").write_text(TASK)
    folders = [AttemptFolder(folder / "trials" / str(seed) / "1") for seed in seeds]
    for seed, made in zip(seeds, folders, strict=True):
        mates = tuple(str(each.path) for each in folders[1:]) if made is folders[0] else ()
        told = {"metrics": ("val_acc",), "fuse": 4, "mates": mates, "locks": (str(made.path.parent / "lock"),)}
        made.create(Work("quick:train", str(folder), SETTINGS | settings, seed, str(seed), **told))
    folders[0].log_file.touch()
    worker.run_attempt(folders[0].path)
    results = [each.result() for each in folders]
    assert None not in results
    return results  # type: ignore[return-value]


def test_each_task_of_a_group_goes_on_with_its_own_metrics(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    results = group(tmp_path, [1, 2, 3])
    assert [result.outcome for result in results] == ["ok"] * 3
    assert [result.metrics["mine"] for result in results] == [1, 2, 3]
    assert len({result.metrics["val_loss"] for result in results}) == 3
    assert {result.facts["fused"] for result in results} == {"4 seeds in one model"}
    assert capfd.readouterr().out == "this is seed 1\nthis is seed 2\nthis is seed 3\n"
    logs = [tmp_path / "trials" / str(seed) / "1" / "stdout.log" for seed in (1, 2, 3)]
    note = f"ablate: trained in one model with others: what they print is in {logs[0]}\n"
    assert [log.read_text() for log in logs] == ["", note, note]


def test_what_a_task_draws_does_not_depend_on_its_mates(tmp_path: Path) -> None:
    """Neither in building its network nor after its training, by whichever generator."""
    for folder, seeds in (("among", [1, 2, 3]), ("others", [3, 4])):
        (tmp_path / folder).mkdir()
        group(tmp_path / folder, seeds)
    among, others = (AttemptFolder(tmp_path / each / "trials" / "3" / "1").result() for each in ("among", "others"))
    assert among is not None
    assert others is not None
    assert repeats(among.metrics) == repeats(others.metrics)
    assert weights_of(tmp_path / "among" / "trials", "3/1") == weights_of(tmp_path / "others" / "trials", "3/1")


def test_a_task_that_fails_before_it_is_trained_leaves_the_others(tmp_path: Path) -> None:
    first, second, third = group(tmp_path, [1, 2, 3], fails=2)
    assert [first.outcome, second.outcome, third.outcome] == ["ok", "error", "ok"]
    assert second.error == "RuntimeError: no such luck"


def test_a_task_with_a_loop_of_its_own_cannot_be_fused(tmp_path: Path) -> None:
    for result in group(tmp_path, [1, 2], own_loop=True):
        assert result.outcome == "error"
        assert "the task did not call train_classifier" in result.error


def test_what_ends_the_training_ends_each_of_its_seeds(tmp_path: Path) -> None:
    results = group(tmp_path, [1, 2], train=SETTINGS["train"] | {"optimizer": "lion"})
    assert [result.outcome for result in results] == ["error"] * 2
    assert all("`train.optimizer` should be 'sgd', 'adam' or 'adamw'" in result.error for result in results)
