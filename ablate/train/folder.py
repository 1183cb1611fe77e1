"""The attempt folder: the only thing that runner and worker share.

trial.json      what to do, written by the runner before the worker starts
metrics.jsonl   one line a ``record``, appended whole; a torn last line is ignored
checkpoint/     the last two checkpoints and manifest.json with their SHA-256
end/            the state after the last epoch, likewise, where a longer trial may go on from it
artifacts/      files that the task named
scores.npz      one score per example, where the task gave them
stdout.log      stdout and stderr of the worker; of a flood, the beginning and the end
result.json     how the attempt ended, written last; its presence means that the worker said its last word

All but the log and the metric lines are written aside and renamed, so that a reader sees all or nothing. What the disk
refuses is an EnvironmentFault that names the file, never a silence. Who reads these files expects nothing of them: a
task, or whoever handed a store on, may have left a link, a pipe, a gigabyte or nonsense in their place. No torch here:
the runner reads these files.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import math
import os
import re
import shutil
import signal
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ablate.errors import EnvironmentFault
from ablate.failpoints import failpoint
from ablate.study.words import storable

STACKS = signal.SIGQUIT  # makes a worker print the stacks of its threads to its log
LOG_HEAD = 4 << 20  # what is kept of a log that grows without end: its beginning, and at least this much of its end
LOG_TAIL = 4 << 20
LOG_CAP = 16 << 20
BLOCK = 1 << 16
FREE_SPACE = "free some space, or make the folder writable, and run the same command again: it goes on from there"
UNWRITTEN = 74  # exit code of a worker whose last word the disk refused (EX_IOERR)
PATIENCE = 64  # blocks; a worker that writes faster than we copy must not keep us
RESULT_CAP = 16 << 20  # bytes of a result.json
RECORDS_BLOCK = 4 << 20  # bytes of metrics.jsonl at a time, and the longest line
EPOCHS = 1 << 31  # what a column of a store holds
LONGEST = 4_000  # characters of a text that a worker tells us
OUTCOMES = ("ok", "diverged", "oom", "interrupted", "error")  # by a worker's own word


@dataclass(frozen=True)
class Work:
    """What a worker is told: the content of ``trial.json``.

    ``device`` is ``cpu`` or ``cuda``; ``earlier`` lists the folders of earlier attempts, newest first;
    ``locks`` are files that the worker holds (flock) for as long as it or a child of it lives, ``shared`` those that it
    holds together with others; ``check_only`` asks it to find the task and not to call it. ``shorter`` has, by
    fingerprint, the folders of finished trials that differ in fewer epochs alone, the longest first; ``keeps_end``:
    there are longer ones, which may go on from this one's end.
    Where ``fuse`` is more than 1, so many seeds are trained in one model: this one and those of the folders ``mates``.
    With ``candidates``, it is measured how long an iteration takes with so many seeds in one model, for about
    ``seconds`` in all; the result's facts say so. With ``peers``, how long one takes while those of these folders, of
    which this is one, are at theirs, and what it holds of the device's memory.
    """

    task: str
    study_folder: str
    settings: dict[str, Any]
    seed: int
    fingerprint: str
    device: str = "cpu"
    dtype: str = "float32"
    memory_format: str = "contiguous_format"
    compile: bool = False
    graphs: bool = False
    threads: int = 1
    metrics: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()
    locks: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    check_only: bool = False
    shorter: dict[str, str] = field(default_factory=dict)
    keeps_end: bool = False
    fuse: int = 1
    mates: tuple[str, ...] = ()
    candidates: tuple[int, ...] = ()
    peers: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Result:
    """How an attempt ended: the content of ``result.json``.

    ``seconds`` is the wall time of the worker; ``facts`` are what the task noted about itself, such as its data's hash.
    ``gpu_memory``: it ended as one does whom a GPU has refused memory.
    """

    outcome: str
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""
    hint: str = ""
    exit_code: int = 0
    seconds: float = 0.0
    resumed_from: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    gpu_memory: bool = False


class _Inside:
    """A path in an attempt folder, made when it is asked for: of most attempts few are."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: AttemptFolder, _: type) -> Path:
        return folder.path / self._name


