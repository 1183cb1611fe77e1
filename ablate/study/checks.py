"""What the schema can't see: whether the parts of a study fit each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ablate.study.command import command_flaws
from ablate.study.document import Flaw, Place
from ablate.study.schema import BASELINE, FULL, MAX_STEPS, Design, Step, Study, step_of
from ablate.study.settings import as_found, brief, fits, get, kind, leaves
from ablate.study.tuning import tuning_flaws
from ablate.study.words import did_you_mean, listed, with_article


@dataclass(frozen=True)
class Declared:
    """What the file declares, broken parts included; None where that can't be told, and so nothing is judged by it."""

    settings: dict[str, Any] | None
    steps: list[str] | None
    metrics: list[str] | None
    deleted: frozenset[str]  # steps that the profile takes out
    complete: bool  # no step of the file was refused


def flaws_in(study: Study, declared: Declared) -> Iterator[Flaw]:
    """Yield the flaws of a study whose broken parts were taken out."""
    yield from _metric_flaws(study)
    if declared.settings is not None:
        yield from _key_flaws(declared.settings, ("settings",))
    yield from _step_flaws(study, declared)
    yield from _conflict_flaws(study)
    yield from _group_flaws(study)
    yield from _design_flaws(study, declared)
    yield from _seed_flaws(study)
    yield from tuning_flaws(study, declared.settings)
    yield from _analysis_flaws(study)
    yield from _fuse_flaws(study)
    yield from _per_gpu_flaws(study)
    yield from _compile_flaws(study)
    if study.task.command is not None and declared.settings is not None:
        yield from command_flaws(study, declared.metrics)
    yield from _reference_flaws(study, declared)
    yield from _assumed_flaws(study, declared)


def _metric_flaws(study: Study) -> Iterator[Flaw]:
    for name in study.metrics:
        if name in ("epoch", "seed"):
            yield Flaw(("metrics", name), f"a metric can't be called `{name}`", "this word is a column of every table")
    for name, metric in study.metrics.items():
        if metric.margin is not None and name != study.primary:
            message = f"`margin` of `{name}`, which is not the primary metric"
            hint = (
                f"only `{study.primary}`, the first metric, has verdicts: take the margin out, or make this one first"
            )
            yield Flaw(("metrics", name, "margin"), message, hint)


def _key_flaws(group: dict[str, Any], place: Place) -> Iterator[Flaw]:
    for key, value in group.items():
        here = (*place, key)
        if not key.strip():
            yield Flaw(here, "a setting without a name")
        elif "." in key:
            yield Flaw(here, f"the key `{key}` holds a dot", f"nest it: `{_nested(key)}`")
        if isinstance(value, dict):
            yield from _key_flaws(value, here)


def _nested(key: str) -> str:
    group, _, rest = key.partition(".")
    return f"{group}: {{{rest}: …}}" if "." not in rest else f"{group}: {{{_nested(rest)}}}"


# --- steps ---------------------------------------------------------------------------------------------------------


def _step_flaws(study: Study, declared: Declared) -> Iterator[Flaw]:
    first: dict[str, int] = {}
    types = {path: (value, "the settings have") for path, value in leaves(declared.settings or {})}
    for index, step in enumerate(study.steps):
        place = ("steps", index)
        if step.name in (BASELINE, FULL):
            yield Flaw(place, f"a step can't be called `{step.name}`", "this word names an arm of every study")
        elif _is_row(step.name):
            hint = "tables have rows, and designs have arms, that are called so; rename the step"
            yield Flaw(place, f"a step can't be called `{step.name}`", hint)
        elif step.name in first:
            line = study.where("steps", first[step.name])
            yield Flaw(place, f"the step `{step.name}` stands twice", f"the first is at {line}; rename one of them")
        yield from _order_flaws(study, step, place, declared)
        if declared.settings is not None:
            for path, value in step.set.items():
                yield from _value_flaws(step, path, value, (*place, "set", path), declared.settings, types)
        first.setdefault(step.name, index)


def _is_row(name: str) -> bool:
    return name in ("total", "remainder") or name.startswith(("only-", "without-"))


