"""Results made elsewhere find their trials: by arm, or by settings, and by seed. Whatever finds none is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from ablate.errors import Fault, StudyError
from ablate.plan.trials import Plan, Trial
from ablate.study.document import parse_scalar, parse_value
from ablate.study.reading import sorted_faults
from ablate.study.settings import Settings, brief, canonical, fits, get, kind, leaves, patched, same_kind
from ablate.study.words import cited, did_you_mean, nearest, with_article

ENOUGH = 1_000  # faults: more of them nobody reads
ARM, SEED, EPOCH = "arm", "seed", "epoch"
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?inf(inity)?|nan", re.IGNORECASE)
_WHOLE = re.compile(r"[0-9]{1,10}")
_PYTHON = {"True": True, "False": False, "None": None}


@dataclass(frozen=True)
class Row:
    """What one line, or one run, says: texts by name. ``history``: metric → epoch → text, where the run has kept it."""

    where: str
    named: Mapping[str, str]
    measured: Mapping[str, str]
    history: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)  # where it came from


@dataclass(frozen=True)
class Table:
    """All that was read of one source. ``where`` is that of its header; ``columns`` are its names, after renaming."""

    where: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Found:
    """A trial with its numbers: the final ones, and those of its epochs."""

    where: str
    arm: str
    trial: Trial
    metrics: Mapping[str, float]
    epochs: Mapping[int, Mapping[str, float]]
    facts: Mapping[str, str]


def matched(plan: Plan, table: Table, *, ignored: Sequence[str] = ()) -> list[Found]:
    """Return the trials that the rows are of. Raises StudyError with all that is wrong with them."""
    faults = [*_column_faults(plan, table, ignored)]
    paths = [name for name in table.columns if _is_setting(plan, name)]
    if not faults and not table.rows:
        faults.append(Fault("there are no results in it", table.where))
    places = _Places(plan)
    placed: dict[str, list[tuple[str, Row, int | None]]] = {}
    trials: dict[str, Trial] = {}
    if not faults:
        for row in table.rows:
            try:
                arm, trial, epoch = _place(places, row, paths)
            except _Unplaced as error:
                faults += (Fault(message, row.where, hint) for message, hint in error.flaws)
                if len(faults) > ENOUGH:
                    break
                continue
            trials[trial.fingerprint] = trial
            placed.setdefault(trial.fingerprint, []).append((arm, row, epoch))
    found = []
    for fingerprint, lines in placed.items():
        first: dict[int | None, Row] = {}
        for _, row, epoch in lines:
            other = first.setdefault(epoch, row)
            if other is not row:
                hint = "each trial stands once, or once for each epoch; arms of equal settings are one trial"
                faults.append(Fault(f"the same trial as {other.where}", row.where, hint))
        numbers, flaws = _numbers(plan, [(row, epoch) for _, row, epoch in lines])
        faults += flaws
        metrics, epochs = numbers
        found.append(Found(lines[-1][1].where, lines[0][0], trials[fingerprint], metrics, epochs, lines[-1][1].facts))
    if faults:
        raise StudyError(sorted_faults(faults))
    return found


class _Unplaced(Exception):
    """A row that is of no trial, and why."""

    def __init__(self, *flaws: tuple[str, str]) -> None:
        self.flaws = flaws


def _column_faults(plan: Plan, table: Table, ignored: Sequence[str]) -> Iterator[Fault]:
    known = [ARM, SEED, EPOCH, *plan.study.metrics, *(path for path, _ in leaves(plan.study.settings))]
    for name in table.columns:
        if name not in known and not any(fnmatchcase(name, pattern) for pattern in ignored):
            close = nearest(name, known)
            hint = f"did you mean `{close}`? " if close else "`--map` says what it is, "
            yield Fault(f"unknown column {cited(name)}", table.where, f"{hint}`--ignore` passes over it")
    if SEED not in table.columns:
        yield Fault("no column `seed`", table.where, "`--map seed=COLUMN` names it")
    if ARM not in table.columns and not any(_is_setting(plan, name) for name in table.columns) and len(plan.arms) > 1:
        hint = f"`--map {ARM}=COLUMN` names it; settings are columns like `{next(leaves(plan.study.settings))[0]}`"
        yield Fault("neither a column `arm` nor one of a setting", table.where, hint)
    measured = {name for row in table.rows for name in row.measured} | set(table.columns)
    for name in plan.study.metrics if table.rows else ():
        if name not in measured:
            others = sorted({each for row in table.rows for each in row.measured} | set(table.columns) - set(known))
            close = did_you_mean(name, others)
            hint = f"`--map {name}=COLUMN` names it" + (f"; {close}" if close else "")
            yield Fault(f"no column `{name}`, a metric of the study", table.where, hint)


def _is_setting(plan: Plan, name: str) -> bool:
    try:
        return not (isinstance(found := get(plan.study.settings, name), dict) and found)
    except KeyError:
        return False


class _Places:
    """The trials of a plan by what a row may say."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.settings = {arm.name: arm.settings for arm in plan.arms}
        self.arms: dict[str, str] = {}
        for arm in plan.arms:
            self.arms.setdefault(canonical(arm.settings), arm.name)
        self.trials = {(each.arm, each.seed): each.trial for each in plan.replicates}

    def seeds(self, arm: str) -> str:
        asked = [seed for name, seed in self.trials if name == arm]
        return ", ".join(map(str, asked[:12])) + (", …" if len(asked) > 12 else "")


