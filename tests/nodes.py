"""Machines that are none: a command runs with a boot id, a host name and a temporary folder of another machine.

All that two runners then share is the store, and whatever folder both are given. The kernel's locks say nothing across.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from functools import cache
from pathlib import Path

import pytest

_AS = 'mount --bind "$1" /proc/sys/kernel/random/boot_id && hostname "$2" && shift 2 && exec "$@"'


class Node:
    """Another machine, as far as a command can tell."""

    def __init__(self, name: str, folder: Path) -> None:
        if not _can_be_made():
            pytest.skip("no namespaces to be had here (unshare): they need root, or a kernel that lets users have them")
        self.name = name
        self.folder = folder / name
        (self.folder / "tmp").mkdir(parents=True)
        self._boot_id = self.folder / "boot_id"
        self._boot_id.write_text(f"{uuid.uuid4()}\n")

    @property
    def environment(self) -> dict[str, str]:
        return {"TMPDIR": str(self.folder / "tmp")}

    def command(self, *words: str) -> list[str]:
        """Return the command that runs these words there, in the process that it was started as."""
        return [*_unshare(), "sh", "-c", _AS, "sh", str(self._boot_id), self.name, *words]


def _unshare() -> list[str]:
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *as_root, "--mount", "--uts"]


@cache
def _can_be_made() -> bool:
    return bool(shutil.which("unshare")) and subprocess.run([*_unshare(), "true"], capture_output=True).returncode == 0
