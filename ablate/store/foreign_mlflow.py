"""Runs as MLflow keeps them, read as what strangers may have written: its database, or its folder of runs.

Every file has a limit, nothing outside the folder is reached by a link, and all is text until a study says what it is.
MLflow itself is not needed. Versions from 3.17 on write databases only.
"""

from __future__ import annotations

import hashlib
import math
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from ablate.errors import Fault, StudyError
from ablate.plan.matching import Row, Table
from ablate.store.foreign import LARGEST, Names, check_names, read_plain
from ablate.study.document import parse_document
from ablate.study.reading import sorted_faults
from ablate.study.words import cited, did_you_mean

MOST_FILES, MOST_RUNS = 1_000_000, 100_000
MOST_VALUES = 10_000_000  # of a database
LATEST = 1 << 31  # the steps end before it
SMALL = 1 << 20  # bytes of what describes a run
FINISHED = 3  # of the states in a folder: 1 running, 2 scheduled, 4 failed, 5 killed
_TAG = "tag:"
_INFINITE = 1.7976931348623157e308  # what the databases hold in the place of an infinity


def read_mlflow(place: Path, *, experiment: str | None = None, names: Names) -> tuple[Table, int]:
    """Return the finished runs at a place, and how many others were passed over.

    The place is a database (``mlflow.db``, or the folder it lies in) or a folder of MLflow's file store: the store
    (``mlruns``), an experiment of it or one run. Raises StudyError where it has no run, and where a database has
    several experiments and none is named.
    """
    database = place / "mlflow.db" if place.is_dir() else place
    if database.is_file() and not (place.is_dir() and database.is_symlink()):
        rows, others = _Database(database, experiment).rows()
    else:
        rows, others = _rows_of_folder(place, experiment)
    there = {name for row in rows for name in (*row.named, *row.measured)}
    check_names(names, there, str(place))
    renamed = tuple(_with_names(row, names) for row in rows)
    # tags are MLflow's own and anybody's: only those that `--map` or the study's words name are columns
    columns = dict.fromkeys(name for row in renamed for name in row.named if not name.startswith(_TAG))
    return Table(str(place), tuple(columns), renamed), others


def _with_names(row: Row, names: Names) -> Row:
    back = {source: name for name, source in names.items()}
    named = {back.get(name, name): text for name, text in row.named.items()}
    measured = {back.get(name, name): text for name, text in row.measured.items()}
    history = {back.get(name, name): values for name, values in row.history.items()}
    return Row(row.where, named, measured, history, row.facts)


def _said(params: dict[str, str], tags: dict[str, str]) -> dict[str, str]:
    """Return what a run says of itself, by column."""
    named = {f"{_TAG}{name}": text for name, text in tags.items()} | params
    return named | {word: tags[word] for word in ("arm", "seed") if word in tags and word not in params}


