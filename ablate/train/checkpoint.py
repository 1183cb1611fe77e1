"""Checkpoints that survive a kill at any moment: written aside, synced, hashed, renamed; two are kept."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from ablate.train.folder import write_json
from ablate.train.manifest import NAME, read_checked, read_manifest

KEPT = 2


def save(folder: Path, state: dict[str, Any], records: list[dict[str, Any]], *, fingerprint: str) -> None:
    """Write ``state`` and the records made so far as the newest checkpoint of ``folder``.

    The manifest is renamed last: a checkpoint that it does not name does not exist. Raises OSError where the disk
    refuses; nothing is ever half saved silently.
    """
    folder.mkdir(exist_ok=True)
    manifest = read_manifest(folder)
    number = manifest[-1]["number"] + 1 if manifest else 1
    buffer = io.BytesIO()
    torch.save({"fingerprint": fingerprint, "state": state, "records": records}, buffer)
    data = buffer.getbuffer()
    name = f"{number}.pt"
    aside = folder / f".{name}.{os.getpid()}"
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, folder / name)
    entry = {"number": number, "file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    kept = [*manifest, entry][-KEPT:]
    write_json(folder / NAME, kept)
    _sync_folder(folder)
    for old in manifest:
        if old not in kept:
            (folder / old["file"]).unlink(missing_ok=True)


def load(folder: Path, *, fingerprint: str) -> dict[str, Any] | None:
    """Return ``{"state": …, "records": …}`` of the newest sound checkpoint in ``folder``, or None.

    One whose size, SHA-256 or fingerprint differs is passed over. Nothing is unpickled before its hash was checked,
    and then with ``weights_only=True``.
    """
    for entry in reversed(read_manifest(folder)):
        data = read_checked(folder, entry)
        if data is None:
            continue
        saved: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if saved["fingerprint"] == fingerprint:
            return saved
    return None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
