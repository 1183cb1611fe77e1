"""What is to be seen during a run: a live picture on a terminal, a line per trial elsewhere. All of it on stderr."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ablate.store.facts import StoredTrial
from ablate.study.schema import Study
from ablate.study.words import duration

REFRESH_S = 0.25
GRID_ROWS = 30
FAILURE_LINES = 12


@dataclass
class Cell:
    """One replicate as it stands now."""

    arm: str
    seed: int
    trial: int
    state: str
    outcome: str | None = None
    seconds: float | None = None


@dataclass
class Running:
    """What the live view knows of an attempt at work."""

    trial: int
    slot: str
    started: float
    values: dict[str, float] = field(default_factory=dict)
    epoch: int | None = None
    epochs: int | None = None
    last_line: str = ""


class Progress:
    """Follows a run and shows it. Give it events; it decides how much of them the output can bear."""

    def __init__(self, study: Study, trials: Sequence[StoredTrial], console: Console) -> None:
        self._study = study
        self._console = console
        self._cells = [Cell(each.arm, each.seed, each.trial, each.state, each.outcome, each.seconds) for each in trials]
        self._running: dict[int, Running] = {}
        self._began = time.monotonic()
        self._shown = 0.0
        self._ended = 0
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def started(self, trial: int, slot: str) -> None:
        self._running[trial] = Running(trial, slot, time.monotonic())
        self._set(trial, "running")

    def recorded(self, trial: int, record: Mapping[str, Any]) -> None:
        running = self._running.get(trial)
        if running:
            running.epoch, running.epochs = record["epoch"], record.get("epochs")
            running.values.update({name: float(value) for name, value in record["values"].items()})

    def logged(self, trial: int, line: str) -> None:
        if trial in self._running:
            self._running[trial].last_line = line

    def ended(
        self, trial: int, state: str, outcome: str, *, metrics: Mapping[str, float], seconds: float, why: str
    ) -> None:
        """An attempt of ours ended; ``state`` is the trial's state after it."""
        self._running.pop(trial, None)
        self._set(trial, state, outcome, seconds)
        if state == "done":
            self._ended += 1
        text = self._ended_line(trial, state, outcome, metrics, seconds, why)
        if text and (self._live is None or state == "failed" or outcome not in ("ok", "interrupted")):
            self.say(text)

    def refresh_states(self, states: Mapping[int, tuple[str, str | None]]) -> None:
        """Take over what other runners did meanwhile: trial → (state, outcome)."""
        for cell in self._cells:
            if cell.trial not in self._running and cell.trial in states:
                cell.state, cell.outcome = states[cell.trial]

    def say(self, text: str, lines: Sequence[str] = ()) -> None:
        """Print a line above the live picture, and under it some lines of a log."""
        self._console.print(Text(text), soft_wrap=True)
        for line in lines:
            self._console.print(Text(f"    {line}", style="dim"), soft_wrap=True)

    def show(self, *, waiting_for: int = 0) -> None:
        """Redraw the live picture, at most a few times a second."""
        now = time.monotonic()
        if self._live is None or now - self._shown < REFRESH_S:
            return
        self._shown = now
        self._live.update(self._picture(waiting_for), refresh=True)

    def _set(self, trial: int, state: str, outcome: str | None = None, seconds: float | None = None) -> None:
        for cell in self._cells:
            if cell.trial == trial:
                cell.state, cell.outcome = state, outcome
                cell.seconds = seconds if seconds is not None else cell.seconds

    def _name(self, trial: int) -> str:
        cell = next(cell for cell in self._cells if cell.trial == trial)
        return f"{cell.arm} seed {cell.seed}"

    def _distinct(self) -> dict[int, Cell]:
        return {cell.trial: cell for cell in self._cells}

    def _ended_line(
        self, trial: int, state: str, outcome: str, metrics: Mapping[str, float], seconds: float, why: str
    ) -> str:
        cells = self._distinct().values()
        count = sum(cell.state == "done" for cell in cells)
        head = f"[{count}/{len(cells)}] {self._name(trial)}"
        if outcome == "ok":
            name = self._study.primary
            return f"{head}: {name} {metrics[name]:.4g}, {duration(seconds)}"
        if state == "waiting":
            return f"{head}: {outcome}, goes back in the queue"
        return f"{head}: {outcome}{': ' + why if why else ''}"

    def _picture(self, waiting_for: int) -> Group:
        cells = self._distinct().values()
        states = Counter(cell.state for cell in cells)
        parts: list[Any] = [Text(self._study.title, style="bold"), self._grid()]
        if self._running:
            parts.append(self._running_table())
        done = f"{states['done']} of {len(cells)} trials done"
        failed = f", {states['failed']} failed" if states["failed"] else ""
        elsewhere = f", {waiting_for} at other runners" if waiting_for else ""
        eta = self._eta()
        left = f" · about {duration(eta)} left" if eta is not None else ""
        elapsed = duration(time.monotonic() - self._began)
        parts.append(Text(f"{done}{failed}{elsewhere} · {elapsed} so far{left} · Ctrl-C stops, nothing is lost"))
        return Group(*parts)

    def _grid(self) -> Table:
        seeds = list(dict.fromkeys(cell.seed for cell in self._cells))
        arms = list(dict.fromkeys(cell.arm for cell in self._cells))
        room = max(1, (self._console.width - 34) // 3)
        grid = Table.grid(padding=(0, 1))
        grid.add_column("arm", no_wrap=True, max_width=32)
        for _ in seeds[:room]:
            grid.add_column(justify="center", no_wrap=True)
        by_place = {(cell.arm, cell.seed): cell for cell in self._cells}
        busy = [arm for arm in arms if any(cell.state == "running" for cell in self._cells if cell.arm == arm)]
        shown = arms if len(arms) <= GRID_ROWS else (busy + [arm for arm in arms if arm not in busy])[:GRID_ROWS]
        for arm in shown:
            marks = [self._mark(by_place.get((arm, seed))) for seed in seeds[:room]]
            grid.add_row(Text(arm), *marks)
        if len(shown) < len(arms) or room < len(seeds):
            grid.add_row(Text(f"… {len(arms)} arms × {len(seeds)} seeds", style="dim"))
        return grid

    def _mark(self, cell: Cell | None) -> Text:
        if cell is None:
            return Text("")
        plain = self._console.encoding.lower().replace("-", "") != "utf8"
        marks = {
            "waiting": (".", "·", "dim"),
            "running": ("o", "◐", "cyan"),
            "done": ("+", "●", "green"),
            "failed": ("x", "✗", "bold red"),
        }
        ascii_mark, mark, style = marks[cell.state]
        if cell.state == "done" and cell.outcome == "diverged":
            ascii_mark, mark, style = "!", "!", "yellow"
        return Text(ascii_mark if plain else mark, style=style)

    def _running_table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for running in self._running.values():
            name = self._study.primary
            epoch = f"epoch {running.epoch}{f'/{running.epochs}' if running.epochs else ''}" if running.epoch else ""
            value = f"{name} {running.values[name]:.4g}" if name in running.values else ""
            speed = running.values.get("images_per_s")
            rate = f"{speed:,.0f} images/s" if speed else ""
            doing = epoch or running.last_line[:60] or "starting"
            took = duration(time.monotonic() - running.started)
            table.add_row(Text(self._name(running.trial)), Text(doing), value, rate, took)
        return table

    def _eta(self) -> float | None:
        """Return the seconds left: the mean of each arm's finished trials, else of all, over the slots at work."""
        cells = list(self._distinct().values())
        known = [cell.seconds for cell in cells if cell.state == "done" and cell.seconds]
        if not known or not self._running:
            return None
        overall = sum(known) / len(known)
        by_arm: dict[str, list[float]] = {}
        for cell in cells:
            if cell.state == "done" and cell.seconds:
                by_arm.setdefault(cell.arm, []).append(cell.seconds)
        left = 0.0
        for cell in cells:
            if cell.state in ("waiting", "running"):
                arm = by_arm.get(cell.arm)
                expected = sum(arm) / len(arm) if arm else overall
                running = self._running.get(cell.trial)
                spent = time.monotonic() - running.started if running else 0.0
                left += max(0.0, expected - spent)
        return left / len(self._running)
