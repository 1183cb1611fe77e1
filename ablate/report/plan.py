"""``ablate plan``: every arm with exactly what differs, what is done, and what the rest costs.

What differs stands below its arm and not beside it: lists of widths need the whole line, at 80 columns and in a pipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from ablate.plan.cost import ArmCost, Cost
from ablate.plan.designs import Contrast
from ablate.plan.trials import Plan
from ablate.report.numbers import plural, seed_list
from ablate.report.text import in_encoding, one_line
from ablate.study.words import duration

_GAP = 2
_INDENT = 4


@dataclass(frozen=True)
class _Entry:
    """An arm as it is printed: the line with its numbers, and what differs."""

    heading: str
    differs: tuple[str, ...]
    done: str
    trial: str


def print_plan(plan: Plan, cost: Cost, console: Console) -> None:
    """Print a plan to a console: a list of arms for each design, then the trials and their cost."""
    study = plan.study
    metric = study.metrics[study.primary]
    better = "higher" if metric.goal == "max" else "lower"
    unit = f" ({metric.unit})" if metric.unit else ""
    _print(console, f"{study.title}: {study.question}" if study.question else study.title, style="bold")
    _print(console, f"primary metric {study.primary}{unit}, {better} is better; seeds {seed_list(study.seeds)}")
    costs = {each.arm: each for each in cost.arms if each.planned}
    for design in dict.fromkeys(contrast.design for contrast in plan.contrasts):
        rows = [row for row in plan.contrasts if row.design == design and {row.arm, row.other} <= costs.keys()]
        if rows:
            console.print()
            _print_design(plan, rows, costs, console)
    if not plan.contrasts:
        _print(console, "the study has no steps: only the baseline is run")
    console.print()
    for line in _totals(study.title, cost):
        _print(console, line)


def _print_design(plan: Plan, rows: list[Contrast], costs: Mapping[str, ArmCost], console: Console) -> None:
    entries = list(_entries(plan, rows, costs))
    timed = any(entry.trial for entry in entries)
    heading = _Entry(_estimand(rows[0]), (), "done", "a trial" if timed else "")
    done, trial = (max(len(cell) for cell in cells) for cells in zip(*map(_cells, (heading, *entries)), strict=True))
    room = min(max(len(entry.heading) for entry in (heading, *entries)), console.width - done - trial - 2 * _GAP)
    for entry in (heading, *entries):
        style = "bold" if entry is heading else ""
        first, *rest = _wrapped(entry.heading, room, console)
        line = f"{first:{room}}{'':{_GAP}}{entry.done:>{done}}{'':{_GAP}}{entry.trial:>{trial}}"
        for text in (line, *rest):
            console.print(Text(text.rstrip(), style=style), soft_wrap=True)
        for change in entry.differs:
            for text in _wrapped(change, console.width, console, indent=_INDENT):
                console.print(Text(text, style="dim"), soft_wrap=True)


def _cells(entry: _Entry) -> tuple[str, str]:
    return entry.done, entry.trial


def _estimand(row: Contrast) -> str:
    if row.minuend == row.arm:
        return f"{row.design}: an effect is the arm less what it is compared with"
    return f"{row.design}: an effect is {row.minuend} less the arm"


def _entries(plan: Plan, rows: list[Contrast], costs: Mapping[str, ArmCost]) -> Iterator[_Entry]:
    named = {row.arm for row in rows}
    # the baseline, the full model, and references that no row is named after
    for name in dict.fromkeys(row.other for row in rows if row.other not in named):
        steps = plan.arm(name).steps
        what = "baseline plus " + ", ".join(steps) if steps else "the settings as they stand"
        yield _Entry(name, (what,), *_numbers(costs[name]))
    for row in rows:
        branch = " (branch)" if row.branch else ""
        note = (f"({row.note})",) if row.note else ()
        heading = f"{row.arm}{branch}, compared with {row.other}"
        yield _Entry(heading, (*map(str, row.changes), *note), *_numbers(costs[row.arm]))


def _numbers(cost: ArmCost) -> tuple[str, str]:
    done = f"{cost.done}/{cost.planned}" + (f" ({cost.failed} failed)" if cost.failed else "")
    if cost.trial_s is None:
        return done, ""
    return done, duration(cost.trial_s) + ("" if cost.measured else " (timed)")


def _totals(title: str, cost: Cost) -> Iterator[str]:
    failed = f", {cost.failed:,} failed (`ablate retry {title}` puts them back)" if cost.failed else ""
    yield f"{plural(cost.trials, 'trial')}: {cost.done:,} done, {cost.to_do:,} to do{failed}"
    if not cost.to_do:
        return
    known = f"about {duration(cost.seconds)} on one slot" if cost.seconds else "not known yet"
    if cost.unknown and cost.seconds:
        known += f", and {plural(len(cost.unknown), 'arm')} whose cost is not known"
    hint = "; `ablate plan --time` measures it" if cost.unknown else ""
    yield f"cost: {known}{hint}"


def _print(console: Console, text: str, *, style: str = "") -> None:
    for line in _wrapped(text, console.width, console):
        console.print(Text(line, style=style), soft_wrap=True)


def _wrapped(text: str, width: int, console: Console, *, indent: int = 0) -> list[str]:
    """Return the lines of a text in this width; all but the first are indented twice as far."""
    printable = Text(in_encoding(one_line(text), console.encoding))
    first = printable.wrap(console, width - indent)
    if len(first) < 2:
        return [" " * indent + line.plain.rstrip() for line in first]
    further = Text(printable.plain[len(first[0].plain) :].strip()).wrap(console, width - indent - 2)
    return [" " * indent + first[0].plain.rstrip(), *(" " * (indent + 2) + line.plain.rstrip() for line in further)]
