"""What was taken for what: a table per class and the confusion matrix of a test set, as CSV."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_recall_fscore_support

Classes = npt.NDArray[np.int64]


def per_class_csv(truth: Classes, guesses: Classes, classes: int) -> bytes:
    """Return a row per class: precision, recall (the accuracy within the class), F1 (all %) and number of images.

    A class that is never predicted, or of which there is no image, counts as 0, as in the macro means.
    """
    measured = precision_recall_fscore_support(truth, guesses, labels=range(classes), zero_division=0)
    rows = (
        f"{number},{100 * precision},{100 * recall},{100 * f1},{images}"
        for number, (precision, recall, f1, images) in enumerate(zip(*measured, strict=True))
    )
    return _text("class,precision,recall,f1,images", rows)


def confusion_csv(truth: Classes, guesses: Classes, classes: int) -> bytes:
    """Return a row per class and a column per class that its images were taken for, with their numbers.

    A network with more outputs than there are classes may have columns beyond them.
    """
    columns = max(classes, int(guesses.max()) + 1)
    counts = np.zeros((classes, columns), np.int64)
    np.add.at(counts, (truth, guesses), 1)
    rows = (",".join(map(str, [number, *row])) for number, row in enumerate(counts.tolist()))
    return _text(",".join(["class", *(f"as_{number}" for number in range(columns))]), rows)


def _text(header: str, rows: object) -> bytes:
    return "".join(f"{line}\n" for line in [header, *rows]).encode()  # type: ignore[misc]
