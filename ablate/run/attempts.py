"""What is known of the attempts that are at work, and of the workers that are at them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ablate.run.energy import Meter
from ablate.run.slots import Slot
from ablate.store.claims import Claim
from ablate.train.folder import AttemptFolder


@dataclass
class Attempt:
    """An attempt that a worker is at, or that it has been given to go on with.

    ``group`` are those that are trained in one model with it, and it itself; the first one's folder names them all.
    """

    claim: Claim
    folder: AttemptFolder
    worker: int = 0
    started: float = 0.0
    heard: float = 0.0
    offset: int = 0
    unsaved: list[Mapping[str, Any]] = field(default_factory=list)
    ended_by: str = ""  # the outcome, where we ended it
    oom_kills: int = 0  # of the kernel's, before it began
    meter: Meter | None = None  # of its GPU, before it began
    values: dict[int, float] = field(default_factory=dict)  # the primary metric by epoch
    ask_at: float | None = None
    kill_at: float | None = None
    fenced: bool = False
    group: Sequence[Attempt] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        self.group = self.group or (self,)


@dataclass
class Worker:
    """A worker in its slot, and its attempts, the first one of each group: it is at the first of all.

    ``ended`` counts those that it did before. Its number is 0 before it is started. Of a GPU that is shared, ``ours``
    and ``others`` are how many workers of this run, itself among them, and of other runs were on it when it ended.
    """

    number: int
    slot: Slot
    queue: deque[Attempt]
    ended: int = 0
    retired: bool = False
    began: float = 0.0
    ours: int = 1
    others: int = 0

    @property
    def crowd(self) -> int:
        return self.ours + self.others

    @property
    def has_begun(self) -> bool:
        """Tell whether it has come to its first attempt: else its end says nothing of that."""
        return bool(self.queue) and (self.ended == 0 or self.queue[0].folder.log_file.exists())
