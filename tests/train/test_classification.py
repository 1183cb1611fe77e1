"""The loop learns, says when it can't, repeats itself to the bit, and gives paired arms the same images."""

import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ablate.errors import AblateError
from ablate.train import classification, scores
from ablate.train.classification import (
    TrainSettings,
    batches_of_epoch,
    count_flops,
    evaluate,
    learning_rate,
    train_classifier,
)
from ablate.train.context import Context, Diverged, Interrupted
from ablate.train.data import ImageData, Images, load

TRAIN = {"epochs": 3, "batch": 64, "lr": 0.1, "optimizer": "sgd", "momentum": 0.9}
SETTINGS: dict[str, Any] = {
    "data": {"name": "digits", "split_seed": 0, "validation": 200, "subset": 300},
    "augment": {"flip": True, "crop": 1},
    "normalise": True,
    "train": TRAIN,
}
PLAIN = {"augment": {"flip": False, "crop": 0}}
CLOCK_AND_MEMORY = {"train_seconds", "images_per_s", "peak_memory_mb"}


def with_train(**values: Any) -> dict[str, Any]:
    return SETTINGS | {"train": TRAIN | values}


def small_net(data: ImageData) -> nn.Module:
    """A net with everything that could break repeatability: running statistics, dropout, batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(data.channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8 * (data.size // 2) ** 2, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, data.classes),
    )


def context_in(folder: Path, *, seed: int = 1, **more: Any) -> Context:
    folder.mkdir(exist_ok=True)
    return Context(seed=seed, folder=folder, **more)


def train(
    settings: Mapping[str, Any], context: Context, build: Callable[[ImageData], nn.Module] = small_net
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the metrics that repeat, and the final weights."""
    built: list[nn.Module] = []

    def keep(data: ImageData) -> nn.Module:
        built.append(build(data))
        return built[0]

    metrics = train_classifier(settings, context, keep)
    return {n: v for n, v in metrics.items() if n not in CLOCK_AND_MEMORY}, built[0].state_dict()


