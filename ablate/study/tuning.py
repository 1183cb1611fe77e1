"""What the schema can't see of ``tune`` and ``budget``: whether they fit the settings, the steps and the seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ablate.study.document import Flaw
from ablate.study.schema import MAX_CANDIDATES, Range, Study
from ablate.study.settings import as_found, brief, canonical, fits, get, kind, leaves
from ablate.study.words import did_you_mean, with_article


def tuning_flaws(study: Study, settings: dict[str, Any] | None) -> Iterator[Flaw]:
    """Yield the flaws of what is tuned. ``settings`` are those of the file, None where they can't be told."""
    if study.tune and study.budget is None:
        hint = "`budget: 16` tries 16 settings for every arm"
        yield Flaw(("tune",), "`tune` has no `budget`", hint)
    if study.budget and not study.tune:
        hint = "`tune: {train.lr: {low: 0.001, high: 1, log: true}}` says what it is for"
        yield Flaw(("budget",), "`budget` has nothing to tune", hint)
    for path, found in study.tune.items() if settings is not None else ():
        yield from _range_flaws(path, found, settings or {})
        yield from _step_flaws(study, path)
    if study.tune and study.budget:
        yield from _grid_flaws(study)
        yield from _seed_flaws(study)


def _range_flaws(path: str, found: Range, settings: dict[str, Any]) -> Iterator[Flaw]:
    place = ("tune", path)
    if path.rpartition(".")[2] == "seed":
        yield Flaw(place, f"`tune` can't search `{path}`", "seeds are replicates, the same in every arm: `seeds: 5`")
        return
    try:
        base = get(settings, path)
    except KeyError:
        yield Flaw(
            place, f"`tune` has `{path}`, which is not in the settings", did_you_mean(path, dict(leaves(settings)))
        )
        return
    if isinstance(base, dict):
        known = [f"{path}.{key}" for key in base]
        yield Flaw(place, f"`tune` has `{path}`, which is a group of settings", f"tune one of them: {', '.join(known)}")
        return
    for value in found.choices or (found.low, found.high):
        if value is None and base is not None:
            yield Flaw(place, f"`{path}` is {brief(base)} in the settings and null among the choices", "take null out")
        elif isinstance(value, dict) or not fits(base, value) or (type(base) is int and isinstance(value, float)):
            message = f"`{path}` takes {with_article(kind(base))}; {as_found(value)}"
            yield Flaw(place, message, f"the settings have {brief(base)}")
            return
    if found.choices:
        if len({canonical(value) for value in found.choices}) < max(2, len(found.choices)):
            yield Flaw(place, f"`{path}` takes two or more choices, each of them once")
        return
    assert found.low is not None
    assert found.high is not None
    if found.low >= found.high:
        yield Flaw(place, f"`{path}` runs from {found.low:g} to {found.high:g}", "`low` is less than `high`")
    elif found.log and found.low <= 0:
        hint = "the logarithm has no zero: begin at a small number such as 0.0001"
        yield Flaw(place, f"`{path}` begins at {found.low:g} and is searched in the logarithm", hint)
    elif found.step is not None and found.step > found.high - found.low:
        yield Flaw(place, f"`{path}` has a step of {found.step:g}, which leaves the range", "take a smaller one")
    elif type(base) is int and isinstance(found.step, float):
        yield Flaw(place, f"`{path}` is an integer, its step {found.step:g} is not", f"the settings have {brief(base)}")


def _step_flaws(study: Study, path: str) -> Iterator[Flaw]:
    for index, step in enumerate(study.steps):
        if path in step.set:
            hint = "what is under study is not tuned, and what is tuned is no step: take it out of one of the two"
            message = f"step `{step.name}` sets `{path}`, which is tuned for every arm"
            yield Flaw(("steps", index, "set", path), message, hint)


def _grid_flaws(study: Study) -> Iterator[Flaw]:
    budget = study.budget
    if budget is None or budget.sampler != "grid":
        return
    for path, found in study.tune.items():
        if found.size() is None:
            hint = "give it a `step`, or `choices`; or take `sampler: qmc`"
            yield Flaw(("tune", path), f"`{path}` has no points for a grid", hint)
            return
    size = study.model_copy(update={"budget": budget.model_copy(update={"candidates": None})}).candidates
    if budget.candidates not in (None, size):
        hint = f"leave the number out, write {size:,}, or take `sampler: tpe`"
        yield Flaw(("budget",), f"the grid has {size:,} points, the budget {budget.candidates:,}", hint)
    elif size > MAX_CANDIDATES:
        hint = "take fewer points, or `sampler: tpe`"
        yield Flaw(("budget",), f"the grid has {size:,} points; a budget has at most {MAX_CANDIDATES:,}", hint)


def _seed_flaws(study: Study) -> Iterator[Flaw]:
    for word, seeds in (("seeds", study.seeds.numbers), ("confirm_seeds", study.fresh_seeds)):
        shared = sorted(set(seeds) & set(study.tuning_seeds))
        if shared:
            hint = "seeds that chose the settings can't measure them: name others, or a count like `seeds: 2`"
            yield Flaw(("budget",), f"seed {shared[0]} stands under `{word}` and under `budget`", hint)
            return
