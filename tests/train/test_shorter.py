"""A training goes on from the end of a shorter one, to the bits that it would have had by itself, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ablate.study.prefixes import without_epochs
from ablate.train.context import Context
from ablate.train.data import ImageData
from tests.train.test_classification import (
    SETTINGS,
    assert_equal_weights,
    context_in,
    recorded,
    small_net,
    train,
    with_train,
)

FEW = SETTINGS["data"] | {"subset": 100}
ADAM = {"optimizer": "adamw", "momentum": None, "lr": 0.01, "weight_decay": 0.01}
PLATEAU = {"schedule": "plateau", "plateau_epochs": 1, "plateau_factor": 0.5}
STEP = {"schedule": "step", "step_epochs": 2, "step_factor": 0.5, "keep": "best"}


def with_epochs(epochs: int, **values: Any) -> dict[str, Any]:
    return with_train(epochs=epochs, **values) | {"data": FEW}


def shorter_in(folder: Path, settings: dict[str, Any], **more: Any) -> None:
    """Train for a shorter time, and keep the end."""
    train(settings, context_in(folder, fingerprint="shorter", keeps_end=True), **more)
    assert (folder / "end" / "manifest.json").exists()


def longer(folder: Path, shorter: Path, **more: Any) -> Context:
    return context_in(folder, fingerprint="longer", shorter={"shorter": str(shorter)}, **more)


@pytest.mark.parametrize("how", [{}, ADAM, STEP, PLATEAU, {"dtype": torch.bfloat16}], ids=str)
def test_it_ends_in_the_bits_of_a_training_from_the_start(tmp_path: Path, how: dict[str, Any]) -> None:
    more = {"dtype": how["dtype"]} if "dtype" in how else {}
    train_settings = {} if more else how
    settings = {epochs: with_epochs(epochs, **train_settings) for epochs in (2, 5)}
    train(settings[2], context_in(tmp_path / "short", fingerprint="shorter", keeps_end=True, **more))
    went_on = longer(tmp_path / "went-on", tmp_path / "short", **more)
    found, weights = train(settings[5], went_on)
    assert went_on.facts["reused_epochs"] == "2"
    assert went_on.facts["reused_from"] == "shorter"
    assert float(went_on.facts["reused_seconds"]) > 0
    expected, expected_weights = train(settings[5], context_in(tmp_path / "alone", **more))
    assert found == expected
    assert_equal_weights(weights, expected_weights)
    assert recorded(tmp_path / "went-on") == recorded(tmp_path / "alone"), "the curves are whole"


def test_a_third_goes_on_from_a_second_that_went_on_from_a_first(tmp_path: Path) -> None:
    shorter_in(tmp_path / "one", with_epochs(1))
    two = longer(tmp_path / "two", tmp_path / "one", keeps_end=True)
    train(with_epochs(2), two)
    three = context_in(tmp_path / "three", fingerprint="third", shorter={"longer": str(tmp_path / "two")})
    _, weights = train(with_epochs(3), three)
    assert three.facts["reused_epochs"] == "2"
    assert float(three.facts["reused_seconds"]) > float(two.facts["reused_seconds"]), "both parts were spent before"
    _, expected = train(with_epochs(3), context_in(tmp_path / "alone"))
    assert_equal_weights(weights, expected)
    assert recorded(tmp_path / "three") == recorded(tmp_path / "alone")


def test_an_attempt_that_was_ended_says_later_what_it_had_reused(tmp_path: Path) -> None:
    shorter_in(tmp_path / "short", with_epochs(1))
    train(with_epochs(3), longer(tmp_path / "first", tmp_path / "short"))
    again = context_in(tmp_path / "again", fingerprint="longer", earlier=[str(tmp_path / "first")])
    train(with_epochs(3), again)
    assert again.resumed_from == "first"
    assert again.facts["reused_epochs"] == "1"


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_a_schedule_that_looks_ahead_begins_anew(tmp_path: Path, schedule: str) -> None:
    context = context_in(tmp_path / "short", fingerprint="shorter", keeps_end=True)
    train(with_epochs(2, schedule=schedule), context)
    assert not (tmp_path / "short" / "end").exists()
    assert without_epochs(with_epochs(2, schedule=schedule)) is None


class Dropped(nn.Module):
    """Forgets a part of its input, as its number says, which nothing else shows."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(images, self.rate, self.training)


def with_rate(rate: float) -> Any:
    def build(data: ImageData) -> nn.Module:
        return nn.Sequential(Dropped(rate), *small_net(data).children())

    return build


@pytest.mark.parametrize("what", ["model", "settings", "weights", "damage"])
def test_what_was_trained_in_another_way_is_not_gone_on_from(
    tmp_path: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A task may make anything of the number of epochs: its model, its weights, what it hands to the loop."""
    shorter_in(tmp_path / "short", with_epochs(1), build=with_rate(0.1))
    settings, build = with_epochs(2), with_rate(0.1)
    if what == "model":
        build = with_rate(0.2)
    elif what == "settings":
        settings = with_epochs(2, lr=0.05)
    elif what == "weights":

        def build(data: ImageData) -> nn.Module:
            net = with_rate(0.1)(data)
            next(net.parameters()).data[0] = 0
            return net

    else:
        file = tmp_path / "short" / "end" / "1.pt"
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    context = longer(tmp_path / "long", tmp_path / "short")
    _, weights = train(settings, context, build)
    assert "reused_epochs" not in context.facts
    assert ("trained in another way" in capfd.readouterr().err) is (what != "damage")
    _, expected = train(settings, context_in(tmp_path / "alone"), build)
    assert_equal_weights(weights, expected)
    assert recorded(tmp_path / "long") == recorded(tmp_path / "alone")


def test_a_task_that_trains_twice_is_given_nothing(tmp_path: Path) -> None:
    shorter_in(tmp_path / "short", with_epochs(1))
    context = longer(tmp_path / "long", tmp_path / "short")
    context.record(epoch=0, own=1.0)  # of what the task did before
    train(with_epochs(4), context)
    assert "reused_epochs" not in context.facts


def test_without_a_longer_trial_nothing_is_kept(tmp_path: Path) -> None:
    train(with_epochs(1), context_in(tmp_path / "short"))
    assert not (tmp_path / "short" / "end").exists()
