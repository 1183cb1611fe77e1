"""Designs that cross steps with each other: all combinations, a fraction of them, or the greedy path through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ablate.errors import Fault
from ablate.plan.arms import Arm, Contrast, baseline, conflict, crossed, difference, required
from ablate.plan.lattice import EMPTY, ROMAN, Cell, Weights, effect_weights, fraction, order_weights, subsets
from ablate.study.schema import Design, Step, Study
from ablate.study.words import listed

CROSS = " × "
SHAPLEY = "in any order"  # the rows of a factorial that hold a component's mean gain over all orders

# which of the candidates a greedy path goes on with from an arm; None as long as that is not known
Choose = Callable[[Arm, Sequence[Arm]], Arm | None]
Row = tuple[Arm | None, Contrast | None, Fault | None]


def nothing_chosen(_: Arm, __: Sequence[Arm]) -> Arm | None:
    return None


def factorial(study: Study, design: Design) -> Iterator[Row]:
    """Every combination of the steps that may be on together; main effects and interactions of two are tested.

    Interactions of three or more are estimated and have an interval, and so has each step's gain in any order.
    """
    steps = _crossed_steps(study, design)
    fault = _outside_fault(study, design, steps)
    if fault is not None:
        yield None, None, fault
        return
    arms = {cell: crossed(study, cell) for cell in subsets(each.name for each in steps) if _may_be(study, cell)}
    for arm in arms.values():
        yield arm, None, None
    for effect in (each for each in subsets(step.name for step in steps) if each):
        weights = effect_weights(effect, arms)
        if weights is None:
            if len(effect) == 1:
                yield None, None, _never_fault(study, study.step(next(iter(effect))))
            continue  # it applies nowhere; the table says which interactions can't be
        whole = len(weights) == 2 ** len(steps)
        note = "" if whole else f"over the {len(weights)} of {len(arms)} models in which it applies"
        names = _in_order(steps, effect)
        title = study.step(names[0]).label if len(names) == 1 else CROSS.join(names)
        tested = len(effect) <= 2
        yield None, _over_cells(design, CROSS.join(names), title, weights, arms, tested=tested, note=note), None
    for step in steps:
        weights = order_weights(step.name, arms)
        if weights is not None:
            yield None, _over_cells(design, f"{step.name} {SHAPLEY}", step.label, weights, arms, tested=False), None
    yield from _against_largest(design, list(arms.values()))


def fractional(study: Study, design: Design) -> Iterator[Row]:
    """A regular fraction of all combinations: each effect is summed with those that the row's title names."""
    steps = _crossed_steps(study, design)
    names = [step.name for step in steps]
    resolution = design.resolution or "IV"
    found = fraction(names, ROMAN.index(resolution))
    fault = _tied_fault(study, design, steps) or (_too_few_fault(study, design, names) if found is None else None)
    if fault is not None or found is None:
        yield None, None, fault
        return
    arms = {
        cell: crossed(study, cell) for cell in sorted(found.cells, key=lambda cell: (len(cell), _places(names, cell)))
    }
    for arm in arms.values():
        yield arm, None, None
    for effect in found.effects():
        title = " + ".join(letters(names, each) for each in (effect, *found.aliases(effect)))
        if len(effect) == 1:
            title = f"{study.step(next(iter(effect))).label} [{title}]"
        name = CROSS.join(_in_order(steps, effect))
        yield None, _over_cells(design, name, title, found.weights(effect), arms), None
    yield from _against_largest(design, list(arms.values()))


def greedy_path(study: Study, choose: Choose) -> Iterator[Row]:
    """From the baseline, at each step the one that helps most (Fawcett & Hoos 2016), until all are on.

    Rows come as far as the choices are known. They compare arms that were chosen for being good, so that what is
    reported of them has to be measured on other seeds.
    """
    current = baseline(study)
    yield current, None, None
    while True:
        on = frozenset(current.steps)
        cells = [on | {step.name} for step in study.trunk if step.name not in on]
        candidates = [crossed(study, cell) for cell in cells if _may_be(study, cell)]
        for arm in candidates:
            yield arm, None, None
        chosen = choose(current, candidates) if candidates else None
        if chosen is None:
            return
        added = study.step(next(iter(frozenset(chosen.steps) - on)))
        yield None, replace(difference("path", chosen, current), title=added.label), None
        current = chosen


