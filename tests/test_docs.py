"""The documents are true: their console blocks run, their links lead somewhere, every command stands in them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import ablate as package
from ablate.analyse.findings import Verdict
from ablate.cli import cli
from ablate.plan.trials import open_plan
from ablate.store.integrity import OUTCOMES
from ablate.study.schema import Budget, DesignName
from tests.command import ABLATE, query

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "studies" / "README.md",
    *sorted((ROOT / "reports").glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def blocks(document: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


def plain(text: str) -> str:
    """Return what a machine prints alike at any load: without times, and without the widths that they make."""
    return re.sub(r"[ ─]+", " ", re.sub(r"\b[0-9.]+ (s|min)\b", "0.0 s", text))


def is_printed(expected: str, printed: str) -> bool:
    """Tell whether these lines were printed, in order and from the beginning; a line `…` stands for lines left out."""
    first, *others = re.split(r"^…\n", plain(expected), flags=re.MULTILINE)
    rest = plain(printed)
    if not rest.startswith(first):
        return False
    rest = rest[len(first) :]
    for part in others:
        start = f"\n{rest}".find(f"\n{part}")
        if start < 0:
            return False
        rest = rest[start + len(part) :]
    return True


def run_blocks(document: Path, folder: Path, *, engine: str = "") -> None:
    """Write every block that names its file; then run programs and lines of consoles, in the order of the page.

    Where lines of output follow a command, they must be what it printed. ``engine``: the consoles of this one alone.
    """
    found = re.findall(r"^```(\S+) ?(.*)\n((?s:.*?))^```", document.read_text(), re.MULTILINE)
    for _, name, block in found:
        if "." in name:
            assert not (folder / name).exists(), f"{document.name}: {name} is there twice"
            (folder / name).write_text(block)
    for kind, word, block in found:
        if kind == "console" and word == engine:
            run_console(document, block, folder)
        elif (kind, word) == ("python", "run"):
            program = folder / "program.py"
            program.write_text(block)
            done = subprocess.run([sys.executable, program], cwd=folder, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, f"{document.name}: {block}\n{done.stdout}\n{done.stderr}"


def run_console(document: Path, block: str, folder: Path) -> None:
    """Run each line in a real shell, whose `ablate` is this one. It ends with 0, or as `# exit code …` behind it."""
    for command, expected in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", block, re.MULTILINE):
        done = shell(command, cwd=folder)
        code = re.search(r"# exit code (\d+)$", command)
        told = f"{document.name}: {command}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == int(code[1] if code else 0), told
        assert done.stdout or done.stderr or not command.startswith("ablate ") or " > " in command, told
        assert is_printed(expected, done.stdout), told


def shell(command: str, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    programs = cwd.parent / f"{cwd.name}-programs"
    programs.mkdir(exist_ok=True)
    program = programs / "ablate"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(ABLATE)} "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )


def test_the_readme_runs(project: Path) -> None:
    (project / "mine.yaml").write_text(blocks(ROOT / "README.md", "yaml")[0])
    (project / "mine.py").write_text(blocks(ROOT / "README.md", "python")[0])
    run_blocks(ROOT / "README.md", project)


OF_THEIR_OWN = {"statistics", "commands", "functions"}  # are tested below, and in tests/run/test_functions.py
SLOW = {"models", "resuming", "seeds"}
PAGES = [
    pytest.param(page.stem, marks=[pytest.mark.slow] if page.stem in SLOW else [])
    for page in sorted((ROOT / "docs").glob("*.md"))
    if page.stem not in OF_THEIR_OWN and blocks(page, "(?:console|python run)")
]


@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs(page: str, project: Path) -> None:
    shutil.copytree(ROOT / "studies", project / "studies")
    run_blocks(ROOT / "docs" / f"{page}.md", project)
    assert query(project, "SELECT count(*) FROM trial WHERE state = 'done'")[0][0] >= 1


@pytest.mark.slow
def test_the_page_on_statistics_runs(project: Path) -> None:
    page = ROOT / "docs" / "statistics.md"
    for name, study, task in zip(("truth", "hot"), blocks(page, "yaml"), blocks(page, "python"), strict=True):
        (project / f"{name}.yaml").write_text(study)
        (project / f"{name}.py").write_text(task)
    run_blocks(page, project)


@pytest.mark.slow
def test_the_page_on_commands_runs(project: Path) -> None:
    page = ROOT / "docs" / "commands.md"
    study = blocks(page, "yaml")[0]
    assert len(study.splitlines()) <= 15
    assert len(re.findall(r"^\$ ", "".join(blocks(page, "console")), re.MULTILINE)) <= 6
    (project / "digits.yaml").write_text(study)
    (project / "train.py").write_text(blocks(page, "python")[0])
    run_blocks(page, project)


def test_a_line_left_out_is_not_a_line_made_up() -> None:
    assert is_printed("a\n…\nc\n", "a\nb\nc\nd\n")
    assert not is_printed("b\n", "a\nb\n")
    assert not is_printed("a\n…\nc\nb\n", "a\nb\nc\nd\n")
    assert not is_printed("…\nc\n…\nb\n", "a\nb\nc\nd\n")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\((?!https?://)([^)]+)\)", text)):
        file = document.parent / target if target else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def anchors(document: Path) -> set[str]:
    """Return what a forge calls the headings of a document, for links."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_command_is_documented() -> None:
    text = "".join(document.read_text() for document in DOCUMENTS)
    visible = [name for name, command in cli.commands.items() if not command.hidden]
    missing = [name for name in visible if not re.search(rf"`(?:ablate )?{name}\b", text)]
    assert missing == []


def test_every_key_of_a_study_is_documented() -> None:
    from ablate.study.editors import json_schema

    page = (ROOT / "docs" / "study-file.md").read_text()
    missing = [key for key in json_schema()["properties"] if f"`{key}`" not in page]
    assert missing == []


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("design", get_args(DesignName)),
        ("outcome", OUTCOMES),
        ("verdict", get_args(Verdict)),
        ("sampler", get_args(Budget.model_fields["sampler"].annotation)),
    ],
)
def test_the_glossary_has_the_words_of_the_code(word: str, values: tuple[str, ...]) -> None:
    glossary = (ROOT / "docs" / "glossary.md").read_text()
    line = next(line for line in glossary.splitlines() if line.startswith(f"| **{word}** |"))
    assert sorted(re.findall(r"`([^`]+)`", line)) == sorted(values)


def test_every_study_stands_in_the_index_with_its_published_figures() -> None:
    index = (ROOT / "studies" / "README.md").read_text()
    rows = {row[0]: row[1] for row in re.findall(r"^\| \[(\w+)\]\(\1\.yaml\) (.*)$", index, re.MULTILINE)}
    studies = {path.stem: open_plan(path).study for path in (ROOT / "studies").glob("*.yaml")}
    assert rows.keys() == studies.keys()
    for name, study in studies.items():
        assert study.reference is not None
        tests = study.reference.values["test_acc"].values()
        assert all(f"{value:g}" in rows[name] for value in tests), f"{name}: {rows[name]}"


def test_the_map_of_the_house_names_every_room() -> None:
    readme = (ROOT / "README.md").read_text()
    rooms = [path.name for path in (ROOT / "ablate").iterdir() if path.is_dir() and path.name != "__pycache__"]
    missing = [room for room in rooms if f"`ablate/{room}/`" not in readme]
    assert missing == []


def test_every_name_of_the_package_is_documented() -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    missing = [name for name in package.__all__ if not re.search(rf"`(ablate\.)?{name}\b", page) and name[0].islower()]
    assert missing == []