def recorded(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Return (epoch, values) of what was recorded, less the speed, which no two runs share."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["values"].pop("images_per_s") > 0 for line in lines)
    return [(line["epoch"], line["values"]) for line in lines]


def rates_of(folder: Path) -> list[float]:
    return [values["lr"] for _, values in recorded(folder)]


def assert_equal_weights(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


# --- what it measures --------------------------------------------------------------------------------------------


def test_it_learns_digits_and_says_what_it_measured(tmp_path: Path) -> None:
    settings = SETTINGS | PLAIN | {"data": SETTINGS["data"] | {"subset": None}}
    metrics = train_classifier(settings, context_in(tmp_path), small_net)
    assert metrics["test_acc"] > 90
    assert metrics["val_acc"] > 90
    lines = recorded(tmp_path)
    assert [epoch for epoch, _ in lines] == [1, 2, 3]
    per_epoch = {"train_loss", "train_acc", "val_loss", "val_acc", "val_macro_f1", "val_macro_recall"}
    assert all(set(values) == per_epoch | {"lr"} for _, values in lines)
    assert lines[-1][1] == {"lr": 0.1, **{name: metrics[name] for name in per_epoch}}
    assert lines[-1][1]["train_loss"] < lines[0][1]["train_loss"]
    test = {"test_loss", "test_acc", "test_macro_f1", "test_macro_recall"}
    assert set(metrics) == per_epoch | test | CLOCK_AND_MEMORY | {"parameters", "flops"}
    # conv 1→8 of 3×3, two BatchNorms, Linear 8·4·4→32, Linear 32→10
    assert metrics["parameters"] == (9 * 8 + 8) + 2 * 8 + (128 * 32 + 32) + 2 * 32 + (32 * 10 + 10)
    assert metrics["flops"] == 2 * (64 * 8 * 9 + 128 * 32 + 32 * 10)
    assert metrics["images_per_s"] == pytest.approx(3 * 1237 / metrics["train_seconds"])
    assert 100 < metrics["peak_memory_mb"] < 100_000


def test_evaluation_by_hand() -> None:
    truth = torch.tensor([0, 0, 1, 1, 2, 2])
    guess = torch.tensor([0, 1, 1, 1, 2, 0])
    part = Images(guess.to(torch.uint8).view(6, 1, 1, 1), truth)

    def one_hot(images: Tensor) -> Tensor:
        return nn.functional.one_hot(images.flatten().long(), 4).float()

    metrics, guesses = evaluate(one_hot, part, classes=4, batch=4, prefix="val")
    assert guesses.tolist() == guess.tolist()
    # class 0: precision 1/2, recall 1/2; class 1: 2/3, 1; class 2: 1, 1/2; class 3 is neither there nor guessed: 0
    assert metrics == pytest.approx(
        {
            "val_loss": math.log(math.e + 3) - 4 / 6,
            "val_acc": 100 * 4 / 6,
            "val_macro_f1": 100 * (1 / 2 + 4 / 5 + 2 / 3 + 0) / 4,
            "val_macro_recall": 100 * (1 / 2 + 1 + 1 / 2 + 0) / 4,
        }
    )


@pytest.mark.parametrize(
    ("metrics", "scored"), [((), "val_acc"), (("val_acc",), "val_acc"), (("test_acc",), "test_acc")]
)
def test_every_image_is_scored_for_the_primary_metric(tmp_path: Path, metrics: tuple[str, ...], scored: str) -> None:
    found, _ = train(with_train(epochs=1), context_in(tmp_path, metrics=metrics))
    ids, values = scores.read(tmp_path / "scores.npz")
    parts = load(SETTINGS["data"])
    part = parts.validation if scored == "val_acc" else parts.read_test()
    assert ids.tolist() == part.ids.tolist(), "an image is known by its place in the data, in every split"
    others = load({**SETTINGS["data"], "split_seed": 7}).validation.ids
    assert set(others.tolist()) != set(parts.validation.ids.tolist())
    assert set(values) == {0.0, 100.0}
    assert values.mean() == pytest.approx(found[scored], rel=1e-12)


def test_no_image_is_scored_for_a_metric_that_is_no_mean_over_images(tmp_path: Path) -> None:
    train(with_train(epochs=1), context_in(tmp_path, metrics=("val_macro_f1", "val_acc")))
    assert not (tmp_path / "scores.npz").exists()


def test_the_train_loss_is_the_mean_over_images_not_batches(tmp_path: Path) -> None:
    # a rate so small that the weights stand still: the epoch's loss is then that of the untrained net on all images
    settings = SETTINGS | PLAIN | {"train": TRAIN | {"epochs": 1, "lr": 1e-12, "batch": 200}}

    def linear(data: ImageData) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(data.size**2, data.classes))

    built: list[nn.Module] = []
    metrics = train_classifier(settings, context_in(tmp_path), lambda d: built.append(linear(d)) or built[0])
    data = load(settings["data"])
    images = (data.train.images / 255 - data.mean) / data.std
    expected = nn.functional.cross_entropy(built[0](images), data.train.labels).item()
    assert metrics["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_test_set_is_read_once_and_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def watched(settings: Mapping[str, Any], *, device: torch.device) -> ImageData:
        data = load(settings, device=device)
        values = {**vars(data), "read_test": lambda: events.append("test") or data.read_test()}
        return ImageData(**values)

    class Watching(Context):
        def record(self, *, epoch: int, epochs: int | None = None, **values: float) -> None:
            events.append(f"epoch {epoch}")
            super().record(epoch=epoch, epochs=epochs, **values)

    monkeypatch.setattr(classification, "load", watched)
    train_classifier(SETTINGS, Watching(seed=1, folder=tmp_path), small_net)
    assert events == ["epoch 1", "epoch 2", "epoch 3", "test"]


def test_counting_flops_leaves_the_model_and_the_random_state_alone() -> None:
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.linear(x.flatten(1) + torch.rand(4))

    model = Drawing().train()
    state = torch.get_rng_state()
    assert count_flops(model, torch.zeros(1, 1, 2, 2)) == 2 * 4 * 3
    assert torch.equal(torch.get_rng_state(), state)
    assert model.calls == 0
    assert model.training


def test_frozen_parameters_stay_and_are_not_counted(tmp_path: Path) -> None:
    def half_frozen(data: ImageData) -> nn.Module:
        model = nn.Sequential(nn.Flatten(), nn.Linear(data.size**2, 5), nn.ReLU(), nn.Linear(5, data.classes))
        model[1].requires_grad_(False)
        return model

    metrics, weights = train(with_train(epochs=1), context_in(tmp_path / "a"), half_frozen)
    assert metrics["parameters"] == 5 * 10 + 10
    _, later = train(with_train(epochs=2), context_in(tmp_path / "b"), half_frozen)
    assert torch.equal(weights["1.weight"], later["1.weight"])
    assert not torch.equal(weights["3.weight"], later["3.weight"])


def test_bfloat16_is_the_arithmetic_of_the_forward_pass(tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()

    class Watching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x)
            if torch.is_grad_enabled():
                seen.add(out.dtype)
            return out

    def build(data: ImageData) -> nn.Module:
        return Watching(nn.Flatten(), nn.Linear(data.size**2, data.classes))

    context = context_in(tmp_path, dtype=torch.bfloat16)
    metrics, weights = train(SETTINGS | PLAIN, context, build)
    assert seen == {torch.bfloat16}
    assert weights["1.weight"].dtype == torch.float32
    assert metrics["test_acc"] > 70
    with pytest.raises(AblateError) as failure:
        train(SETTINGS, context_in(tmp_path, dtype=torch.float16))
    assert str(failure.value) == (
        "error: execution.dtype float16 is not one that this loop trains in\nhint: use float32 or bfloat16"
    )


def test_channels_last_is_how_images_and_convolutions_lie(tmp_path: Path) -> None:
    seen: set[bool] = set()

    class Watching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                seen.add(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous())
                seen.add(self[0].weight.is_contiguous(memory_format=torch.channels_last))
            out: Tensor = super().forward(x)
            return out

    def build(data: ImageData) -> nn.Module:
        # two channels: with one, or kernels of one pixel, both layouts are the same
        return Watching(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, data.classes))

    images = torch.randint(0, 256, (20, 2, 8, 8), dtype=torch.uint8)
    part = Images(images, torch.arange(20) % 10)
    half = torch.full((2,), 0.5)
    data = ImageData(part, part, 10, 2, 8, half, half, lambda: part)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classification, "load", lambda *_, **__: data)
        train(with_train(epochs=1), context_in(tmp_path, memory_format=torch.channels_last), build)
    assert seen == {True}


