"""What a shell offers at Tab: asked as bash, zsh and fish ask, and by keys typed into a real bash."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command import ABLATE
from tests.studies import TOY_STUDY, write_study
from tests.test_walls import modules_after

PROFILES = "profiles:\n  quick: {seeds: 1}\n  quiet: {seeds: 3}\n"


@pytest.fixture
def toy(troubled: Path, project: Path) -> Path:
    """A project with a study file, one more in a folder, and a store of which `toy` was run last."""
    write_study(project, TOY_STUDY + PROFILES)
    (project / "studies").mkdir()
    (project / "studies" / "other.yaml").write_text(TOY_STUDY)
    (project / "compose.yaml").write_text("services: {}\n")
    (project / "runs").symlink_to(troubled / "runs")
    return project


def asked(shell: str, line: str, cwd: Path, **environment: str) -> list[str]:
    """Return what is offered at the end of a line; nothing else may be said."""
    words = line.split(" ")
    variables = {"COMP_WORDS": line, "COMP_CWORD": words[-1] if shell == "fish" else str(len(words) - 1)}
    variables |= {"_ABLATE_COMPLETE": f"{shell}_complete", **environment}
    done = subprocess.run(
        ABLATE, env={**os.environ, **variables}, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    lines = [each for each in done.stdout.splitlines() if each]
    if shell == "zsh":  # kind, word, help
        return [each for each in lines if each not in ("plain", "_")]
    return [each.partition(",")[2] for each in lines]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("ablate va", ["validate"]),
        ("ablate run ", ["toy.yaml", "studies/other.yaml"]),
        ("ablate plan st", ["studies/other.yaml"]),
        ("ablate validate toy.yaml studies/", ["studies/other.yaml"]),
        ("ablate run toy.yaml --profile ", ["quick", "quiet"]),
        ("ablate run toy.yaml --profile qui", ["quick", "quiet"]),
        ("ablate run toy.yaml --only ", ["baseline", "two", "three"]),
        ("ablate run toy.yaml --only two,t", ["two,three"]),
        ("ablate report ", ["toy"]),
        ("ablate status to", ["toy"]),
        ("ablate export t", ["toy"]),
        ("ablate compare toy ", ["toy"]),
        ("ablate show t", ["two", "three"]),
        ("ablate logs ", ["baseline", "two", "three", "toy"]),
        ("ablate logs toy th", ["three"]),
        ("ablate retry toy --only ba", ["baseline"]),
        ("ablate init --template t", ["tuned"]),
        ("ablate show nothing", []),
    ],
)
def test_what_is_offered(toy: Path, line: str, offered: list[str]) -> None:
    assert asked("bash", line, toy) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_are_offered_the_same(toy: Path, shell: str) -> None:
    assert asked(shell, "ablate run toy.yaml --profile ", toy) == ["quick", "quiet"]
    assert asked(shell, "ablate show t", toy) == ["two", "three"]


@pytest.mark.parametrize(
    "line",
    [
        "ablate run missing.yaml --profile ", "ablate run broken.yaml --only ", "ablate run --only ", "ablate show ",
        "ablate report ", "ablate logs no such ", "ablate report --store /dev/null ",
        "ablate show --store postgresql://nobody@127.0.0.1:1/x ",
    ],
)  # fmt: skip
def test_where_nothing_is_known_nothing_is_said(project: Path, line: str) -> None:
    (project / "broken.yaml").write_text("schema: ablate/v1\nsteps: [\n")
    (project / "runs").mkdir()
    (project / "runs" / "ablate.db").write_bytes(b"no database" * 100)
    assert asked("bash", line, project) == []


def test_a_question_about_the_store_changes_nothing(project: Path) -> None:
    assert asked("bash", "ablate report ", project) == []
    assert [path.name for path in project.iterdir()] == [".git"]


def test_no_shell_waits_for_torch(toy: Path) -> None:
    code = """
import os, sys
os.environ.update(_ABLATE_COMPLETE="bash_complete", COMP_WORDS="ablate show ", COMP_CWORD="2")
sys.argv = ["ablate"]
from ablate.cli import main
try:
    main()
except SystemExit as end:
    assert end.code in (0, None), end.code
"""
    assert not modules_after(code, toy) & {"torch", "pandas", "optuna", "sqlalchemy", "pydantic", "numpy"}
    code = code.replace("ablate show ", "ablate run toy.yaml --only ").replace('"2"', '"4"')
    assert not modules_after(code, toy) & {"torch", "pandas", "optuna", "sqlalchemy"}


def typed(keys: str, expected: str, cwd: Path, tmp_path: Path) -> str:
    """Type into a real bash that has completion set up, and return the screen once ``expected`` stands there."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "ablate").write_text(f'#!/bin/sh\nexec {sys.executable} -m ablate "$@"\n')
    (bin_folder / "ablate").chmod(0o755)
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "PS1": "$ ", "TERM": "dumb"}
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-i"], environment)
    screen = ""
    try:
        os.write(terminal, b'eval "$(_ABLATE_COMPLETE=bash_source ablate)"; echo rea""dy\n')
        screen = until("ready", terminal)
        os.write(terminal, keys.encode())
        return until(expected, terminal)
    except TimeoutError as error:
        raise AssertionError(f"{screen}\n{error}") from None
    finally:
        os.close(terminal)
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def until(expected: str, terminal: int, *, patience_s: float = 60) -> str:
    screen, deadline = "", time.monotonic() + patience_s
    while expected not in screen:
        if not select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError(f"{expected!r} is not in {screen!r}")
        screen += os.read(terminal, 4096).decode(errors="replace")
    return screen


@pytest.mark.skipif(not os.path.exists("/bin/bash"), reason="no bash")
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("ablate run toy.y\t--profile quic\t", "ablate run toy.yaml --profile quick "),
        ("ablate show thr\t", "ablate show three "),
        ("ablate report toy@qu\t", "ablate report toy@quick "),
    ],
)
def test_a_real_bash_completes_what_is_typed(
    toy: Path, tmp_path_factory: pytest.TempPathFactory, keys: str, expected: str
) -> None:
    if "@" in keys:
        subprocess.run([*ABLATE, "import", "toy.yaml", "--profile", "quick", "--csv", "results.csv"], cwd=quick(toy),
                       check=True, capture_output=True)  # fmt: skip
    assert expected in typed(keys, expected, toy, tmp_path_factory.mktemp("bash"))


def quick(toy: Path) -> Path:
    """Give the project a store of its own, for a profile with results from elsewhere."""
    (toy / "runs").unlink()
    (toy / "runs").mkdir()
    (toy / "results.csv").write_text("arm,seed,acc\nbaseline,1,1\ntwo,1,2\nthree,1,3\n")
    return toy
