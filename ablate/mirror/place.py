"""Where the mirror lies. No Optuna here: a run asks before it starts one."""

from __future__ import annotations

from pathlib import Path

from ablate.store.mounts import file_system, is_network
from ablate.store.store import Store


def mirror_file(store: Store) -> Path:
    return store.folder / "mirror.db"


def no_place_for_it(folder: Path) -> str:
    """Return why no mirror can be kept in a folder; nothing where it can.

    An SQLite store is not written there either. With a server as store, the folder may be anywhere.
    """
    kind = file_system(folder)
    if not is_network(kind):
        return ""
    return f"there is no Optuna mirror on a network file system ({kind}): SQLite's locks are not safe there"