def _order_flaws(study: Study, step: Step, place: Place, declared: Declared) -> Iterator[Flaw]:
    names = declared.steps
    mentions = [("from", step.from_)] if step.from_ not in (None, BASELINE) else []
    mentions += [("requires", name) for name in dict.fromkeys(step.requires)]
    mentions += [("conflicts", name) for name in dict.fromkeys(step.conflicts)]
    for key, name in mentions:
        verb = {"from": "is built from", "conflicts": "conflicts with"}.get(key, key)
        message, here = f"step `{step.name}` {verb} {brief(name)}", (*place, key)
        if name == step.name:
            which = "another step" if key == "conflicts" else "a step above it"
            yield Flaw(here, f"step `{step.name}` {verb} itself", f"name {which}, or take this out")
        elif names is None:
            continue
        elif name in declared.deleted:
            hint = f"delete `{step.name}` as well, or its `{key}`"
            yield Flaw(here, f"{message}, which the profile `{study.profile}` deletes", hint)
        elif name not in names:
            known = [BASELINE] * (key == "from") + [each for each in names if each != step.name]
            yield Flaw(here, f"{message}, which is no step", did_you_mean(str(name), known))
        elif key != "conflicts" and names.index(str(name)) > names.index(step.name):
            yield Flaw(here, f"{message}, which stands below it", "a step builds on those above: move one of the two")
    for key, verb, others in (("requires", "requires", step.requires), ("conflicts", "conflicts with", step.conflicts)):
        if len(set(others)) < len(others):
            yield Flaw((*place, key), f"step `{step.name}` {verb} the same step twice", "name it once")


def _value_flaws(
    step: Step, path: str, value: Any, place: Place, settings: dict[str, Any], types: dict[str, tuple[Any, str]]
) -> Iterator[Flaw]:
    """Check one path of a step. ``types`` has the value that a setting's type is known by, and where it stands.

    A setting declared with null learns its type here, from the first step that gives it a value.
    """
    name = f"step `{step.name}`"
    if path.rpartition(".")[2] == "seed":
        yield Flaw(place, f"{name} can't set `{path}`", "seeds are replicates, the same in every arm: `seeds: 5`")
        return
    try:
        base = get(settings, path)
    except KeyError:
        meant = did_you_mean(path, types)
        stop = "" if meant.endswith("?") else "."
        hint = f"{meant}{stop} Or declare it in the settings, with null if it has no value yet"
        if path in types:
            hint = "there it is one key that holds a dot: nest it"
        yield Flaw(place, f"{name} sets `{path}`, which is not in the settings", hint)
        return
    if isinstance(base, dict):
        known = [f"{path}.{key}" for key in base]
        hint = f"set one of its settings: {', '.join(known)}" if known else "it is empty: declare its settings first"
        if isinstance(value, dict) and value:
            hint = f"write its settings with dots: `{path}.{next(iter(value))}: …`"
        yield Flaw(place, f"{name} sets `{path}`, which is a group of settings", hint)
        return
    typical, origin = types[path]
    if isinstance(value, dict):
        yield Flaw(place, f"{name} sets `{path}` to a mapping", "a step sets single values: one line for each setting")
    elif value is None and base is not None:
        hint = "to allow null, declare the setting with null and give it its value in a step"
        yield Flaw(place, f"{name} sets `{path}` to null; the settings have {brief(base)}", hint)
    elif value is not None and not fits(typical, value):
        message = f"{name}: `{path}` takes {with_article(kind(typical))}; {as_found(value)}"
        yield Flaw(place, message, f"{origin} {brief(typical)}")
    elif typical is None and value is not None:
        types[path] = (value, f"{name} gives it")


def _conflict_flaws(study: Study) -> Iterator[Flaw]:
    """Find steps that no arm can have, because what they require can't be on together."""
    excluded = {frozenset((step.name, name)) for step in study.steps for name in step.conflicts if name != step.name}
    needs: dict[str, set[str]] = {}
    for index, step in enumerate(study.steps):
        above = [needs.get(name, {name}) for name in step.requires]
        needs[step.name] = {step.name}.union(*above)
        clash = next((pair for pair in excluded if pair <= needs[step.name]), None)
        others = [other.name for other in study.steps if clash and other.name in clash and other is not step]
        if clash is None or not others or any(clash <= each for each in above):
            continue  # the last, and a step that is not there, have flaws of their own
        tail = "which it conflicts with" if step.name in clash else "which conflict with each other"
        message = f"step `{step.name}` requires {listed(others)}, {tail}"
        yield Flaw(("steps", index, "requires"), message, "no arm can have this step: take one of the two out")


def _group_flaws(study: Study) -> Iterator[Flaw]:
    built_upon: dict[str, str] = {}
    for index, step in enumerate(study.steps):
        if step.group is None or step.branch:
            continue
        first = built_upon.setdefault(step.group, step.name)
        if first != step.name:
            message = (
                f"`{first}` and `{step.name}` are alternatives of the group `{step.group}`, and both are built upon"
            )
            yield Flaw(("steps", index), message, "give all but one of them `branch: true`")


# --- the rest ------------------------------------------------------------------------------------------------------