class AttemptFolder:
    """Paths, reading and writing of one attempt folder. Holds no open file."""

    work_file = _Inside("trial.json")
    metrics_file = _Inside("metrics.jsonl")
    checkpoints = _Inside("checkpoint")
    end = _Inside("end")
    artifacts = _Inside("artifacts")
    scores_file = _Inside("scores.npz")
    log_file = _Inside("stdout.log")
    result_file = _Inside("result.json")

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def create(self, work: Work) -> None:
        """Make the folder. What lies there already is moved aside: of another store beside ours, or brought along.

        Its result would be taken for that of our attempt. Nothing here need outlast a power cut before there is a
        checkpoint: the attempt would be lost, and the next one has a folder of its own.
        """
        if os.path.lexists(self.path) and not (self.path.is_dir() and not os.listdir(self.path)):
            failpoint("aside-begun")
            os.rename(self.path, self.path.with_name(f"{self.path.name}.before-{time.time_ns()}"))
        make_folder(self.path, durable=False)
        write_json(self.work_file, vars(work), what="work", durable=False)

    def work(self) -> Work:
        values = json.loads(self.work_file.read_text())
        for name in ("metrics", "earlier", "locks", "shared", "mates", "candidates", "peers"):
            values[name] = tuple(values[name])
        return Work(**values)

    def write_result(self, result: Result) -> None:
        """Write the worker's last word, for the runner to read at once: what makes it durable is the store's commit."""
        metrics = {name: encode_number(value) for name, value in result.metrics.items()}
        values = {**vars(result), "metrics": metrics}
        write_json(self.result_file, values, what="result", durable=False)

    def result(self) -> Result | None:
        """Return the worker's last word, or None where it ended without one. One that makes no sense is an error."""
        try:
            with open_plain(self.result_file) as file:
                return _result(json.loads(file.read(RESULT_CAP)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, OverflowError, LookupError, TypeError, AttributeError, RecursionError):
            return Result("error", error=f"{self.result_file.name} is not what a worker writes")

    def append_record(self, record: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl`` in a single write: a killed worker leaves whole lines.

        A full disk may take a part of it. That is cut off again: what is recorded next must not be joined to it.
        """
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        with refusals(self.metrics_file, "a record"):
            failpoint("record-begun")
            descriptor = os.open(self.metrics_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                start = os.lseek(descriptor, 0, os.SEEK_END)
                if os.write(descriptor, line) < len(line):
                    os.ftruncate(descriptor, start)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(descriptor)
            failpoint("record-written")

    def records(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Return records from byte ``offset`` on, and the offset to go on from: that same one where there are no more.

        A line that is no record is passed over.
        """
        try:
            with open_plain(self.metrics_file) as file:
                file.seek(offset)
                data = file.read(RECORDS_BLOCK)
        except OSError:
            return [], offset
        whole = data[: data.rfind(b"\n") + 1]
        if not whole and len(data) == RECORDS_BLOCK:
            whole = data
        lines = [record for line in whole.split(b"\n") if (record := _record(line)) is not None]
        return lines, offset + len(whole)

    def note_in_log(self, line: str) -> None:
        """Add a line of our own to the worker's log, where it still is one and the disk takes it."""
        with contextlib.suppress(OSError):
            failpoint("note-begun")
            with open_plain(self.log_file, "ab") as file:
                file.write(f"ablate: {line}\n".encode())

    def cap_log(self) -> None:
        """Cut out the middle of a log that has grown beyond ``LOG_CAP``, also while a worker writes it.

        A worker appends, so it goes on at the new end, which is a line's. The old end is moved forward in place, with
        what is added meanwhile; what is written in the moment before the cut is lost, and what a worker writes faster
        than it can be moved, which a second note says. Where the disk refuses, the log is left as it is: the run is
        worth more.
        """
        with contextlib.suppress(OSError):
            if self.log_file.lstat().st_size > LOG_CAP:
                self._cut_log()

    def _cut_log(self) -> None:
        failpoint("log-begun")
        log = _open_plain(str(self.log_file), os.O_RDWR)
        try:
            end = os.lseek(log, 0, os.SEEK_END)
            head = os.pread(log, BLOCK, LOG_HEAD - BLOCK)
            cut = head.rfind(b"\n") + 1
            note = f"[ablate cut this log at {LOG_CAP >> 20} MiB: what stood here is left out]\n".encode()
            at = LOG_HEAD - BLOCK + (cut or BLOCK)
            at += os.pwrite(log, note if cut else b"\n" + note, at)
            more = os.pread(log, LOG_TAIL, end - LOG_TAIL)
            more = more[more.find(b"\n") + 1 :]
            last = note
            for _ in range(PATIENCE):
                at += os.pwrite(log, more, at)
                last = more or last
                more = os.pread(log, BLOCK, end)
                end += len(more)
                if not more:
                    break
            if not last.endswith(b"\n"):  # half a line: its rest is lost where it is being written now
                at += os.pwrite(log, b"\n", at)
            if more:
                at += os.pwrite(log, note, at)
            failpoint("log-moved")
            os.ftruncate(log, at)
        finally:
            os.close(log)

    def sweep(self) -> None:
        """Remove what a killed worker had half written under the trial's lock. For who holds that lock now."""
        for pattern in ("checkpoint/.*", "end/.*", "artifacts/.*", ".scores.*"):
            for aside in self.path.glob(pattern):
                if not re.fullmatch(r"\..+\.[0-9]+", aside.name):
                    continue  # not what ``write_whole`` writes: a command's own
                with contextlib.suppress(OSError):  # another user's: it takes room, and does no harm
                    failpoint("sweep-begun")
                    aside.unlink()

    def log_tail(self, lines: int = 10, size: int = 65536) -> list[str]:
        """Return the last lines of the log; control characters are shown, not sent to the terminal."""
        try:
            with open_plain(self.log_file) as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - size))
                text = file.read(size).decode("utf-8", "replace")
        except OSError:
            return []
        shown = [as_shown(line) for line in text.split("\n")]
        return [line for line in shown if line.strip()][-lines:]


