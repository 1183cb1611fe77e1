"""A study with everything in it that can happen to a trial, run once by the real command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import ablate
from tests.studies import TOY, TOY_STUDY, write_study

# seed 2 of `two` diverges, seed 2 of `three` fails with a message that would drive a terminal
TROUBLED_TASK = TOY.replace(
    "    done, total",
    """    print("début of", context.seed, flush=True)
    if settings["level"] == 2 and context.seed == 2:
        return {"acc": float("nan")}
    if settings["level"] == 3 and context.seed == 2:
        print("10%\\r20%\\r\\x1b[2J\\rhalf")
        raise ValueError("no \\x1b[31m good, said × and Ω")
    done, total""",
)


@pytest.fixture(scope="session")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project whose study has run: 6 trials, of which one diverged and one failed. Only to be read."""
    folder = tmp_path_factory.mktemp("troubled")
    (folder / ".git").mkdir()
    write_study(folder, TOY_STUDY, task=TROUBLED_TASK)
    done = ablate("run", "toy.yaml", cwd=folder, TMPDIR=str(tmp_path_factory.mktemp("tmp")))
    assert done.returncode == 1, done.stderr
    return folder
