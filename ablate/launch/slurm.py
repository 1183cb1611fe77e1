"""Slurm: agents as the elements of a job array, by a script that can be read."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ablate.errors import AblateError, EnvironmentFault
from ablate.launch.launcher import Wanted, write_note
from ablate.run.options import Allocation
from ablate.study.words import duration
from ablate.train.folder import make_folder

QUERY_S = 30.0
WARNING_S = 120  # before the end of its time, an agent is told to release what it holds
SHORTEST_S = 300  # Slurm may warn a minute early, and Python must have started by then

# `srun`, so that a preemption is announced to the agent (a batch script alone hears of it at the very end)
SCRIPT = """\
#!/bin/bash
# {count} agents of ablate; each works on the store until nothing is left, and is replaced when it is cut short
{directives}

export ABLATE_STORE={store}
export ABLATE_AGENT=slurm-$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID
cd {folder} || exit 2
srun --nodes=1 --ntasks=1 --kill-on-bad-exit=0 {command}
status=$?

# 75: warned of its time's end, or needs more of it. 143: preempted. 140: warned before it had begun.
# A job that was cancelled is no longer RUNNING, and stays away.
job=$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID
case $status in
75 | 140 | 143) [ "$(squeue --noheader --jobs="$job" --format=%T)" = RUNNING ] && scontrol requeue "$job" ;;
esac
exit $status
"""


def allocation() -> Allocation | None:
    """Return the time of the Slurm job that we run in; None outside of one, or where Slurm does not say its end."""
    times = [os.environ.get(f"SLURM_JOB_{end}_TIME", "") for end in ("START", "END")]  # newer than Slurm 22.05
    if not all(times) and (job := os.environ.get("SLURM_JOB_ID")):
        environment = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
        command = ["squeue", "--noheader", f"--jobs={job}", "--format=%S %e"]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=QUERY_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        times = done.stdout.split()
    return Allocation(*map(float, times)) if len(times) == 2 and all(each.isdecimal() for each in times) else None


@dataclass(frozen=True)
class Slurm:
    """Starts agents by `sbatch`. ``options`` are the user's own lines of ``#SBATCH``; ``logs`` is where they print."""

    logs: Path
    time_s: float | None = None
    options: tuple[str, ...] = ()

    def script(self, wanted: Wanted) -> str:
        """Return the script: what `--print` shows. Raises AblateError."""
        if self.time_s is not None and self.time_s < SHORTEST_S:
            hint = f"an agent is warned {WARNING_S} s before the end, and needs a minute to start"
            raise AblateError(f"--time is {duration(self.time_s)}: at least {duration(SHORTEST_S)}", hint=hint)
        odd = next((option for option in self.options if not re.fullmatch(r"-\S[^\n\r\0]*", option)), None)
        if odd is not None:
            raise AblateError(f"{odd!r:.80} is no option of sbatch", where="--sbatch", hint='--sbatch "--account=x"')
        own = {
            "--job-name": "ablate",
            "--array": f"1-{wanted.count}",
            "--nodes": "1",
            "--ntasks": "1",
            "--cpus-per-task": str(wanted.cpus),
            "--gres": f"gpu:{wanted.gpus}" if wanted.gpus else None,
            "--time": str(math.ceil(self.time_s / 60)) if self.time_s is not None else None,
            "--signal": f"USR2@{WARNING_S}",
            "--open-mode": "append",
            # a line of #SBATCH is read as a shell reads words, and `%` begins a symbol
            "--output": shlex.quote(f"{str(self.logs).replace('%', '%%')}/slurm-%A-%a.log"),
        }
        given = [f"{name}={value}" for name, value in own.items() if value is not None]
        lines = [f"#SBATCH {option}" for option in (*given, "--requeue", *self.options)]
        return SCRIPT.format(
            count=wanted.count,
            directives="\n".join(lines),
            store=shlex.quote(wanted.store),
            folder=shlex.quote(str(wanted.folder)),
            command=shlex.join([sys.executable, "-m", "ablate", "agent", *wanted.words]),
        )

    def submit(self, wanted: Wanted) -> str:
        script = self.script(wanted)
        make_folder(self.logs)
        handle = _run(["sbatch", "--parsable"], script).strip().partition(";")[0]
        write_note(self.logs / f"slurm-{handle}.sh", script)
        return handle

    def status(self, handle: str) -> Mapping[str, int]:
        told = _run(["squeue", "--noheader", "--array", f"--jobs={handle}", "--format=%T"], may_be_gone=True)
        return Counter(line.strip().lower() for line in told.splitlines() if line.strip())

    def cancel(self, handle: str) -> None:
        _run(["scancel", handle], may_be_gone=True)


def _run(command: Sequence[str], script: str = "", *, may_be_gone: bool = False) -> str:
    """Return what a command of Slurm prints; nothing where it knows the job no more, if that ``may_be_gone``.

    Raises EnvironmentFault where it is not there, or refuses.
    """
    try:
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=QUERY_S, check=False)
    except FileNotFoundError:
        hint = "run it on a login node of the cluster; --print shows the script"
        raise EnvironmentFault(f"there is no `{command[0]}` here", hint=hint) from None
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"`{command[0]}` has not answered for {QUERY_S:.0f} s: is slurmctld up?") from None
    if may_be_gone and done.returncode and "Invalid job id" in done.stderr:  # from minutes after its end on
        return ""
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise EnvironmentFault(f"`{command[0]}` refused: {said}", hint="--print shows the script")
    return done.stdout
