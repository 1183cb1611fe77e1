"""The mirror beside a run: a process of its own, so that nothing in it can slow or fail the run.

It follows the store until its standard input says farewell, or ends without a word because the run was killed. Then it
looks once more, and ends. What goes wrong is one line in ``mirror.log``.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ablate.errors import EXIT_ENVIRONMENT, AblateError
from ablate.failpoints import failpoint
from ablate.mirror.place import mirror_file, no_place_for_it
from ablate.store.store import Store, open_store

if TYPE_CHECKING:
    from ablate.mirror.optuna import Mirror

POLL_S = 2.0
LOAD = 0.05  # of one core, however large the store
SLOWEST_S = 30.0
PARTING_S = 3.0  # the run waits no longer than this at its end
LAST_LOOK_S = 60
DYING_S = 10.0
HANDOVER_S = 5.0  # long enough for the one who keeps the mirror to have looked after our run's last word
_FAREWELL = b"."
URL = "ABLATE_MIRRORED_STORE"  # in the environment, because a URL may hold a password


class Follower:
    """A follower as the process that started it sees it."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        self._start = log.stat().st_size

    def stop(self, *, patience_s: float = PARTING_S) -> str:
        """Let it look once more and end. Returns what keeps it from mirroring, or nothing. It may go on a little."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself, and says why below
            self._process.stdin.write(_FAREWELL)
            self._process.stdin.close()
        try:
            code = self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.returncode = 0  # ours no longer: it ends by itself, and init takes it
            return ""
        return "" if code == 0 else self._last_line()

    def _last_line(self) -> str:
        with self._log.open(encoding="utf-8", errors="replace") as file:
            file.seek(self._start)
            lines = file.read().strip().splitlines()
        return lines[-1].partition(" ")[2] if lines else "it ended without a word"


def start_follower(store: Store) -> Follower:
    """Start a process that keeps the mirror of a store up to date for as long as this one lives."""
    store.folder.mkdir(parents=True, exist_ok=True)  # with a database server it may not be there yet
    log = store.folder / "mirror.log"
    failpoint("mirror-log-begun")
    environment = {**os.environ, URL: store.engine.url.render_as_string(hide_password=False)}
    with log.open("ab") as file:
        process = subprocess.Popen(
            # -P: a file in the current folder that is called like a library must not stand in for it
            [sys.executable, "-P", "-m", "ablate.mirror.follower", str(store.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=file,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the run: this one still has its last look to take
        )
    return Follower(process, log)


@contextmanager
def following(say: Callable[[str], None], *, wanted: bool = True) -> Iterator[Callable[[Store], None]]:
    """Give what starts a follower, where one is wanted; it is stopped at the end. Its faults are said, never raised."""
    followers: list[Follower] = []

    def start(store: Store) -> None:
        if not wanted:
            return
        if reason := no_place_for_it(store.folder):
            say(f"note: {reason}")
            return
        # the child keeps these blocked: a scheduler sends its warning to every process, and means the run
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGUSR2))
        try:
            followers.append(start_follower(store))
        except OSError as error:
            say(f"note: the Optuna mirror is not kept: {error.strerror}")
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    try:
        yield start
    finally:
        for follower in followers:
            if why := follower.stop():
                say(f"note: the Optuna mirror is behind: {why}; `ablate mirror` brings it up to date")


def main(folder: Path, url: str) -> int:
    """Follow the store until the run ends. Returns 0 where nobody need run `ablate mirror` after it."""
    parent = os.getppid()
    os.nice(10)  # the trials come first
    log = _Log()
    try:
        from ablate.mirror.optuna import Mirror, sole_writer
    except ImportError as error:
        log.say(f"Optuna can't be imported: {error}")
        return EXIT_ENVIRONMENT
    ending = False
    while True:
        try:
            store = open_store(url, folder=folder, read_only=True)
            mirror = Mirror(store, mirror_file(store))
            with sole_writer(mirror.path, patience_s=HANDOVER_S if ending else 0.0) as ours:
                if ours:
                    return _follow(mirror, log, parent, ending=ending)
            good = True  # another run or a dashboard keeps the mirror: our turn comes when that one ends
        except Exception as error:
            log.failed(error)
            good = False
        if ending:
            return 0 if good else EXIT_ENVIRONMENT
        ending = _ended(POLL_S, parent)


def _follow(mirror: Mirror, log: _Log, parent: int, *, ending: bool) -> int:
    while True:
        before = time.process_time()
        good = _sync(mirror, log)
        if ending:
            return 0 if good else EXIT_ENVIRONMENT
        cost = time.process_time() - before
        ending = _ended(min(max(POLL_S, cost / LOAD), SLOWEST_S), parent)


def _sync(mirror: Mirror, log: _Log) -> bool:
    try:
        mirror.sync()
    except Exception as error:
        log.failed(error)
        return False
    log.recovered()
    while mirror.notes:
        log.say(mirror.notes.pop(0))
    return True


def _ended(seconds: float, parent: int) -> bool:
    """Wait, and tell whether the run has ended. From then on the kernel ends us if we do not."""
    ready, _, _ = select.select([0], [], [], seconds)
    if not ready:
        return False
    signal.alarm(LAST_LOOK_S)
    if not os.read(0, 1):
        _outlive(parent)
    return True


def _outlive(parent: int) -> None:
    """Wait until a killed run is gone: its locks may be freed after our pipe, and would say that it is alive."""
    deadline = time.monotonic() + DYING_S
    while os.getppid() == parent and time.monotonic() < deadline:
        time.sleep(0.02)


class _Log:
    """One line per fault on stderr, which is ``mirror.log``; the same fault again says nothing."""

    def __init__(self) -> None:
        self._fault = ""

    def say(self, text: str) -> None:
        line = " ".join(text.split())
        with contextlib.suppress(OSError):  # what fills the disk must not end us: there may be room again
            print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}", file=sys.stderr, flush=True)

    def failed(self, error: Exception) -> None:
        if isinstance(error, AblateError):
            fault = error.faults[0]
            text = f"{fault.where}: {fault.message}" if fault.where else fault.message
        else:
            text = f"a fault of the mirror: {type(error).__name__}: {error}"
        if text != self._fault:
            self.say(text)
        self._fault = text

    def recovered(self) -> None:
        if self._fault:
            self.say("the mirror is up to date again")
        self._fault = ""


if __name__ == "__main__":
    status = main(Path(sys.argv[1]), os.environ.pop(URL))
    gc.freeze()  # the run waits for our end, and need not for a last look through all that Optuna imports
    sys.exit(status)
