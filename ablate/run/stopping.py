"""Signals that ask a run to stop: Ctrl-C, a closed terminal, a service manager's request, a scheduler's warning.

While trials run, the runner takes them: its workers write a checkpoint first. Before and after, nothing needs time, and
``Stopped`` is raised at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ablate.errors import EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_TERMINATED

# what a scheduler sends some time before the end (Slurm: --signal), often to every process of a job step
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *WARNINGS)


class Stopped(BaseException):
    """The run was asked to stop while no trial was at work."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


def exit_code_of(number: int) -> int:
    """Return the exit code of a run that a signal stopped."""
    if number in WARNINGS:
        return EXIT_STOPPED
    return EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED


@contextmanager
def stop_requests() -> Iterator[None]:
    """Raise ``Stopped`` at the first signal that asks for a stop; whatever follows it changes nothing any more."""

    def stop(number: int, _: FrameType | None) -> None:
        _ignore()
        raise Stopped(number)

    former = {number: signal.signal(number, stop) for number in STOPPING}
    try:
        yield
    except Stopped:
        _ignore()
        raise
    except BaseException:
        _restore(former)
        raise
    _restore(former)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Leave the handlers as they were: what goes on afterwards is the caller's program, not ours."""
    former = {number: signal.getsignal(number) for number in STOPPING}
    try:
        yield
    finally:
        _restore({number: handler for number, handler in former.items() if handler is not None})


@contextmanager
def held_back() -> Iterator[None]:
    """Keep these signals from us, and from a process started here until it asks for them. We get them afterwards."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _ignore() -> None:
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _restore(former: Mapping[signal.Signals, Any]) -> None:
    for number, handler in former.items():
        signal.signal(number, handler)
