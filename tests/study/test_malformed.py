"""Malformed studies: each file in ``malformed/`` is a mistake that somebody makes, or an attack.

``malformed.txt`` holds what a person reads for each of them. After a change of wording, look at the difference:

    ABLATE_UPDATE_GOLDEN=1 pytest tests/study/test_malformed.py && git diff tests/study/malformed.txt

A first line ``# options: …`` in a file is added to the command line.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ablate import cli

HERE = Path(__file__).parent
FOLDER = HERE / "malformed"
GOLDEN = HERE / "malformed.txt"
STUDIES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
UPDATING = bool(os.environ.get("ABLATE_UPDATE_GOLDEN"))

Run = Callable[[list[str]], tuple[int, str]]


@pytest.fixture
def folder(project: Path) -> Path:
    """An empty project, and the current folder, with the tasks of the malformed studies."""
    shutil.copy(FOLDER / "canary.py", project)
    shutil.copy(FOLDER / "half_written.py.txt", project / "half_written.py")
    return project


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process; the exit code and what stands on stderr."""

    def run(arguments: list[str]) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["ablate", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        assert captured.out == ""
        return int(end.value.code or 0), captured.err

    return run


def arguments_of(study: str) -> list[str]:
    first, _, _ = (FOLDER / f"{study}.yaml").read_bytes().partition(b"\n")
    options = first.removeprefix(b"# options: ") if first.startswith(b"# options: ") else b""
    return ["run", f"{study}.yaml", *shlex.split(options.decode())]


def golden_blocks() -> dict[str, str]:
    if not GOLDEN.exists():
        return {}
    blocks = re.split(r"^### (\S+)\n", GOLDEN.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(blocks[::2], (block.removesuffix("\n") for block in blocks[1::2]), strict=True))


EXPECTED = golden_blocks()
SEEN: dict[str, str] = {}


@pytest.mark.parametrize("study", STUDIES)
def test_message(study: str, folder: Path, run: Run) -> None:
    shutil.copy(FOLDER / f"{study}.yaml", folder)
    before = sorted(folder.rglob("*"))
    code, message = run(arguments_of(study))
    assert code == 2
    assert sorted(folder.rglob("*")) == before, "nothing is written, and the task is not imported"
    assert_reads_well(message)
    SEEN[study] = message
    if not UPDATING:
        assert message == EXPECTED.get(study), "see the head of this file"


def assert_reads_well(message: str) -> None:
    lines = message.splitlines()
    assert all(re.match(r"(error|hint): \S", line) for line in lines), message
    assert all(line.isprintable() and len(line) < 400 for line in lines), message
    assert not re.search(r"Traceback|pydantic|ruamel|None|\[type=|  ", message), message


def test_all_messages_are_kept() -> None:
    if UPDATING and set(SEEN) == set(STUDIES):
        GOLDEN.write_text("".join(f"### {study}\n{SEEN[study]}\n" for study in STUDIES))
    assert sorted(golden_blocks()) == STUDIES


SECTIONS = ["many-in-every-section", "yaml-alias-bomb", "task-syntax-error", "yaml-latin-1", "set-wrong-type"]


@pytest.mark.parametrize("study", SECTIONS)
def test_the_command_itself(study: str, folder: Path) -> None:
    """The same in a process of its own: the message, the exit code, and nothing on stdout."""
    shutil.copy(FOLDER / f"{study}.yaml", folder)
    command = [sys.executable, "-c", "from ablate.cli import main; main()", *arguments_of(study)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert UPDATING or done.stderr == EXPECTED[study]
    assert not (folder / "runs").exists()
    assert not (folder / "imported").exists()


@pytest.mark.parametrize("verb", ["plan", "validate"])
def test_every_verb_refuses(verb: str, folder: Path, run: Run) -> None:
    shutil.copy(FOLDER / "many-in-every-section.yaml", folder)
    code, message = run([verb, "many-in-every-section.yaml"])
    assert code == 2
    assert UPDATING or message == EXPECTED["many-in-every-section"]
    assert not (folder / "runs").exists()


def test_faults_of_a_file_come_in_the_order_of_its_lines() -> None:
    lines = [int(line) for line in re.findall(r"^error: \S+?:(\d+): ", EXPECTED["many-in-every-section"], re.MULTILINE)]
    assert len(lines) == 14
    assert lines == sorted(lines)


def test_one_mistake_is_one_fault() -> None:
    for study, block in EXPECTED.items():
        if not study.startswith("many-") and study not in ("key-missing-all", "only-unknown-arm"):
            assert block.count("error: ") == 1, f"{study}:\n{block}"