def _place(places: _Places, row: Row, paths: Sequence[str]) -> tuple[str, Trial, int | None]:
    seed, epoch = _whole(row, SEED), _whole(row, EPOCH) if EPOCH in row.named else None
    baseline = places.plan.study.settings
    patch = dict(_settings(baseline, row, paths))
    if ARM in row.named:
        name = row.named[ARM].strip()
        if name not in places.settings:
            raise _Unplaced((f"there is no arm {cited(name)}", did_you_mean(name, places.settings)))
        for path, value in patch.items():
            theirs = get(places.settings[name], path)
            if canonical(theirs) != canonical(value):
                what = f"`{path}` is {brief(value)} here, and {brief(theirs)} in the arm `{name}`"
                raise _Unplaced((what, "the settings of a row are those of its arm: mend one of the two"))
    else:
        settings = patched(baseline, patch)
        name = places.arms.get(canonical(settings), "")
        if not name:
            raise _Unplaced((f"no arm has these settings: {_shown(baseline, patch)}", _nearest(places.plan, settings)))
    trial = places.trials.get((name, seed))
    if trial is None:
        seeds = places.seeds(name) or "no seed of this arm"
        raise _Unplaced((f"the study does not ask for seed {seed} of `{name}`", f"it asks for {seeds}"))
    return name, trial, epoch


def _whole(row: Row, name: str) -> int:
    text = row.named.get(name, "").strip()
    text = text.removesuffix(".0")  # how a table with gaps writes whole numbers
    if not _WHOLE.fullmatch(text):
        raise _Unplaced((f"`{name}` takes a whole number; here it is {cited(row.named.get(name, ''))}", ""))
    return int(text)


def _settings(baseline: Settings, row: Row, paths: Sequence[str]) -> Iterator[tuple[str, Any]]:
    flaws = []
    for path in paths:
        if path not in row.named:
            continue  # a run that did not log it
        base, text = get(baseline, path), row.named[path]
        value = text if isinstance(base, str) else _value(text.strip(), path)
        if not fits(base, value) and value is not None:
            flaws.append((f"`{path}` takes {with_article(kind(base))}; here it is {cited(text)}", ""))
        else:
            yield path, same_kind(base, value)
    if flaws:
        raise _Unplaced(*flaws)


def _value(text: str, path: str) -> Any:
    if text in _PYTHON:
        return _PYTHON[text]
    if not text.startswith(("[", "{")):
        return parse_scalar(text)
    try:
        return parse_value(text, source=path)
    except StudyError:
        return text


def _shown(settings: Settings, patch: Mapping[str, Any]) -> str:
    changed = {path: value for path, value in patch.items() if canonical(get(settings, path)) != canonical(value)}
    return ", ".join(f"`{path}: {brief(value)[1:-1]}`" for path, value in list(changed.items())[:4]) or "the baseline's"


def _nearest(plan: Plan, settings: Settings) -> str:
    """Return a hint: the arm that differs least, and in what."""
    wanted = dict(leaves(settings))
    lacking = {
        arm.name: [path for path, value in leaves(arm.settings) if canonical(value) != canonical(wanted.get(path))]
        for arm in plan.arms
    }
    name = min(lacking, key=lambda each: len(lacking[each]))
    return (
        f"`{name}` differs in {', '.join(f'`{path}`' for path in lacking[name][:4])}; a column `arm` names it as well"
    )


def _numbers(
    plan: Plan, lines: Sequence[tuple[Row, int | None]]
) -> tuple[tuple[dict[str, float], dict[int, dict[str, float]]], list[Fault]]:
    """Return the final values and those of the epochs of one trial, and what is wrong with them."""
    faults: list[Fault] = []
    epochs: dict[int, dict[str, float]] = {}
    last = max(lines, key=lambda line: -1 if line[1] is None else line[1])[0]
    for row, epoch in lines:
        for name, text in _declared(plan, row.measured):
            value = _number(text)
            if not text.strip() and row is not last:
                continue
            if not text.strip():
                faults.append(
                    Fault(f"no `{name}` in the last row of this trial" if len(lines) > 1 else f"no `{name}`", row.where)
                )
            elif value is None:
                hint = "write a decimal point" if re.fullmatch(r"[-+]?\d+,\d+", text.strip()) else ""
                faults.append(Fault(f"`{name}` is no number: {cited(text)}", row.where, hint))
            elif epoch is not None:
                epochs.setdefault(epoch, {})[name] = value
        for name, history in row.history.items():
            for step, text in history.items() if name in plan.study.metrics else ():
                if (value := _number(text)) is not None:
                    epochs.setdefault(step, {})[name] = value
    missing = [name for name in plan.study.metrics if name not in last.measured]
    faults += (Fault(f"no `{name}`", last.where) for name in missing)
    metrics = {name: value for name, text in _declared(plan, last.measured) if (value := _number(text)) is not None}
    return (metrics, dict(sorted(epochs.items()))), faults


def _declared(plan: Plan, measured: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    return ((name, measured[name]) for name in plan.study.metrics if name in measured)


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text := text.strip()) else None


def has_diverged(found: Found, primary: str) -> bool:
    return not math.isfinite(found.metrics[primary])