# --- when it can't -----------------------------------------------------------------------------------------------


def test_an_absurd_rate_diverges_and_leaves_its_record(tmp_path: Path) -> None:
    settings = SETTINGS | {"train": TRAIN | {"lr": 1e30}}

    def linear(data: ImageData) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(data.size**2, 20), nn.ReLU(), nn.Linear(20, data.classes))

    with pytest.raises(Diverged, match=r"^train_loss is (nan|inf) in epoch 1 of 3$"):
        train(settings, context_in(tmp_path), linear)
    assert [(epoch, values["train_loss"]) for epoch, values in recorded(tmp_path)] in ([(1, "nan")], [(1, "inf")])
    assert not (tmp_path / "checkpoint").exists()


def test_weights_lost_in_the_last_iteration_diverge_too(tmp_path: Path) -> None:
    # one batch an epoch: its loss is that of the initial weights, and only the validation sees what became of them
    settings = SETTINGS | {"train": TRAIN | {"lr": 1e38, "batch": 300}}
    with pytest.raises(Diverged, match=r"^val_loss is (nan|inf) in epoch 1 of 3$"):
        train(settings, context_in(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            with_train(momentun=0.9),
            "error: unknown setting `train.momentun`\nhint: did you mean `train.momentum`? the keys of `train` are: "
            "epochs, batch, lr, optimizer, momentum, weight_decay, schedule, step_epochs, step_factor, plateau_epochs, "
            "plateau_factor, label_smoothing, keep",
        ),
        (
            with_train(optimizer="adam"),
            "error: `train`: adam has no momentum; set momentum to null where it is 0.9",
        ),
        (
            with_train(step_epochs=3),
            "error: `train`: the schedule `constant` uses no step_epochs or step_factor; set both to 0 or null",
        ),
        (
            with_train(schedule="step", step_epochs=3),
            "error: `train`: the schedule `step` needs step_epochs and step_factor",
        ),
        (
            with_train(schedule="plateau", plateau_epochs=0, plateau_factor=0.1),
            "error: `train`: the schedule `plateau` needs plateau_epochs and plateau_factor",
        ),
        (
            with_train(schedule="one-cycle", plateau_factor=0.1),
            "error: `train`: the schedule `one-cycle` uses no plateau_epochs or plateau_factor; set both to 0 or null",
        ),
        (
            with_train(optimizer="adamw"),
            "error: `train`: adamw has no momentum; set momentum to null where it is 0.9",
        ),
        (with_train(label_smoothing=1.0), "error: `train.label_smoothing` should be less than 1, not 1.0"),
        (with_train(keep="first"), "error: `train.keep` should be 'last' or 'best', not 'first'"),
        (
            SETTINGS | {"write": ["tensorbord"]},
            "error: `settings.write.0` should be 'per_class' or 'tensorboard', not 'tensorbord'",
        ),
        (with_train(optimizer="sdg"), "error: `train.optimizer` should be 'sgd', 'adam' or 'adamw', not 'sdg'"),
        (with_train(lr=-1), "error: `train.lr` should be greater than 0, not -1"),
        (with_train(lr=math.nan), "error: `train.lr` should be a finite number, not nan"),
        (with_train(epochs=0), "error: `train.epochs` should be greater than or equal to 1, not 0"),
        (
            SETTINGS | {"augmentation": {}},
            "error: unknown setting `settings.augmentation`\nhint: did you mean `settings.augment`? "
            "the keys of `settings` are: model, data, augment, normalise, train, write",
        ),
        (SETTINGS | {"normalise": "no"}, "error: `settings.normalise` should be True, False or 'constant', not 'no'"),
        (
            SETTINGS | {"augment": {"flip": True}},
            "error: setting `augment.crop` is missing\nhint: the keys of `augment` are: flip, crop, crop_scale, "
            "crop_ratio, brightness, contrast, saturation, hue, cutout, cutout_holes",
        ),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_built(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    def never(_data: ImageData) -> nn.Module:
        raise AssertionError("a model was built")

    with pytest.raises(AblateError) as failure:
        train_classifier(settings, context_in(tmp_path), never)
    assert str(failure.value) == message
    assert not (tmp_path / "metrics.jsonl").exists()


# --- order and schedule ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "batch", "sizes"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 4]), (8, 4, [4, 4]), (3, 1, [1, 1, 1]), (1, 4, [1]), (3, 9, [3])],
)
def test_a_last_batch_of_one_image_is_left_out(count: int, batch: int, sizes: list[int]) -> None:
    batches = batches_of_epoch(count, batch, torch.Generator().manual_seed(1))
    assert [len(index) for index in batches] == sizes
    seen = torch.cat(batches).tolist()
    assert len(set(seen)) == sum(sizes)
    assert set(seen) <= set(range(count))


def test_a_remainder_of_one_trains_with_batchnorm1d(tmp_path: Path) -> None:
    settings = with_train(epochs=1) | {"data": SETTINGS["data"] | {"subset": 129}}
    metrics = train_classifier(settings, context_in(tmp_path), small_net)
    assert metrics["images_per_s"] == pytest.approx(128 / metrics["train_seconds"])


def test_learning_rates_by_hand() -> None:
    def rates(**values: Any) -> list[float]:
        plan = TrainSettings.read(TRAIN | {"epochs": 6, "lr": 0.8} | values, "train")
        return [learning_rate(plan, epoch) for epoch in range(1, 7)]

    assert rates() == [0.8] * 6
    assert rates(schedule="step", step_epochs=2, step_factor=0.5) == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.2])
    assert rates(schedule="cosine") == pytest.approx(
        [0.8, 0.4 * (1 + 3**0.5 / 2), 0.6, 0.4, 0.2, 0.4 * (1 - 3**0.5 / 2)]
    )


