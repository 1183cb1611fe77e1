"""Event files as TensorBoard itself reads them: every number of every epoch, once, also after a resume."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ablate.errors import AblateError
from ablate.train.context import Context, Interrupted
from ablate.train.data import load
from ablate.train.events import CAPTION, captioned
from tests.train.test_classification import context_in, linear, train, with_train

SETTINGS = with_train(epochs=3) | {"write": ["tensorboard"]}


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = read(folder)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_record_is_a_scalar_and_the_images_have_captions(tmp_path: Path) -> None:
    context = context_in(tmp_path)
    train(SETTINGS, context, linear)
    found = scalars(tmp_path)
    assert set(found) == {
        "train/loss", "train/acc", "val/loss", "val/acc", "val/macro_f1", "val/macro_recall", "lr", "images_per_s"
    }  # fmt: skip
    for tag, points in found.items():
        recorded = [record[tag.replace("/", "_")] for record in context.records]
        assert points == [(epoch, pytest.approx(value, rel=1e-6)) for epoch, value in enumerate(recorded, start=1)]
    (picture,) = read(tmp_path).Images("val/predictions")
    assert picture.step == 3
    image = Image.open(io.BytesIO(picture.encoded_image_string))
    shape = np.array(image).shape
    assert shape[0] * shape[1] >= 32 * (96 + CAPTION) * 96, "32 images"
    assert len(np.unique(np.array(image).reshape(-1, 3), axis=0)) > 17, "the digits' shades of grey, and colours"


def test_a_resumed_attempt_has_the_whole_curve(tmp_path: Path) -> None:
    train(SETTINGS, context_in(tmp_path / "whole"))
    with pytest.raises(Interrupted):
        train(SETTINGS, context_in(tmp_path / "a", stop_requested=iter([*[False] * 12, True]).__next__))
    assert [epoch for epoch, _ in scalars(tmp_path / "a")["val/acc"]] == [1, 2], "it is there while it trains"
    train(SETTINGS, context_in(tmp_path / "b", earlier=[str(tmp_path / "a")]))
    whole, resumed = scalars(tmp_path / "whole"), scalars(tmp_path / "b")
    assert whole.pop("images_per_s") != resumed.pop("images_per_s")
    assert resumed == whole


def test_a_caption_below_the_image() -> None:
    image = load({"name": "digits", "split_seed": 0, "validation": 10}).validation.images[0]
    right, wrong = (captioned(image, "3 as 5", right=each) for each in (True, False))
    assert right.shape == wrong.shape == (3, 96 + CAPTION, 96)
    assert right.dtype == torch.uint8
    assert torch.equal(right[:, :96:12, ::12], image.expand(3, 8, 8))
    green, red = right[:, 96:].flatten(1).sum(dim=1), wrong[:, 96:].flatten(1).sum(dim=1)
    assert green[1] > 2 * green[0] > 0
    assert red[0] > 2 * red[1] > 0


def test_without_tensorboard_it_is_said_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)  # as Python marks what can't be imported
    with pytest.raises(AblateError) as failure:
        train(SETTINGS | {"data": {}}, context_in(tmp_path))
    assert str(failure.value) == (
        "error: `write: [tensorboard]` needs tensorboard, which is not installed\n"
        "hint: pip install 'ablation-study[tensorboard]'"
    )


def test_records_are_what_was_recorded(tmp_path: Path) -> None:
    context = Context(seed=1, folder=tmp_path)
    context.record(epoch=1, acc=0.5)
    context.record(epoch=2, acc=float("nan"))
    assert context.records == [{"epoch": 1, "acc": 0.5}, {"epoch": 2, "acc": "nan"}]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["values"] == {"acc": 0.5}
