"""The worker: one process, one attempt at a time, from ``trial.json`` to ``result.json``. It never sees the store.

It ends with its attempt, unless it is warm: then it takes one attempt after another, as long as they end well.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import inspect
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ablate.errors import EXIT_BUG, EXIT_DONE, AblateError, EnvironmentFault
from ablate.train.context import Context, Diverged, Interrupted
from ablate.train.folder import UNWRITTEN, AttemptFolder, Result, Work, open_lock, refusals
from ablate.train.memory import is_out_of_memory, may_be_gpu_memory
from ablate.train.process import Orders, die_with, prepare, tell_stacks

if TYPE_CHECKING:
    from ablate.train.group import Seat

LOCK_PATIENCE_S = 30.0

Task = Callable[[Mapping[str, Any], Context], Mapping[str, float]]


_stop: list[int] = []  # requests to end this process, which are never forgotten


def run_attempt(path: str | Path) -> str:
    """Do the work of one attempt folder, and of its mates; write how each ended. Never raises for what the task does.

    Returns ``ok`` where all ended so, else the first other outcome.
    """
    first = AttemptFolder(path)
    work = first.work()
    folders = [first, *map(AttemptFolder, work.mates)]
    works = [work, *(each.work() for each in folders[1:])]
    started = time.monotonic()
    try:
        with _held(tuple(dict.fromkeys(lock for each in works for lock in each.locks)), work.shared):
            for earlier in (earlier for each in works for earlier in each.earlier):
                AttemptFolder(earlier).sweep()
            task = _command_task(work) if work.task.startswith("{") else _find_task(work)
            is_alone = work.fuse == 1 and not work.candidates and not work.peers
            if work.check_only and is_alone:
                results = [Result("ok")]
            else:
                signal.signal(signal.SIGTERM, lambda number, _: _stop.append(number))
                results = [_called(task, first, work)] if is_alone else _called_together(task, folders, works)
    except BaseException as error:
        results = [_result_of(error, work.settings)] * len(folders)
        _explain(error, results[0])
    took = (time.monotonic() - started) / len(folders)  # a share of the time that one model took
    for folder, result in zip(folders, results, strict=True):
        folder.write_result(replace(result, seconds=took))
    return next((result.outcome for result in results if result.outcome != "ok"), "ok")


def _called(task: Task, folder: AttemptFolder, work: Work, seat: Seat | None = None) -> Result:
    """Call the task and return how that ended. Never raises. ``seat``: its seed is trained in one model with others."""
    context = _context(folder, work, seat)
    try:
        prepare(work.seed, work.threads)
        result = Result("ok", metrics=_plain(task(work.settings, context), work.metrics))
        if seat is not None and not seat.has_asked:
            raise _own_loop(work)
    except BaseException as error:
        # asked to stop, libraries with a handler of their own for SIGTERM, such as Lightning, end the process
        asked = context.stop_requested and isinstance(error, (SystemExit, KeyboardInterrupt))
        result = Result("interrupted") if asked else _result_of(error, work.settings)
        _explain(error, result)
    if result.outcome == "ok" and work.metrics and not math.isfinite(result.metrics[work.metrics[0]]):
        name = work.metrics[0]
        result = Result("diverged", result.metrics, error=f"{name} is {result.metrics[name]} at the end")
    return replace(result, resumed_from=context.resumed_from, facts=context.facts)


def _called_together(task: Task, folders: Sequence[AttemptFolder], works: Sequence[Work]) -> list[Result]:
    """Call the task for each of the attempts, whose seeds are trained in one model, and return how each ended."""
    from ablate.train.group import run_group  # and with it the loop, which no other task needs
    from ablate.train.pace import measure, measure_beside
    from ablate.train.together import Asked, check_together, train_together

    first = works[0]
    results: dict[int, Result] = {}

    def call(number: int) -> Callable[[Seat], None]:
        def calling(seat: Seat) -> None:
            results[number] = _called(task, folders[number], works[number], seat)

        return calling

    def train(asked: Sequence[Asked]) -> Sequence[Mapping[str, float] | BaseException]:
        if first.candidates:
            measure(asked[0], first.candidates, first.seconds)
        if first.peers:
            measure_beside(asked[0], first.fuse, first.peers, first.seconds)
        return check_together(asked, first.fuse) if first.check_only else train_together(asked, first.fuse)

    prepare(first.seed, first.threads)
    for mate in folders[1:]:
        mate.note_in_log(f"trained in one model with others: what they print is in {folders[0].log_file}")
    run_group([call(number) for number in range(len(folders))], train)
    told = [results[number] for number in range(len(folders))]
    # what is only checked ends where its training would begin
    return [
        replace(each, outcome="ok") if first.check_only and each.outcome == "interrupted" else each for each in told
    ]


def _own_loop(work: Work) -> AblateError:
    if work.peers:
        return AblateError(
            "the iterations of train_classifier are timed, and the task did not call it",
            hint="write a number, or train by ablate.train.classification.train_classifier",
        )
    return AblateError(
        "`execution.fuse` trains several seeds in one model, and the task did not call train_classifier",
        hint="remove `execution.fuse`, or train by ablate.train.classification.train_classifier",
    )


def live(path: str, orders: Orders | None = None) -> int:
    """Do the work of one attempt folder, and of those that are ordered after it; return this process's exit code.

    ``UNWRITTEN`` where the disk refused our last word: the runner says why, as the log may be refused as well.
    """
    at: str | None = path
    try:
        while at and run_attempt(at) == "ok" and orders and not _stop:
            at = orders.after(at)
    except EnvironmentFault as refused:
        with contextlib.suppress(OSError):
            print(refused, file=sys.stderr)
        return UNWRITTEN
    except Exception:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return EXIT_BUG
    return EXIT_DONE


def _command_task(work: Work) -> Task:
    from ablate.train.command import command_task  # pydantic and YAML, which no function needs

    return command_task(work, die_with)


def _find_task(work: Work) -> Task:
    """Import the task. A module beside the study is found first; a dotted name is an installed module."""
    module_name, _, function_name = work.task.partition(":")
    if work.study_folder not in sys.path:
        sys.path.insert(0, work.study_folder)
    module = importlib.import_module(module_name)
    try:
        task = getattr(module, function_name)
    except AttributeError:
        raise AblateError(f"{module_name} has no function `{function_name}`", where=str(module.__file__)) from None
    if not callable(task):
        raise AblateError(f"{work.task} is no function", where=str(module.__file__))
    with contextlib.suppress(ValueError):  # of what is built in, no arguments are known
        try:
            inspect.signature(task).bind({}, None)
        except TypeError as error:
            message = f"{work.task} can't be called with settings and context: {error}"
            hint = f"write it as `def {function_name}(settings, context):`"
            raise AblateError(message, where=str(module.__file__), hint=hint) from None
    found: Task = task
    return found


def _context(folder: AttemptFolder, work: Work, seat: Seat | None) -> Context:
    return Context(
        seed=work.seed,
        folder=folder.path,
        device=work.device,
        dtype=getattr(torch, work.dtype),
        memory_format=getattr(torch, work.memory_format),
        compile=work.compile,
        graphs=work.graphs,
        earlier=work.earlier,
        fingerprint=work.fingerprint,
        metrics=work.metrics,
        shorter=work.shorter,
        keeps_end=work.keeps_end,
        stop_requested=lambda: bool(_stop),
        together=seat,
    )


def _plain(returned: object, declared: tuple[str, ...]) -> dict[str, float]:
    """Return what the task returned as plain floats. Raises AblateError where a declared metric did not arrive."""
    if not isinstance(returned, Mapping):
        hint = "return a dict of numbers, for example {'val_acc': 71.3}"
        raise AblateError(f"the task returned {type(returned).__name__}, not metrics", hint=hint)
    missing = [name for name in declared if name not in returned]
    if missing:
        got = ", ".join(map(str, returned)) or "nothing"
        raise AblateError(f"the task returned no `{missing[0]}`, which the study declares", hint=f"it returned: {got}")
    metrics = {}
    for name, value in returned.items():
        try:
            metrics[str(name)] = float(value)
        except (TypeError, ValueError):
            raise AblateError(f"the task returned `{name}` = {value!r:.60}, which is no number") from None
    return metrics


def _result_of(error: BaseException, settings: Mapping[str, Any]) -> Result:
    if isinstance(error, Interrupted):
        return Result("interrupted")
    if isinstance(error, Diverged):
        return Result("diverged", error=str(error))
    refused = may_be_gpu_memory(error)
    if is_out_of_memory(error):
        of_command = error.faults[0].message if isinstance(error, AblateError) else ""
        told = of_command or f"{type(error).__name__}: {_first_line(error)}"
        return Result("oom", error=told, gpu_memory=refused)
    if isinstance(error, AblateError):
        messages = [f"{fault.where}: {fault.message}" if fault.where else fault.message for fault in error.faults]
        hint = next((fault.hint for fault in error.faults if fault.hint), "")
        return Result("error", error="; ".join(messages), hint=hint, exit_code=error.exit_code)
    if isinstance(error, SystemExit):
        return Result("error", error=f"the task ended the process (exit {error.code}) without returning metrics")
    told = f"{type(error).__name__}: {_first_line(error)}{_meant(error, settings)}"
    return Result("error", error=told, gpu_memory=refused)


def _meant(error: BaseException, settings: Mapping[str, Any]) -> str:
    """Return which setting was probably meant by a key that there is not; empty for any other error."""
    if not isinstance(error, KeyError) or not error.args or not isinstance(error.args[0], str):
        return ""
    from ablate.study.settings import leaves  # YAML, which no sound attempt needs
    from ablate.study.words import nearest

    close = nearest(error.args[0], [path for path, _ in leaves(settings)])
    return f"; the settings have `{close}`" if close else ""


def _explain(error: BaseException, result: Result) -> None:
    """Print to the log why it ended: a user's mistake as it reads, anything else from the task's own frames on."""
    if result.outcome in ("interrupted", "diverged"):
        return
    with contextlib.suppress(OSError):  # a full disk takes no log either, and the result says the most of it
        if isinstance(error, AblateError):
            print(error, file=sys.stderr)
        else:
            trace = error.__traceback__
            while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
                trace = trace.tb_next
            traceback.print_exception(error.with_traceback(trace))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"


@contextlib.contextmanager
def _held(paths: Sequence[str], shared: Sequence[str]) -> Any:
    """Hold the locks of the trial and its device. Children inherit them: an orphan keeps the next attempt out."""
    descriptors = []
    try:
        for path, kind in [*((path, fcntl.LOCK_EX) for path in paths), *((path, fcntl.LOCK_SH) for path in shared)]:
            with refusals(Path(path), "the lock"):
                descriptors.append(open_lock(path))
            _wait_for_lock(descriptors[-1], path, kind)
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _wait_for_lock(descriptor: int, path: str, kind: int) -> None:
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                # that of a runner which is frozen, say: not the trial's fault, so it waits for its turn again
                print(f"{path}: an earlier worker still holds the trial or its device", file=sys.stderr)
                raise Interrupted from None
        time.sleep(0.01)


def _live_alone(folder: str, key: str = "", *pipes: str) -> int:
    """Live in an interpreter of our own, where the server could not fork."""
    die_with(int(os.environ.pop("ABLATE_PARENT")))
    tell_stacks()
    if not pipes:
        return live(folder)
    orders, replies = map(int, pipes)
    return live(folder, Orders(int(key), orders=orders, replies=replies, environment=os.environ))


if __name__ == "__main__":
    sys.exit(_live_alone(*sys.argv[1:]))
