"""A study version in Optuna's words: what its Optuna study should hold. Pure, and without Optuna.

Levels are text from a list that is fixed per study version: to Optuna ``True``, ``1`` and ``1.0`` are one level, and a
list of levels that grows is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ablate.mirror.facts import TrialFacts, Try, Version
from ablate.study.settings import get, leaves, show

KEY = "ablate:trial"
SPEC = "ablate:spec"
# Optuna writes the whole list of levels beside each level of each trial; longer ones are told as attributes only
MAX_LEVELS = 100
MAX_NOTED = 100  # arms


@dataclass(frozen=True)
class TrialPicture:
    """One trial as Optuna keeps it. ``state`` is one of Optuna's names; times play no part in comparisons."""

    state: str
    levels: Mapping[str, Any]
    attributes: Mapping[str, Any]
    epochs: Mapping[int, float]
    value: float | None


@dataclass(frozen=True)
class Times:
    """When the attempt that counts began and ended, in Unix seconds."""

    started: float
    ended: float


@dataclass(frozen=True, eq=False)
class Frame:
    """What all trials of an Optuna study share."""

    name: str
    direction: str
    metric: str
    levels: Mapping[str, tuple[str, ...]]
    attributes: Mapping[str, Any]
    of_arm: Mapping[str, Mapping[str, str]]  # arm → its levels
    ranges: Mapping[str, NumberRange] = field(default_factory=dict)  # tuned settings that are numbers
    note: str = ""  # Markdown, which the dashboard shows with the study


@dataclass(frozen=True)
class NumberRange:
    """The range of a tuned number. ``whole``: it takes integers alone."""

    low: float
    high: float
    log: bool
    whole: bool


def frame_of(version: Version) -> Frame:
    """Return the frame of a study version. Every arm and seed of the plan has its level, whether it was run or not."""
    settings = {name: dict(leaves(tree)) for name, tree in version.arms.items()}
    paths = dict.fromkeys(path for tree in settings.values() for path in tree)
    levels = {"arm": tuple(version.arms), "seed": tuple(map(str, version.seeds))}
    of_arm: dict[str, dict[str, str]] = {name: {"arm": name} for name in version.arms}
    for path in paths:
        shown = {name: show(tree[path]) if path in tree else "absent" for name, tree in settings.items()}
        if len(set(shown.values())) > 1:
            parameter = path if path not in levels else f"setting {path}"
            levels[parameter] = tuple(dict.fromkeys(shown.values()))
            for name, level in shown.items():
                of_arm[name][parameter] = level
    levels |= {path: tuple(map(show, found["choices"])) for path, found in version.tune.items() if "choices" in found}
    levels = {name: found for name, found in levels.items() if len(found) <= MAX_LEVELS}
    return Frame(
        name=f"{version.title} v{version.number}",
        direction="maximize" if version.goal == "max" else "minimize",
        metric=version.primary,
        levels=levels,
        attributes={
            "question": version.question,
            "mirror": "drawn by ablate from its store; what is changed here does not reach the results",
            SPEC: f"{version.spec_sha256} {len(version.arms)}",  # a path that goes on has more arms, and is drawn anew
        },
        ranges=dict(_ranges(version)),
        of_arm={name: {key: level for key, level in own.items() if key in levels} for name, own in of_arm.items()},
        note=_note(version, of_arm),
    )


def _note(version: Version, of_arm: Mapping[str, Mapping[str, str]]) -> str:
    """Return the question and the arms as text that Markdown leaves alone: names and titles may hold anything."""
    rows = [
        [arm, version.titles[arm], ", ".join(f"{path}: {level}" for path, level in levels.items() if path != "arm")]
        for arm, levels in list(of_arm.items())[:MAX_NOTED]
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip() for row in rows]
    more = len(of_arm) - len(rows)
    lines += [f"and {more} more arms"] if more else []
    lines = [version.question, "", *lines, "", f"ablate report {version.title}    the effects, with intervals"]
    plain = ("".join(c if c.isprintable() else " " for c in line).replace("`", "'") for line in lines)
    return "\n".join(["```", *plain, "```"])