def newest(folder: Path, name: str) -> Path | None:
    """Return the newest file or folder with something in it of this name below ``folder``; ``*`` is any characters."""
    pattern = "*".join(glob.escape(part) for part in name.split("*"))
    paths = [Path(path) for path in glob.glob(os.path.join(glob.escape(str(folder)), pattern))]
    there = [path for path in paths if path.is_file() or (path.is_dir() and any(path.iterdir()))]
    return max(there, key=lambda path: (path.stat().st_mtime_ns, path), default=None)


def open_plain(path: Path, mode: str = "rb") -> IO[bytes]:
    """Open a file as ``open`` does. Raises OSError where it is none: a link leads elsewhere, a pipe would keep us."""
    return open(path, mode, opener=_open_plain)


def _open_plain(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "Not a plain file", path)


def open_lock(path: str) -> int:
    """Return a descriptor of a lock file, made where there is none. Raises OSError like ``open_plain``."""
    try:
        # read-only is enough for flock, and works on another user's file
        return _open_plain(path, os.O_RDONLY)
    except FileNotFoundError:
        failpoint("lock-begun")
        return _open_plain(path, os.O_RDWR | os.O_CREAT)


def _result(values: dict[str, Any]) -> Result:
    """Return what a result.json says. Raises ValueError, LookupError or TypeError where that makes no sense."""
    if values["outcome"] not in OUTCOMES:
        raise ValueError("an outcome that there is not")
    seconds = float(values["seconds"])
    resumed_from = str(values["resumed_from"])
    return Result(
        outcome=values["outcome"],
        metrics={_told(name): decode_number(value) for name, value in values["metrics"].items()},
        error=_told(values["error"]),
        hint=_told(values["hint"]),
        exit_code=int(values["exit_code"]),
        seconds=seconds if 0 <= seconds < math.inf else 0.0,
        resumed_from=resumed_from if re.fullmatch(r"[0-9]{1,9}", resumed_from) else "",
        facts={_told(name): _told(value) for name, value in values["facts"].items()},
        gpu_memory=values.get("gpu_memory") is True,  # one of an earlier version does not say
    )


