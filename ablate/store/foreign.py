"""Results as other tools keep them: a CSV file, or MLflow's folder of runs. Read as what strangers may have written.

Every file has a limit, nothing outside the folder is reached by a link, and all is text until a study says what it is.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from ablate.errors import Fault, StudyError
from ablate.plan.matching import Row, Table
from ablate.study.document import parse_document
from ablate.study.reading import sorted_faults
from ablate.study.words import cited, did_you_mean

LARGEST = 64 << 20  # bytes of a file
MOST_COLUMNS, MOST_ROWS = 1_000, 1_000_000
MOST_FILES, MOST_RUNS = 1_000_000, 100_000
SMALL = 1 << 20  # bytes of what describes a run
DELIMITERS = ",;\t"
FINISHED = 3  # of MLflow's states: 1 running, 2 scheduled, 4 failed, 5 killed

Names = Mapping[str, str]  # a word of the study → what the source calls it


def read_csv(path: Path, *, metrics: Collection[str], names: Names) -> Table:
    """Return the rows of a CSV file with a header. Raises StudyError where it is none."""
    data = _read(path, LARGEST)
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
    _check_names(names, columns, where)
    back = {source: name for name, source in names.items()}
    found = [back.get(column, column) for column in columns]
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice is not None:
        raise StudyError([Fault(f"the column {cited(twice)} stands twice", where)])
    return found


def _check_names(names: Names, there: Collection[str], where: str) -> None:
    missing = [source for source in names.values() if source not in there]
    if missing:
        raise StudyError(
            Fault(f"there is no column {cited(name)}", where, did_you_mean(name, sorted(there))) for name in missing
        )


# --- MLflow ----------------------------------------------------------------------------------------------------------


def read_mlflow(folder: Path, *, names: Names) -> tuple[Table, int]:
    """Return the finished runs below a folder of MLflow's file store, and how many others were passed over.

    The folder is the store (``mlruns``), an experiment of it or one run. Raises StudyError where it has no run.
    """
    reader = _Folder(folder)
    rows: list[Row] = []
    others = 0
    for run in reader.runs():
        row = reader.row(run)
        if row is None:
            others += 1
        else:
            rows.append(row)
    if reader.faults:
        raise StudyError(sorted_faults(reader.faults))
    if not rows and not others:
        hint = "name the folder `mlruns`, an experiment in it, or a run"
        raise StudyError([Fault("no run of MLflow is there", str(folder), hint)])
    there = {name for row in rows for name in (*row.named, *row.measured)}
    _check_names(names, there, str(folder))
    renamed = tuple(_with_names(row, names) for row in rows)
    # tags are MLflow's own and anybody's: only those that `--map` or the study's words name are columns
    columns = dict.fromkeys(name for row in renamed for name in row.named if not name.startswith(_TAG))
    return Table(str(folder), tuple(columns), renamed), others


_TAG = "tag:"


def _with_names(row: Row, names: Names) -> Row:
    back = {source: name for name, source in names.items()}
    named = {back.get(name, name): text for name, text in row.named.items()}
    measured = {back.get(name, name): text for name, text in row.measured.items()}
    history = {back.get(name, name): values for name, values in row.history.items()}
    return Row(row.where, named, measured, history, row.facts)


class _Folder:
    """Reads runs, and notes what is wrong with them."""

    def __init__(self, root: Path) -> None:
        self.faults: list[Fault] = []
        self._root = root
        self._files = 0

    def runs(self) -> Iterator[Path]:
        """Yield the folders of runs: the one given, or those one or two levels below it."""
        level = [self._root]
        count = 0
        for _ in range(3):
            below = []
            for folder in level:
                entries = self._entries(folder)
                is_run = "meta.yaml" in entries and {"metrics", "params"} & entries.keys()
                if is_run:
                    count += 1
                    if count > MOST_RUNS:
                        raise StudyError([Fault(f"more than {MOST_RUNS:,} runs", str(self._root))])
                    yield folder
                else:
                    below += [Path(e.path) for n, e in entries.items() if not n.startswith(".") and self._is_dir(e)]
            level = below

    def row(self, run: Path) -> Row | None:
        """Return what a run says; None where it was deleted or did not finish."""
        digest = hashlib.sha256()
        try:
            meta = parse_document(self._text(run / "meta.yaml", digest), name=str(run / "meta.yaml")).value
        except StudyError as error:
            self.faults += error.faults
            return None
        if meta.get("lifecycle_stage") == "deleted" or meta.get("status", FINISHED) != FINISHED:
            return None
        params = {name: self._text(path, digest) for name, path in self._below(run / "params")}
        tags = {name: self._text(path, digest) for name, path in self._below(run / "tags")}
        named = {f"{_TAG}{name}": text for name, text in tags.items()} | params
        named |= {word: tags[word] for word in ("arm", "seed") if word in tags and word not in params}
        measured: dict[str, str] = {}
        history: dict[str, dict[int, str]] = {}
        for name, path in self._below(run / "metrics"):
            last, steps = self._metric(path, digest)
            measured[name] = last
            if len(steps) > 1:
                history[name] = steps
        facts = {
            "imported_from": str(self._root),
            "imported_run": run.name,
            "imported_sha256": digest.hexdigest(),
        }
        return Row(str(run), named, measured, history, facts)

    def _metric(self, path: Path, digest: hashlib._Hash) -> tuple[str, dict[int, str]]:
        """Return the last value of a metric, and its values by step; lines are `time value step`."""
        steps: dict[int, str] = {}
        last, latest = "", (-1, -1)
        for number, line in enumerate(self._text(path, digest, LARGEST).splitlines(), start=1):
            parts = line.split()
            if len(parts) not in (2, 3, 5) or not parts[0].isdecimal() or not (parts[2:3] or ["0"])[0].isdecimal():
                self.faults.append(Fault("no line of a metric: `time value step`", f"{path}:{number}"))
                break
            step = int(parts[2][:10]) if len(parts) > 2 else 0
            steps[step] = parts[1]
            if (step, int(parts[0][:20])) >= latest:
                last, latest = parts[1], (step, int(parts[0][:20]))
        return last, steps

    def _below(self, folder: Path, prefix: str = "") -> Iterator[tuple[str, Path]]:
        """Yield the files of a folder by name; MLflow keeps `val/acc` in a folder `val`."""
        for name, entry in sorted(self._entries(folder).items()):
            if self._is_dir(entry):
                yield from self._below(Path(entry.path), f"{prefix}{name}/") if prefix.count("/") < 20 else ()
            elif not entry.is_symlink():
                yield f"{prefix}{name}", Path(entry.path)

    def _entries(self, folder: Path) -> dict[str, os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                found = {entry.name: entry for entry in entries}
        except FileNotFoundError:
            if folder == self._root:
                raise StudyError([Fault("there is no such folder", str(folder))]) from None
            return {}
        except OSError as error:
            raise StudyError([Fault(f"the folder can't be read: {error.strerror}", str(folder))]) from None
        self._files += len(found)
        if self._files > MOST_FILES:
            raise StudyError([Fault(f"more than {MOST_FILES:,} files", str(self._root))])
        return found

    def _is_dir(self, entry: os.DirEntry[str]) -> bool:
        if entry.is_symlink():
            self.faults.append(Fault("a symbolic link, which is not followed", entry.path, "copy what it names"))
        return entry.is_dir(follow_symlinks=False)

    def _text(self, path: Path, digest: hashlib._Hash, largest: int = SMALL) -> str:
        try:
            data = _read(path, largest)
        except StudyError as error:
            self.faults += error.faults
            return ""
        digest.update(str(path.relative_to(self._root)).encode(errors="replace") + b"\0" + data + b"\0")
        return data.decode(errors="replace")


def _read(path: Path, largest: int) -> bytes:
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
