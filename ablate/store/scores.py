"""Scores per example, as the store keeps them: packed small, shared ids once.

A trial scored right or wrong on 10,000 examples takes some 1.3 kB; other scores are rounded to float32 and take up to
4 bytes each. The ids of an example set are kept once, in rising order, and the scores of all its trials in that order.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, select

from ablate.errors import StoreError
from ablate.store.store import Store
from ablate.store.tables import arm, example_set, plan, replicate, score, trial
from ablate.study.schema import Role

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Scores:
    """One score per example: ids int64 [N], rising, and values float64 [N]."""

    ids: NDArray[np.int64]
    values: NDArray[np.float64]

    @property
    def levels(self) -> list[float]:
        """The values that there are, rising."""
        import numpy as np  # here and below: late, as few studies have scores

        return [float(level) for level in np.unique(self.values)]


@dataclass(frozen=True)
class PackedIds:
    """A set of examples: the columns of ``example_set``."""

    sha256: str
    size: int
    ids: bytes


@dataclass(frozen=True)
class PackedScores:
    """Scores on such a set: ``bits`` where there are at most two values, exactly kept, else ``float32``."""

    kind: str
    low: float | None
    high: float | None
    data: bytes


def pack(ids: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[PackedIds, PackedScores]:
    """Return scores as they are kept. The ids are distinct, in any order; the values finite, and so as float32."""
    import numpy as np

    order = np.argsort(ids, kind="stable")
    return pack_ids(ids[order]), pack_values(values[order])


def pack_ids(rising: NDArray[np.int64]) -> PackedIds:
    import numpy as np

    raw = rising.astype("<i8").tobytes()
    steps = np.diff(rising, prepend=np.int64(0))  # 0, 1, 2, … compresses to nothing
    return PackedIds(hashlib.sha256(raw).hexdigest(), len(rising), zlib.compress(steps.astype("<i8").tobytes()))


def unpack_ids(packed: PackedIds) -> NDArray[np.int64]:
    """Return the ids in rising order. Raises ValueError where they are not those that were packed."""
    import numpy as np

    steps = np.frombuffer(_inflated(packed.ids, 8 * packed.size), "<i8")
    ids = np.cumsum(steps, dtype=np.int64)  # a difference too large for int64 wraps, and wraps back here
    if hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest() != packed.sha256:
        raise ValueError("the ids of an example set do not have their hash")
    return ids


def pack_values(values: NDArray[np.float64]) -> PackedScores:
    import numpy as np

    levels = np.unique(values)
    if len(levels) > 2:
        return PackedScores("float32", None, None, zlib.compress(values.astype("<f4").tobytes()))
    low, high = float(levels[0]), float(levels[-1])
    return PackedScores("bits", low, high, zlib.compress(np.packbits(values == high).tobytes()))


def unpack_values(packed: PackedScores, size: int) -> NDArray[np.float64]:
    """Return ``size`` values. Raises ValueError where the data holds fewer or more."""
    import numpy as np

    if packed.low is None or packed.high is None:
        return np.frombuffer(_inflated(packed.data, 4 * size), "<f4").astype(np.float64)
    bits = np.unpackbits(np.frombuffer(_inflated(packed.data, (size + 7) // 8), np.uint8), count=size)
    return np.array([packed.low, packed.high])[bits]


def scores_of(store: Store, study_id: int) -> dict[tuple[str, Role, int], Scores]:
    """Return the scores of a study version's finished trials by (arm, role, seed): parts of its primary metric.

    Only those of the results that stand, and not of trials that tune. Trials of equal examples share one array of ids.
    A trial without scores, or with those of another metric (another study ran it, with another primary one), is left
    out.
    """

    def work(connection: Connection) -> tuple[list[Row[Any]], dict[int, PackedIds]]:
        sets = select_example_sets(connection)
        if not sets:  # of 100,000 trials none needs to be asked
            return [], sets
        primary = json.loads(connection.execute(select(plan.c.plan_json).where(plan.c.study == study_id)).scalar_one())
        query = (
            select(arm.c.name.label("arm"), replicate.c.role, replicate.c.seed, score)
            .join_from(replicate, arm, arm.c.id == replicate.c.arm)
            .join(trial, trial.c.id == replicate.c.trial)
            .join(score, (score.c.trial == trial.c.id) & (score.c.claim == trial.c.result_claim))
            .where(arm.c.study == study_id, trial.c.state == "done", score.c.metric == primary["primary"])
            .where(replicate.c.role != "tune")
            .order_by(replicate.c.position, replicate.c.id)
        )
        return list(connection.execute(query)), sets

    rows, sets = store.read(work)
    ids: dict[int, NDArray[np.int64]] = {}
    found = {}
    for row in rows:
        try:
            if row.examples not in ids:
                ids[row.examples] = unpack_ids(sets[row.examples])
            values = unpack_values(packed_scores(row), sets[row.examples].size)
        except ValueError as error:
            where, hint = store.name, "`ablate doctor` looks for more"
            raise StoreError(f"the scores of `{row.arm}` seed {row.seed}: {error}", where=where, hint=hint) from None
        found[row.arm, row.role, row.seed] = Scores(ids[row.examples], values)
    return found


def select_example_sets(connection: Connection) -> dict[int, PackedIds]:
    """Return all sets of examples by id; a project has few."""
    return {row.id: PackedIds(row.sha256, row.size, row.ids) for row in connection.execute(select(example_set))}


def packed_scores(row: Row[Any]) -> PackedScores:
    return PackedScores(row.kind, row.low, row.high, row.data)


def _inflated(data: bytes, size: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(data, size + 1)  # no more, whatever a foreign store would have us unpack
    except zlib.error as error:
        raise ValueError(f"damaged ({error})") from None
    if len(raw) != size or not stream.eof:
        raise ValueError(f"damaged ({len(raw):,} bytes where {size:,} are expected)")
    return raw
