"""The table of what was tuned: for each arm, how much was tried, what was chosen, and what it measured there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from statistics import median

from ablate.analyse.findings import Analysis, ArmTuning, Tuning
from ablate.report.notes import SAMPLERS, Note
from ablate.report.numbers import duration, listed, plural, seed_list
from ablate.report.table import Column, Row, Table, Text, filled
from ablate.stats.digits import decimals
from ablate.study.settings import show

TUNING = "tuning"

ESTIMAND = (
    "Each arm runs with the best settings that were tried for it. The value is the one that they were chosen for, and "
    "so flatters: compare arms by the tables of their fresh seeds, not here."
)


def tuning_table(analysis: Analysis, tuning: Tuning) -> Table:
    """Return a row per arm."""
    means = [candidate.mean for arm in tuning.arms for candidate in arm.candidates]
    places = decimals([], means)
    rows = tuple(_row(arm, tuning, number, places) for number, arm in enumerate(tuning.arms))
    unit = f" ({analysis.primary.unit})" if analysis.primary.unit else ""
    columns = [
        Column("number", "#"),
        Column("label", "arm", right=False),
        Column("tried", "tried"),
        *(Column(f"setting:{path}", path, foreign=True) for path in tuning.ranges),
        Column("value", f"{analysis.primary.label}{unit}, as chosen", foreign=True),
        Column("median", "median tried", rank=2),
    ]
    asked = sum(len(arm.candidates) for arm in tuning.arms)
    settled = sum(len(arm.candidates) for arm in tuning.arms if arm.is_complete)
    return Table(
        design=TUNING,
        heading=f"{analysis.title}: {TUNING}",
        progress="" if settled == asked else "tuning goes on: what is chosen is not known for every arm",
        estimand=ESTIMAND,
        columns=filled(columns, rows),
        rows=rows,
        places=places,
        notes=(*_notes(tuning),),
    )


def _row(arm: ArmTuning, tuning: Tuning, number: int, places: int) -> Row:
    ended = sum(candidate.status not in ("waiting", "running") for candidate in arm.candidates)
    cells: dict[str, Text] = {"number": str(number), "label": arm.title, "tried": f"{ended}/{tuning.size}"}
    if arm.is_complete:
        cells["tried"] = str(ended)
    if arm.chosen is not None and arm.chosen.mean is not None:
        cells |= {f"setting:{path}": show(value) for path, value in arm.chosen.settings.items()}
        cells["value"] = f"{arm.chosen.mean:.{places}f}"
        means = [candidate.mean for candidate in arm.candidates if candidate.mean is not None]
        cells["median"] = f"{median(means):.{places}f}"
    elif arm.is_complete:
        cells["value"] = "none"
    return Row(str(number), cells)


def _notes(tuning: Tuning) -> Iterator[Note]:
    texts: dict[str, list[int]] = {}
    for number, arm in enumerate(tuning.arms):
        for text in _notes_of(arm):
            texts.setdefault(text, []).append(number)
    yield from (Note(text, tuple(numbers)) for text, numbers in texts.items())
    on = "the mean over seeds" if len(tuning.seeds) > 1 else "seed"
    how = f"{plural(tuning.size, 'setting')} for every arm by {SAMPLERS[tuning.sampler]}, judged by {on}"
    yield Note(f"Tried: {how} {seed_list(tuning.seeds)}. Ranges: {_ranges(tuning)}.")
    if tuning.seconds:
        yield Note(f"Tuning took {duration(tuning.seconds)} of wall time of trials, beside the tables' own.")
    if tuning.prune:
        yield Note("A setting that fell behind the median of the others of its arm was ended early (pruned).")


def _ranges(tuning: Tuning) -> str:
    return "; ".join(f"{path} {text}" for path, text in tuning.ranges.items())


def _notes_of(arm: ArmTuning) -> Iterator[str]:
    counts = Counter(candidate.status for candidate in arm.candidates)
    lost = [f"{counts[status]} {status}" for status in ("pruned", "diverged", "failed") if counts[status]]
    if lost:
        yield f"Of those tried, {listed(lost)}."
    for edge in arm.edges:
        ends = {"low": "lower", "high": "upper"}[edge.side]
        yield f"{edge.path} = {show(edge.value)} lies at the {ends} edge of its range ({edge.range}): widen it."
    if arm.is_complete and arm.chosen is None:
        yield "No setting that was tried has a value, and so this arm was not run."
