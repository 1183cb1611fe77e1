"""axe-core, a judge of accessibility: fetched from the npm registry by version and SHA-256, and kept nowhere here."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import tarfile

import pytest

from tests.packages import CACHE

PACKAGE = "axe-core@4.14.1"
SHA256 = "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745"
_ARCHIVE = CACHE / "axe-core-4.14.1.tgz"


def axe_script() -> str:
    """Return its script. Skips the test where npm can't fetch it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _ARCHIVE.exists():
            _fetch()
    found = hashlib.sha256(_ARCHIVE.read_bytes()).hexdigest()
    assert found == SHA256, f"{_ARCHIVE} is another file: {found}"
    with tarfile.open(_ARCHIVE) as archive:
        script = archive.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode()


def _fetch() -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("axe-core can't be fetched: there is no npm")
    command = [npm, "pack", PACKAGE, "--silent", "--ignore-scripts", "--pack-destination", str(CACHE)]
    done = subprocess.run(command, cwd=CACHE, capture_output=True, text=True, timeout=240)
    if done.returncode:
        pytest.skip(f"axe-core can't be fetched from the npm registry: {done.stderr.strip()[-300:]}")
