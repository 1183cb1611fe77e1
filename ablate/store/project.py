"""Where a project keeps its store: ``runs/ablate.db``, unless another place is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ablate.store.store import Store


def project_folder() -> Path:
    """Return the nearest folder, from here upwards, that holds ``runs/`` or ``.git``; else this one."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "runs").is_dir() or (p / ".git").exists()), here)


def store_location(named: str | None) -> str:
    """Return the path or URL of the store that is meant."""
    return named or str(project_folder() / "runs" / "ablate.db")


def runs_folder(named: str | None) -> Path | None:
    """Attempt folders lie beside an SQLite store; with a database server, in the project."""
    return project_folder() / "runs" if named and "://" in named and not named.startswith("sqlite") else None


def existing_store(named: str | None, *, read_only: bool = True) -> Store | None:
    """Open the store, or return None where there is none yet."""
    location = store_location(named)
    if "://" not in location and not os.path.exists(location):
        return None  # and SQLAlchemy, the half of a command's start, need not be loaded to say so
    from ablate.store.store import NoStoreYet

    try:
        return named_store(named, read_only=read_only)
    except NoStoreYet:
        return None


def named_store(named: str | None, *, create: bool = False, read_only: bool = False) -> Store:
    """Open the store, as ``open_store`` does."""
    from ablate.store.store import open_store

    return open_store(store_location(named), folder=runs_folder(named), create=create, read_only=read_only)
