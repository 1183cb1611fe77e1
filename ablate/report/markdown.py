"""GitHub's Markdown: a heading, a pipe table and footnotes per design. No HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count

from ablate.analyse.findings import Analysis
from ablate.report import text
from ablate.report.designs import build_tables
from ablate.report.notes import Note
from ablate.report.table import Column, Row, Table, Value


def render(analysis: Analysis, columns: Sequence[str] = ()) -> str:
    """Return the report as Markdown, one table per design, each with all its columns or those that are named."""
    # the study's name in each footnote, so that two reports can stand on one page
    prefix = "-".join(part for part in (analysis.name, analysis.profile) if part)
    labels = (f"{prefix}-{number}" for number in count(1))
    sections = [
        _section(table, labels, question="" if index else analysis.question)
        for index, table in enumerate(build_tables(analysis, columns))
    ]
    return "\n\n".join(sections) + "\n"


def _section(table: Table, labels: Iterator[str], *, question: str) -> str:
    about_rows = [(next(labels), note) for note in table.notes if note.rows]
    general = [note for note in table.notes if not note.rows]
    parts = [
        f"### {text.markdown(table.heading)}",
        text.markdown(question),
        f"**{text.markdown(table.progress)}**" if table.progress else "",
        text.markdown(table.estimand),
        _pipe_table(table, about_rows),
        " ".join(text.markdown(each) for each in [*(n.text for n in general if not n.item), table.bold] if each),
        "\n".join(f"- {text.markdown(note.text)}" for note in general if note.item),
        "\n".join(f"[^{label}]: {text.markdown(note.text)}" for label, note in about_rows),
    ]
    return "\n\n".join(part for part in parts if part)


def _pipe_table(table: Table, about_rows: Sequence[tuple[str, Note]]) -> str:
    titles = [text.markdown(column.title) if column.foreign else column.title for column in table.columns]
    rules = ["--:" if column.right else ":--" for column in table.columns]
    lines = [_line(titles), f"|{'|'.join(rules)}|"]
    for row in table.rows:
        marks = "".join(f"[^{label}]" for label, note in about_rows if row.number and int(row.number) in note.rows)
        lines.append(_line([_cell(row, column, marks) for column in table.columns]))
    return "\n".join(lines)


def _cell(row: Row, column: Column, marks: str) -> str:
    cell = row.cells.get(column.key, "")
    if column.key != "label":
        return str(replace(cell, mean=f"**{cell.mean}**") if isinstance(cell, Value) and cell.best else cell)
    label = text.markdown(str(cell))
    return f"**{label}**" if row.total else label + marks


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