def _ranges(version: Version) -> Iterator[tuple[str, NumberRange]]:
    first = next(iter(version.arms.values()))
    for path, found in version.tune.items():
        if "choices" not in found:
            base, ends = get(first, path), (found["low"], found["high"])
            whole = type(base) is int or (base is None and {type(end) for end in ends} == {int})
            yield path, NumberRange(*ends, found.get("log", False), whole)


def draw(version: Version, frame: Frame, facts: TrialFacts) -> TrialPicture:
    """Return what Optuna should hold of a trial.

    Diverged is a result to us, but has no number: as where an objective returns NaN, Optuna can only call it FAIL.
    """
    value = facts.finals.get(frame.metric)
    usable = value is not None and math.isfinite(value) and _outcome(facts) != "diverged"
    state = {"waiting": "WAITING", "running": "RUNNING", "failed": "FAIL"}.get(facts.stamp.state)
    state = state or ("COMPLETE" if usable else "PRUNED" if _outcome(facts) == "pruned" else "FAIL")
    first = facts.stamp.arms[0]
    levels: dict[str, Any] = dict(frame.of_arm[first])
    if "seed" in frame.levels:
        levels["seed"] = str(facts.seed)
    for path in version.tune:
        value_there = get(facts.settings, path)
        levels |= {path: value_there if path in frame.ranges else show(value_there)}
    return TrialPicture(
        state=state,
        levels=levels,
        attributes=_attributes(version, facts),
        epochs=facts.epochs,
        value=value if state == "COMPLETE" else None,
    )


def times_of(version: Version, facts: TrialFacts) -> Times:
    standing = facts.standing
    if standing is None:
        return Times(version.created, version.created)
    return Times(standing.started, standing.ended or standing.started)


def changes(old: TrialPicture, new: TrialPicture) -> TrialPicture | None:
    """Return the part of ``new`` that must be written over ``old``; None where Optuna can't get there from ``old``.

    A finished trial is final in Optuna, and an epoch that was written can't be taken away: one of an attempt that was
    lost stays until the next attempt records it again, or the trial is finished.
    """
    same = old.levels == new.levels and old.state == new.state and old.value == new.value
    attributes = {key: value for key, value in new.attributes.items() if old.attributes.get(key, ...) != value}
    epochs = {epoch: value for epoch, value in new.epochs.items() if old.epochs.get(epoch) != value}
    if is_finished(old.state) and not (same and not attributes and not epochs):
        return None
    if old.levels != new.levels or (is_finished(new.state) and old.epochs.keys() - new.epochs.keys()):
        return None
    return TrialPicture(new.state, {}, attributes, epochs, new.value)


def over(old: TrialPicture, new: TrialPicture) -> TrialPicture:
    """Return what Optuna holds once ``changes(old, new)`` are written."""
    return replace(new, attributes={**old.attributes, **new.attributes}, epochs={**old.epochs, **new.epochs})


def is_finished(state: str) -> bool:
    return state in ("COMPLETE", "FAIL", "PRUNED")


def _attributes(version: Version, facts: TrialFacts) -> dict[str, Any]:
    arms = facts.stamp.arms
    own: dict[str, Any] = {
        KEY: facts.fingerprint,
        "arm": ", ".join(arms),
        "title": version.titles[arms[0]],
        "seed": facts.seed,
        "state": facts.stamp.state,
        **({"role": facts.role} if version.tune else {}),
        "attempts": [_attempt(each) for each in facts.tries],
    }
    if facts.stamp.state in ("done", "failed"):  # an attribute stays once written: these would outlive a retry
        told = {"outcome": _outcome(facts), "reason": facts.reason or _error(facts)}
        own.update({key: value for key, value in told.items() if value})
    shown = version.primary if math.isfinite(facts.finals.get(version.primary, 0.0)) else None
    others = {name: _plain(value) for name, value in facts.finals.items() if name != shown}
    return {**{f"metric {name}" if name in own else name: value for name, value in others.items()}, **own}


def _attempt(each: Try) -> dict[str, Any]:
    seconds = each.seconds if each.seconds is None else round(each.seconds, 3)
    return {"outcome": each.outcome or "running", "slot": each.slot, "seconds": seconds}


def _outcome(facts: TrialFacts) -> str | None:
    return facts.standing.outcome if facts.standing else None


def _error(facts: TrialFacts) -> str | None:
    return facts.standing.error if facts.standing else None


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # NaN is no JSON: the dashboard would show nothing at all