@pytest.mark.parametrize(("epochs", "iterations"), [(1, 1), (1, 4), (6, 1), (7, 13)])
def test_one_cycle_is_that_of_torch(epochs: int, iterations: int) -> None:
    plan = TrainSettings.read(TRAIN | {"epochs": epochs, "lr": 0.8, "schedule": "one-cycle"}, "train")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.8, total_steps=epochs * iterations, cycle_momentum=False
    )
    for epoch in range(1, epochs + 1):
        for iteration in range(iterations):
            ours = learning_rate(plan, epoch, iteration=iteration, iterations=iterations)
            assert ours == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
            optimizer.step()
            if (epoch, iteration + 1) != (epochs, iterations):
                theirs.step()


def test_one_cycle_is_stepped_by_iteration(tmp_path: Path) -> None:
    train(with_train(schedule="one-cycle"), context_in(tmp_path))
    plan = TrainSettings.read(TRAIN | {"schedule": "one-cycle"}, "train")
    last = [learning_rate(plan, epoch, iteration=4, iterations=5) for epoch in (1, 2, 3)]  # 300 images: 5 batches
    assert rates_of(tmp_path) == last


PLATEAU = {"schedule": "plateau", "plateau_epochs": 2, "plateau_factor": 0.5}


def test_the_rate_falls_after_epochs_without_gain(tmp_path: Path) -> None:
    # a rate so small that nothing ever improves: epoch 1 sets the mark, 2 and 3 do not pass it, and so on
    train(with_train(lr=1e-7, epochs=6, **PLATEAU) | PLAIN, context_in(tmp_path / "a"), linear)
    assert rates_of(tmp_path / "a") == [1e-7, 1e-7, 1e-7, 1e-7 / 2, 1e-7 / 2, 1e-7 / 4]
    # a loss that falls in every epoch leaves the rate alone
    train(with_train(lr=0.01, epochs=4, **PLATEAU) | PLAIN, context_in(tmp_path / "b"), linear)
    losses = [values["val_loss"] for _, values in recorded(tmp_path / "b")]
    assert losses == sorted(losses, reverse=True)
    assert rates_of(tmp_path / "b") == [0.01] * 4


