"""Trainings that are the beginning of longer ones: all is equal but the number of epochs, and nothing looks ahead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# of ablate's own loop: those whose rate at an epoch does not depend on how many are to come
_SCHEDULES = ("constant", "step", "plateau")


def without_epochs(settings: Mapping[str, Any]) -> tuple[int, dict[str, Any]] | None:
    """Return ``train.epochs`` and the settings without it; None where fewer epochs may be no beginning of more.

    Two trials of one seed whose other settings are equal go the same way for as many epochs as both have.
    """
    train = settings.get("train")
    if not isinstance(train, dict) or type(train.get("epochs")) is not int:
        return None
    if train.get("schedule", "constant") not in _SCHEDULES:
        return None
    rest = {key: value for key, value in train.items() if key != "epochs"}
    return train["epochs"], {**settings, "train": rest}
