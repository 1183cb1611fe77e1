"""The attempt folder: the only thing that runner and worker share.

trial.json      what to do, written by the runner before the worker starts
metrics.jsonl   one line a ``record``, appended whole; a torn last line is ignored
checkpoint/     the last two checkpoints and manifest.json with their SHA-256
artifacts/      files that the task named
scores.npz      one score per example, where the task gave them
stdout.log      stdout and stderr of the worker; of a flood, the beginning and the end
result.json     how the attempt ended, written last; its presence means that the worker said its last word

All but the log and the metric lines are written aside and renamed, so that a reader sees all or nothing.
No torch here: the runner reads these files.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STACKS = signal.SIGQUIT  # makes a worker print the stacks of its threads to its log
LOG_HEAD = 4 << 20  # what is kept of a log that grows without end: its beginning, and at least this much of its end
LOG_TAIL = 4 << 20
LOG_CAP = 16 << 20
BLOCK = 1 << 16
PATIENCE = 64  # blocks; a worker that writes faster than we copy must not keep us


@dataclass(frozen=True)
class Work:
    """What a worker is told: the content of ``trial.json``.

    ``device`` is ``cpu`` or ``cuda``; ``earlier`` lists the folders of earlier attempts, newest first;
    ``locks`` are files that the worker holds (flock) for as long as it or a child of it lives; ``check_only`` asks it
    to find the task and not to call it.
    """

    task: str
    study_folder: str
    settings: dict[str, Any]
    seed: int
    fingerprint: str
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    metrics: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()
    locks: tuple[str, ...] = ()
    check_only: bool = False


@dataclass(frozen=True)
class Result:
    """How an attempt ended: the content of ``result.json``.

    ``seconds`` is the wall time of the worker; ``facts`` are what the task noted about itself, such as its data's hash.
    """

    outcome: str
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""
    hint: str = ""
    exit_code: int = 0
    seconds: float = 0.0
    resumed_from: str = ""
    facts: dict[str, str] = field(default_factory=dict)


class AttemptFolder:
    """Paths, reading and writing of one attempt folder. Holds no open file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.work_file = self.path / "trial.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoint"
        self.artifacts = self.path / "artifacts"
        self.scores_file = self.path / "scores.npz"
        self.log_file = self.path / "stdout.log"
        self.result_file = self.path / "result.json"

    def create(self, work: Work) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.work_file, asdict(work))

    def work(self) -> Work:
        values = json.loads(self.work_file.read_text())
        for name in ("metrics", "earlier", "locks"):
            values[name] = tuple(values[name])
        return Work(**values)

    def write_result(self, result: Result) -> None:
        values = asdict(result)
        values["metrics"] = {name: encode_number(value) for name, value in result.metrics.items()}
        write_json(self.result_file, values)

    def result(self) -> Result | None:
        """Return the worker's last word, or None where it ended without one."""
        try:
            values = json.loads(self.result_file.read_text())
        except FileNotFoundError:
            return None
        values["metrics"] = {name: decode_number(value) for name, value in values["metrics"].items()}
        return Result(**values)

    def append_record(self, record: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl`` in a single write: a killed worker leaves whole lines."""
        line = json.dumps(record, allow_nan=False) + "\n"
        descriptor = os.open(self.metrics_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def records(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Return the whole lines after byte ``offset`` and the offset to go on from."""
        try:
            with self.metrics_file.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], offset
        whole = data[: data.rfind(b"\n") + 1]
        lines = [json.loads(line) for line in whole.splitlines()]
        return lines, offset + len(whole)

    def note_in_log(self, line: str) -> None:
        """Add a line of our own to the worker's log."""
        with self.log_file.open("ab") as file:
            file.write(f"ablate: {line}\n".encode())

    def cap_log(self) -> None:
        """Cut out the middle of a log that has grown beyond ``LOG_CAP``, also while a worker writes it.

        A worker appends, so it goes on at the new end. The old end is moved forward in place, with what is added
        meanwhile; only what is written in the microseconds before the cut is lost.
        """
        try:
            if self.log_file.stat().st_size <= LOG_CAP:
                return
            log = os.open(self.log_file, os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            end = os.lseek(log, 0, os.SEEK_END)
            head = os.pread(log, BLOCK, LOG_HEAD - BLOCK)
            cut = head.rfind(b"\n") + 1
            note = f"[ablate cut this log at {LOG_CAP >> 20} MiB: what stood here is left out]\n"
            at = LOG_HEAD - BLOCK + (cut or BLOCK)
            at += os.pwrite(log, (note if cut else f"\n{note}").encode(), at)
            more = os.pread(log, LOG_TAIL, end - LOG_TAIL)
            more = more[more.find(b"\n") + 1 :]
            for _ in range(PATIENCE):
                at += os.pwrite(log, more, at)
                more = os.pread(log, BLOCK, end)
                end += len(more)
                if not more:
                    break
            os.ftruncate(log, at)
        finally:
            os.close(log)

    def log_tail(self, lines: int = 10, size: int = 65536) -> list[str]:
        """Return the last lines of the log; control characters are shown, not sent to the terminal."""
        try:
            with self.log_file.open("rb") as file:
                file.seek(max(0, self.log_file.stat().st_size - size))
                text = file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        shown = [as_shown(line) for line in text.split("\n")]
        return [line for line in shown if line.strip()][-lines:]


def as_shown(line: str) -> str:
    """Return a line of a log as a terminal would have left it, with control characters escaped.

    A progress bar rewrites its line: only what stands after the last carriage return was visible.
    """
    return printable(line.rstrip("\r").rsplit("\r", 1)[-1])


def printable(text: str) -> str:
    """Return the text with control characters escaped, so that a foreign string can't drive the terminal."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def write_json(path: Path, value: object) -> None:
    """Write strict JSON aside, sync it, and rename it into place."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def encode_number(value: float) -> float | str:
    """Return a value that strict JSON can hold: a finite number as it is, else ``nan``, ``inf`` or ``-inf``."""
    return value if math.isfinite(value) else str(float(value))


def decode_number(value: float | str) -> float:
    return float(value)