def linear(data: ImageData) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(data.size**2, data.classes))


ADAM = {"optimizer": "adam", "momentum": None, "lr": 0.01}
ADAMW = ADAM | {"optimizer": "adamw", "weight_decay": 0.1}


@pytest.mark.parametrize(
    ("start", "changed"),
    [
        ({}, {"schedule": "cosine"}),
        ({}, {"schedule": "step", "step_epochs": 1, "step_factor": 0.1}),
        ({}, {"weight_decay": 0.1}),
        ({}, {"momentum": 0.0}),
        ({}, {"batch": 32}),
        ({"momentum": None, "lr": 0.01}, ADAM),
        (ADAM, {"weight_decay": 0.1}),
        (ADAM, {"lr": 0.02}),
        (ADAM | {"weight_decay": 0.1}, {"optimizer": "adamw"}),
        (ADAMW, {"weight_decay": 0.2}),
        ({}, {"schedule": "one-cycle"}),
        ({}, {"label_smoothing": 0.1}),
    ],
)
def test_every_train_setting_changes_the_weights(
    tmp_path: Path, start: dict[str, Any], changed: dict[str, Any]
) -> None:
    _, before = train(with_train(epochs=2, **start), context_in(tmp_path / "a"))
    _, after = train(with_train(**{"epochs": 2, **start, **changed}), context_in(tmp_path / "b"))
    assert not torch.equal(before["9.weight"], after["9.weight"])


@pytest.mark.parametrize(
    "changed",
    [
        PLAIN,
        {"normalise": False},
        {"normalise": "constant"},
        {"augment": {"flip": True, "crop": 0}},
        {"augment": {"flip": True, "crop": 0, "crop_scale": [0.5, 1.0]}},
        {"augment": {"flip": True, "crop": 0, "crop_ratio": [0.9, 1.1]}},
        {"augment": {"flip": True, "crop": 1, "brightness": 0.5}},
        {"augment": {"flip": True, "crop": 1, "contrast": 0.5}},
        {"augment": {"flip": True, "crop": 1, "cutout": 4}},
    ],
)
def test_augmentation_and_normalisation_change_the_weights(tmp_path: Path, changed: dict[str, Any]) -> None:
    _, before = train(with_train(epochs=1), context_in(tmp_path / "a"))
    _, after = train(with_train(epochs=1) | changed, context_in(tmp_path / "b"))
    assert not torch.equal(before["9.weight"], after["9.weight"])


