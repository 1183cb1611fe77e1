"""Public packages whose own training scripts are run: fetched from the package index, checked by SHA-256, unpacked."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ablate" / "packages"


def unpacked(requirements: Path, folder: Path) -> Path:
    """Unpack the packages of a requirements file into ``folder`` and return it. Skips the test without an index."""
    hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", requirements.read_text())
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if len(_archives(hashes)) < len(hashes):
            _download(requirements)
    archives = _archives(hashes)
    assert len(archives) == len(hashes), f"{requirements.name}: pip left {[path.name for path in archives]}"
    for archive in archives:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(folder)  # all of them are plain Python
        else:
            with tarfile.open(archive) as sources:
                sources.extractall(folder, filter="data")
    return folder


def _archives(hashes: list[str]) -> list[Path]:
    return [path for path in CACHE.iterdir() if hashlib.sha256(path.read_bytes()).hexdigest() in hashes]


def _download(requirements: Path) -> None:
    options = ["--quiet", "--disable-pip-version-check", "--retries", "1", "--no-deps", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(CACHE), "-r", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    if done.returncode:
        assert "DO NOT MATCH THE HASHES" not in done.stderr, done.stderr
        pytest.skip(f"{requirements.stem} can't be fetched from the package index: {done.stderr.strip()[-300:]}")
