"""``ablate status``: how far a study has come, who is at it, what failed, and what to do next."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from ablate.analyse.findings import Counts
from ablate.analyse.standing import LOST_AFTER_S, SILENT_AFTER_S, Failure, RunnerStanding, Standing
from ablate.report.numbers import listed, plural
from ablate.report.text import in_encoding, one_line, visible
from ablate.study.words import duration

_COLUMNS = ("done", "diverged", "failed", "running", "waiting", "total")
_GAP = 2
_LABEL_WIDTH = 8  # a longer name has a line of its own where there is no room
_FAILURES = 10
_HELD = 4


def print_standing(standing: Standing, console: Console, *, now: float, options: str = "") -> None:
    """Print it. ``options`` are what the suggested commands need besides, such as ``--store X``."""
    version = f" (version {standing.version})" if standing.version > 1 else ""
    _print(console, f"{standing.title}{version}: {summary(standing.counts)}", style="bold")
    console.print()
    _print_arms(standing, console)
    _print_section(console, "runners", [line for runner in standing.runners for line in _runner(runner, now)])
    _print_section(console, "failed", list(_failures(standing.failures)))
    _print_commands(console, list(_next(standing, options)))


def summary(counts: Counts) -> str:
    """``5 of 6 trials done, 1 failed``."""
    parts = [f"{counts.finished:,} of {plural(counts.planned, 'trial')} done"]
    others = (counts.diverged, counts.failed, counts.running, counts.waiting)
    parts += [f"{number:,} {name}" for name, number in zip(_COLUMNS[1:], others, strict=False) if number]
    return ", ".join(parts)


def _print_arms(standing: Standing, console: Console) -> None:
    rows = [(one_line(arm.name), _cells(arm.counts)) for arm in standing.arms]
    widths = [max(len(title), *(len(cells[i]) for _, cells in rows)) for i, title in enumerate(_COLUMNS)]
    room = max(_LABEL_WIDTH, console.width - sum(widths) - _GAP * len(widths))
    label = min(room, max(cell_len(text) for text, _ in [("arm", ()), *rows]))
    _print_row(console, "arm", _COLUMNS, label, widths, style="bold")
    for name, cells in rows:
        _print_row(console, name, cells, label, widths)


def _cells(counts: Counts) -> tuple[str, ...]:
    """A zero is a dash: what is there stands out."""
    values = (counts.finished, counts.diverged, counts.failed, counts.running, counts.waiting, counts.planned)
    return tuple(f"{value:,}" if value else "-" for value in values)


def _print_row(
    console: Console, name: str, cells: Sequence[str], label: int, widths: Sequence[int], *, style: str = ""
) -> None:
    numbers = "".join(f"{'':{_GAP}}{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    if cell_len(name) > label:
        _print(console, name, style=style)  # a long name has a line of its own, and is never cut
        name = ""
    _print(console, set_cell_size(name, label) + numbers, style=style, wrap=False)


def _print_section(console: Console, title: str, lines: Sequence[str]) -> None:
    if lines:
        console.print()
        _print(console, title, style="bold")
    for line in lines:
        _print(console, line, indent=_GAP)


def _runner(runner: RunnerStanding, now: float) -> Iterator[str]:
    held = [f"{arm} seed {seed}" for arm, seed in runner.trials[:_HELD]]
    more = [f"{len(runner.trials) - len(held):,} more"] if len(runner.trials) > len(held) else []
    named = f": {listed([*held, *more])}" if held else ""
    trials = plural(len(runner.trials), "trial")
    life = life_of(alive=runner.alive, started=runner.started, heartbeat=runner.heartbeat, now=now)
    yield f"{runner.machine}: {life}, {trials} {'running' if runner.alive else 'left behind'}{named}"


def life_of(*, alive: bool, started: float, heartbeat: float, now: float) -> str:
    """Return in words whether a runner lives. One that is silent does, for all we know, until its leases are over."""
    silent = max(0.0, now - heartbeat)
    if not alive:
        return f"dead, last heard of {duration(silent)} ago"
    if silent > SILENT_AFTER_S:
        return f"silent for {duration(silent)} (after {duration(LOST_AFTER_S)} others take over what it holds)"
    return f"alive, since {_clock(started, now)}"


def _clock(moment: float, now: float) -> str:
    form = "%H:%M" if now - moment < 20 * 3600 else "%Y-%m-%d %H:%M"
    return f"{time.strftime(form, time.localtime(moment))} ({duration(max(0.0, now - moment))})"


def _failures(failures: Sequence[Failure]) -> Iterator[str]:
    for failure in failures[:_FAILURES]:
        attempts = f" after {plural(failure.attempts, 'attempt')}" if failure.attempts > 1 else ""
        candidate = "" if failure.candidate is None else f"candidate {failure.candidate} "
        yield f"{failure.arm} {candidate}seed {failure.seed}{attempts}: {failure.reason}"
    if len(failures) > _FAILURES:
        yield f"... and {len(failures) - _FAILURES:,} more"


def _next(standing: Standing, options: str) -> Iterator[tuple[str, str]]:
    """Yield commands, each with what it does."""
    counts = standing.counts
    name, alive = shlex.quote(standing.title), any(runner.alive for runner in standing.runners)
    missing = counts.waiting + counts.running
    if alive and missing:
        yield f"ablate watch {name}{options}", "follows it"
    elif missing:
        orphans = f", {standing.orphans:,} of them left behind by a dead runner" if standing.orphans else ""
        yield standing.command, f"runs {plural(missing, 'trial')}{orphans}"
    begun = [failure for failure in standing.failures if failure.attempts]  # not what has no settings to run with
    if begun:
        failure = begun[0]
        which = f"--seed {failure.seed}"
        which += "" if failure.candidate is None else f" --candidate {failure.candidate}"
        yield f"ablate logs {name} {shlex.quote(failure.arm)} {which}{options}", "what it printed"
        yield f"ablate retry {name}{options}", f"tries {plural(len(begun), 'trial')} again"
    if counts.done:
        yield f"ablate report {name}{options}", f"the table{' so far' if counts.missing else ''}"


def _print_commands(console: Console, commands: Sequence[tuple[str, str]]) -> None:
    """Print commands on lines of their own, ready to be pasted: never wrapped."""
    if commands:
        console.print()
        _print(console, "next", style="bold")
    width = max((cell_len(command) for command, _ in commands), default=0)
    for command, what in commands:
        if _GAP + width + _GAP + len(f"# {what}") <= console.width:
            _print(console, f"{'':{_GAP}}{command:{width}}{'':{_GAP}}# {what}", wrap=False)
        else:
            _print(console, f"# {what}", indent=_GAP)
            _print(console, f"{'':{_GAP}}{command}", wrap=False)


def _print(console: Console, text: str, *, style: str = "", indent: int = 0, wrap: bool = True) -> None:
    printable = in_encoding(one_line(text) if wrap else visible(text), console.encoding)
    lines = [printable.rstrip()]
    if wrap and cell_len(printable) > console.width - indent:
        wrapped = Text(printable).wrap(console, max(20, console.width - indent - _GAP))
        lines = [wrapped[0].plain.rstrip(), *(" " * _GAP + line.plain.rstrip() for line in wrapped[1:])]
    for line in lines:
        console.print(Text(" " * indent + line, style=style), soft_wrap=True)
