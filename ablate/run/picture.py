"""The live picture of a run: lines that fit the terminal, drawn anew each time. Knows no store and no clock."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from ablate.study.words import duration

GAP = 2
LABEL_WIDTH = 32
LEAST_GRID = 3
WIDE = 110  # from here the head is one line; narrower, it is always two, so that the rows below keep their places

# state → (UTF-8, ASCII, style)
_MARKS = {
    "done": ("●", "+", "green"),
    "running": ("◐", "o", "cyan"),
    "waiting": ("·", ".", "dim"),
    "failed": ("✗", "x", "bold red"),
    "diverged": ("!", "!", "yellow"),
    "pruned": ("−", "-", "dim"),
}


_BARS, _ASCII_BARS = "▁▂▃▄▅▆▇█", "_.,-=+*#"
_BARS_WIDTH = 8

_ASCII = (
    {ord(sign): ascii_sign for sign, ascii_sign, _ in _MARKS.values()}
    | dict(zip(map(ord, _BARS), _ASCII_BARS, strict=True))
    | {ord("…"): "~"}
)


@dataclass
class Cell:
    """One replicate as it stands now, in a ``column`` of its arm; ``since`` is when it was seen to run."""

    arm: str
    column: str
    label: str
    trial: int
    state: str
    outcome: str | None = None
    seconds: float | None = None
    since: float | None = None

    @property
    def mark(self) -> str:
        special = self.state == "done" and self.outcome in ("diverged", "pruned")
        return str(self.outcome) if special else self.state


@dataclass
class Running:
    """An attempt at work. ``first`` is the epoch before the first one of its own; a resumed attempt begins later.

    ``curve`` holds the primary metric of the epochs so far.
    """

    trial: int
    name: str
    slot: str
    machine: str
    started: float
    values: dict[str, float] = field(default_factory=dict)
    epoch: int | None = None
    epochs: int | None = None
    first: int | None = None
    heard: float | None = None
    last_line: str = ""
    curve: list[float] = field(default_factory=list)
    silent: float = 0.0  # for how long its runner was not heard of, where that is odd

    def left(self, now: float, usual: float | None) -> float | None:
        """Return the seconds it still needs: by its own epochs where it counts them, else as ``usual``."""
        spent = now - self.started
        if self.epoch and self.epochs and self.first is not None and self.heard is not None:
            own = self.epoch - self.first
            if own > 0:
                per_epoch = (self.heard - self.started) / own
                return max(0.0, (self.epochs - self.epoch) * per_epoch - (now - self.heard))
        return None if usual is None else max(0.0, usual - spent)


@dataclass(frozen=True)
class View:
    """All that a picture shows. ``began`` and ``now`` are of one clock; ``failure``: the last trial that failed."""

    title: str
    metric: str
    cells: Sequence[Cell]
    running: Sequence[Running]
    began: float
    now: float
    footer: str
    failure: str = ""


@dataclass
class Layout:
    """What stays between two pictures, so that rows and columns keep their places."""

    top: int = 0
    left: int = 0
    widths: list[int] = field(default_factory=list)


def draw(view: View, layout: Layout, *, width: int, height: int, ascii_only: bool = False) -> list[Text]:
    """Return at most ``height`` lines of at most ``width`` cells."""
    head = _head(view, width)
    legend = [_legend(view.cells)]
    failure = [Text(f"✗ {view.failure}", style="red")] if view.failure else []
    footer = [*failure, Text(view.footer, style="dim")]
    room = max(0, height - len(head) - len(footer))
    running = _running(view, layout, width=width, rows=max(1, room // 3) if room > LEAST_GRID else room)
    room -= len(running)
    grid = _grid(view.cells, layout, width=width, rows=room - 2) if room >= LEAST_GRID else []
    if grid:
        grid = [*grid, *(legend if len(grid) + 1 <= room else [])]
    lines = [*head, *grid, *running, *footer][:height]
    return [_fitted(line, width, ascii_only) for line in lines]


def _fitted(line: Text, width: int, ascii_only: bool) -> Text:
    """Cut a line and, for a terminal without UTF-8, replace our own signs; every cell keeps its place."""
    if ascii_only:
        line.plain = line.plain.translate(_ASCII).encode("ascii", "replace").decode()
    line.truncate(width, overflow="crop")
    line.no_wrap = True
    line.rstrip()
    return line


def _head(view: View, width: int) -> list[Text]:
    cells = list({cell.trial: cell for cell in view.cells}.values())
    states = Counter(cell.mark for cell in cells)
    parts = [f"{states['done'] + states['diverged']} of {len(cells)} trials done"]
    parts += [f"{states[name]} {name}" for name in ("diverged", "failed", "running") if states[name]]
    spent = f"{duration(view.now - view.began)} so far"
    left = seconds_left(view)
    times = f"{spent}, about {duration(left)} left" if left is not None else spent
    whole = f"{view.title}: {', '.join(parts)}; {times}"
    if width >= WIDE and cell_len(whole) <= width:
        return [Text(whole, style="bold")]
    return [Text(f"{view.title}: {', '.join(parts)}", style="bold"), Text(times)]


# --- the grid ------------------------------------------------------------------------------------------------------


def _grid(cells: Sequence[Cell], layout: Layout, *, width: int, rows: int) -> list[Text]:
    """Return arms × seeds, and candidates before them, with a line of these above; what has no room scrolls along."""
    arms = list(dict.fromkeys(cell.arm for cell in cells))
    seeds = list(dict.fromkeys(cell.column for cell in cells))
    by_place = {(cell.arm, cell.column): cell for cell in cells}
    label = min(LABEL_WIDTH, max(3, width // 2), max(map(cell_len, [*arms, "arm"])))
    column = max(map(len, seeds)) + 1
    columns = max(1, (width - label) // column)
    busy = [cell for cell in cells if cell.state == "running"]
    cut = len(arms) > rows or len(seeds) > columns
    rows = max(1, rows - cut)
    layout.top = _scrolled(layout.top, rows, len(arms), sorted({arms.index(cell.arm) for cell in busy}))
    layout.left = _scrolled(layout.left, columns, len(seeds), sorted({seeds.index(cell.column) for cell in busy}))
    shown_arms = arms[layout.top : layout.top + rows]
    shown_seeds = seeds[layout.left : layout.left + columns]
    lines = [Text(_padded("arm", label) + "".join(f"{seed:>{column}}" for seed in shown_seeds), style="dim")]
    for arm in shown_arms:
        line = Text(_padded(arm, label))
        for seed in shown_seeds:
            cell = by_place.get((arm, seed))
            line.append(" " * (column - 1))
            line.append_text(_sign(cell.mark) if cell else Text(" "))
        lines.append(line)
    if cut:
        first, last = layout.top + 1, layout.top + len(shown_arms)
        more = f", {len(shown_seeds)} of {len(seeds)} columns" if len(shown_seeds) < len(seeds) else ""
        lines.append(Text(f"arms {first}-{last} of {len(arms)}{more}", style="dim"))
    return lines


def _sign(mark: str) -> Text:
    sign, _, style = _MARKS[mark]
    return Text(sign, style=style)


def _scrolled(start: int, room: int, count: int, busy: Sequence[int]) -> int:
    """Return the first index to show: the same as before, unless the work has left what is shown."""
    if busy and not any(start <= index < start + room for index in busy):
        start = busy[0]
    return max(0, min(start, count - room))


def _legend(cells: Sequence[Cell]) -> Text:
    present = {cell.mark for cell in cells}
    line = Text(style="dim")
    for mark in _MARKS:
        if mark in present:
            line.append(f"{'  ' if line else ''}")
            line.append_text(_sign(mark)).append(f" {mark}")
    return line


# --- what runs -----------------------------------------------------------------------------------------------------


def _running(view: View, layout: Layout, *, width: int, rows: int) -> list[Text]:
    """Return a line per attempt at work, ordered by its slot: it stays in its place when its neighbour ends."""
    every = sorted(view.running, key=lambda each: (each.machine, _slot_order(each.slot)))
    several = len({each.machine for each in every}) > 1 or any(each.silent for each in every)
    shown = every if len(every) <= rows else every[: max(1, rows - 1)]
    table = [_columns(each, view, several) for each in shown]
    if len(layout.widths) != len(_PRIORITY):
        layout.widths = [0] * len(_PRIORITY)
    widths = [max((cell_len(row[i]) for row in table), default=0) for i in range(len(_PRIORITY))]
    layout.widths = [max(pair) for pair in zip(layout.widths, widths, strict=True)]
    chosen = _chosen(layout.widths, width)
    lines = [_row(row, each, layout.widths, chosen, width) for row, each in zip(table, shown, strict=True)]
    if len(shown) < len(every):
        lines.append(Text(f"… and {len(every) - len(shown)} more running", style="dim"))
    return lines


# name, machine, epoch, metric, its curve, throughput, memory, time spent, time left: the highest number goes first
# where there is no room
_PRIORITY = (0, 5, 1, 2, 6, 3, 8, 4, 7)
_SPENT = 7
_LEFT_ALIGNED = (0, 1)


def _columns(running: Running, view: View, several: bool) -> tuple[str, ...]:
    of = f"/{running.epochs}" if running.epochs else ""
    epoch = f"epoch {running.epoch:>{len(str(running.epochs or ''))}}{of}" if running.epoch is not None else ""
    value = f"{view.metric} {running.values[view.metric]:.4g}" if view.metric in running.values else ""
    speed = running.values.get("images_per_s")
    rate = f"{speed:,.{0 if speed >= 10 else 1}f} images/s" if speed else ""
    peak = running.values.get("peak_memory_mb")
    memory = f"{peak / 1024:.1f} GiB" if peak else ""
    left = running.left(view.now, None)
    left_text = f"{duration(left)} left" if left is not None else ""
    silent = f", silent for {duration(running.silent)}" if running.silent else ""
    machine = f"{running.machine}{silent}" if several else ""
    spent = duration(view.now - running.started)
    return running.name, machine, epoch, value, _bars(running.curve), rate, memory, spent, left_text


def _bars(curve: Sequence[float]) -> str:
    """Return a curve as small bars, from its lowest value to its highest; of a long one, evenly spaced epochs."""
    finite = [value for value in curve if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    count = min(_BARS_WIDTH, len(finite))
    shown = [finite[round(place * (len(finite) - 1) / (count - 1))] for place in range(count)]
    low, high = min(shown), max(shown)
    steps = len(_BARS) - 1
    return "".join(_BARS[round((value - low) / (high - low) * steps) if high > low else 0] for value in shown)


def _chosen(widths: Sequence[int], width: int) -> list[int]:
    """Return the columns that have room, in their order; the name may be cut to half the line."""
    chosen: list[int] = []
    room = width - min(widths[0], width // 2)
    for index in sorted(range(1, len(widths)), key=lambda i: _PRIORITY[i]):
        if widths[index] and widths[index] + GAP <= room:
            chosen.append(index)
            room -= widths[index] + GAP
    return sorted(chosen)


def _row(row: Sequence[str], running: Running, widths: Sequence[int], chosen: Sequence[int], width: int) -> Text:
    rest = sum(widths[i] + GAP for i in chosen)
    label = min(widths[0], width - rest)
    line = _padded(row[0], label)
    if running.epoch is None:
        spent = row[_SPENT]
        doing = running.last_line or "no epoch yet"
        doing = _padded(doing, max(8, width - label - cell_len(spent) - 2 * GAP))
        return Text(f"{line}{'':{GAP}}{doing}{'':{GAP}}{spent}")
    for i in chosen:
        text = row[i]
        pad = " " * (widths[i] - cell_len(text))
        line += " " * GAP + (text + pad if i in _LEFT_ALIGNED else pad + text)
    return Text(line)


def _padded(text: str, width: int) -> str:
    """Return the text in exactly this many cells; a cut one ends in an ellipsis."""
    if cell_len(text) > width:
        text = set_cell_size(text, max(0, width - 1)) + "…"
    return set_cell_size(text, width)


def _slot_order(slot: str) -> tuple[str, int, str]:
    head = slot.split("+")[0]
    digits = head[len(head.rstrip("0123456789")) :]
    return (head.rstrip("0123456789"), int(digits or 0), slot)


# --- the time left -------------------------------------------------------------------------------------------------


def seconds_left(view: View) -> float | None:
    """Return the seconds until all is done: what waits is dealt in turn to the places that work now.

    A trial is expected to take the mean of its arm's finished trials, else of all, else what the running ones will.
    None where nothing runs, or nothing is known.
    """
    cells = {cell.trial: cell for cell in view.cells}
    usual = _usual_seconds(cells)
    overall = usual.get(None)
    at_work = {running.trial: running for running in view.running}
    ends: list[float] = []
    takes: list[float] = []
    for cell in cells.values():
        if cell.state != "running":
            continue
        expected = usual.get(cell.arm, overall)
        running = at_work.get(cell.trial)
        if running is not None:
            left = running.left(view.now, expected)
            if left is not None:
                takes.append(view.now - running.started + left)
        else:
            left = max(0.0, expected - (view.now - (cell.since or view.now))) if expected is not None else None
        if left is None:
            left = overall
        ends.append(left if left is not None else -1.0)
    if not ends:
        return None
    fallback = overall if overall is not None else (sum(takes) / len(takes) if takes else None)
    if fallback is None:
        return None
    ends = [end if end >= 0 else fallback for end in ends]
    heapq.heapify(ends)
    for cell in cells.values():
        if cell.state == "waiting":
            heapq.heapreplace(ends, ends[0] + usual.get(cell.arm, fallback))
    return max(ends)


def _usual_seconds(cells: Mapping[int, Cell]) -> dict[str | None, float]:
    """Return the mean seconds of finished trials by arm, and under None those of all."""
    known: dict[str | None, list[float]] = {}
    for cell in cells.values():
        if cell.state == "done" and cell.seconds:
            known.setdefault(cell.arm, []).append(cell.seconds)
            known.setdefault(None, []).append(cell.seconds)
    return {arm: sum(values) / len(values) for arm, values in known.items()}