class _Database:
    """Reads the tables of an SQLite database that MLflow keeps its runs in."""

    def __init__(self, path: Path, experiment: str | None) -> None:
        self._path = path
        self._experiment = experiment

    def rows(self) -> tuple[list[Row], int]:
        """Return the finished runs, and how many others there are. Raises StudyError."""
        location = f"file:{quote(str(self._path.resolve()))}?mode=ro"
        try:
            with closing(sqlite3.connect(location, uri=True)) as connection:
                connection.execute("PRAGMA trusted_schema = OFF")
                connection.text_factory = lambda data: data.decode(errors="replace")
                self._check_tables(connection)
                return self._read(connection)
        except (sqlite3.Error, UnicodeEncodeError) as error:
            raise StudyError([Fault(f"the database can't be read: {error}", str(self._path))]) from None

    def _check_tables(self, connection: sqlite3.Connection) -> None:
        """Raise where a table is missing, or is something else of its name: a view can run for ever."""
        wanted = ("experiments", "runs", "params", "tags", "metrics")
        there = {name for (name,) in connection.execute(_PLAIN_TABLES)}
        if missing := [name for name in wanted if name not in there]:
            raise StudyError([Fault(f"this is no database of MLflow: it has no table {missing[0]}", str(self._path))])

    def _read(self, connection: sqlite3.Connection) -> tuple[list[Row], int]:
        runs = connection.execute(_RUNS, (MOST_RUNS + 1,)).fetchall()
        if len(runs) > MOST_RUNS:
            raise StudyError([Fault(f"more than {MOST_RUNS:,} runs", str(self._path))])
        experiments = dict.fromkeys(experiment for _, experiment, _ in runs)
        chosen = self._chosen(list(experiments))
        finished = {run: done for run, experiment, done in runs if experiment == chosen}
        params = self._texts(connection, "params")
        tags = self._texts(connection, "tags")
        values: dict[str, dict[str, list[tuple[int, int, str]]]] = {}
        for count, (run, key, step, time, value, is_nan) in enumerate(connection.execute(_VALUES)):
            if count >= MOST_VALUES:
                raise StudyError([Fault(f"more than {MOST_VALUES:,} values", str(self._path))])
            if not 0 <= step < LATEST:
                raise StudyError([Fault(f"{cited(key)} has a value at step {step}", f"{self._path}: run {run}")])
            shown = "nan" if is_nan else _number(value)
            values.setdefault(run, {}).setdefault(key, []).append((step, time, shown))
        rows = [
            self._row(run, params.get(run, {}), tags.get(run, {}), values.get(run, {}))
            for run, done in finished.items()
            if done
        ]
        return rows, len(finished) - len(rows)

    def _chosen(self, experiments: list[str]) -> str:
        if not experiments:
            raise StudyError([Fault("no run of MLflow is there", str(self._path))])
        if self._experiment is None and len(experiments) == 1:
            return experiments[0]
        if self._experiment in experiments:
            return self._experiment
        listed = ", ".join(map(cited, experiments[:8]))
        if self._experiment is None:
            hint = f"name one with --experiment: {listed}"
            raise StudyError([Fault(f"runs of {len(experiments)} experiments are there", str(self._path), hint)])
        message = f"no experiment {cited(self._experiment)} with runs is there"
        raise StudyError([Fault(message, str(self._path), did_you_mean(self._experiment, experiments) or listed)])

    def _texts(self, connection: sqlite3.Connection, table: str) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for count, (run, key, value) in enumerate(connection.execute(_TEXTS.format(table=table))):
            if count >= MOST_VALUES:
                raise StudyError([Fault(f"more than {MOST_VALUES:,} {table}", str(self._path))])
            found.setdefault(run, {})[key] = value
        return found

    def _row(
        self,
        run: str,
        params: dict[str, str],
        tags: dict[str, str],
        values: dict[str, list[tuple[int, int, str]]],
    ) -> Row:
        ordered = {name: sorted(each, key=lambda value: value[:2]) for name, each in sorted(values.items())}
        content = repr((run, sorted(params.items()), sorted(tags.items()), ordered))
        facts = {
            "imported_from": str(self._path),
            "imported_run": run,
            "imported_sha256": hashlib.sha256(content.encode(errors="replace")).hexdigest(),
        }
        history = {
            name: steps for name, each in ordered.items() if len(steps := {step: shown for step, _, shown in each}) > 1
        }
        measured = {name: each[-1][2] for name, each in ordered.items()}
        return Row(f"{self._path}: run {run}", _said(params, tags), measured, history, facts)


_PLAIN_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0"
# CAST, because a column of SQLite holds whatever was put into it
_RUNS = """
SELECT CAST(r.run_uuid AS TEXT), coalesce(CAST(e.name AS TEXT), ''),
  coalesce(r.status = 'FINISHED' AND r.lifecycle_stage = 'active', 0)
FROM runs r JOIN experiments e ON e.experiment_id = r.experiment_id ORDER BY r.start_time, r.run_uuid LIMIT ?
"""
_TEXTS = "SELECT CAST(run_uuid AS TEXT), CAST(key AS TEXT), coalesce(CAST(value AS TEXT), '') FROM {table}"
_VALUES = """
SELECT CAST(run_uuid AS TEXT), CAST(key AS TEXT), CAST(step AS INTEGER), CAST(timestamp AS INTEGER),
  CAST(value AS REAL), is_nan FROM metrics WHERE step IS NOT NULL AND timestamp IS NOT NULL AND value IS NOT NULL
"""


def _number(value: float) -> str:
    return repr(value) if abs(value) < _INFINITE else repr(math.copysign(math.inf, value))


def _rows_of_folder(folder: Path, experiment: str | None) -> tuple[list[Row], int]:
    if experiment is not None:
        hint = "name the experiment's own folder instead"
        raise StudyError([Fault("--experiment is for a database of MLflow", str(folder), hint)])
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
        hint = "name mlflow.db, the folder `mlruns`, an experiment in it, or a run"
        raise StudyError([Fault("no run of MLflow is there", str(folder), hint)])
    return rows, others


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
        return Row(str(run), _said(params, tags), measured, history, facts)

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
            data = read_plain(path, largest)
        except StudyError as error:
            self.faults += error.faults
            return ""
        digest.update(str(path.relative_to(self._root)).encode(errors="replace") + b"\0" + data + b"\0")
        return data.decode(errors="replace")
