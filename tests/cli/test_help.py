"""What `--help` prints, at 80 columns: looked at as a whole, in golden files."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import click
import pytest

from ablate.cli import cli
from docs.references import every_command
from tests.command import Call

GOLDEN = Path(__file__).parent.parent / "golden" / "cli"
SHOWN = dict(every_command(cli))
COMMANDS = ["", *SHOWN]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_as_it_was_looked_at(project: Path, call: Call, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = call(*name.split(), "--help", cwd=project)
    golden = GOLDEN / (f"help-{name.replace(' ', '-')}.txt" if name else "help.txt")
    if os.environ.get("ABLATE_UPDATE_GOLDEN"):
        golden.write_text(done.stdout)
    assert done.stdout == golden.read_text()
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not re.search(r"\.\.\.$", done.stdout.partition("\n")[2], re.MULTILINE), "a summary is cut off"


@pytest.mark.parametrize("name", [name for name, command in SHOWN.items() if not isinstance(command, click.Group)])
def test_every_example_is_a_command_that_there_is(name: str) -> None:
    examples = re.findall(r"^  ablate (.*)$", SHOWN[name].epilog or "", re.MULTILINE)
    assert 1 <= len(examples) <= 3
    for line in examples:
        words = shlex.split(line, comments=True)
        words = words[: words.index(">")] if ">" in words else words
        depth = len(name.split())
        assert " ".join(words[:depth]) == name
        with click.Context(cli, **cli.context_settings) as above:
            SHOWN[name].make_context(name, words[depth:], parent=above)  # raises where an option is unknown
