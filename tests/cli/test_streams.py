"""Pipes that close, and terminals and streams that lack our characters: never a traceback."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.command import ABLATE, Call, ablate

COMMANDS = [["status"], ["report"], ["report", "--markdown"], ["plan", "toy.yaml"], ["logs", "three"], ["show", "two"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_reader_that_leaves_is_no_error(troubled: Path, command: list[str]) -> None:
    # the reader is gone before the first word is written
    process = subprocess.Popen([*ABLATE, *command], cwd=troubled, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) == 141, said
    assert not said.startswith("error:")
    assert len(said.splitlines()) <= 1, "the study or the attempt that was meant, and no more"


@pytest.mark.parametrize(
    ("encoding", "commands"), [("ascii", COMMANDS), ("latin-1", COMMANDS[1:2]), ("utf-8:strict", COMMANDS[4:5])]
)
def test_any_encoding_of_the_streams_will_do(troubled: Path, encoding: str, commands: list[list[str]]) -> None:
    for command in commands:
        done = subprocess.run(
            [*ABLATE, *command],
            cwd=troubled,
            env={"PATH": "/usr/bin:/bin", "PYTHONIOENCODING": encoding, "COLUMNS": "100"},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout
        assert b"Traceback" not in done.stderr


def test_the_c_locale_in_a_pipe_is_utf8_all_the_same(troubled: Path) -> None:
    plain = ablate("report", "--markdown", cwd=troubled)
    assert ablate("report", "--markdown", cwd=troubled, LANG="C", LC_ALL="C").stdout == plain.stdout


def test_a_reason_cannot_drive_the_terminal(troubled: Path, call: Call) -> None:
    runs_again = ablate("run", "toy.yaml", cwd=troubled)
    looks = [call(*command, cwd=troubled) for command in (["status"], ["report"], ["logs"], ["show", "three"])]
    for done in (runs_again, *looks):
        assert "good, said" in done.stdout + done.stderr
        assert "\x1b" not in done.stdout + done.stderr


def test_a_bare_command_shows_what_there_is(project: Path, call: Call) -> None:
    bare = call(cwd=project)
    assert (bare.returncode, bare.stderr) == (0, "")
    assert bare == call("--help", cwd=project)
    assert "\n  report " in bare.stdout
