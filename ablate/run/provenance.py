"""What is not declared, and so stands on the attempt: the code that ran, and the machine it ran on."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ablate import __version__

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn")
GIT_PATIENCE_S = 20


def task_sources(task: str, study_folder: Path) -> list[Path]:
    """Return the task's module and the modules beside the study that it imports, directly or through others.

    Reads the files and runs nothing. An installed module stands for itself alone.
    """
    module = task.partition(":")[0]
    first = _beside(module, study_folder) or _installed(module)
    found: list[Path] = []
    queue = [first] if first else []
    while queue:
        file = queue.pop()
        if file not in found:
            found.append(file)
            queue += [path for name in _imports(file) if (path := _beside(name, study_folder))]
    return sorted(found)


def code_sha256(task: str, study_folder: Path) -> str:
    """Return the SHA-256 over the names and contents of the task's sources."""
    digest = hashlib.sha256()
    for file in task_sources(task, study_folder):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def machine_facts() -> dict[str, str]:
    """Return versions, host and command, without importing what is asked about."""
    return {
        "ablate": __version__,
        "command": command_line(),
        "cores": str(os.cpu_count()),
        "cpu": _cpu_name(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def command_line() -> str:
    """Return how ablate was started, ready for a shell. The password of a URL is left out: others read the store."""
    words = (re.sub(r"(://[^:/@\s]*):[^/\s]*@", r"\1:***@", word) for word in sys.argv[1:])
    return shlex.join(["ablate", *words])


def gpu_facts(uuid: str) -> dict[str, str]:
    """Return the model and driver of one GPU, as `nvidia-smi` names them; nothing where it does not know the GPU."""
    answer = _output(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", f"--id={uuid}"])
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
    diffs.mkdir(parents=True, exist_ok=True)
    patch = diffs / f"{name}.patch"
    if not patch.exists():
        patch.write_text(difference)
    return {"git_commit": commit, "git_diff": f"{diffs.name}/{patch.name}"}


def _beside(module: str, folder: Path) -> Path | None:
    base = folder.joinpath(*module.split("."))
    for file in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None


def _installed(module: str) -> Path | None:
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)  # of the top name: finding a submodule would import its parents
    if spec is None or spec.origin is None:
        return None
    return _beside(".".join(rest), Path(spec.origin).parent) if rest else Path(spec.origin)


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