def _record(line: bytes) -> dict[str, Any] | None:
    """Return the record that a line of ``metrics.jsonl`` holds; None where it holds none."""
    try:
        values = json.loads(line)
        record: dict[str, Any] = {"epoch": values["epoch"]}
        record["values"] = {_told(name): float(value) for name, value in values["values"].items()}
        for name, kind in (("time", float), ("epochs", int)):
            if name in values:
                record[name] = kind(values[name])
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return record if type(record["epoch"]) is int and abs(record["epoch"]) < EPOCHS else None


def _told(text: str) -> str:
    """Return a foreign text as any store takes it, and not endless."""
    if not isinstance(text, str):
        raise TypeError("a text was expected")
    return storable(text[:LONGEST])


def as_shown(line: str) -> str:
    """Return a line of a log as a terminal would have left it, with control characters escaped.

    A progress bar rewrites its line: only what stands after the last carriage return was visible.
    """
    return printable(line.rstrip("\r").rsplit("\r", 1)[-1])


def printable(text: str) -> str:
    """Return the text with control characters escaped, so that a foreign string can't drive the terminal."""
    if text.isprintable():  # nearly always
        return text
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def write_json(path: Path, value: object, *, what: str, durable: bool = True) -> None:
    """Write strict JSON like ``write_whole``."""
    write_whole(path, json.dumps(value, allow_nan=False).encode(), what=what, durable=durable)


def write_whole(path: Path, *data: bytes | memoryview, what: str, durable: bool = True) -> None:
    """Write a file's pieces aside, sync it, and rename it into place; ``what`` names it in messages and failpoints.

    One that is not ``durable`` is not synced: after a power cut it may be empty. Raises EnvironmentFault where the disk
    refuses: what was there before is there still, and nothing half of it. What could not be synced is thrown away: a
    second fsync would only say that all is well.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with refusals(path, f"the {what}"):
        try:
            failpoint(f"{what}-begun")
            with aside.open("wb") as file:
                file.writelines(data)
                file.flush()
                failpoint(f"{what}-written")
                if durable:
                    os.fsync(file.fileno())
            failpoint(f"{what}-synced")
            os.replace(aside, path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        failpoint(f"{what}-renamed")


def make_folder(path: Path, *, durable: bool = True) -> None:
    """Make a folder with those above it; if ``durable``, they are there after a power cut. Raises EnvironmentFault."""
    with refusals(path, "the folder"):
        missing = [each for each in (path, *path.parents) if not each.exists()] if durable else []
        failpoint("folder-begun")
        path.mkdir(parents=True, exist_ok=True)
        failpoint("folder-made")
        for each in missing:
            sync_folder(each.parent)


def sync_folder(path: Path) -> None:
    """Make durable what was made, renamed and removed in a folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # said by file systems that have nothing to sync in a folder
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def refusals(path: Path, what: str) -> Iterator[None]:
    """Turn an error of the disk into an EnvironmentFault that names the path and the room that is left there."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            f"{what} can't be written: {error.strerror} ({room_left(path)})", where=str(path), hint=FREE_SPACE
        ) from error


def room_left(path: Path) -> str:
    """Say how much more the disk of a path takes from us, be the path there or not."""
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    return f"{shutil.disk_usage(there).free:,} bytes are free"


def encode_number(value: float) -> float | str:
    """Return a value that strict JSON can hold: a finite number as it is, else ``nan``, ``inf`` or ``-inf``."""
    return value if math.isfinite(value) else str(float(value))


def decode_number(value: float | str) -> float:
    return float(value)
