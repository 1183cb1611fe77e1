"""Which columns a table shows, and in which order: its own choice, or the names that a person asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ablate.analyse.findings import Analysis
from ablate.errors import AblateError
from ablate.report.notes import Note
from ablate.report.numbers import listed
from ablate.report.table import Column, Table
from ablate.study.words import cited, nearest

# what any study may have; beside these the metrics by name, and what the tables of its designs have of their own
NAMES = (
    "steps", "n", "effect", "p", "verdict", "look", "published", "time", "hours", "energy", "parameters", "flops",
    "images_per_s",
)  # fmt: skip
_ALWAYS = ("number", "label")


def name_of(column: Column) -> str:
    """Return the name by which a column is asked for: a metric's own, ``steps`` for the columns of all steps."""
    kind, _, rest = column.key.partition(":")
    return {"metric": rest, "step": "steps", "setting": "settings", "cost": "time"}.get(kind, kind)


def chosen(tables: Sequence[Table], analysis: Analysis, names: Sequence[str]) -> tuple[Table, ...]:
    """Return the tables with the columns of these names, in this order, after number and label; without names as usual.

    A table that has none of them is left out. Raises AblateError for a name that no table could have.
    """
    if not names:
        return tuple(replace(each, columns=tuple(c for c in each.columns if not c.asked)) for each in tables)
    there = dict.fromkeys(name_of(c) for table in tables for c in table.columns if c.key not in _ALWAYS)
    known = dict.fromkeys((*NAMES, *(metric.name for metric in analysis.metrics), *there))
    unknown = [name for name in names if name not in known]
    if unknown:
        close = nearest(unknown[0], known)
        meant = f"did you mean `{close}`? " if close else ""
        hint = f"{meant}There are {', '.join(known)}"
        raise AblateError(f"there is no column {cited(unknown[0])}", where="--columns", hint=hint)
    found = [table for each in tables if (table := _with_columns(each, names))]
    if not found:
        message = f"no table of `{analysis.title}` has a value of {listed(names)}"
        raise AblateError(message, where="--columns", hint=f"there are {', '.join(there)}")
    absent = [name for name in names if name not in there]
    if absent:
        found[0] = replace(found[0], notes=(*found[0].notes, Note(f"No row has a value of {listed(absent)}.")))
    return tuple(found)


def _with_columns(table: Table, names: Sequence[str]) -> Table | None:
    always = [column for column in table.columns if column.key in _ALWAYS]
    asked = [
        replace(column, rank=1)
        for name in dict.fromkeys(names)
        for column in table.columns
        if name_of(column) == name and column.key not in _ALWAYS
    ]
    if not asked:
        return None
    keys = {column.key for column in asked}
    short = [column.meaning for column in asked if column.meaning]
    shown = any(column.key.startswith("metric:") for column in asked)
    return replace(
        table,
        columns=(*always, *asked),
        # intervals that are drawn belong to the effects
        rows=table.rows if "effect" in keys else tuple(replace(row, plot=None) for row in table.rows),
        notes=(*table.notes, Note(f"✓ marks the steps that a row has: {', '.join(short)}.")) if short else table.notes,
        bold=table.bold if shown else "",
    )
