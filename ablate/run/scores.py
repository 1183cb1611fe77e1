"""From ``scores.npz`` of an attempt folder to what the store keeps."""

from __future__ import annotations

from ablate.store.claims import KeptScores
from ablate.store.scores import pack
from ablate.train import scores
from ablate.train.folder import AttemptFolder, printable

CLOSE = 1e-5  # of the largest score: room for a metric that was summed in float32


def kept_scores(folder: AttemptFolder, primary: str, value: float) -> tuple[KeptScores | None, str]:
    """Return the scores that a task gave, and what is to be noted: why they can't be kept, or that they do not add up.

    ``value`` is what the task returned for the primary metric. Never raises for what the file holds.
    """
    try:
        ids, values = scores.read(folder.scores_file)
    except ValueError as error:
        return None, printable(f"not readable: {error}")[:200]
    mean = float(values.mean())
    adds_up = abs(mean - value) <= CLOSE * float(abs(values).max())
    note = "" if adds_up else f"their mean is {mean:.6g}, and {primary} is {value:.6g}"
    return KeptScores(primary, *pack(ids, values)), note