def _design_flaws(study: Study, declared: Declared) -> Iterator[Flaw]:
    names = [design.name for design in study.designs]
    for index, design in enumerate(study.designs):
        place = ("designs", index)
        if design.name in names[:index]:
            yield Flaw(place, f"the design `{design.name}` stands twice", "name it once")
        named = dict.fromkeys((*design.except_, *design.steps))
        wrong = list(_named_step_flaws(study, declared, design, named, place))
        yield from wrong
        if not wrong:
            yield from _size_flaws(study, design, place, complete=declared.complete)


def _named_step_flaws(
    study: Study, declared: Declared, design: Design, named: Iterable[str], place: Place
) -> Iterator[Flaw]:
    branches = {step.name for step in study.steps if step.branch}
    word = "except" if design.except_ else design.name
    if len(set(design.steps)) < len(design.steps):
        yield Flaw(place, f"`{design.name}` names a step twice", "name it once")
    for name in named:
        if declared.steps is not None and name not in declared.steps:
            yield Flaw(place, f"`{word}` names {brief(name)}, which is no step", did_you_mean(name, declared.steps))
        elif name in branches and design.except_:
            yield Flaw(place, f"`except` names `{name}`, a branch, which the full model never has", "take it out")


def _size_flaws(study: Study, design: Design, place: Place, *, complete: bool) -> Iterator[Flaw]:
    """Find designs that have too few steps to say anything, or so many that no machine would end."""
    trunk = [step.name for step in study.trunk]
    crossed = len(design.steps or trunk)
    if complete and design.name == "leave-one-out" and not set(trunk) - set(design.except_):
        hint = "it removes each step that is no branch and not under `except`"
        yield Flaw(place, "leave-one-out has no step to remove", hint)
    least, most = CROSSED.get(design.name, (0, MAX_STEPS))
    if complete and crossed < least:
        message = f"{design.name} takes {least} steps or more; here {'is' if crossed == 1 else 'are'} {crossed}"
        yield Flaw(place, message, _size_hint(study, design, least))
    if crossed > most:  # even if some were refused: nothing may be made of so many
        message = f"{design.name} takes at most {most} steps; here are {crossed}"
        yield Flaw(place, message, _size_hint(study, design, most))


def _size_hint(study: Study, design: Design, size: int) -> str:
    """Return how to come to a design of this size from one that is too small or too large."""
    names = list(dict.fromkeys((*design.steps, *(step.name for step in study.steps))))
    if design.name == "path":
        return "steps with `branch: true` do not count: no path takes them"
    if len(names) < size:
        smaller = "factorial" if design.name == "fractional" and len(names) > 1 else "one-at-a-time"
        return f"for so few steps take `{smaller}`"
    return f"name {size} of them: `{design.name}: [{', '.join(names[:size])}]`"


# the least and the most steps that a design crosses; a path of K steps tries up to K(K+1)/2 arms
CROSSED = {"factorial": (2, 8), "fractional": (3, 10), "path": (2, 30)}


_BEYOND_HINT = "a count goes on from the largest seed of `seeds`: name them as a list instead"


def _seed_flaws(study: Study) -> Iterator[Flaw]:
    path = any(design.name == "path" for design in study.designs)
    if not study.seeds.are_fixed and (path or study.confirm_seeds is not None):
        what = "`confirm_seeds`" if study.confirm_seeds is not None else "the design `path`"
        hint = "write `seeds: 5`: what chooses and what confirms are two sets of seeds, each fixed beforehand"
        yield Flaw(("seeds",), f"{what} goes with a fixed number of seeds", hint)
    if study.seeds.half_width and study.analysis.pairing == "none":
        hint = "the spread of a pilot's differences needs pairs: take `pairing: none` out"
        yield Flaw(("seeds",), "`mode: precision` goes with `pairing: seed`", hint)
    shared = sorted(set(study.fresh_seeds) & set(study.seeds.numbers))
    if shared:
        hint = "seeds that chose can't confirm: name others, or a count like `confirm_seeds: 5`"
        yield Flaw(("confirm_seeds",), f"seed {shared[0]} stands under `seeds` and under `confirm_seeds`", hint)
    if max(study.fresh_seeds, default=0) >= 1 << 31:
        yield Flaw(("confirm_seeds",), "`confirm_seeds` goes beyond seed 2147483647", _BEYOND_HINT)