def _against_largest(design: Design, arms: Sequence[Arm]) -> Iterator[Row]:
    """Each model less the one with the most steps, where there is one such: for the table of models, and not tested."""
    size = max(len(arm.steps) for arm in arms)
    largest = [arm for arm in arms if len(arm.steps) == size]
    for arm in arms if len(largest) == 1 else ():
        if arm is not largest[0]:
            yield None, replace(difference(design.name, arm, largest[0]), tested=False), None


def _crossed_steps(study: Study, design: Design) -> list[Step]:
    wanted = set(design.steps or (step.name for step in study.trunk))
    return [step for step in study.steps if step.name in wanted]


def _may_be(study: Study, cell: Cell) -> bool:
    """Tell whether these steps can be on together: each has what it requires, and none excludes another."""
    steps = [step for step in study.steps if step.name in cell]
    groups = [step.group for step in steps if step.group is not None]
    has_all = all(name in cell for step in steps for name in step.requires)
    return has_all and conflict(steps) is None and len(set(groups)) == len(groups)


def _over_cells(
    design: Design,
    name: str,
    title: str,
    weights: Weights,
    arms: dict[Cell, Arm],
    *,
    tested: bool = True,
    note: str = "",
) -> Contrast:
    by_arm = tuple((arms[cell].name, weight) for cell, weight in weights.items())
    return Contrast(design.name, name, by_arm, title=title, tested=tested, note=note)


def _in_order(steps: Sequence[Step], cell: Cell) -> list[str]:
    return [step.name for step in steps if step.name in cell]


def _places(names: Sequence[str], cell: Cell) -> list[int]:
    return [index for index, name in enumerate(names) if name in cell]


def letters(names: Sequence[str], cell: Cell) -> str:
    """Return a product of factors as textbooks write it: ``ABD``; the letter I stands for the mean, and is left out."""
    return "".join("ABCDEFGHJK"[index] for index in _places(names, cell)) if cell != EMPTY else "I"


def _outside_fault(study: Study, design: Design, steps: Sequence[Step]) -> Fault | None:
    inside = {step.name for step in steps}
    whole = inside.union(*({each.name for each in required(study, step)} for step in steps))
    for step in steps:
        outside = [name for name in step.requires if name not in inside]
        if outside:
            message = f"{design.name}: step `{step.name}` requires {listed(outside)}, which the design does not cross"
            hint = f"write `{design.name}: [{', '.join(step.name for step in study.steps if step.name in whole)}]`"
            return Fault(message, study.where_step(step.name), hint)
    return None


def _never_fault(study: Study, step: Step) -> Fault:
    """What conflicts was refused before: what is left are alternatives that a step requires together."""
    message = f"factorial: no combination can have `{step.name}`: it requires alternatives of one group"
    hint = "at most one of a group is on: require one of them, or give them no `group`"
    return Fault(message, study.where_step(step.name), hint)


def _tied_fault(study: Study, design: Design, steps: Sequence[Step]) -> Fault | None:
    """A fraction needs every combination to be possible: its effects are sums over cells that it chooses."""
    inside = {step.name for step in steps}
    groups: dict[str, str] = {}
    for step in steps:
        others = [name for name in (*step.requires, *step.conflicts) if name in inside or name in step.requires]
        if step.group is not None:
            others += [groups[step.group]] if step.group in groups else []
            groups.setdefault(step.group, step.name)
        if others:
            message = f"{design.name} can't cross `{step.name}` with {listed(others)}: not every combination can be"
            hint = f"take `{step.name}` out of the design, or take `factorial`: it leaves out what can't be"
            return Fault(message, study.where_step(step.name), hint)
    return None


def _too_few_fault(study: Study, design: Design, names: Sequence[str]) -> Fault:
    index = next(i for i, each in enumerate(study.designs) if each.name == design.name)
    message = f"no fraction of {len(names)} steps has resolution {design.resolution or 'IV, the default'}"
    # half of all combinations keep main effects apart from products of all the other steps
    hint = f"`resolution: {ROMAN[len(names)]}` is the highest for so few; `factorial` crosses them all"
    return Fault(message, study.where("designs", index), hint)
