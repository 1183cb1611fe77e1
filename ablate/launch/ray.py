"""Ray: agents as detached actors, which outlive the program that started them and are started again where a node dies.

Ray places them and counts GPUs. All else is ours: each agent is a process of its own, whose environment says which GPUs
it has and no more of Ray, for Ray would set its threads and reuse its process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ablate.errors import EnvironmentFault
from ablate.launch.launcher import Wanted
from ablate.run.provenance import AGENT
from ablate.run.slots import ALLOTTED

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # not between fork and exec, where a lock may be held for ever
NAMESPACE = "ablate"
ANSWER_S = 10.0  # for actors that are placed; those that wait for a place can't answer
GRACE_S = 60.0  # for checkpoints, when agents are cancelled
# with the first alone, Ray still tells its makers that it is off
SILENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/"}
NOT_OURS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES")  # what Ray may set
FROM_HERE = ("PGPASSFILE", "PYTHONPATH", "ABLATE_DATA")


class Agent:
    """The actor: it keeps one `ablate agent` running. Where its node dies, Ray makes it anew on another."""

    def __init__(self, words: list[str], environment: dict[str, str], folder: str) -> None:
        import ray

        context = ray.get_runtime_context()
        self._actor = context.current_actor
        self._words, self._folder = words, folder
        around = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self._environment = {name: value for name, value in around.items() if name not in NOT_OURS} | environment
        self._environment["CUDA_VISIBLE_DEVICES"] = ",".join(context.get_accelerator_ids().get("GPU", []))
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._starting = threading.Lock()
        # by nobody's call: it outlives whoever has made it
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        import ray

        with self._starting:
            if not self._stopped:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "ablate", "agent", *self._words],
                    env=self._environment,
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    preexec_fn=_end_with_actor,
                )
        if self._process is not None:
            self._process.wait()
        ray.kill(self._actor, no_restart=True)  # it has ended by itself, and is not made anew

    def answer(self) -> None:
        """Show that it is placed."""

    def stop(self) -> None:
        """Ask the agent to write checkpoints and release what it holds."""
        with self._starting:
            self._stopped = True
            if self._process is not None:
                self._process.terminate()


def _end_with_actor() -> None:
    """Ask the agent to stop when its actor is killed: it may still release what it holds."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


@dataclass(frozen=True)
class Ray:
    """Starts agents on the Ray cluster at ``address``; ``auto`` is the one that this machine belongs to."""

    address: str = "auto"

    def submit(self, wanted: Wanted) -> str:
        handle = uuid.uuid4().hex[:8]
        environment = {name: os.environ[name] for name in FROM_HERE if name in os.environ} | wanted.environment
        with _connected(self.address) as ray:
            made = ray.remote(Agent)
            for number in range(1, wanted.count + 1):
                actor = made.options(
                    name=f"{handle}-{number}",
                    lifetime="detached",
                    num_cpus=wanted.cpus,
                    num_gpus=wanted.gpus,
                    max_restarts=-1,
                    scheduling_strategy="SPREAD",
                )
                named = environment | {AGENT: f"ray-{handle}-{number}", ALLOTTED: str(wanted.cpus)}
                actor.remote([*wanted.words], named, str(wanted.folder))
        return handle

    def status(self, handle: str) -> Mapping[str, int]:
        with _connected(self.address) as ray:
            placed, waiting = _placed(ray, handle)
        counts = {"running": len(placed), "pending": len(waiting)}
        return {state: count for state, count in counts.items() if count}

    def cancel(self, handle: str) -> None:
        with _connected(self.address) as ray:
            placed, waiting = _placed(ray, handle)
            for actor in waiting:  # first: they would take the places of the others
                ray.kill(actor, no_restart=True)
            for actor in placed:
                actor.stop.remote()
            deadline = time.monotonic() + GRACE_S
            while (left := _actors(ray, handle)) and time.monotonic() < deadline:
                time.sleep(0.5)
            for actor in left:
                ray.kill(actor, no_restart=True)


def _actors(ray: Any, handle: str) -> list[Any]:
    """Return the actors of a start that there still are."""
    found = []
    for name in ray.util.list_named_actors():
        if name.startswith(f"{handle}-"):
            with contextlib.suppress(ValueError):  # it has ended meanwhile
                found.append(ray.get_actor(name))
    return found


def _placed(ray: Any, handle: str) -> tuple[list[Any], list[Any]]:
    """Return the actors of a start that have a place, and those that wait for one."""
    asked = {actor.answer.remote(): actor for actor in _actors(ray, handle)}
    found, waiting = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S) if asked else ([], [])
    return [asked[each] for each in found], [asked[each] for each in waiting]


def _knock(address: str) -> None:
    """Raise EnvironmentFault where nobody listens at HOST:PORT. Ray would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        where = f"--address {address}"
        raise EnvironmentFault(f"no Ray cluster is there: {error}", where=where, hint="is it up?") from None


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Give the `ray` module, connected to a cluster that is there. Raises EnvironmentFault; never starts a cluster."""
    _knock(address)
    os.environ.update(SILENT)  # read when it is imported
    try:
        import ray
    except ModuleNotFoundError:
        hint = "pip install 'ablation-study[ray]', in the version of the cluster's"
        raise EnvironmentFault("Ray is not installed here", hint=hint) from None
    with _stderr_aside() as said:
        try:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise _refusal(address, str(error), said()) from None
        try:
            yield ray
        finally:
            ray.shutdown()


def _refusal(address: str, error: str, said: str) -> EnvironmentFault:
    """Return why Ray does not let us in. That it is for the token, it only prints."""
    where = f"--address {address}"
    if "InvalidAuthToken" in said or "authentication token" in error:
        mode = os.environ.get("RAY_AUTH_MODE", "").lower()
        which = "no token was found here" if "no authentication token" in error else "another one was given"
        given = which if mode == "token" else "RAY_AUTH_MODE=token is not set here"
        hint = "RAY_AUTH_MODE=token, and its token in ~/.ray/auth_token, or a file that RAY_AUTH_TOKEN_PATH names"
        return EnvironmentFault(f"the Ray cluster wants its token, and {given}", where=where, hint=hint)
    why = " ".join(error.split())[:300]
    return EnvironmentFault(f"no Ray cluster lets us in: {why}", where=where, hint="is it up?")


@contextmanager
def _stderr_aside() -> Iterator[Callable[[], str]]:
    """Keep what Ray's threads print to stderr: warnings about its own affairs. Gives what they have printed so far."""
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: os.pread(file.fileno(), 1 << 20, 0).decode(errors="replace")
        finally:
            os.dup2(before, 2)
            os.close(before)
