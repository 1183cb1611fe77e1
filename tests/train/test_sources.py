"""Metrics of a command, wherever it leaves them: real files, those of TensorBoard written by torch itself."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from ablate.errors import AblateError
from ablate.study.schema import MetricsFrom
from ablate.train.sources import Source, source_of

Readings = list[tuple[int | None, dict[str, float]]]


def source(folder: Path, metrics: tuple[str, ...] = ("acc", "loss"), **declared: Any) -> Source:
    return source_of(MetricsFrom.model_validate(declared), metrics, lambda path: folder / path)


def told(found: Source, *lines: str) -> Readings:
    return [(each.epoch, dict(each.values)) for line in lines for each in found.printed(line)]


def polled(found: Source, *, ended: bool = False) -> Readings:
    return [(each.epoch, dict(each.values)) for each in found.polled(ended=ended)]


def test_printed_json(tmp_path: Path) -> None:
    found = source(tmp_path)
    lines = [
        "epoch 1 of 3", '{"epoch": 1, "acc": 50, "other": 3}', '{"epoch": 2.0, "loss": NaN}', '{"acc": 51.5}',
        "{not json}", "[1, 2]", '{"nothing": 1}', '  {"epoch": 2.5, "acc": "51.5"}', '{"epoch": 3, "acc": null}',
    ]  # fmt: skip
    *first, nan, final, half = told(found, *lines)
    assert first == [(1, {"acc": 50.0})]
    assert nan[0] == 2
    assert math.isnan(nan[1]["loss"])
    assert [final, half] == [(None, {"acc": 51.5}), (None, {"acc": 51.5})]
    assert list(found.seen) == ["epoch", "acc", "other", "loss", "nothing"]


def test_names_in_the_source(tmp_path: Path) -> None:
    found = source(tmp_path, names={"acc": "test.top1", "loss": "a.b"})
    assert told(found, '{"test": {"top1": 7}, "a.b": 2, "acc": 1}') == [(None, {"acc": 7.0, "loss": 2.0})]


@pytest.mark.parametrize("value", ["71 %", True, [1], {"a": 1}])
def test_what_is_no_number_is_said(tmp_path: Path, value: object) -> None:
    with pytest.raises(AblateError, match="which is no number"):
        told(source(tmp_path), json.dumps({"acc": value}))


def test_a_pattern(tmp_path: Path) -> None:
    patterns = [r"Epoch (?P<epoch>\d+)", r"acc[=: ]+(?P<acc>[-+.\deE]+|nan)", r"loss=(?P<loss>\S+)"]
    found = source(tmp_path, pattern=patterns)
    lines = ["Epoch 1/3", "  loss=0.5 acc: 50.0", "acc = 1e2", "Epoch 2/3 acc=51", "nothing"]
    assert told(found, *lines) == [(1, {"acc": 50.0}), (1, {"loss": 0.5}), (1, {"acc": 100.0}), (2, {"acc": 51.0})]


def test_a_json_file_is_read_at_the_end(tmp_path: Path) -> None:
    found = source(tmp_path, json="m.json")
    assert polled(found, ended=True) == []
    (tmp_path / "m.json").write_text('{"acc": 5, "loss"')
    assert polled(found) == []
    with pytest.raises(AblateError, match="the metrics are no JSON: "):
        polled(found, ended=True)
    (tmp_path / "m.json").write_text('{"acc": 5, "loss": -0.5, "epoch": 9}')
    assert polled(found, ended=True) == [(9, {"acc": 5.0, "loss": -0.5})]
    (tmp_path / "m.json").write_text("[5]")
    with pytest.raises(AblateError, match="no JSON object"):
        polled(found, ended=True)


def test_files_that_grow_are_read_once(tmp_path: Path) -> None:
    lines, table = source(tmp_path, json="m.jsonl"), source(tmp_path, csv="m.csv", names={"acc": "val acc"})
    assert polled(lines) == polled(table) == []
    with (tmp_path / "m.jsonl").open("a") as file, (tmp_path / "m.csv").open("a") as rows:
        file.write('{"epoch": 1, "acc": 1}\n{"epoch": 2, "a')
        rows.write("epoch, val acc,loss\n0, 1,\n1, 2.5, 0.5\n2,")
        file.flush(), rows.flush()
        assert polled(lines) == [(1, {"acc": 1.0})]
        assert polled(table) == [(0, {"acc": 1.0}), (1, {"acc": 2.5, "loss": 0.5})]
        file.write('cc": 2}')
        rows.write("3,0.25")
        file.flush(), rows.flush()
        assert polled(lines) == polled(table) == []
        assert polled(lines, ended=True) == [(2, {"acc": 2.0})]
        assert polled(table, ended=True) == [(2, {"acc": 3.0, "loss": 0.25})]
        assert polled(lines, ended=True) == polled(table, ended=True) == []


def test_rows_without_an_epoch_are_counted(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("acc\n1\n2\n")
    assert polled(source(tmp_path, csv="m.csv"), ended=True) == [(1, {"acc": 1.0}), (2, {"acc": 2.0})]


@pytest.mark.parametrize("new_style", [False, True])
def test_event_files(tmp_path: Path, new_style: bool) -> None:
    found = source(tmp_path, tensorboard="tb", names={"acc": "Accuracy/val"})
    assert polled(found) == []
    writer = SummaryWriter(tmp_path / "tb" / "run")
    for step in range(1, 4):
        writer.add_scalar("Accuracy/val", step * 10.5, step, new_style=new_style)
        writer.add_scalar("other", 1.0, step)
        writer.flush()
        assert polled(found) == [(step, {"acc": step * 10.5})]
    writer.add_scalar("loss", 0.25, 3)
    writer.close()
    assert polled(found, ended=True) == [(3, {"loss": 0.25})]
    assert set(found.seen) == {"Accuracy/val", "loss"} | {"other"}


def test_a_file_too_large_and_one_that_is_none(tmp_path: Path) -> None:
    with (tmp_path / "m.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(AblateError, match="take more than 64 MiB"):
        polled(source(tmp_path, json="m.json"), ended=True)
    (tmp_path / "folder.csv").mkdir()
    assert polled(source(tmp_path, csv="folder.csv"), ended=True) == []
