"""A task whose answer is known: copied beside a study as ``truth_task.py``, and imported by tests for its numbers.

A value is the gains of the model's parts, what two of them gain together, a part of the seed that all arms share, and
noise of the arm's own. The own noise sums to zero over every five seeds (1-5, 6-10, …), so that over those each mean,
and with it each effect of any design, is exactly the one that the settings name.
"""

from __future__ import annotations

import time
from itertools import permutations
from typing import Any

BASE = 30.0
PATTERN = (0.5, -0.35, 0.2, -0.3, -0.05)
ORDERS = list(permutations(range(5)))
EXAMPLES = 60


def truth(settings: dict[str, Any]) -> float:
    """Return the expected value of a model."""
    model, gain = settings["model"], settings["gain"]
    together = settings["together"] if model["wide"] and model["skip"] else 0.0
    return BASE + sum(gain[part] for part in gain if model[part]) + together


def value(settings: dict[str, Any], seed: int) -> float:
    """Return what a model measures at a seed."""
    cell = sum(2**place for place, part in enumerate(sorted(settings["model"])) if settings["model"][part])
    block, place = divmod(seed - 1, 5)
    own = PATTERN[ORDERS[(37 * cell + 11 * block) % 120][place]]
    shared = (7 * seed % 10 - 4.5) / 5
    return truth(settings) + shared + settings["noise"] * own


def scores(settings: dict[str, Any], seed: int) -> list[float]:
    """Return 100 for each example that a model gets right at a seed: each part helps with examples of its own."""
    helped = {"wide": (5, 1), "skip": (6, 1), "dropout": (9, 2), "bias": (20, 3)}
    known = [part for part, on in settings["model"].items() if on]
    right = []
    for each in range(EXAMPLES):
        easy = each % 2 == 0 or any(each % helped[part][0] == helped[part][1] for part in known)
        luck = (each * 31 + seed * 17 + len(known) * 7) % 23 == 0
        right.append(100.0 * (easy != luck))
    return right


def train(settings: dict[str, Any], context: Any) -> dict[str, float]:
    time.sleep(settings["pause"])
    diverge(settings, context)
    return {"acc": value(settings, context.seed), "loss": 100 - truth(settings) - context.seed / 10}


def classify(settings: dict[str, Any], context: Any) -> dict[str, float]:
    """Like ``train``, with a score for each example, in the way that ``settings.scores`` says."""
    diverge(settings, context)
    right = scores(settings, context.seed)
    first = {"right": 0, "others": 1000, "none": None}[settings["scores"]]
    if first is not None:
        context.scores(range(first, first + EXAMPLES), right)
    return {"acc": sum(right) / EXAMPLES}


def diverge(settings: dict[str, Any], context: Any) -> None:
    from ablate.train.context import Diverged

    if context.seed == settings["diverges_at"]:
        raise Diverged("the loss is inf")
    if context.seed == settings["starves_at"]:
        raise MemoryError
