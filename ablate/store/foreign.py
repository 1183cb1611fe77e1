"""Results in a file that strangers may have written: a CSV file. All is text until a study says what it is."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path

from ablate.errors import Fault, StudyError
from ablate.plan.matching import Row, Table
from ablate.study.reading import sorted_faults
from ablate.study.words import cited, did_you_mean

LARGEST = 64 << 20  # bytes of a file
MOST_COLUMNS, MOST_ROWS = 1_000, 1_000_000
DELIMITERS = ",;\t"

Names = Mapping[str, str]  # a word of the study → what the source calls it


def read_csv(path: Path, *, metrics: Collection[str], names: Names) -> Table:
    """Return the rows of a CSV file with a header. Raises StudyError where it is none."""
    data = read_plain(path, LARGEST)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise StudyError([Fault("the file is not UTF-8 text", f"{path}:{line}", "save it as CSV UTF-8")]) from None
    first = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    facts = {"imported_from": str(path), "imported_sha256": hashlib.sha256(data).hexdigest()}
    rows: list[Row] = []
    columns: list[str] = []
    faults: list[Fault] = []
    try:
        columns = _renamed([cell.strip() for cell in next(reader, [])], names, f"{path}:1")
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                faults.append(Fault(f"{len(cells)} cells, where the header has {len(columns)}", where))
                continue
            if len(rows) >= MOST_ROWS:
                raise StudyError([Fault(f"more than {MOST_ROWS:,} rows", where)])
            named = dict(zip(columns, cells, strict=True))
            measured = {name: named.pop(name) for name in metrics if name in named}
            rows.append(Row(where, named, measured, facts=facts))
    except csv.Error as error:
        raise StudyError([*faults, Fault(f"this is no CSV: {error}", f"{path}:{reader.line_num}")]) from None
    if faults:
        raise StudyError(sorted_faults(faults))
    return Table(f"{path}:1", tuple(columns), tuple(rows))


def _renamed(columns: list[str], names: Names, where: str) -> list[str]:
    if not any(columns):
        raise StudyError([Fault("the file has no header", where, "its first line names the columns")])
    if len(columns) > MOST_COLUMNS:
        raise StudyError([Fault(f"more than {MOST_COLUMNS:,} columns", where)])
    check_names(names, columns, where)
    back = {source: name for name, source in names.items()}
    found = [back.get(column, column) for column in columns]
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice is not None:
        raise StudyError([Fault(f"the column {cited(twice)} stands twice", where)])
    return found


def check_names(names: Names, there: Collection[str], where: str) -> None:
    """Raise StudyError where a source has no column of a name that the study's words were mapped to."""
    missing = [source for source in names.values() if source not in there]
    if missing:
        raise StudyError(
            Fault(f"there is no column {cited(name)}", where, did_you_mean(name, sorted(there))) for name in missing
        )


def read_plain(path: Path, largest: int) -> bytes:
    """Return the content of a plain file: no link of a stranger's, no pipe that never ends."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            plain = stat.S_ISREG(status.st_mode)
            data = os.pread(descriptor, min(status.st_size, largest) + 1, 0) if plain else b""
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StudyError([Fault(f"the file can't be read: {error.strerror}", str(path))]) from None
    if not plain:
        raise StudyError([Fault("this is no file", str(path))])
    if len(data) > largest:
        raise StudyError([Fault(f"the file is too large: at most {largest:,} bytes are read", str(path))])
    return data
