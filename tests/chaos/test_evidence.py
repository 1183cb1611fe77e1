"""The instruments of chaos see what they are there to see."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ablate.train.folder import AttemptFolder
from tests.chaos.chaos import Blow, Story
from tests.chaos.evidence import equal, recovery, replays


def test_a_single_bit_of_a_state_is_seen() -> None:
    state = {"model": {"weight": torch.ones(3, 2), "bias": torch.zeros(2)}, "steps": [torch.tensor(5.0)], "epoch": 3}
    assert equal(state, state, "state") == 3
    for key, value in (("bias", -torch.zeros(2)), ("weight", torch.ones(2, 3)), ("bias", torch.zeros(2).double())):
        with pytest.raises(AssertionError, match=f"model.{key}"):
            equal(state, {**state, "model": {**state["model"], key: value}}, "state")
    with pytest.raises(AssertionError, match="epoch"):
        equal(state, {**state, "epoch": 4}, "state")


def test_an_epoch_that_ran_twice_is_told_from_one_that_a_checkpoint_repeats(tmp_path: Path) -> None:
    first, second = (AttemptFolder(tmp_path / "runs" / "trials" / "abc" / claim) for claim in ("1", "2"))
    for folder in (first, second):
        folder.path.mkdir(parents=True)
    for folder, epoch, at, acc in ((first, 1, 10.0, 0.5), (first, 2, 11.0, 0.6), (first, 3, 12.0, 0.7)):
        folder.append_record({"epoch": epoch, "time": at, "values": {"acc": acc, "images_per_s": at}})
    for epoch, at, acc in ((1, 10.0, 0.5), (2, 21.0, 0.6), (3, 22.0, 0.8)):
        second.append_record({"epoch": epoch, "time": at, "values": {"acc": acc, "images_per_s": at}})
    assert replays(tmp_path) == (2, 1, 1)  # epochs 2 and 3 ran again, 3 with another number; the second attempt resumed


def test_recovery_is_measured_where_nothing_else_stood_in_its_way() -> None:
    blows = [
        Blow("worker", 100.0, 1, ("abc/1",)),
        Blow("worker", 102.0, 1, ("abc/2",)),  # while its runner was frozen
        Blow("runner", 110.0, 1, ("abc/3",), others=(2, 3)),
        Blow("session", 120.0, 2, ("abc/4",), others=(3,)),  # and the other one soon after it
    ]
    story = Story(0, blows=blows, hindered=[(1, 101.5, 104.0), (1, 110.0, 1e9), (2, 120.0, 1e9), (3, 121.0, 1e9)])
    times = [(99.0, 100.2), (100.5, 104.5), (105.0, 110.9), (111.5, 128.0), (130.0, 131.0)]
    attempts = [
        SimpleNamespace(trial=1, claim=claim, folder=f"trials/abc/{claim}", started=start, ended=end)
        for claim, (start, end) in enumerate(times, start=1)
    ]
    found = recovery(story, attempts)
    assert {name: [round(each, 1) for each in values] for name, values in found.items()} == {
        "worker_kills": [0.2],
        "worker_kills_taken_up": [0.5],
        "runner_kills": [0.9],
        "runner_kills_taken_up": [1.5],
        "lonely_runner_kills": [8.0],
        "lonely_runner_kills_taken_up": [10.0],
    }
