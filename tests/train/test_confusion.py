"""The per-class table and the confusion matrix by hand, with a class that is not there and an output that is none."""

import numpy as np

from ablate.train.confusion import confusion_csv, per_class_csv

TRUTH = np.array([0, 0, 0, 0, 1, 1, 2])
GUESS = np.array([0, 0, 1, 4, 1, 1, 1])


def test_a_row_for_every_class() -> None:
    header, *rows = per_class_csv(TRUTH, GUESS, 4).decode().splitlines()
    assert header == "class,precision,recall,f1,images"
    found = [[float(value) for value in row.split(",")] for row in rows]
    expected = [[0, 100, 50, 100 * 2 / 3, 4], [1, 50, 100, 100 * 2 / 3, 2], [2, 0, 0, 0, 1], [3, 0, 0, 0, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_counts_of_what_was_taken_for_what() -> None:
    assert confusion_csv(TRUTH, GUESS, 4).decode() == (
        "class,as_0,as_1,as_2,as_3,as_4\n0,2,1,0,0,1\n1,0,2,0,0,0\n2,0,1,0,0,0\n3,0,0,0,0,0\n"
    )
    assert confusion_csv(TRUTH, np.zeros(7, np.int64), 3).decode().splitlines()[0] == "class,as_0,as_1,as_2"
