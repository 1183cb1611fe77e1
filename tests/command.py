"""The real command in a real process, as a user's shell starts it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.numbers import NUMBERS

ABLATE = [sys.executable, "-m", "ablate"]


def ablate(*arguments: str, cwd: Path, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `ablate …` to its end."""
    return subprocess.run(
        [*ABLATE, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


def start(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start `ablate …` in a session of its own and return at once."""
    return subprocess.Popen(
        [*ABLATE, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], *, timeout: float = 120) -> str:
    """Wait for a started command, close its pipes and return what it said on stderr; kill it if it takes too long."""
    try:
        return process.communicate(timeout=timeout)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        out, said = process.communicate()
        raise AssertionError(f"still running after {timeout} s:\n{out}\n{said}") from None


def query(project: Path, sql: str) -> list[tuple[Any, ...]]:
    """Ask the project's store, as a user with `sqlite3` would."""
    connection = sqlite3.connect(f"file:{project / 'runs' / 'ablate.db'}?mode=ro", uri=True, timeout=30)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def results(project: Path) -> list[tuple[Any, ...]]:
    """Return every number of every finished trial that must not depend on how it was run."""
    return query(
        project,
        NUMBERS
        + """SELECT t.fingerprint, m.metric, m.epoch, m.value, m.kind FROM trial t
           JOIN number m ON m.trial = t.id AND m.claim = t.result_claim
           WHERE t.state = 'done' AND m.metric NOT IN
           ('train_seconds', 'images_per_s', 'peak_memory_mb', 'peak_memory_mib')
           ORDER BY 1, 2, 3""",
    )


@dataclass(frozen=True)
class Called:
    """What a command that was called in this process gave back."""

    returncode: int
    stdout: str
    stderr: str


class Call:
    """`ablate …` called in this process: quick, for commands that only look."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: str, cwd: Path) -> Called:
        from ablate.cli import main

        self._monkeypatch.chdir(cwd)
        self._monkeypatch.setattr(sys, "argv", ["ablate", *arguments])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self._capsys.readouterr()
        return Called(int(ended.value.code or 0), out, err)
