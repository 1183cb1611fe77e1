"""A real Ray of three nodes on this machine, in a network that has nothing but loopback: nobody can be dialled."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.engines.remains import end_all
from tests.engines.slurm import NVIDIA_SMI

CLONE_NEWNET = 0x40000000


@contextmanager
def lonely_network() -> Iterator[None]:
    """Put this thread, and all that it starts, into a network of its own with loopback alone."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(CLONE_NEWNET):
            pytest.skip(f"no network namespace to be had here: {os.strerror(ctypes.get_errno())}")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        # where 127.0.0.1 is all there is, getaddrinfo takes IPv4 to be off, and Slurm's daemons find nobody
        subprocess.run(["ip", "address", "add", "127.0.0.2/8", "dev", "lo"], check=True)
        yield
    finally:
        libc.setns(before, CLONE_NEWNET)
        os.close(before)


class Cluster:
    """Three nodes with a fake GPU each. Who talks to it needs its token."""

    def __init__(self, folder: Path) -> None:
        programs = folder / "bin"
        programs.mkdir()
        (programs / "nvidia-smi").write_text(NVIDIA_SMI)
        (programs / "nvidia-smi").chmod(0o755)
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": uuid.uuid4().hex,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
            "RAY_TMPDIR": str(folder),
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "5",
            "PATH": f"{programs}:{os.environ['PATH']}",
        }
        self._folder = folder
        self._cluster: Any = None
        self._nodes: dict[str, Any] = {}

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def up(self) -> None:
        """Start it. Ray gives a node 30 s for that, fixed in its code, and a busy machine may need longer: thrice."""
        for _ in range(2):
            try:
                return self._up()
            except Exception as error:
                if "timed out during startup" not in str(error):
                    raise
                self.down()
                end_all(self._folder)
        return self._up()

    def _up(self) -> None:
        from ray.cluster_utils import Cluster as Nodes

        self._cluster = Nodes()
        for name in ("r1", "r2", "r3"):
            self.add(name)
        self._cluster.wait_for_nodes()

    def add(self, name: str) -> None:
        around = {"SLURMD_NODENAME": name}  # by which the fake driver knows its GPUs
        self._nodes[name] = self._cluster.add_node(
            num_cpus=2, num_gpus=1, object_store_memory=100 << 20, include_dashboard=False, env_vars=around
        )

    def remove(self, name: str) -> None:
        """Kill a node at once."""
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def logs(self) -> str:
        files = sorted(self._folder.rglob("logs/*.err")) + sorted(self._folder.rglob("logs/gcs_server.out"))
        return "\n".join(f"--- {file}\n{file.read_text(errors='replace')[-2000:]}" for file in files[:20])

    def down(self) -> None:
        if self._cluster is not None:
            self._cluster.shutdown()


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Run a cluster for as long as the context lasts. Skips the test where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("no Ray here (pip install ray)")
    assert "ray" not in sys.modules, "it reads its environment when it is imported"
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a short path: sockets lie in it
    made = Cluster(folder)
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as ending:
        for name, value in made.environment.items():
            patch.setenv(name, value)
        ending.callback(shutil.rmtree, folder, ignore_errors=True)
        ending.callback(end_all, folder)
        ending.callback(made.down)
        made.up()
        yield made
