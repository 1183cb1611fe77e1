"""What is to be seen during a run: a live picture on a terminal, a line per trial elsewhere. All of it on stderr."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ablate.run.picture import Cell, Layout, Running, View, draw
from ablate.store.claims import SILENT_S
from ablate.store.facts import StoredTrial
from ablate.study.schema import Study
from ablate.study.words import duration
from ablate.train.folder import AttemptFolder, printable

REFRESH_S = 0.25
FAILURE_LINES = 12
CANDIDATE = "c"
HUNGRY_S = 5.0  # a short wait for another run's trial is not worth a line
RUN_FOOTER = "Ctrl-C stops; nothing is lost"
HUNGRY = "waits for a free slot: other runs on this machine hold all of them"


class Progress:
    """Follows trials and shows them. Give it events; it decides how much of them the output can bear."""

    def __init__(
        self, study: Study, trials: Sequence[StoredTrial], console: Console, *, footer: str = RUN_FOOTER
    ) -> None:
        self._study = study
        self._console = console
        self._footer = footer
        self._cells: list[Cell] = []
        self._cells_of: dict[int, list[Cell]] = {}  # by trial: two arms may share one
        self._done: set[int] = set()
        self._failure = ""
        self.extend(trials)
        self._running: dict[int, Running] = {}
        self._began = time.monotonic()
        self._shown = 0.0
        self._hungry_since: float | None = None
        self._said_hungry = False
        self._layout = Layout()
        live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._live = live if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def extend(self, trials: Sequence[StoredTrial]) -> None:
        """Take in trials that are new: results have asked for more."""
        known = {(cell.arm, cell.column) for cell in self._cells}
        new = [cell for cell in map(self._cell, trials) if (cell.arm, cell.column) not in known]
        self._cells += new
        for cell in new:
            self._cells_of.setdefault(cell.trial, []).append(cell)
        self._done |= {cell.trial for cell in new if cell.state == "done"}
        self._cells.sort(key=lambda cell: not cell.column.startswith(CANDIDATE))  # they come before what they choose
        for each in trials:
            if each.state == "failed":
                self._failure = f"{self.name(each.trial)}: {printable(each.reason or each.error or '')}"

    def _cell(self, trial: StoredTrial) -> Cell:
        column, label = str(trial.seed), f"seed {trial.seed}"
        if trial.candidate is not None:
            column, label = f"{CANDIDATE}{trial.candidate}", f"candidate {trial.candidate}"
            if len(self._study.tuning_seeds) > 1:
                column += f"/{self._study.tuning_seeds.index(trial.seed) + 1}"
                label += f" seed {trial.seed}"
        return Cell(printable(trial.arm), column, label, trial.trial, trial.state, trial.outcome, trial.seconds)

    def knows(self, trial: int) -> bool:
        return trial in self._cells_of

    def began(self, seconds_ago: float) -> None:
        """What is shown began before we came."""
        self._began = time.monotonic() - max(0.0, seconds_ago)

    @property
    def is_live(self) -> bool:
        return self._live is not None

    def started(self, trial: int, slot: str, *, machine: str = "", spent: float = 0.0) -> None:
        """An attempt began ``spent`` seconds ago."""
        began = time.monotonic() - max(0.0, spent)
        self._running[trial] = Running(trial, self.name(trial), printable(slot), printable(machine), began)
        self._set(trial, "running")

    def silent(self, trial: int, seconds: float) -> None:
        """Nothing was heard of an attempt's runner for so long."""
        if trial in self._running:
            self._running[trial].silent = seconds if seconds > SILENT_S else 0.0

    def recorded(self, trial: int, record: Mapping[str, Any]) -> None:
        running = self._running.get(trial)
        if running is None:
            return
        ago = max(0.0, time.time() - record["time"]) if "time" in record else 0.0
        heard = time.monotonic() - ago
        if running.first is None:
            # what a resumed attempt took over was recorded before it began
            running.first = record["epoch"] - 1
        if heard < running.started:
            running.first = record["epoch"]
        running.epoch, running.epochs = record["epoch"], record.get("epochs")
        running.heard = heard
        running.values.update({name: float(value) for name, value in record["values"].items()})
        if self._study.primary in record["values"]:
            running.curve.append(running.values[self._study.primary])

    def logged(self, trial: int, line: str) -> None:
        if trial in self._running:
            self._running[trial].last_line = line

    def ended(
        self,
        trial: int,
        state: str,
        outcome: str,
        *,
        metrics: Mapping[str, float],
        seconds: float,
        why: str,
        folder: AttemptFolder | None = None,
        quiet: bool = False,
    ) -> None:
        """An attempt ended; ``state`` is the trial's state after it. Of a failed one, the log's end is shown."""
        self._running.pop(trial, None)
        self._set(trial, state, outcome, seconds)
        if state == "failed":
            self._failure = f"{self.name(trial)}: {why or outcome}"
        if quiet:
            return
        text = self._ended_line(trial, state, outcome, metrics, seconds, why)
        if self._live is None or state == "failed" or outcome not in ("ok", "interrupted"):
            self.say(text)
        if folder is not None and (state == "failed" or outcome == "error"):
            self.say(f"    {folder.log_file}", folder.log_tail(FAILURE_LINES))

    def refresh_states(self, states: Mapping[int, tuple[str, str | None]]) -> None:
        """Take over what others did meanwhile: trial → (state, outcome)."""
        for cell in self._cells:
            if cell.trial not in self._running and cell.trial in states:
                state, outcome = states[cell.trial]
                if state == "running" and cell.state != "running":
                    cell.since = time.monotonic()
                self._set(cell.trial, state, outcome)

    def hungry(self, is_hungry: bool) -> None:
        """Other runs hold every slot, or no longer: the picture shows it; elsewhere it is said once."""
        now = time.monotonic()
        self._hungry_since = (self._hungry_since or now) if is_hungry else None
        if self._live is None and not self._said_hungry and is_hungry and now - (self._hungry_since or now) > HUNGRY_S:
            self._said_hungry = True
            self.say(f"{self._study.title} {HUNGRY}")

    def say(self, text: str, lines: Sequence[str] = ()) -> None:
        """Print a line above the live picture, and under it some lines of a log."""
        if self._live is None:  # plain, as it would be printed: there may be thousands a second
            print(printable(text), file=self._console.file, flush=True)
        else:
            self._console.print(Text(printable(text)), soft_wrap=True)
        for line in lines:
            self._console.print(Text(f"    {printable(line)}", style="dim"), soft_wrap=True)

    def show(self) -> None:
        """Redraw the live picture, at most a few times a second."""
        now = time.monotonic()
        if self._live is None or now - self._shown < REFRESH_S:
            return
        self._shown = now
        self._live.update(self._picture(now), refresh=True)

    def _picture(self, now: float) -> Group:
        view = View(
            title=printable(self._study.title),
            metric=self._study.primary,
            cells=self._cells,
            running=list(self._running.values()),
            began=self._began,
            now=now,
            footer=f"{HUNGRY}; {self._footer}" if self._hungry_since is not None else self._footer,
            failure=self._failure,
        )
        width, height = self._console.size
        ascii_only = not _encodes(self._console.encoding)
        # a line less than there is: the cursor stands below the picture while something is printed above it
        return Group(*draw(view, self._layout, width=width, height=height - 1, ascii_only=ascii_only))

    def _set(self, trial: int, state: str, outcome: str | None = None, seconds: float | None = None) -> None:
        for cell in self._cells_of.get(trial, ()):
            cell.state, cell.outcome = state, outcome
            cell.seconds = seconds if seconds is not None else cell.seconds
        (self._done.add if state == "done" else self._done.discard)(trial)

    def name(self, trial: int) -> str:
        cell = self._cells_of[trial][0]
        return f"{cell.arm} {cell.label}"

    def _ended_line(
        self, trial: int, state: str, outcome: str, metrics: Mapping[str, float], seconds: float, why: str
    ) -> str:
        head = f"[{len(self._done)}/{len(self._cells_of)}] {self.name(trial)}"
        name = self._study.primary
        if outcome == "ok" and name in metrics:
            return f"{head}: {name} {metrics[name]:.4g}, {duration(seconds)}"
        if state == "waiting":
            return f"{head}: {outcome}, goes back in the queue"
        if why.startswith(outcome):
            return f"{head}: {why}"  # the reason of a failed trial begins with the outcome
        return f"{head}: {outcome}{': ' + why if why else ''}"


def _encodes(encoding: str) -> bool:
    try:
        "●◐·✗…▁█".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
