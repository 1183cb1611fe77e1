"""A command as a task: run it, read its metrics while it runs, and end as it ended."""

from __future__ import annotations

import contextlib
import io
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ablate.errors import AblateError
from ablate.failpoints import failpoint
from ablate.study.command import (
    FILES,
    FOLDER,
    RESUME,
    SEED,
    filled_environment,
    filled_words,
    finder,
    placeholders,
    substituted,
    words_of,
)
from ablate.study.schema import Task
from ablate.study.task import PYTHON, program_file
from ablate.study.words import listed, nearest
from ablate.train.context import Context, Interrupted
from ablate.train.folder import AttemptFolder, Work, make_folder, write_json, write_whole
from ablate.train.sources import LARGEST_LINE, Reading, Source, source_of

POLL_S = 0.5
CHUNK = 1 << 16
LISTED = 8


def command_task(
    work: Work, die_with: Callable[[int], None]
) -> Callable[[Mapping[str, Any], Context], Mapping[str, float]]:
    """Return the function that runs the command of ``work``. Raises AblateError where its program is missing.

    ``die_with`` makes a process end with the one of that id.
    """
    task = Task.model_validate_json(work.task)
    program = words_of(task.command or "")[0]
    if program not in PYTHON and program_file(program, Path(work.study_folder)) is None:
        raise AblateError(f"the program `{program}` is not found", hint="install it, or write its path")
    return partial(_run, task, work, die_with)


def _run(
    task: Task, work: Work, die_with: Callable[[int], None], settings: Mapping[str, Any], context: Context
) -> dict[str, float]:
    folder = AttemptFolder(context.folder).artifacts
    make_folder(folder)
    resume = _resumable(task, work)
    if resume is not None:
        context.resumed_from = resume.parent.name
    find = finder(settings, seed=work.seed, folder=str(folder), resume=None if resume is None else str(resume))
    _write_settings(folder, settings, work.seed)
    argv = filled_words(task, find)
    if argv[0] in PYTHON:
        argv[0] = sys.executable
    elif "/" in argv[0]:
        argv[0] = str(Path(work.study_folder, argv[0]))
    print(f"ablate: {shlex.join(argv)}", flush=True)
    source = source_of(task.metrics_from, work.metrics, partial(_path, work, folder))
    process = subprocess.Popen(
        argv,
        cwd=work.study_folder,
        env={**os.environ, **_told(work, folder, resume), **filled_environment(task, find)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        preexec_fn=partial(_before_command, die_with, os.getpid()),  # sound: this process has one thread
    )
    last = _followed(process, source, context)
    if context.stop_requested:
        raise Interrupted
    _check(process.returncode)
    missing = [metric for metric in work.metrics if metric not in last]
    if missing:
        hint = _hint(missing[0], list(source.seen))
        raise AblateError(f"the command left no `{missing[0]}`, which the study declares", hint=hint)
    return last


def _hint(missing: str, seen: list[str]) -> str:
    if not seen:
        return "it left no metrics at all; `ablate logs` shows what it printed, the guide where metrics may stand"
    more = f" and {len(seen) - LISTED} more" if len(seen) > LISTED else ""
    names = f"{{names: {{{missing}: {nearest(missing, seen) or seen[0]}}}}}"
    return f"it left {listed(seen[:LISTED])}{more}; where that is meant, say `metrics_from: {names}`"


def _followed(process: subprocess.Popen[bytes], source: Source, context: Context) -> dict[str, float]:
    """Pass on what the command prints and record its metrics until it ends; return the last value of each."""
    last: dict[str, float] = {}
    assert process.stdout is not None
    output, buffer, polled, asked = process.stdout.fileno(), b"", time.monotonic(), False
    os.set_blocking(output, False)
    while True:
        ended = process.poll() is not None  # before the read: what it printed is then all there
        if not ended:
            select.select([output], [], [], 0.05)
        while data := _read(output):
            _log(data)
            *lines, buffer = (buffer + data).replace(b"\r", b"\n").split(b"\n")
            _record(context, last, _readings(source, lines))
            buffer = buffer[-LARGEST_LINE:]
        if ended:
            _record(context, last, _readings(source, [buffer]))
            _record(context, last, source.polled(ended=True))
            return last
        if time.monotonic() - polled > POLL_S:
            _record(context, last, source.polled(ended=False))
            polled = time.monotonic()
        if context.stop_requested and not asked:
            process.terminate()
            asked = True


def _log(data: bytes) -> None:
    """Pass on what the command printed, as far as the disk takes it: the numbers in it are worth more."""
    with contextlib.suppress(OSError):
        failpoint("output-begun")
        while data:
            data = data[os.write(sys.stdout.fileno(), data) :]


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, CHUNK)
    except BlockingIOError:
        return b""


def _readings(source: Source, lines: Iterable[bytes]) -> Iterable[Reading]:
    return (reading for line in lines for reading in source.printed(line.decode(errors="replace")))


def _record(context: Context, last: dict[str, float], readings: Iterable[Reading]) -> None:
    for reading in readings:
        last.update(reading.values)
        if reading.epoch is not None:
            context.record(epoch=reading.epoch, epochs=None, **reading.values)


def _check(status: int) -> None:
    """End as the command did: by the same signal, so that its death is judged as that of any other worker."""
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -status)
    if status:
        raise AblateError(f"the command exited with code {status}", hint="`ablate logs` shows what it printed")


def _resumable(task: Task, work: Work) -> Path | None:
    """Return the newest folder of an earlier attempt that holds what the words with ``{resume}`` name."""
    words = [word for word in words_of(task.command or "") if RESUME in placeholders(word)]
    for earlier in work.earlier if words else ():
        folder = AttemptFolder(earlier).artifacts
        paths = [_resume_path(word, folder) for word in words]
        if all(path.is_file() or (path.is_dir() and any(path.iterdir())) for path in paths):
            return folder
    return None


def _resume_path(word: str, folder: Path) -> Path:
    filled = substituted(word, lambda name: str(folder) if name == RESUME else "")
    option, equals, value = filled.partition("=")
    return Path(value if equals and option.startswith("-") else filled)


def _path(work: Work, folder: Path, text: str) -> Path:
    values = {FOLDER: str(folder), SEED: str(work.seed)}
    return Path(work.study_folder, substituted(text, values.__getitem__))


def _write_settings(folder: Path, settings: Mapping[str, Any], seed: int) -> None:
    everything = {**settings, "seed": seed}
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.version = (1, 1)  # what other readers know best; `1e-05` is text to them, and written as 1.0e-05
    text = io.StringIO()
    yaml.dump(everything, text)
    json_file, yaml_file = (folder / name for name in FILES)
    write_json(json_file, everything, what="settings")
    write_whole(yaml_file, text.getvalue().encode(), what="settings")


def _told(work: Work, folder: Path, resume: Path | None) -> dict[str, str]:
    """Return what every command finds in its environment."""
    return {
        "ABLATE_SEED": str(work.seed),
        "ABLATE_FOLDER": str(folder),
        "ABLATE_SETTINGS": str(folder / FILES[0]),
        "ABLATE_RESUME": str(resume or ""),
        "ABLATE_DEVICE": work.device,
        "PYTHONUNBUFFERED": "1",
    }


def _before_command(die_with: Callable[[int], None], parent: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    die_with(parent)
