"""Arms and contrasts: what is trained, and what is compared with what. Every design is made of these two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ablate.study.schema import BASELINE, FULL, Step, Study
from ablate.study.settings import Change, Settings, differences, patched


@dataclass(frozen=True)
class Arm:
    """One full assignment of settings, named by what differs. ``steps`` are those on its path, in order."""

    name: str
    title: str
    steps: tuple[str, ...]
    settings: Settings


@dataclass(frozen=True)
class Contrast:
    """A row of a design's table: the effect is the weighted sum of the arms' means, whose weights sum to zero.

    Most compare two arms: the mean of ``minuend`` less that of ``subtrahend``. In a ladder that is arm less parent, one
    at a time the arm less its reference, in leave-one-out the full model less the model without the step. There,
    ``arm`` is the one that the row is named after, ``other`` what it is compared with; a row over many cells has
    neither.
    ``tested``: it has a p-value and a verdict, and so counts among the comparisons that are corrected for.
    """

    design: str
    name: str
    weights: tuple[tuple[str, float], ...]
    arm: str = ""
    other: str = ""
    title: str = ""
    changes: tuple[Change, ...] = ()
    tested: bool = True
    branch: bool = False
    note: str = ""

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(arm for arm, _ in self.weights)

    @property
    def minuend(self) -> str:
        return self.weights[0][0]

    @property
    def subtrahend(self) -> str:
        return self.weights[1][0]


def difference(
    design: str, minuend: Arm, subtrahend: Arm, *, arm: Arm | None = None, branch: bool = False, note: str = ""
) -> Contrast:
    """Return the contrast of two arms. The row is named after ``arm``: the minuend, if not told otherwise."""
    named = arm or minuend
    other = subtrahend if named is minuend else minuend
    changes = differences(other.settings, named.settings)
    weights = ((minuend.name, 1.0), (subtrahend.name, -1.0))
    return Contrast(design, named.name, weights, named.name, other.name, named.title, changes, branch=branch, note=note)


def baseline(study: Study) -> Arm:
    return Arm(BASELINE, BASELINE, (), study.settings)


def with_steps(study: Study, steps: Iterable[Step]) -> Settings:
    """Return the baseline's settings with those of the steps, in the order given."""
    settings = study.settings
    for step in steps:
        settings = patched(settings, step.set)
    return settings


def full_model(study: Study) -> Arm:
    names = tuple(step.name for step in study.trunk)
    return Arm(FULL, "all steps", names, with_steps(study, study.trunk))


def combined(study: Study, steps: Sequence[Step], *, named: Step | None = None) -> Arm:
    """Return the baseline plus these steps, called after the last one where the others are what that one requires."""
    if not steps:
        return baseline(study)
    last = named or steps[-1]
    others = [step for step in steps if step is not last]
    simple = others == required(study, last)
    name = f"only-{last.name}" if simple else "only-" + "+".join(step.name for step in steps)
    title = last.label if simple else " + ".join(step.label for step in steps)
    return Arm(name, title, tuple(step.name for step in steps), with_steps(study, steps))


def crossed(study: Study, names: Iterable[str]) -> Arm:
    """Return the arm with exactly these steps on: the full model and the baseline under their own names."""
    wanted = set(names)
    steps = [step for step in study.steps if step.name in wanted]
    return full_model(study) if steps and steps == list(study.trunk) else combined(study, steps)


def required(study: Study, step: Step) -> list[Step]:
    """Return what a step requires, directly or through others, in file order."""
    names: set[str] = set()
    queue = list(step.requires)
    while queue:
        name = queue.pop()
        if name not in names:
            names.add(name)
            queue += study.step(name).requires
    return [other for other in study.steps if other.name in names] if names else []


def excludes(step: Step, other: Step) -> bool:
    """Tell whether two steps can't be on together, by the word of either of them."""
    return other.name in step.conflicts or step.name in other.conflicts


def conflict(steps: Sequence[Step]) -> tuple[Step, Step] | None:
    """Return the first two steps that can't be on together, in the order given."""
    pairs = ((other, step) for index, step in enumerate(steps) for other in steps[:index])
    return next(((other, step) for other, step in pairs if excludes(other, step)), None)