def test_label_smoothing_is_in_the_loss_that_is_trained_on_alone(tmp_path: Path) -> None:
    settings = SETTINGS | PLAIN | {"train": TRAIN | {"epochs": 1, "lr": 1e-12, "batch": 300}}
    smoothed = settings | {"train": settings["train"] | {"label_smoothing": 0.2}}
    plain, weights = train(settings, context_in(tmp_path / "a"), linear)
    found, _ = train(smoothed, context_in(tmp_path / "b"), linear)
    data = load(settings["data"])
    images = ((data.train.images / 255 - data.mean) / data.std).flatten(1)
    scores = torch.log_softmax(images @ weights["1.weight"].T + weights["1.bias"], dim=1)
    target = 0.8 * nn.functional.one_hot(data.train.labels, 10) + 0.2 / 10
    assert found["train_loss"] == pytest.approx(-(target * scores).sum(dim=1).mean().item(), rel=1e-5)
    assert found["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-9)


def test_constant_statistics_bring_pixels_to_minus_one_to_one(tmp_path: Path) -> None:
    settings = SETTINGS | PLAIN | {"normalise": "constant"}
    seen = torch.cat(images_seen(settings, context_in(tmp_path), dropout=0.0, hidden=4))
    pixels = load(SETTINGS["data"]).train.images
    assert torch.equal(seen.unique(), (pixels.unique() / 255 - 0.5) / 0.5)
    assert (seen.min(), seen.max()) == (-1, 1)


def test_holes_are_cut_after_normalisation_and_only_to_train(tmp_path: Path) -> None:
    settings = SETTINGS | {"augment": {"flip": False, "crop": 0, "cutout": 4}, "normalise": "constant"}
    seen = torch.cat(images_seen(settings, context_in(tmp_path / "a"), dropout=0.0, hidden=4))
    # no pixel of 17 shades of grey is 0 by itself: 0.5 is not among them
    holes = (seen == 0).flatten(1).sum(dim=1)
    assert holes.min() >= 4, "a hole around a corner has two rows and two columns in the image"
    assert holes.max() == 16
    one, _ = train(with_train(epochs=1, lr=1e-12) | settings_of(cutout=4), context_in(tmp_path / "b"), linear)
    two, _ = train(with_train(epochs=1, lr=1e-12) | settings_of(cutout=0), context_in(tmp_path / "c"), linear)
    assert one["train_loss"] != two["train_loss"]
    assert one["val_loss"] == pytest.approx(two["val_loss"], rel=1e-9)


def settings_of(**augment: Any) -> dict[str, Any]:
    return {"augment": {"flip": False, "crop": 0, **augment}}


# --- the epoch that is kept --------------------------------------------------------------------------------------

# a rate too high to settle, so that the best epoch is not the last: a test below says so
RESTLESS = {"epochs": 8, "lr": 0.3, "keep": "best"}


def best_epoch(folder: Path) -> int:
    """The first of those epochs that were recorded with the highest validation accuracy."""
    found = recorded(folder)
    return max(found, key=lambda line: (line[1]["val_acc"], -line[0]))[0]


def test_the_best_epoch_is_tested(tmp_path: Path) -> None:
    context = context_in(tmp_path / "best", metrics=("val_acc",))
    kept, weights = train(with_train(**RESTLESS), context)
    epoch = best_epoch(tmp_path / "best")
    assert epoch < 8, "choose settings whose last epoch is not the best"
    assert context.facts["kept_epoch"] == str(epoch)
    # a trial that ends there has the same weights, which its last epoch leaves, and so the same figures
    short, same = train(with_train(**RESTLESS | {"epochs": epoch, "keep": "last"}), context_in(tmp_path / "short"))
    assert_equal_weights(weights, same)
    assert kept == short
    _, values = scores.read(tmp_path / "best" / "scores.npz")
    assert values.mean() == pytest.approx(kept["val_acc"], rel=1e-12)
    last, _ = train(with_train(**RESTLESS | {"keep": "last"}), context_in(tmp_path / "last"))
    assert last["val_acc"] < kept["val_acc"]
    assert recorded(tmp_path / "last") == recorded(tmp_path / "best"), "what is kept changes nothing of the training"


def test_without_keep_no_epoch_is_chosen(tmp_path: Path) -> None:
    context = context_in(tmp_path)
    train(with_train(epochs=1), context)
    assert "kept_epoch" not in context.facts


@pytest.mark.parametrize("stops", [3, 37])  # before the best epoch is reached, and after it
def test_the_best_epoch_outlives_interruptions(tmp_path: Path, stops: int) -> None:
    expected, weights = train(with_train(**RESTLESS), context_in(tmp_path / "whole"))
    stop = iter([*[False] * stops, True]).__next__
    with pytest.raises(Interrupted):
        train(with_train(**RESTLESS), context_in(tmp_path / "a", stop_requested=stop))
    context = context_in(tmp_path / "b", earlier=[str(tmp_path / "a")])
    metrics, resumed = train(with_train(**RESTLESS), context)
    assert metrics == expected
    assert_equal_weights(resumed, weights)
    assert context.facts["kept_epoch"] == str(best_epoch(tmp_path / "whole"))


# --- files on request --------------------------------------------------------------------------------------------


def test_per_class_and_confusion_of_the_test_set(tmp_path: Path) -> None:
    metrics, _ = train(with_train(epochs=1) | {"write": ["per_class"]}, context_in(tmp_path))
    rows = [line.split(",") for line in (tmp_path / "artifacts" / "per_class.csv").read_text().splitlines()]
    assert rows[0] == ["class", "precision", "recall", "f1", "images"]
    assert [row[0] for row in rows[1:]] == [str(number) for number in range(10)]
    assert sum(float(row[2]) for row in rows[1:]) / 10 == pytest.approx(metrics["test_macro_recall"])
    assert sum(float(row[3]) for row in rows[1:]) / 10 == pytest.approx(metrics["test_macro_f1"])
    table = [line.split(",") for line in (tmp_path / "artifacts" / "confusion.csv").read_text().splitlines()]
    counts = [[int(count) for count in row[1:]] for row in table[1:]]
    assert [sum(row) for row in counts] == [36] * 10
    assert sum(counts[number][number] for number in range(10)) / 3.6 == pytest.approx(metrics["test_acc"])


def test_nothing_is_written_without_being_asked_for(tmp_path: Path) -> None:
    train(with_train(epochs=1), context_in(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} <= {"metrics.jsonl", "scores.npz", "checkpoint"}


# --- repeatability -----------------------------------------------------------------------------------------------

EVERYTHING = {
    "augment": {
        "flip": True, "crop": 0, "crop_scale": [0.5, 1.0], "crop_ratio": [0.9, 1.1], "brightness": 0.2, "contrast": 0.2,
        "cutout": 3, "cutout_holes": 2,
    },
    "normalise": "constant",
}  # fmt: skip
WAYS = {
    "sgd": {"schedule": "cosine"},
    "adam": ADAM | {"schedule": "step", "step_epochs": 2, "step_factor": 0.1},
    "adamw": ADAMW | {"schedule": "one-cycle", "label_smoothing": 0.1},
    "plateau": {"lr": 3.0, "schedule": "plateau", "plateau_epochs": 1, "plateau_factor": 0.5, "keep": "best"},
}


@pytest.mark.parametrize("optimizer", [{}, ADAM])
def test_equal_settings_and_seed_give_equal_bits(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    one, weights = train(with_train(**optimizer), context_in(tmp_path / "a"))
    torch.rand(17)  # the random state that a trial finds must not matter
    two, same = train(with_train(**optimizer), context_in(tmp_path / "b"))
    other, different = train(with_train(**optimizer), context_in(tmp_path / "c", seed=2))
    assert one == two
    assert_equal_weights(weights, same)
    assert one != other
    assert not torch.equal(weights["9.weight"], different["9.weight"])
    assert recorded(tmp_path / "a") == recorded(tmp_path / "b")


def test_a_resumed_attempt_scores_like_a_whole_one(tmp_path: Path) -> None:
    train(SETTINGS, context_in(tmp_path / "whole"))
    with pytest.raises(Interrupted):
        train(SETTINGS, context_in(tmp_path / "a", stop_requested=iter([*[False] * 12, True]).__next__))
    train(SETTINGS, context_in(tmp_path / "b", earlier=[str(tmp_path / "a")]))
    assert not (tmp_path / "a" / "scores.npz").exists()
    whole, resumed = (scores.read(tmp_path / name / "scores.npz") for name in ("whole", "b"))
    assert [part.tolist() for part in whole] == [part.tolist() for part in resumed]


@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
@pytest.mark.parametrize("way", WAYS)
def test_interrupted_in_every_epoch_equals_uninterrupted(tmp_path: Path, way: str, layout: str) -> None:
    settings = with_train(epochs=4, **WAYS[way]) | EVERYTHING
    memory = {"memory_format": getattr(torch, layout)}
    expected, weights = train(settings, context_in(tmp_path / "whole", **memory))

    earlier: list[str] = []
    for attempt in range(1, 4):  # each is stopped in the middle of its second epoch: 300 images are 5 batches
        folder = tmp_path / str(attempt)
        stop = iter([*[False] * 7, True]).__next__
        with pytest.raises(Interrupted):
            train(settings, context_in(folder, earlier=earlier, stop_requested=stop, **memory))
        assert [epoch for epoch, _ in recorded(folder)] == list(range(1, attempt + 1))
        earlier = [str(folder), *earlier]
    metrics, resumed = train(settings, context_in(tmp_path / "last", earlier=earlier, **memory))
    assert metrics == expected
    assert_equal_weights(resumed, weights)
    assert recorded(tmp_path / "last") == recorded(tmp_path / "whole")
    if way == "plateau":
        assert len(set(rates_of(tmp_path / "whole"))) > 1, "choose a rate at which the schedule has something to do"


def test_seconds_of_earlier_attempts_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # read before and after each epoch's iterations: an epoch takes one second
    monkeypatch.setattr(classification, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    with pytest.raises(Interrupted):
        train(SETTINGS, context_in(tmp_path / "a", stop_requested=iter([*[False] * 7, True]).__next__))
    context = context_in(tmp_path / "b", earlier=[str(tmp_path / "a")])
    metrics = train_classifier(SETTINGS, context, small_net)
    assert context.resumed_from == "a"
    assert metrics["train_seconds"] == 3
    assert metrics["images_per_s"] == 300


def test_each_epoch_but_the_last_leaves_a_checkpoint(tmp_path: Path) -> None:
    train(SETTINGS, context_in(tmp_path))
    saved = [torch.load(path, weights_only=True) for path in sorted((tmp_path / "checkpoint").glob("*.pt"))]
    assert [content["state"]["epoch"] for content in saved] == [1, 2]


# --- pairing -----------------------------------------------------------------------------------------------------


def images_seen(settings: Mapping[str, Any], context: Context, *, dropout: float, hidden: int) -> list[Tensor]:
    """The batches, in order, that a net was given to train on."""
    seen: list[Tensor] = []

    class Watching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen.append(x.clone())
            out: Tensor = super().forward(x)
            return out

    def build(data: ImageData) -> nn.Module:
        layers = [nn.Linear(data.size**2, hidden), nn.Dropout(dropout), nn.Linear(hidden, data.classes)]
        return Watching(nn.Flatten(), *layers)

    train_classifier(settings, context, build)
    return seen


def test_arms_of_one_seed_see_the_same_images(tmp_path: Path) -> None:
    one = images_seen(SETTINGS, context_in(tmp_path / "a"), dropout=0.0, hidden=8)
    two = images_seen(SETTINGS, context_in(tmp_path / "b"), dropout=0.5, hidden=30)
    other = images_seen(SETTINGS, context_in(tmp_path / "c", seed=2), dropout=0.0, hidden=8)
    assert len(one) == len(two) == 3 * 5
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("augmented", [False, True])
def test_each_epoch_shuffles_and_augments_anew(tmp_path: Path, augmented: bool) -> None:
    settings = SETTINGS | ({} if augmented else PLAIN)
    seen = images_seen(settings, context_in(tmp_path), dropout=0.0, hidden=8)
    epochs = [torch.cat(seen[start : start + 5]).flatten(1) for start in (0, 5, 10)]
    in_order = {images.numpy().tobytes() for images in epochs}
    as_a_set = {tuple(sorted(map(tuple, images.tolist()))) for images in epochs}
    assert len(in_order) == 3
    assert len(as_a_set) == (3 if augmented else 1)


def test_an_arm_with_flips_sees_the_images_of_the_arm_without_some_flipped(tmp_path: Path) -> None:
    with_flips, without = (
        torch.cat(
            images_seen(
                SETTINGS | {"augment": {"flip": flip, "crop": 1}},
                context_in(tmp_path / str(flip)),
                dropout=0.0,
                hidden=8,
            )
        )
        for flip in (True, False)
    )
    same = (with_flips == without).flatten(1).all(dim=1)
    flipped = (with_flips == without.flip(3)).flatten(1).all(dim=1)
    assert (same | flipped).all()
    assert 300 < flipped.sum() < 600  # of 900 images


def test_the_loop_runs_in_a_notebook_with_nothing_but_a_seed() -> None:
    metrics, _ = train(with_train(epochs=1), Context(seed=1))
    assert 0 <= metrics["val_acc"] <= 100
