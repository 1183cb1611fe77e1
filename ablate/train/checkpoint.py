"""Checkpoints that survive a kill at any moment: written aside, synced, hashed, renamed; two are kept."""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path
from typing import Any

import torch

from ablate.failpoints import failpoint
from ablate.train.folder import make_folder, refusals, sync_folder, write_json, write_whole
from ablate.train.manifest import NAME, read_checked, read_manifest

KEPT = 2


def save(folder: Path, state: dict[str, Any], records: list[dict[str, Any]], *, fingerprint: str) -> None:
    """Write ``state`` and the records made so far as the newest checkpoint of ``folder``.

    The manifest is renamed last: a checkpoint that it does not name does not exist. Raises EnvironmentFault where the
    disk refuses; nothing is ever half saved silently.
    """
    make_folder(folder)
    manifest = read_manifest(folder)
    number = manifest[-1]["number"] + 1 if manifest else 1
    buffer = io.BytesIO()
    torch.save({"fingerprint": fingerprint, "state": state, "records": records}, buffer)
    data = buffer.getbuffer()
    name = f"{number}.pt"
    write_whole(folder / name, data, what="checkpoint")
    entry = {"number": number, "file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    kept = [*manifest, entry][-KEPT:]
    write_json(folder / NAME, kept, what="manifest")
    with refusals(folder, "the checkpoint"):
        failpoint("checkpoint-named")
        # that of the attempt was made in haste: with its first checkpoint, it and those above it are to last
        for each in (folder, *(folder.parents[:3] if not manifest else ())):
            sync_folder(each)
        failpoint("checkpoint-durable")
        for old in manifest:
            if old not in kept:
                (folder / old["file"]).unlink(missing_ok=True)


def load(folder: Path, *, fingerprint: str) -> dict[str, Any] | None:
    """Return ``{"state": …, "records": …}`` of the newest sound checkpoint in ``folder``, or None.

    One whose size, SHA-256 or fingerprint differs, or that can't be loaded, is passed over. Nothing is unpickled before
    its hash was checked, and then with ``weights_only=True``.
    """
    for entry in reversed(read_manifest(folder)):
        data = read_checked(folder, entry)
        if data is None:
            continue
        try:
            saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # with the hash that was written: of another torch, or made by somebody else
            print(f"ablate: {folder / entry['file']} can't be loaded: {str(error)[:200]!a}", file=sys.stderr)
            continue
        if _is_whole(saved) and saved["fingerprint"] == fingerprint:
            whole: dict[str, Any] = saved
            return whole
    return None


def _is_whole(saved: Any) -> bool:
    if not isinstance(saved, dict) or saved.keys() != {"fingerprint", "state", "records"}:
        return False
    return isinstance(saved["state"], dict) and isinstance(saved["records"], list)
