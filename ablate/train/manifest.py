"""The manifest of a checkpoint folder: which checkpoints exist, and the hash of each. No torch here."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ablate.train.folder import open_plain

NAME = "manifest.json"
MOST = 1 << 20  # bytes of a manifest: it names two checkpoints


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of a manifest, oldest first; those that make no sense are left out, as if never written."""
    try:
        entries = json.loads(_content(folder) or "null")
    except (OSError, ValueError, RecursionError):
        return []
    return [entry for entry in entries if _makes_sense(entry)] if isinstance(entries, list) else []


def has_checkpoint(folder: Path) -> bool:
    """Tell whether a checkpoint was ever named in a checkpoint folder."""
    return (folder / NAME).exists()


def read_checked(folder: Path, entry: dict[str, Any]) -> bytes | None:
    """Return the bytes of a checkpoint, or None where they are not those that were written."""
    try:
        with open_plain(folder / entry["file"]) as file:
            if file.seek(0, os.SEEK_END) != entry["bytes"]:
                return None  # unread: it may be of any size
            file.seek(0)
            data = file.read()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == entry["sha256"] else None


def damaged_checkpoints(folder: Path) -> list[str]:
    """Return what is wrong in a checkpoint folder, in words. One that is being written meanwhile is looked at again."""
    for _ in range(5):
        before = _content(folder)
        found = _damage(folder, before)
        if not found or _content(folder) == before:
            break
    return found


def _damage(folder: Path, content: bytes | None) -> list[str]:
    if content is None:
        return []  # before the first checkpoint: what is not named does not exist
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list) or not all(map(_makes_sense, entries)):
        return [f"{folder / NAME} is damaged"]
    return [
        f"{folder / entry['file']} is not what was written (SHA-256)"
        for entry in entries
        if read_checked(folder, entry) is None
    ]


def _content(folder: Path) -> bytes | None:
    try:
        with open_plain(folder / NAME) as file:
            return file.read(MOST)
    except FileNotFoundError:
        return None


def _makes_sense(entry: Any) -> bool:
    """Tell whether an entry is one of ours: its file has our name, so that no manifest leads out of its folder."""
    return (
        isinstance(entry, dict)
        and isinstance(number := entry.get("number"), int)
        and entry.get("file") == f"{number}.pt"
        and isinstance(entry.get("bytes"), int)
        and isinstance(entry.get("sha256"), str)
    )
