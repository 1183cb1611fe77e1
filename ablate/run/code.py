"""The hash of a task's source, and the facts of the machine: what is not declared, and so stands on the attempt."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import socket
from collections.abc import Iterator
from pathlib import Path

from ablate import __version__


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


def environment_facts() -> dict[str, str]:
    """Return versions and host, without importing what is asked about."""
    packages = {name: _version(name) for name in ("torch", "torchvision", "numpy", "scikit-learn")}
    return {
        "ablate": __version__,
        "python": platform.python_version(),
        **packages,
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu": _cpu_name(),
        "cores": str(os.cpu_count()),
    }


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
    for node in ast.walk(ast.parse(file.read_bytes(), filename=str(file))):
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
