"""Random streams that depend on (seed, role, epoch) and on nothing else.

Arms of one seed therefore see the same initial draws, the same batches and the same augmentations, whatever
runs them, in whatever order, and however often they were resumed.
"""

from __future__ import annotations

import hashlib

ROLES = ("init", "order", "augment", "noise", "split")


def stream_seed(seed: int, role: str, epoch: int = 0) -> int:
    """Return the 63-bit seed of one stream: the first eight bytes of SHA-256 of ``ablate/seed/role/epoch``.

    ``role`` is one of ROLES for ablate's own streams; a task may add names of its own.
    """
    digest = hashlib.sha256(f"ablate/{seed}/{role}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
