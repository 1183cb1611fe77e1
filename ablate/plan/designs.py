"""Designs: rules that turn the one list of steps into arms, and say which two arms each row compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from ablate.errors import Fault
from ablate.plan.arms import (
    Arm,
    Contrast,
    baseline,
    combined,
    conflict,
    crossed,
    difference,
    excludes,
    full_model,
    required,
    with_steps,
)
from ablate.plan.crossed import Choose, factorial, fractional, greedy_path, nothing_chosen
from ablate.study.schema import BASELINE, FULL, Design, Step, Study, step_of
from ablate.study.settings import canonical, patched, show
from ablate.study.words import listed

TOTAL = "total"
REMAINDER = "remainder"
BOTH = "both"  # leave-one-out and one-at-a-time side by side: no design of its own, for it trains nothing


@dataclass(frozen=True)
class Expansion:
    """What the designs of a study give together: distinct arms, and per design its rows. Faults are for the reader."""

    arms: tuple[Arm, ...]
    contrasts: tuple[Contrast, ...]
    faults: tuple[Fault, ...]
    by_design: Mapping[str, tuple[str, ...]]


def expand_designs(study: Study, choose: Choose = nothing_chosen) -> Expansion:
    """Expand every design of a study. An arm that two designs share under one name stands once.

    ``choose`` tells which arm a greedy path goes on with, once that is known.
    """
    arms: dict[str, Arm] = {}
    contrasts: list[Contrast] = []
    faults: list[Fault] = []
    by_design: dict[str, tuple[str, ...]] = {}
    for design in study.designs:
        named: dict[str, None] = {}
        for arm, contrast, fault in _rows(study, design, choose):
            if arm is not None:
                named[arm.name] = None
                known = arms.setdefault(arm.name, arm)
                if known.settings != arm.settings:
                    hint = f"the {design.name} design has an arm of this name; rename the step"
                    faults.append(Fault(f"two arms would be called `{arm.name}`", _where_named(study, arm.name), hint))
            if contrast is not None:
                contrasts.append(contrast)
            if fault is not None:
                faults.append(fault)
        by_design[design.name] = tuple(named)
    if {"leave-one-out", "one-at-a-time"} <= by_design.keys():
        contrasts += _side_by_side(study, contrasts)
    repeated = _repeated(study, arms, contrasts, {name: of for name, of in by_design.items() if name != "path"})
    return Expansion(tuple(arms.values()), tuple(contrasts), (*faults, *repeated), by_design)


Row = tuple[Arm | None, Contrast | None, Fault | None]


def _rows(study: Study, design: Design, choose: Choose) -> Iterator[Row]:
    if design.name == "path":
        return chain(((None, None, fault) for fault in _path_faults(study)), greedy_path(study, choose))
    rules = {
        "ladder": _ladder,
        "one-at-a-time": _one_at_a_time,
        "leave-one-out": _leave_one_out,
        "factorial": factorial,
        "fractional": fractional,
    }
    return rules[design.name](study, design)


def _ladder(study: Study, design: Design) -> Iterator[Row]:
    """Each step on top of its parent: the step above that is not a branch, or the one that ``from`` names."""
    arms = {BASELINE: baseline(study)}
    yield arms[BASELINE], None, None
    trunk = BASELINE
    steps = {step.name: step for step in study.steps}
    for step in study.steps:
        parent = arms[step.from_ or trunk]
        names = (*parent.steps, step.name)
        arm = Arm(step.name, step.label, names, patched(parent.settings, step.set))
        arms[step.name] = arm
        missing = [name for name in step.requires if name not in parent.steps]
        contrast = difference(design.name, arm, parent, branch=step.branch)
        below = [steps[name] for name in parent.steps]
        fault = _off_path_fault(study, step, missing) or _excluded_fault(study, step, below)
        yield arm, contrast, fault or _unchanged_fault(study, step, contrast, parent)
        if not step.branch:
            trunk = step.name
    if len(arms[trunk].steps) > 1:
        yield None, replace(difference(design.name, arms[trunk], arms[BASELINE]), name=TOTAL, tested=False), None


def _one_at_a_time(study: Study, design: Design) -> Iterator[Row]:
    """Each step alone on the baseline; a step that requires others gets them, and so does what it is compared with."""
    yield baseline(study), None, None
    for step in study.steps:
        needed = required(study, step)
        reference = combined(study, needed)
        if needed:
            yield reference, None, None
        arm = combined(study, [*needed, step], named=step)
        note = f"compared with the baseline plus {_listed(needed)}" if needed else ""
        contrast = difference(design.name, arm, reference, branch=step.branch, note=note)
        yield arm, contrast, _unchanged_fault(study, step, contrast, reference)


def _leave_one_out(study: Study, design: Design) -> Iterator[Row]:
    """The full model less each step; what requires that step goes with it."""
    trunk = study.trunk
    full = full_model(study)
    yield full, None, _full_fault(study)
    removed = [step for step in trunk if step.name not in design.except_]
    overwritten = {step.name: clash for step in removed if (clash := _overwriting(trunk, step))}
    for step in removed:
        gone = _dependents(trunk, step)
        kept = [other for other in trunk if other not in gone]
        names = tuple(other.name for other in kept)
        arm = Arm(f"without-{step.name}", f"without {step.label}", names, with_steps(study, kept))
        also = [other for other in gone if other is not step]
        note = f"{_listed(also)} removed with it" if also else ""
        contrast = difference(design.name, full, arm, arm=arm, note=note)
        fault = _absent_fault(study, step, "the full model of leave-one-out") or _overwritten_fault(
            study, step, overwritten, design
        )
        yield arm, contrast, fault or _unchanged_fault(study, step, contrast, arm)


def _side_by_side(study: Study, contrasts: Sequence[Contrast]) -> Iterator[Contrast]:
    """The mean of what each step is worth alone and in the final model, and what the means leave unexplained.

    The mean is the Shapley value where no three steps interact: Σ of the means is then the total gain, and the
    remainder zero. Steps that require others, or are required, change what is compared, and have no mean.
    """
    alone = {step_of(c.arm): c for c in contrasts if c.design == "one-at-a-time" and not c.branch}
    final = {step_of(c.arm): c for c in contrasts if c.design == "leave-one-out"}
    tied = {name for step in study.steps if step.requires for name in (step.name, *step.requires)}
    free = [step for step in study.trunk if step.name in alone and step.name in final and step.name not in tied]
    rest = {FULL: 1.0, BASELINE: -1.0}
    for step in free:
        weights: dict[str, float] = {}
        for contrast in (alone[step.name], final[step.name]):
            for arm, weight in contrast.weights:
                weights[arm] = weights.get(arm, 0.0) + weight / 2
        for arm, weight in weights.items():
            rest[arm] = rest.get(arm, 0.0) - weight
        yield Contrast(BOTH, step.name, tuple(weights.items()), title=step.label, tested=False)
    if len(free) == len(study.trunk) > 1:
        remainder = tuple((arm, weight) for arm, weight in rest.items() if weight)
        yield Contrast(BOTH, REMAINDER, remainder, title="remainder", tested=False)


def _dependents(trunk: Sequence[Step], step: Step) -> list[Step]:
    """Return the step and all that require it, directly or through others."""
    gone = [step]
    for other in trunk:  # a step stands below what it requires, so one pass is enough
        if any(name in {g.name for g in gone} for name in other.requires):
            gone.append(other)
    return gone


def _listed(steps: Sequence[Step]) -> str:
    return ", ".join(step.name for step in steps)


# --- faults --------------------------------------------------------------------------------------------------------


def _off_path_fault(study: Study, step: Step, missing: Sequence[str]) -> Fault | None:
    if not missing:
        return None
    message = f"step `{step.name}` requires {listed(missing)}, not on its path in the ladder"
    hint = f"give it `from: {missing[-1]}`, or move it below a rung that is built upon {listed(missing)}"
    return Fault(message, study.where_step(step.name), hint)


def _excluded_fault(study: Study, step: Step, below: Sequence[Step]) -> Fault | None:
    other = next((each.name for each in below if excludes(step, each)), None)
    if other is None:
        return None
    message = f"ladder: step `{step.name}` would stand upon `{other}`, and the two conflict"
    hint = f"give it a parent without `{other}`, such as `from: {BASELINE}`, or leave the ladder out"
    return Fault(message, study.where_step(step.name), hint)


def _full_fault(study: Study) -> Fault | None:
    found = conflict(study.trunk)
    if found is None:
        return None
    first, second = found
    message = f"leave-one-out: the full model would have `{first.name}` and `{second.name}`, which conflict"
    hint = "give one of them the key `branch: true`: the full model is made of all other steps"
    return Fault(message, study.where_step(second.name), hint)


def _path_faults(study: Study) -> Iterator[Fault]:
    """Find what would go wrong along a path before it is known which way it goes.

    Where steps that can be on together set different settings, or one builds upon the other, each changes the same
    wherever it is added, and the arms differ as soon as each step with what it requires does.
    """
    arms = {canonical(study.settings): BASELINE}
    for index, step in enumerate(study.trunk):
        needed = required(study, step)
        above = (other for other in study.trunk[:index] if other not in needed and not excludes(step, other))
        clash = next(((other, path) for other in above for path in step.set if path in other.set), None)
        absent = _absent_fault(study, step, "a path")
        if absent is not None:
            yield absent
        elif clash is not None:
            other, path = clash
            message = f"path: the steps `{other.name}` and `{step.name}` both set `{path}`, and one undoes the other"
            rule = f"[{other.name}]"
            hint = f"give `{step.name}` the key `conflicts: {rule}`, or `requires: {rule}` if it builds upon that step"
            yield Fault(message, study.where_step(step.name), hint)
        else:
            arm = crossed(study, [step.name, *(other.name for other in needed)])
            twin = arms.setdefault(canonical(arm.settings), arm.name)
            if twin != arm.name:
                yield _twin_fault(study, "path", twin, arm.name, [step])


def _absent_fault(study: Study, step: Step, model: str) -> Fault | None:
    absent = [name for name in step.requires if study.step(name).branch]
    if not absent:
        return None
    message = f"step `{step.name}` requires {listed(absent)}, a branch, which {model} never has"
    hint = f"give `{step.name}` the key `branch: true` as well, or take it from `{absent[0]}`"
    return Fault(message, study.where_step(step.name), hint)


def _unchanged_fault(study: Study, step: Step, contrast: Contrast, without: Arm) -> Fault | None:
    """``without`` is the arm that lacks the step and has the same settings all the same."""
    if contrast.changes:
        return None
    path, value = next(iter(step.set.items()))
    hint = (
        f"`{without.name}` already has `{path}: {show(value)}`; remove the step, or change what it sets or builds upon"
    )
    return Fault(f"step `{step.name}` leaves the settings unchanged", study.where_step(step.name), hint)


def _overwriting(trunk: Sequence[Step], step: Step) -> tuple[Step, str] | None:
    """Return a later step, not removed together with this one, that sets the same path; and the path."""
    gone = _dependents(trunk, step)
    later = [other for other in trunk[trunk.index(step) :] if other not in gone]
    paths = [path for each in gone for path in each.set]
    return next(((other, path) for other in later for path in paths if path in other.set), None)


def _overwritten_fault(
    study: Study, step: Step, overwritten: Mapping[str, tuple[Step, str]], design: Design
) -> Fault | None:
    if step.name not in overwritten:
        return None
    other, path = overwritten[step.name]
    message = f"leave-one-out can't remove `{step.name}`: the later step `{other.name}` sets `{path}` as well"
    hint = f"write the design as `{{leave-one-out: {{except: [{', '.join([*design.except_, *overwritten])}]}}}}`"
    return Fault(message, study.where_step(step.name), hint)


def _repeated(
    study: Study,
    arms: Mapping[str, Arm],
    contrasts: Sequence[Contrast],
    by_design: Mapping[str, Sequence[str]],
) -> Iterator[Fault]:
    """Find arms of one design with equal settings: two rows of one trial would look like two findings.

    Where steps are crossed, one mistake makes many such arms: what their steps differ by is told once.
    """
    unchanged = {frozenset((c.arm, c.other)) for c in contrasts if c.tested and c.arm and not c.changes}  # have a fault
    told: list[set[str]] = []
    for design, names in by_design.items():
        first: dict[str, str] = {}
        for name in names:
            twin = first.setdefault(canonical(arms[name].settings), name)
            differing = set(arms[twin].steps) ^ set(arms[name].steps)
            known = differing <= set().union(*told) or any(steps <= differing for steps in told)
            if twin == name or known or frozenset((twin, name)) in unchanged:
                continue
            told.append(differing)
            steps = [step for step in study.steps if step.name in differing]
            if design == "factorial" and len(steps) == 1:
                yield _idle_fault(study, steps[0], name)
            else:
                yield _twin_fault(study, design, twin, name, steps)


def _twin_fault(study: Study, design: str, twin: str, arm: str, differing: Sequence[Step]) -> Fault:
    message = f"{design}: the arms `{twin}` and `{arm}` have the same settings"
    hint = "two rows of one trial would look like two findings: remove a step, or change what it sets"
    return Fault(message, study.where_step(differing[-1].name), hint)


def _idle_fault(study: Study, step: Step, arm: str) -> Fault:
    message = f"factorial: step `{step.name}` leaves the settings unchanged in the arm `{arm}`"
    hint = (
        "remove it, or change what it sets; "
        f"if a step below it sets the same, that one may have the key `conflicts: [{step.name}]`"
    )
    return Fault(message, study.where_step(step.name), hint)


def _where_named(study: Study, arm: str) -> str:
    named = (arm, step_of(arm), step_of(arm).rpartition("+")[2])
    steps = [step.name for step in study.steps]
    return study.where_step(next((name for name in named if name in steps), steps[0]))
