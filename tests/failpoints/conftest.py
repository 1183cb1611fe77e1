"""A forge for commands, projects to run them in, and a place for both."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.failpoints.forge import forge
from tests.failpoints.scenes import Stage


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory, where there is one: what is tested is what was written, not what a disk keeps of it."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else tmp_path_factory.mktemp("shelf")))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def stage(shelf: Path) -> Iterator[Stage]:
    (shelf / "stage").mkdir()
    with forge() as commands:
        yield Stage(shelf / "stage", commands)


@pytest.fixture
def place(shelf: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=shelf))
    yield folder
    shutil.rmtree(folder)