def _analysis_flaws(study: Study) -> Iterator[Flaw]:
    if study.analysis.scope == "population" and study.analysis.pairing == "none":
        hint = "examples are compared pair by pair: take `pairing: none` out"
        yield Flaw(("analysis", "pairing"), "`scope: population` goes with `pairing: seed`", hint)
    if study.analysis.scope == "population" and not study.seeds.are_fixed:
        hint = "the adaptive rules look at seeds alone: write `seeds: 5`, or leave `scope` out"
        yield Flaw(("analysis", "scope"), "`scope: population` goes with a fixed number of seeds", hint)


def _fuse_flaws(study: Study) -> Iterator[Flaw]:
    place = ("execution", "fuse")
    if study.execution.fuse == 1:
        return
    if study.task.command is not None:
        hint = "take `fuse` out, or write the task as a function that calls train_classifier"
        yield Flaw(place, "a command trains one seed at a time, so its seeds can't be fused", hint)
    if study.tune:
        hint = "take `fuse` out: a candidate of `tune` has few seeds, and may be ended by itself"
        yield Flaw(place, "`fuse` does not go with `tune`", hint)


def _per_gpu_flaws(study: Study) -> Iterator[Flaw]:
    place, asked = ("resources", "per_gpu"), study.resources
    if asked.per_gpu == 1:
        return
    if asked.gpus != 1:
        has = f"has {asked.gpus}" if asked.gpus else "has none"
        hint = "write `gpus: 1` beside it, or `per_gpu: 1`"
        yield Flaw(place, f"`per_gpu` shares one GPU among trials, and a trial of this study {has}", hint)
    if asked.per_gpu == "auto" and study.task.command is not None:
        hint = "write a number, or the task as a function that calls train_classifier"
        yield Flaw(place, "`per_gpu: auto` times iterations, and those of a command are not seen", hint)


def _compile_flaws(study: Study) -> Iterator[Flaw]:
    asked = [key for key in ("compile", "graphs") if getattr(study.execution, key)]
    for key in asked:
        if study.task.command is not None:
            hint = f"take `{key}` out, or write the task as a function"
            yield Flaw(("execution", key), f"a command computes in its own way, so `{key}` would change nothing", hint)
    if study.execution.graphs and not study.resources.gpus:
        hint = "take `graphs` out, or write `resources: {gpus: 1}`"
        yield Flaw(("execution", "graphs"), "`graphs` are CUDA graphs, and `resources.gpus` is 0", hint)
    if asked and study.execution.fuse == "auto":
        hint = f"write a number, such as `fuse: 4`, or take `{asked[0]}` out"
        yield Flaw(("execution", "fuse"), f"`fuse: auto` measures networks without `{asked[0]}`", hint)
    if asked and study.resources.per_gpu == "auto":
        hint = f"write a number, such as `per_gpu: 2`, or take `{asked[0]}` out"
        yield Flaw(("resources", "per_gpu"), f"`per_gpu: auto` measures networks without `{asked[0]}`", hint)


def _reference_flaws(study: Study, declared: Declared) -> Iterator[Flaw]:
    for metric, figures in (study.reference.values if study.reference else {}).items():
        place = ("reference", "values", metric)
        if declared.metrics is not None and metric not in declared.metrics:
            hint = did_you_mean(metric, declared.metrics)
            yield Flaw(place, f"`reference` has figures for `{metric}`, which is no metric of the study", hint)
        for arm in figures if declared.steps is not None else ():
            if not _is_arm(arm, declared.steps or []):
                hint = did_you_mean(arm, _arms(study, declared.steps or []))
                yield Flaw((*place, arm), f"`reference` has a figure for `{arm}`, which is no arm of the study", hint)


def _assumed_flaws(study: Study, declared: Declared) -> Iterator[Flaw]:
    if declared.steps is None or declared.settings is None:
        return
    for word in study.assumed:
        if not _is_arm(word, declared.steps) and not _is_path(word, declared.settings):
            known = [*(path for path, _ in leaves(declared.settings)), *declared.settings, *declared.steps]
            message = f"`assumed` is about `{word}`, which is neither a setting nor an arm"
            yield Flaw(("assumed", word), message, did_you_mean(word, known))


def _is_arm(word: str, steps: list[str]) -> bool:
    """Tell whether some design of these steps has an arm of this name: a profile or ``--set`` may choose another."""
    return word in (BASELINE, FULL) or word in steps or all(each in steps for each in step_of(word).split("+"))


def _arms(study: Study, steps: list[str]) -> list[str]:
    prefixes = {"ladder": "", "leave-one-out": "without-"}
    return [BASELINE, FULL, *(prefixes.get(design.name, "only-") + step for design in study.designs for step in steps)]


def _is_path(word: str, settings: dict[str, Any]) -> bool:
    try:
        get(settings, word)
    except KeyError:
        return False
    return True
