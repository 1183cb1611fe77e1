"""Designs: rules that turn the one list of steps into arms, and say which two arms each row compares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ablate.errors import Fault
from ablate.study.schema import BASELINE, FULL, Design, Step, Study, step_of
from ablate.study.settings import Change, Settings, canonical, differences, patched, show
from ablate.study.words import listed


@dataclass(frozen=True)
class Arm:
    """One full assignment of settings, named by what differs. ``steps`` are those on its path, in order."""

    name: str
    title: str
    steps: tuple[str, ...]
    settings: Settings


@dataclass(frozen=True)
class Contrast:
    """A row of a design's table: the effect is the mean of ``minuend`` less the mean of ``subtrahend``.

    In a ladder that is arm less parent, one at a time the arm less its reference, in leave-one-out the full model less
    the model without the step. ``arm`` is the one that the row is named after, ``other`` what it is compared with.
    """

    design: str
    arm: str
    other: str
    minuend: str
    subtrahend: str
    changes: tuple[Change, ...]
    branch: bool = False
    note: str = ""


@dataclass(frozen=True)
class Expansion:
    """What the designs of a study give together: distinct arms, and per design its rows. Faults are for the reader."""

    arms: tuple[Arm, ...]
    contrasts: tuple[Contrast, ...]
    faults: tuple[Fault, ...]


def expand_designs(study: Study) -> Expansion:
    """Expand every design of a study. An arm that two designs share under one name stands once."""
    arms: dict[str, Arm] = {}
    contrasts: list[Contrast] = []
    faults: list[Fault] = []
    for design in study.designs:
        for arm, contrast, fault in _RULES[design.name](study, design):
            known = arms.setdefault(arm.name, arm)
            if known.settings != arm.settings:
                hint = f"the {design.name} design has an arm of this name; rename the step"
                faults.append(Fault(f"two arms would be called `{arm.name}`", _where_named(study, arm.name), hint))
            if contrast is not None:
                contrasts.append(contrast)
            if fault is not None:
                faults.append(fault)
    return Expansion(tuple(arms.values()), tuple(contrasts), (*faults, *_repeated(study, arms, contrasts)))


Row = tuple[Arm, Contrast | None, Fault | None]


def _ladder(study: Study, design: Design) -> Iterator[Row]:
    """Each step on top of its parent: the step above that is not a branch, or the one that ``from`` names."""
    arms = {BASELINE: _baseline(study)}
    yield arms[BASELINE], None, None
    trunk = BASELINE
    for step in study.steps:
        parent = arms[step.from_ or trunk]
        arm = Arm(step.name, step.label, (*parent.steps, step.name), patched(parent.settings, step.set))
        arms[step.name] = arm
        missing = [name for name in step.requires if name not in parent.steps]
        contrast = _contrast(design, arm, parent, branch=step.branch)
        yield arm, contrast, _off_path_fault(study, step, missing) or _unchanged_fault(study, step, contrast, parent)
        if not step.branch:
            trunk = step.name


def _one_at_a_time(study: Study, design: Design) -> Iterator[Row]:
    """Each step alone on the baseline; a step that requires others gets them, and so does what it is compared with."""
    yield _baseline(study), None, None
    for step in study.steps:
        required = _required(study, step)
        reference = _alone(study, required)
        if required:
            yield reference, None, None
        arm = _alone(study, [*required, step], named=step)
        note = f"compared with the baseline plus {_listed(required)}" if required else ""
        contrast = _contrast(design, arm, reference, branch=step.branch, note=note)
        yield arm, contrast, _unchanged_fault(study, step, contrast, reference)


def _leave_one_out(study: Study, design: Design) -> Iterator[Row]:
    """The full model less each step; what requires that step goes with it."""
    trunk = [step for step in study.steps if not step.branch]
    full = Arm(FULL, "all steps", tuple(step.name for step in trunk), _with_steps(study, trunk))
    yield full, None, None
    removed = [step for step in trunk if step.name not in design.except_]
    overwritten = {step.name: clash for step in removed if (clash := _overwriting(trunk, step))}
    for step in removed:
        gone = _dependents(trunk, step)
        kept = [other for other in trunk if other not in gone]
        names = tuple(other.name for other in kept)
        arm = Arm(f"without-{step.name}", f"without {step.label}", names, _with_steps(study, kept))
        also = [other for other in gone if other is not step]
        note = f"{_listed(also)} removed with it" if also else ""
        changes = differences(full.settings, arm.settings)
        contrast = Contrast(design.name, arm.name, FULL, FULL, arm.name, changes, note=note)
        absent = [name for name in step.requires if study.step(name).branch]
        fault = _absent_fault(study, step, absent) or _overwritten_fault(study, step, overwritten, design)
        yield arm, contrast, fault or _unchanged_fault(study, step, contrast, arm)


_RULES = {"ladder": _ladder, "one-at-a-time": _one_at_a_time, "leave-one-out": _leave_one_out}


def _baseline(study: Study) -> Arm:
    return Arm(BASELINE, BASELINE, (), study.settings)


def _contrast(design: Design, arm: Arm, parent: Arm, *, branch: bool, note: str = "") -> Contrast:
    changes = differences(parent.settings, arm.settings)
    return Contrast(design.name, arm.name, parent.name, arm.name, parent.name, changes, branch=branch, note=note)


def _with_steps(study: Study, steps: Iterable[Step]) -> Settings:
    settings = study.settings
    for step in steps:
        settings = patched(settings, step.set)
    return settings


def _alone(study: Study, steps: Sequence[Step], *, named: Step | None = None) -> Arm:
    """Return the baseline plus these steps, called after the last one where the others are what that one requires."""
    if not steps:
        return _baseline(study)
    last = named or steps[-1]
    others = [step for step in steps if step is not last]
    simple = others == _required(study, last)
    name = f"only-{last.name}" if simple else "only-" + "+".join(step.name for step in steps)
    title = last.label if simple else " + ".join(step.label for step in steps)
    return Arm(name, title, tuple(step.name for step in steps), _with_steps(study, steps))


def _required(study: Study, step: Step) -> list[Step]:
    """Return what a step requires, directly or through others, in file order."""
    names: set[str] = set()
    queue = list(step.requires)
    while queue:
        name = queue.pop()
        if name not in names:
            names.add(name)
            queue += study.step(name).requires
    return [other for other in study.steps if other.name in names]


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


def _absent_fault(study: Study, step: Step, absent: Sequence[str]) -> Fault | None:
    if not absent:
        return None
    message = f"step `{step.name}` requires {listed(absent)}, a branch, which the full model of leave-one-out never has"
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


def _repeated(study: Study, arms: Mapping[str, Arm], contrasts: Sequence[Contrast]) -> Iterator[Fault]:
    """Find arms of one design with equal settings: two rows of one trial would look like two findings."""
    unchanged = {frozenset((c.arm, c.other)) for c in contrasts if not c.changes}  # these have a fault already
    told: set[tuple[str, str]] = set()  # two designs may repeat the same two steps
    for design in dict.fromkeys(c.design for c in contrasts):
        first: dict[str, str] = {}
        for name in dict.fromkeys(name for c in contrasts if c.design == design for name in (c.other, c.arm)):
            twin = first.setdefault(canonical(arms[name].settings), name)
            steps = (step_of(twin), step_of(name))
            if twin == name or frozenset((twin, name)) in unchanged or steps in told:
                continue
            told.add(steps)
            message = f"{design}: the arms `{twin}` and `{name}` have the same settings"
            hint = "two rows of one trial would look like two findings: remove a step, or change what it sets"
            yield Fault(message, _where_named(study, name), hint)


def _where_named(study: Study, arm: str) -> str:
    names = [step.name for step in study.steps]
    return study.where_step(next((name for name in (arm, step_of(arm)) if name in names), names[0]))
