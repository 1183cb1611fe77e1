"""What went wrong, in words a user can act on.

AblateError                exit 2: the request was wrong; nothing was written
├── StudyError             exit 2: one or more faults of a study file, each with its line
├── StoreError             exit 3: the store can't be read or written
└── EnvironmentFault       exit 4: environment, data or resources
    └── DataError          exit 4: a data set is missing or damaged

Anything else that escapes is a fault of ablate itself: exit 70. A run that a signal stopped exits with 75, 130 or 143.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

EXIT_DONE = 0
EXIT_FAILED_TRIALS = 1
EXIT_REQUEST = 2
EXIT_STORE = 3
EXIT_ENVIRONMENT = 4
EXIT_BUG = 70
EXIT_STOPPED = 75  # by a scheduler's warning: the same command goes on
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: what, where (``file:line`` or a path), and what to do about it."""

    message: str
    where: str = ""
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        text = _spelt_out(f"error: {place}{self.message}")
        return f"{text}\nhint: {self.hint}" if self.hint else text


def _spelt_out(text: str) -> str:
    """Return the text on one line: names and values in it are the user's, and may hold line ends."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class AblateError(Exception):
    """A mistake or a condition that the user can mend. Holds every fault that was found, not only the first."""

    exit_code = EXIT_REQUEST

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        self.faults: tuple[Fault, ...] = (Fault(message, where, hint),)
        super().__init__(str(self))

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.faults)


class StudyError(AblateError):
    """All the faults of one study file at once, in the order of their lines."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        Exception.__init__(self, str(self))


class StoreError(AblateError):
    exit_code = EXIT_STORE


class EnvironmentFault(AblateError):
    exit_code = EXIT_ENVIRONMENT


class DataError(EnvironmentFault):
    """A data set is not where it was looked for, or is not what it should be."""
