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
    Find,
    filled_environment,
    filled_words,
    finder,
    placeholders,
    substituted,
    words_of,
)
from ablate.study.schema import Task
from ablate.study.task import PYTHON, no_program, program_file
from ablate.study.words import listed, nearest
from ablate.train.context import Context, Interrupted
from ablate.train.folder import AttemptFolder, Work, make_folder, newest, write_json, write_whole
from ablate.train.guard import guarded
from ablate.train.memory import GpuMemoryError, gpu_error_in
from ablate.train.sources import LARGEST_LINE, Reading, Source, source_of

POLL_S = 0.5
CHUNK = 1 << 16
TAIL = 1 << 14  # bytes of what it printed last, in which its error is looked for
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
        message, hint = no_program(program, Path(work.study_folder))
        raise AblateError(message, hint=hint)
    return partial(_run, task, work, die_with)


def _run(
    task: Task, work: Work, die_with: Callable[[int], None], settings: Mapping[str, Any], context: Context
) -> dict[str, float]:
    folder = AttemptFolder(context.folder).artifacts
    make_folder(folder)
    find = partial(finder, settings, seed=work.seed, folder=str(folder))
    resume, found = _resumable(task, work, find)
    if resume is not None:
        context.go_on_from(resume.parent)
        # what it wrote in its last moments, when its worker was dead
        before = source_of(task.metrics_from, work.metrics, partial(_path, work, resume))
        _record(context, {}, before.polled(ended=False))
    _write_settings(folder, settings, work.seed)
    filled = find(resume=None if resume is None else str(resume))
    argv = [found.get(word, word) for word in filled_words(task, filled)]
    if argv[0] in PYTHON:
        argv[0] = sys.executable
    elif "/" in argv[0]:
        argv[0] = str(Path(work.study_folder, argv[0]))
    print(f"ablate: {shlex.join(argv)}", flush=True)
    source = source_of(task.metrics_from, work.metrics, partial(_path, work, folder))
    told = _told(work, folder, resume)
    with guarded(f"ABLATE_FOLDER={told['ABLATE_FOLDER']}"):
        process = subprocess.Popen(
            argv,
            cwd=work.study_folder,
            env={**os.environ, **told, **filled_environment(task, filled)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=partial(_before_command, die_with, os.getpid()),  # sound: this process has one thread
        )
        last, tail = _followed(process, source, context)
    if context.stop_requested:
        raise Interrupted
    _check(process.returncode, tail)
    missing = [metric for metric in work.metrics if metric not in last]
    if missing:
        raise _missing(missing[0], source, _absent(task, work, folder))
    return last


def _missing(metric: str, source: Source, absent: str) -> AblateError:
    name, seen = source.names[metric], list(source.seen)
    what = f"the command left no `{name}`, " + ("which the study declares" if name == metric else f"read as `{metric}`")
    if not seen:
        where = absent or "it left no metrics at all"
        return AblateError(what, hint=f"{where}; `ablate logs` shows what it printed, docs/commands.md what is read")
    more = f" and {len(seen) - LISTED} more" if len(seen) > LISTED else ""
    names = f"{{names: {{{metric}: {nearest(name, seen) or seen[0]}}}}}"
    hint = f"it left {listed(seen[:LISTED])}{more}; where that is meant, say `metrics_from: {names}`"
    return AblateError(what, hint=hint)


def _absent(task: Task, work: Work, folder: Path) -> str:
    """Return what to say where the file or folder that the metrics are read from is not there; else nothing."""
    found = task.metrics_from
    text = found.json_ or found.csv or found.tensorboard
    path = _path(work, folder, text) if text else None
    return f"there is no {path}" if path and not path.exists() else ""


def _followed(process: subprocess.Popen[bytes], source: Source, context: Context) -> tuple[dict[str, float], str]:
    """Pass on what the command prints and record its metrics until it ends.

    Returns the last value of each, and the last of what it printed to stderr.
    """
    last: dict[str, float] = {}
    tail = b""
    assert process.stdout is not None
    assert process.stderr is not None
    # a stream each, or a progress bar on stderr would stand in the midst of a line of metrics
    buffers = {process.stdout.fileno(): b"", process.stderr.fileno(): b""}
    open_, polled, asked = list(buffers), time.monotonic(), False
    for output in buffers:
        os.set_blocking(output, False)
    while True:
        ended = process.poll() is not None  # before the read: what it printed is then all there
        if not ended:
            select.select(open_, [], [], 0.05)
        for output in list(open_):
            while data := _read(output):
                _log(data)
                tail = (tail + data)[-TAIL:] if output == process.stderr.fileno() else tail
                *lines, rest = (buffers[output] + data).replace(b"\r", b"\n").split(b"\n")
                _record(context, last, _readings(source, lines))
                buffers[output] = rest[-LARGEST_LINE:]
            if data is not None:
                open_.remove(output)  # closed by the command, which may go on
        if ended:
            _record(context, last, _readings(source, buffers.values()))
            _record(context, last, source.polled(ended=True))
            return last, tail.decode(errors="replace")
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


def _read(descriptor: int) -> bytes | None:
    """Return what there is to read; nothing at the end of a stream, None where there is nothing yet."""
    try:
        return os.read(descriptor, CHUNK)
    except BlockingIOError:
        return None


def _readings(source: Source, lines: Iterable[bytes]) -> Iterable[Reading]:
    return (reading for line in lines for reading in source.printed(line.decode(errors="replace")))


def _record(context: Context, last: dict[str, float], readings: Iterable[Reading]) -> None:
    for reading in readings:
        last.update(reading.values)
        if reading.epoch is not None:
            context.record(epoch=reading.epoch, epochs=None, **reading.values)


def _check(status: int, tail: str) -> None:
    """End as the command did: by the same signal, so that its death is judged as that of any other worker."""
    if status < 0:
        print(f"ablate: the command was ended by {signal.Signals(-status).name}", flush=True)
        signal.signal(-status, signal.SIG_DFL) if -status not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -status)
    if status and (error := gpu_error_in(tail)):
        raise GpuMemoryError(f"the command exited with code {status}: {error}")
    if status:
        raise AblateError(f"the command exited with code {status}", hint="`ablate logs` shows what it printed")


def _resumable(task: Task, work: Work, find: Callable[..., Find]) -> tuple[Path | None, dict[str, str]]:
    """Return the newest folder of an earlier attempt that holds what the words with ``{resume}`` name, and these words
    with the newest file that a ``*`` in them stands for."""
    words = [word for word in words_of(task.command or "") if RESUME in placeholders(word)]
    resuming = task.model_copy(update={"command": shlex.join(words)})
    for earlier in work.earlier if words else ():
        folder = AttemptFolder(earlier).artifacts
        found = {word: _found(word, folder) for word in filled_words(resuming, find(resume=str(folder)))}
        if all(found.values()):
            return folder, {word: meant for word, meant in found.items() if meant}
    return None, {}


def _found(word: str, folder: Path) -> str | None:
    """Return a filled word with the file that it names below ``folder``, or None where there is none."""
    before, _, name = word.partition(str(folder))
    path = newest(folder, name.lstrip("/"))
    return f"{before}{path}" if path else None


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
