"""What both stores promise is tested on both: SQLite, and a real PostgreSQL server.

Storage is tested with the command too, on the study in which everything happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ablate.store.store import Store, open_store
from tests.cli.conftest import troubled
from tests.postgres import Server

__all__ = ["troubled"]


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place where there is no store yet: a path, or the URL of an empty database."""
    if request.param == "sqlite":
        return str(tmp_path / "runs" / "ablate.db")
    server: Server = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def empty(location: str, tmp_path: Path) -> Iterator[Store]:
    """A store that was just made."""
    store = open_store(location, folder=tmp_path / "runs", create=True)
    yield store
    store.close()
