"""A real Slurm of two nodes on this machine: no systemd, no cgroups, fake GPUs, its own folder and ports."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engines.remains import end_all, environment_of, opened_by, remains

NODES = ("n1", "n2")
MISSING = "no Slurm here (Debian: apt-get install slurm-wlm munge)"
PATIENCE_S = 120

# plain files are no GPUs to it; these two devices are there everywhere
GRES = """
NodeName=n[1-2] Name=gpu File=/dev/null
NodeName=n[1-2] Name=gpu File=/dev/zero
"""
CONFIGURATION = """
ClusterName=ablate
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=900
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0,bf_interval=2
ReturnToService=2
SlurmdTimeout=10
KillWait=30
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=4 RealMemory=4000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=4 RealMemory=4000 Gres=gpu:2
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 PriorityTier=5 PreemptMode=OFF
PartitionName=low Nodes=n1,n2 MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=n1,n2 MaxTime=60 PriorityTier=10 PreemptMode=OFF
"""

# what a node's driver would say of its two GPUs: others than the other node's
NVIDIA_SMI = """#!/bin/sh
for index in 0 1; do echo "GPU-$SLURMD_NODENAME-$index, $index, NVIDIA Fake, 80 GB"; done
"""


class Cluster:
    """The daemons of one cluster, by their pid files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ports = _free_ports(3)
        host = socket.gethostname().partition(".")[0]
        settings = {"folder": folder, "host": host, "port": ports[0], "n1": ports[1], "n2": ports[2]}
        (folder / "slurm.conf").write_text(CONFIGURATION.format(**settings))
        (folder / "gres.conf").write_text(GRES)
        (folder / "state").mkdir()
        programs = folder / "bin"
        programs.mkdir()
        (programs / "nvidia-smi").write_text(NVIDIA_SMI)
        (programs / "nvidia-smi").chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """What a user's shell on the login node has."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}

    def up(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        files = {"key": "key", "socket": "sock", "pid": "pid", "log": "log", "seed": "seed"}
        options = [
            f"--{name}{'' if name == 'socket' else '-file'}={self.folder}/munge.{end}" for name, end in files.items()
        ]
        self._run("munged", *options)
        self._run("slurmctld", "-c")
        for node in NODES:
            self.start_node(node)
        self.wait(lambda: self.ask("sinfo", "-h", "-p", "main", "-o", "%T") == "idle", "two idle nodes")

    def start_node(self, node: str) -> None:
        (self.folder / f"spool.{node}").mkdir(exist_ok=True)
        self._run("slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """Kill a node at once: its daemon, and all that runs on it."""
        os.kill(self._pid(f"slurmd.{node}"), signal.SIGKILL)
        for pid in self.processes(node):  # those that watch come first: they would tell how the others ended
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self, node: str) -> list[int]:
        """Return the processes of a node's jobs, and before them the daemons that watch those."""
        name, log = f"SLURMD_NODENAME={node}".encode(), f"{self.folder}/slurmd.{node}.log"
        return [pid for pid in remains(self.folder) if name in environment_of(pid) or log in opened_by(pid)]

    def ask(self, *command: str) -> str:
        """Return what a command of Slurm prints; empty where it fails."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout.strip()

    def wait(self, condition: object, what: str, *, seconds: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + seconds
        while not condition():  # type: ignore[operator]
            assert time.monotonic() < deadline, f"no {what} in {seconds:.0f} s\n{self.logs()}"
            time.sleep(0.2)

    def logs(self, lines: int = 40) -> str:
        """Return the ends of all that the daemons, and agents of a project, have written: for a failed assertion."""
        told = [self.ask("squeue", "-a"), self.ask("sinfo", "-N")]
        for file in sorted(self.folder.glob("*.log")):
            told.append(f"--- {file.name}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-lines:]))
        return "\n".join(told)

    def down(self) -> None:
        self.ask("scancel", "--state=PENDING", "-u", "root")
        self.ask("scancel", "--signal=KILL", "-u", "root")
        for name in ("slurmctld", *(f"slurmd.{node}" for node in NODES), "munge"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(self._pid(name), signal.SIGKILL if name != "munge" else signal.SIGTERM)
        end_all(self.folder)

    def _pid(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text())

    def _run(self, *command: str) -> None:
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}\n{self.logs()}"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Run a cluster for as long as the context lasts. Skips the test where none can be."""
    if not all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged")):
        pytest.skip(MISSING)
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons need root")
    folder = Path(tempfile.mkdtemp(prefix="ablate-slurm-", dir="/tmp"))
    folder.chmod(0o755)  # munge wants its socket within everybody's reach
    made = Cluster(folder)
    try:
        made.up()
        yield made
    finally:
        made.down()
        shutil.rmtree(folder, ignore_errors=True)
