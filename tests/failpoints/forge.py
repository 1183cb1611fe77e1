"""Commands as forks of one process that has imported all of ablate: 0.1 s each instead of 2 to 4.

Nothing is played: each command is a process of its own, in a session of its own, with the code, the store, the workers
and the locks of the real one, and it is really killed. Only interpreters are not started and torch is not imported
again: that of the worker server is forked too.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PATIENCE_S = 120
TRACE = "FORGE_TRACE"  # a file to which every pass of a failpoint is written
THREADED = "FORGE_THREADED"  # the worker server has a second thread: it can't fork


@dataclass(frozen=True)
class Done:
    """What became of a command: its exit code, or minus the signal that ended it."""

    code: int
    out: str
    err: str


class Forge:
    """A running forge, as a test sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, *words: str, cwd: Path, **environment: str) -> Done:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"words": words, "cwd": str(cwd), "environment": {**os.environ, **environment}}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Done(**json.loads(self._process.stdout.readline()))


@contextlib.contextmanager
def forge() -> Iterator[Forge]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.failpoints.forge"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **threads},
        cwd=Path(__file__).parents[2],
    )
    try:
        yield Forge(process)
    finally:
        process.stdin.close()  # type: ignore[union-attr]
        process.wait(30)
        process.stdout.close()  # type: ignore[union-attr]


# --- the forge itself


def serve_requests() -> None:
    for module in (
        "ablate.cli", "ablate.run.studies", "ablate.run.doctor", "ablate.run.scores", "ablate.mirror.optuna",
        "ablate.report.terminal", "ablate.report.markdown", "ablate.report.csv", "ablate.analyse.analysis",
        "ablate.analyse.frames", "ablate.analyse.comparing", "ablate.report.status", "ablate.train.server",
        "ablate.train.classification", "ablate.mirror.dashboard", "optuna_dashboard", "pandas", "scipy.stats",
    ):  # fmt: skip
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # the collector would touch, and so copy, every page in each fork
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: no place to fork from"
    for line in sys.stdin:
        answer = _run(json.loads(line))
        print(json.dumps(answer), flush=True)


def _run(request: dict[str, Any]) -> dict[str, Any]:
    # pipes, not files: a process whose disk is full must be able to say so
    out, err = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        _become(request, out[1], err[1])
    os.close(out[1])
    os.close(err[1])
    said = {out[0]: b"", err[0]: b""}
    status = None
    while status is None:
        ended, code = os.waitpid(pid, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if ended else None
        _listen(said, 0.02)
    _listen(said, 0.0)
    for descriptor in said:
        os.close(descriptor)
    return {"code": status, "out": said[out[0]].decode(), "err": said[err[0]].decode()}


def _listen(said: dict[int, bytes], seconds: float) -> None:
    while ready := select.select(list(said), [], [], seconds)[0]:
        blocks = {descriptor: os.read(descriptor, 1 << 16) for descriptor in ready}
        for descriptor, block in blocks.items():
            said[descriptor] += block
        if not any(blocks.values()):
            time.sleep(seconds)
            return


def _become(request: dict[str, Any], out: int, err: int) -> None:
    """Turn this fork into a command. Does not return."""
    code: Any = 1
    try:
        os.setsid()
        signal.alarm(PATIENCE_S)
        os.chdir(request["cwd"])
        _dress(request["environment"], out, err)
        from ablate import cli
        from ablate.run import workers

        workers.subprocess = SimpleNamespace(  # type: ignore[attr-defined]
            Popen=_Server, DEVNULL=None, TimeoutExpired=subprocess.TimeoutExpired
        )
        sys.argv = ["ablate", *request["words"]]
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


_KEPT: list[Any] = [sys.stdin, sys.stdout, sys.stderr]  # what is thrown away is flushed into the file of another


def _dress(environment: dict[str, str], out: int, err: int) -> None:
    """Give this fork an environment, streams and failpoints of its own, as a new interpreter would have."""
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    null = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((null, out, err)):
        os.dup2(descriptor, number)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    _KEPT.extend((sys.stdout, sys.stderr))
    from ablate import failpoints

    importlib.reload(failpoints)  # functions look their globals up where they were made: there
    if TRACE in environment:
        failpoints._armed = _Trace(environment[TRACE])


class _Trace(dict[str, Any]):
    """Failpoints that write down their passes, and do nothing else."""

    def __init__(self, file: str) -> None:
        super().__init__(armed=None)
        self._file = file

    def get(self, name: str, default: Any = None) -> Any:
        with open(self._file, "a") as file:
            file.write(f"{os.getpid()} {name}\n")
        return default


class _Server:
    """The worker server, forked where `Workers` would start an interpreter."""

    def __init__(self, words: list[str], *, env: dict[str, str], stdout: Any, pass_fds: tuple[int, int], **_: Any):
        self.pid = os.fork()
        if self.pid:
            return
        try:
            os.setsid()
            log = stdout.fileno()
            _dress(env, log, log)
            for name in os.listdir("/proc/self/fd"):
                if int(name) > 2 and int(name) not in pass_fds:
                    with contextlib.suppress(OSError):
                        os.close(int(name))
            from ablate.train.server import serve
            from ablate.train.worker import die_with

            die_with(int(env["ABLATE_PARENT"]))
            if THREADED in env:
                threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
            serve(int(words[3]), int(words[4]), *words[5:])
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)

    def wait(self, timeout: float | None = None) -> None:
        deadline = time.monotonic() + (timeout or 60)
        while not os.waitpid(self.pid, os.WNOHANG)[0]:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("server", timeout or 60)
            time.sleep(0.005)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


if __name__ == "__main__":
    serve_requests()
