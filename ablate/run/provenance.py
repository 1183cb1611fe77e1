"""What is not declared, and so stands on the attempt: the code that ran, and the machine it ran on."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import itertools
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from ablate import __version__
from ablate.run.workers import LOOP
from ablate.study.command import words_of
from ablate.study.schema import Task
from ablate.study.task import beside
from ablate.study.words import without_secrets
from ablate.train.folder import make_folder, write_whole

AGENT = "ABLATE_AGENT"  # set by what starts agents elsewhere
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn")
GIT_PATIENCE_S = 20
_OURS = ("ablate", "__main__.py")  # else it was started by a program of the user's
LARGEST_SOURCE = 1 << 20  # bytes of a file that a command names and that is no Python


def task_sources(task: Task, study_folder: Path) -> list[Path]:
    """Return the task's module or the files that its command names, and what those import from beside them.

    Reads the files and runs nothing. An installed module stands for itself alone.
    """
    words = words_of(task.command) if task.command is not None else []
    modules = [task.function.partition(":")[0]] if task.function else []
    modules += [module for option, module in itertools.pairwise(words) if option == "-m"]
    queue = [file for module in modules if (file := beside(module, study_folder) or _installed(module))]
    named = [study_folder / word for word in words if _is_source(study_folder / word)]
    folders = dict.fromkeys([study_folder, *(each.parent for each in named)])  # where Python looks for what they import
    queue += named
    found: list[Path] = []
    while queue:
        file = queue.pop()
        if file not in found:
            found.append(file)
            queue += [path for name in _imports(file) for folder in folders if (path := beside(name, folder))]
    return sorted(found)


def _is_source(path: Path) -> bool:
    """Tell whether a word of a command names a script or a configuration; a data set is none."""
    try:
        return path.is_file() and (path.suffix == ".py" or path.stat().st_size <= LARGEST_SOURCE)
    except (OSError, ValueError):
        return False  # longer than a path may be, for example


def preloaded(task: Task, study_folder: Path) -> list[str]:
    """Return the modules of ablate that take long to import and that every attempt of the task will need."""
    if task.command is not None:
        return ["ablate.train.command"]
    module = (task.function or "").partition(":")[0]
    if beside(module, study_folder) is None:
        return [LOOP]  # of what an installed module imports through others, nothing is known
    names = {name for file in task_sources(task, study_folder) for name in _imports(file)}
    return [LOOP] if LOOP in names else []


def code_sha256(task: Task, study_folder: Path) -> str:
    """Return the SHA-256 over the names and contents of the task's sources."""
    digest = hashlib.sha256()
    for file in task_sources(task, study_folder):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def machine_facts() -> dict[str, str]:
    """Return versions, host and command, without importing what is asked about; in an agent that an engine started,
    also its name there."""
    agent = os.environ.get(AGENT, "")
    return {
        "ablate": __version__,
        **({"agent": agent} if agent else {}),
        "command": command_line(),
        "cores": str(os.cpu_count()),
        "cpu": _cpu_name(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def command_line() -> str:
    """Return how ablate was started, ready for a shell but for the secrets of a URL: others read the store."""
    program = Path(sys.argv[0])
    start = ["ablate"] if program.name in _OURS else ["python", str(program)]
    return shlex.join([*start, *map(without_secrets, sys.argv[1:])])


def importer_facts() -> dict[str, str]:
    """Return who imports results: a row like a runner's, which has ended as soon as it is there."""
    return {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "boot_id": "",
        "lock_file": "",
        "command": command_line(),
    }


def gpu_facts(gpu: str) -> dict[str, str]:
    """Return the model and driver of one GPU, as `nvidia-smi` names them; nothing where it does not know the GPU."""
    answer = _output(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", f"--id={gpu}"])
    name, comma, driver = answer.strip().rpartition(", ")
    return {"gpu": name, "driver": driver} if comma else {}


def git_facts(study_folder: Path, diffs: Path) -> dict[str, str]:
    """Return the commit of the study's repository, and where its uncommitted changes were kept.

    The difference to the commit is written once to ``diffs/<its hash>.patch``. Nothing outside a repository.
    """
    commit = _output(["git", "-C", str(study_folder), "rev-parse", "HEAD"]).strip()
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        return {}
    difference = _output(["git", "-C", str(study_folder), "diff", "HEAD", "--no-color", "--no-ext-diff"])
    if not difference:
        return {"git_commit": commit}
    name = hashlib.sha256(difference.encode()).hexdigest()[:16]
    make_folder(diffs)
    patch = diffs / f"{name}.patch"
    if not patch.exists():
        write_whole(patch, difference.encode(), what="diff")
    return {"git_commit": commit, "git_diff": f"{diffs.name}/{patch.name}"}


def _installed(module: str) -> Path | None:
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)  # of the top name: finding a submodule would import its parents
    if spec is None or spec.origin is None:
        return None
    return beside(".".join(rest), Path(spec.origin).parent) if rest else Path(spec.origin)


def _imports(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except (SyntaxError, RecursionError, MemoryError, ValueError):
        return  # whether it runs is for the import to say
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _output(command: Sequence[str]) -> str:
    """Return what a command prints; empty where it is missing, fails or takes too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=GIT_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
