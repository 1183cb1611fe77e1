"""Run the tasks of several attempts in one process, so that what they ask to be trained is trained together.

Each task has a thread of its own, and only one of them runs at a time: until it asks ``train_classifier`` for its
training, or ends. When all wait, what they asked for is done for all at once, in the main thread, and each goes on with
its own metrics. So a task needs to know nothing of it.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ablate.train.context import Context
from ablate.train.process import seed_all
from ablate.train.seeding import stream_seed
from ablate.train.together import Asked

Metrics = Mapping[str, float]


class Seat:
    """A task in a thread of its own, which runs only while ``go_on`` waits for it."""

    def __init__(self, task: Callable[[Seat], None]) -> None:
        self.asked: Asked | None = None
        self.has_asked = False  # ever
        self._answer: Metrics | BaseException | None = None
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._live, args=(task,), daemon=True)
        self._thread.start()

    def go_on(self, answer: Metrics | BaseException | None = None) -> None:
        """Have the task run on, with what it asked for, until it asks (again) or has ended."""
        self.asked, self._answer = None, answer
        self._turn.release()
        self._back.acquire()
        if self.asked is None:
            self._thread.join()

    def _live(self, task: Callable[[Seat], None]) -> None:
        self._turn.acquire()
        try:
            task(self)
        finally:
            self._back.release()

    def __call__(
        self, settings: Mapping[str, Any], context: Context, build_model: Callable[[Any], Any]
    ) -> dict[str, float]:
        """Wait, in the task's thread, until what it asks for is done. Raises what ended that."""
        self.asked, self.has_asked = Asked(settings, context, _as_now(build_model)), True
        self._back.release()
        self._turn.acquire()
        seed_all(stream_seed(context.seed, "noise"))  # not where the others have left the generators
        if isinstance(self._answer, BaseException):
            raise self._answer
        assert self._answer is not None
        return dict(self._answer)


def _as_now(build_model: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return ``build_model``, which finds the global generators as its own task has left them, whoever came since.

    That of torch is seeded by the loop.
    """
    python, array = random.getstate(), np.random.get_state()

    def build(data: Any) -> Any:
        random.setstate(python)
        np.random.set_state(array)
        return build_model(data)

    return build


def run_group(
    tasks: Sequence[Callable[[Seat], None]], train: Callable[[Sequence[Asked]], Sequence[Metrics | BaseException]]
) -> None:
    """Run ``tasks`` to their end; ``train`` gives what each of them asks for, or what ends it.

    Each is called with its seat, which is its context's ``together``, and must raise nothing.
    """
    seats = [Seat(task) for task in tasks]
    for seat in seats:
        seat.go_on()
    while waiting := [(seat, seat.asked) for seat in seats if seat.asked is not None]:
        answers: Sequence[Metrics | BaseException]
        try:
            answers = train([asked for _, asked in waiting])
        except BaseException as error:  # each of them ends by it, as it would have alone
            answers = [error] * len(waiting)
        for (seat, _), answer in zip(waiting, answers, strict=True):
            seat.go_on(answer)
