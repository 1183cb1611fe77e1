"""The report for a terminal: complete at 80 columns, without colour, in a pipe; more columns where there is room."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment, Segments
from rich.table import Table as RichTable
from rich.text import Text as RichText

from ablate.analyse.findings import Analysis
from ablate.report.console import make_console
from ablate.report.designs import build_tables
from ablate.report.notes import Note
from ablate.report.numbers import listed, seed_list, signed
from ablate.report.table import Column, Difference, Plot, Table, Text, Value
from ablate.report.text import in_encoding, one_line

WIDE = 120
_GAP = 2
_LABEL_NARROW, _LABEL_WIDE = 20, 32  # what the column of titles keeps when others ask for room
_LABEL_LEAST = 8
_GIVEN_UP = ("p", "n", "verdict")  # in this order, where there is no room even for what every table has
_SHORT_TITLE, _LONGEST_WORD = 7, 16
_PLOT = Column("plot", "", right=False, rank=3)
_PLOT_WIDTH = 25
# SIMPLE_HEAD in ASCII; what rich would take in its place draws a line between any two columns
_ASCII_HEAD = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def print_report(analysis: Analysis, console: Console, columns: Sequence[str] = ()) -> None:
    """Print one table per design with its notes. Signs that the console's encoding lacks are spelt in ASCII.

    ``columns`` are the names of those to show.
    """
    for index, table in enumerate(build_tables(analysis, columns)):
        if index:
            console.print()
        _print_table(table, console, question="" if index else analysis.question)


def to_text(analysis: Analysis, columns: Sequence[str] = ()) -> str:
    """Return what ``print_report`` prints into a file."""
    text = io.StringIO()
    print_report(analysis, make_console(file=text), columns)
    return text.getvalue()


def _print_table(table: Table, console: Console, *, question: str) -> None:
    shown, left_out = _fitting(table, width=console.width, encoding=console.encoding)
    _print(console, table.heading, style="bold")
    _print(console, question)
    _print(console, table.progress, style="bold")
    console.print()
    _print(console, table.estimand)
    console.print()
    _print_stripped(console, _rich_table(table, shown, console))
    if table.notes or left_out:
        console.print()
    for note in table.notes:
        _print_note(console, note)
    if left_out:
        titles = listed([column.title for column in left_out])
        _print_note(console, Note(f"Not shown at this width: {titles}; Markdown and JSON have them."))


def _print(console: Console, text: str, *, style: str = "") -> None:
    if text:
        _print_stripped(console, RichText(in_encoding(one_line(text), console.encoding), style=style))


def _print_note(console: Console, note: Note) -> None:
    """Print a note with its further lines indented; one about rows begins with their numbers."""
    where = f"* row{'s' if len(note.rows) > 1 else ''} {seed_list(note.rows)}: " if note.rows else ""
    text = in_encoding(one_line(where + note.text), console.encoding)
    for index, line in enumerate(RichText(text).wrap(console, console.width - _GAP)):
        _print_stripped(console, RichText(" " * _GAP if index else "") + line)


def _print_stripped(console: Console, renderable: RichTable | RichText) -> None:
    """Print without the blanks that pad each line to a full width: they spoil a diff and a paste."""
    for line in console.render_lines(renderable, pad=False):
        while line and not line[-1].text.strip():
            line.pop()
        if line:
            last = line[-1]
            line[-1] = Segment(last.text.rstrip(), last.style)
        console.print(Segments([*line, Segment.line()]), end="")


# --- which columns -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shown:
    """A column with its cells as they are printed, aligned among themselves."""

    column: Column
    title: str
    cells: tuple[str, ...]

    @property
    def width(self) -> int:
        """The cells decide, and the longest word of the title; a short title does not wrap."""
        parts = [self.title] if cell_len(self.title) <= _SHORT_TITLE else self.title.split()
        words = [min(cell_len(part), _LONGEST_WORD) for part in parts]
        return max(*words, *map(cell_len, self.cells))


def _fitting(table: Table, *, width: int, encoding: str) -> tuple[list[_Shown], list[Column]]:
    """Return the columns that have room, in reading order, and those left out: below 120 columns all from rank 3 on."""
    candidates = [_shown(table, column, encoding) for column in table.columns]
    plot = _plot_column(table, encoding)
    if plot is not None:
        candidates.insert(1 + next(i for i, each in enumerate(candidates) if each.column.key == "effect"), plot)
    natural = max(cell_len(cell) for each in candidates if each.column.key == "label" for cell in each.cells)
    label = min(natural, _LABEL_WIDE if width >= WIDE else _LABEL_NARROW)
    chosen = [each for each in candidates if each.column.rank == 0]
    for key in _GIVEN_UP:
        if width - _fixed(chosen) < _LABEL_LEAST:  # rich would cut words, and whole columns without a word
            chosen = [each for each in chosen if each.column.key != key]
    is_tight = len(chosen) < sum(each.column.rank == 0 for each in candidates)
    room = 0 if is_tight else width - label - _fixed(chosen)
    for each in sorted(candidates, key=lambda each: each.column.rank):
        allowed = each.column.rank <= 2 or width >= WIDE
        if each.column.rank and allowed and each.width + _GAP <= room:
            chosen.append(each)
            room -= each.width + _GAP
    left_out = [each.column for each in candidates if each not in chosen and each.column is not _PLOT]
    return [each for each in candidates if each in chosen], left_out


def _fixed(shown: Sequence[_Shown]) -> int:
    """Return the width of all columns but that of the titles, which takes what is left."""
    return sum(each.width + _GAP for each in shown if each.column.key != "label")


def _shown(table: Table, column: Column, encoding: str) -> _Shown:
    cells: Sequence[Text] = [row.cells.get(column.key, "") for row in table.rows]
    if column.key == "number":
        cells = _marked(table)
    elif column.key == "label":
        cells = [one_line(str(cell)) for cell in cells]
    printed = (in_encoding(cell, encoding) for cell in _aligned(cells))
    return _Shown(column, in_encoding(one_line(column.title), encoding), tuple(printed))


def _marked(table: Table) -> list[str]:
    """Return the row numbers, with a star where a note is about the row."""
    starred = {str(row) for note in table.notes for row in note.rows}
    blank = " " if starred else ""
    return [row.number + ("*" if row.number in starred else blank) for row in table.rows]


def _aligned(cells: Sequence[Text]) -> list[str]:
    """Return the cells with their parts below each other: means, ±, and the ends of intervals."""
    differences = [cell for cell in cells if isinstance(cell, Difference)]
    values = [cell for cell in cells if isinstance(cell, Value)]
    if differences:
        return [_aligned_difference(cell, differences) for cell in cells]
    return [_aligned_value(cell, values) for cell in cells]


def _aligned_difference(cell: Text, among: Sequence[Difference]) -> str:
    low = max(len(each.low) for each in among)
    high = max(len(each.high) for each in among)
    bracket = len(f" [{'':{low}}, {'':{high}}]") if low else 0
    if isinstance(cell, Difference) and cell.low:
        return f"{cell.mean} [{cell.low:>{low}}, {cell.high:>{high}}]"
    return f"{cell}{'':{bracket}}" if str(cell) else ""


def _aligned_value(cell: Text, among: Sequence[Value]) -> str:
    sd = max((len(each.sd) for each in among), default=0)
    mark = max((len(each.mark) for each in among), default=0)
    if not isinstance(cell, Value):
        return str(cell)
    spread = f" ± {cell.sd:>{sd}}" if cell.sd else " " * (sd + 3 if sd else 0)
    return f"{cell.mean}{spread}{cell.mark:<{mark}}"


# --- the table -----------------------------------------------------------------------------------------------------


def _rich_table(table: Table, shown: Sequence[_Shown], console: Console) -> RichTable:
    fixed = _fixed(shown)
    rules = _ASCII_HEAD if console.options.ascii_only else box.SIMPLE_HEAD
    result = RichTable(box=rules, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for each in shown:
        is_label = each.column.key == "label"
        natural = max(map(cell_len, [*each.cells, each.title]))
        result.add_column(
            RichText(each.title.replace(" [", "\n[") if each.column.key == "effect" else each.title),
            justify="right" if each.column.right else "left",
            width=max(_LABEL_LEAST, min(natural, console.width - fixed)) if is_label else each.width,
            overflow="fold",
            vertical="top",
        )
    for index, row in enumerate(table.rows):
        if row.total:
            result.add_section()
        result.add_row(*(RichText(each.cells[index]) for each in shown), style="bold" if row.total else "")
    return result


# --- the small plot of intervals -----------------------------------------------------------------------------------


def _plot_column(table: Table, encoding: str) -> _Shown | None:
    """Return the intervals drawn on one scale around zero; None where there is nothing to draw."""
    plots = [row.plot for row in table.rows if row.plot is not None]
    low = min((plot.low for plot in plots), default=0.0)
    high = max((plot.high for plot in plots), default=0.0)
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return None
    scale = _Scale(low, high, table.places)
    return _Shown(_PLOT, scale.title, tuple(in_encoding(scale.drawn(row.plot), encoding) for row in table.rows))


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    places: int

    def place(self, value: float) -> int:
        return round((value - self.low) / (self.high - self.low) * (_PLOT_WIDTH - 1))

    @property
    def title(self) -> str:
        """The ends of the scale and its zero, as far as they have room side by side."""
        left = signed(self.low, self.places) if self.low else ""
        right = signed(self.high, self.places) if self.high else ""
        if len(left) + len(right) + 1 > _PLOT_WIDTH:
            return ""  # half a number would be another one
        zero = self.place(0.0)
        line = list(" " * _PLOT_WIDTH)
        line[: len(left)] = left
        if right:
            line[-len(right) :] = right
        if all(line[i] == " " for i in (max(0, zero - 1), zero, min(_PLOT_WIDTH - 1, zero + 1))):
            line[zero] = "0"
        return "".join(line)

    def drawn(self, plot: Plot | None) -> str:
        line = [" "] * _PLOT_WIDTH
        line[self.place(0.0)] = "│"
        if plot is not None:
            low, mean, high = map(self.place, (plot.low, plot.mean, plot.high))
            line[low : high + 1] = "─" * (high + 1 - low)
            line[mean] = "●"
        return "".join(line)
