"""A plan: arms × seeds as trials, each known by its content.

Plans are ask and tell: ``make_plan`` is told what became of trials and asks for all that is wanted by then. Told
nothing, it asks for what every study begins with. The same facts give the same plan, whoever asks, in whatever order
they came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from ablate.errors import AblateError, Fault, StudyError
from ablate.plan.arms import Arm, Contrast
from ablate.plan.designs import Expansion, expand_designs
from ablate.plan.outcomes import SETTLED, Told, scored
from ablate.plan.replication import Reached, replicate
from ablate.plan.tuning import Tuned, tune
from ablate.study.document import Document, read_document
from ablate.study.reading import profiles_of, sorted_faults, study_from
from ablate.study.schema import Execution, Role, Study
from ablate.study.settings import Settings, canonical, patched
from ablate.study.words import did_you_mean

MAX_TRIALS = 100_000
UNTOLD: Mapping[str, Told] = {}

Frozen = Mapping[str, Any]  # what ``Plan.frozen`` gives, as it is kept


@dataclass(frozen=True)
class Trial:
    """One arm × one seed: the unit of work and of statistics. Known by its fingerprint, wherever it stands."""

    fingerprint: str
    settings: Settings = field(repr=False)
    seed: int


@dataclass(frozen=True)
class Replicate:
    """The place of a trial in a study: which arm, which seed, and for what (``main``, ``confirm`` or ``tune``).

    ``candidate``: of a trial that tunes, the place of its settings among those tried for the arm, from 1.
    """

    arm: str
    seed: int
    trial: Trial
    role: Role = "main"
    candidate: int | None = None


@dataclass(frozen=True)
class Plan:
    """All that a study asks for.

    ``seeds`` are those that each arm is asked for, by arm and role. ``rows`` are the arms of each design. ``reached``:
    under ``seeds: {looks: …}``, how far each comparison (by key) is. ``tuned``: where something is tuned, how far that
    is for each arm. ``fusing``: what ``fuse: auto`` has come to, and by which numbers; ``sharing``: likewise of
    ``per_gpu: auto``.
    """

    study: Study
    arms: tuple[Arm, ...]
    contrasts: tuple[Contrast, ...]
    seeds: Mapping[tuple[str, Role], Collection[int]] = field(default_factory=dict)
    rows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reached: Mapping[str, Reached] = field(default_factory=dict)
    tuned: Mapping[str, Tuned] = field(default_factory=dict)
    fusing: Mapping[str, Any] = field(default_factory=dict)
    sharing: Mapping[str, Any] = field(default_factory=dict)

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def parent(self, name: str) -> str | None:
        """Return what an arm is compared with in the first design that has a row for it."""
        return next((c.other for c in self.contrasts if c.arm == name), None)

    @cached_property
    def replicates(self) -> tuple[Replicate, ...]:
        """The trials in the order in which they are run: seed by seed, so that early results are paired.

        Those that tune come before all others. Listed when first asked for: 100,000 fingerprints take a while, and a
        report needs none of them.
        """
        return tuple(_replicates(self))

    def trials(self) -> dict[str, Trial]:
        """Return the distinct trials by fingerprint; rows that two designs share are one."""
        return {replicate.trial.fingerprint: replicate.trial for replicate in self.replicates}

    def restricted(self, arms: Collection[str] | None) -> Plan:
        """Return the plan with the trials of these arms only (None: of all); its comparisons stay declared."""
        if arms is None:
            return self
        return replace(self, seeds={(arm, role): seeds for (arm, role), seeds in self.seeds.items() if arm in arms})

    def fused(self, fusing: Mapping[str, Any]) -> Plan:
        """Return the plan with what ``fuse: auto`` has come to: ``fuse``, and by which numbers."""
        execution = self.study.execution.model_copy(update={"fuse": fusing["fuse"]})
        return replace(self, study=self.study.model_copy(update={"execution": execution}), fusing=fusing)

    def shared(self, sharing: Mapping[str, Any]) -> Plan:
        """Return the plan with what ``per_gpu: auto`` has come to: ``per_gpu``, and by which numbers."""
        resources = self.study.resources.model_copy(update={"per_gpu": sharing["per_gpu"]})
        return replace(self, study=self.study.model_copy(update={"resources": resources}), sharing=sharing)

    def settled(self) -> Plan:
        """Return the plan itself. Raises AblateError where an ``auto`` has come to nothing yet."""
        execution, resources = self.study.execution, self.study.resources
        for section, key, value in (("execution", "fuse", execution.fuse), ("resources", "per_gpu", resources.per_gpu)):
            if value == "auto":
                raise AblateError(
                    f"`{key}: auto` has not been measured yet: that is done where the study first runs",
                    where=self.study.where(section, key),
                    hint="write a number, or `ablate run` it here once: what it chooses is kept",
                )
        return self

    def key(self, contrast: Contrast) -> str:
        """Return what a comparison is known by, in whichever design or version of the study it stands.

        Two rows that compare the same settings, be it the other way round, are one comparison. A path's rows are known
        by their place, for which arms stand there is not decided when the plan is frozen.
        """
        return self._keys[contrast.design, contrast.name]

    @cached_property
    def _keys(self) -> Mapping[tuple[str, str], str]:
        """The key of every contrast by design and name: hashed once, for analyses ask again and again."""
        settings = {arm.name: _sha256(canonical(arm.settings)) for arm in self.arms}
        path = [contrast for contrast in self.contrasts if contrast.design == "path"]
        keys = {("path", contrast.name): _path_key(self.study, place) for place, contrast in enumerate(path)}
        for contrast in self.contrasts:
            cells = sorted((settings[arm], round(weight, 12)) for arm, weight in contrast.weights)
            opposite = [(name, -weight) for name, weight in cells]
            key = _sha256(min(canonical(cells), canonical(opposite)))[:16]
            keys.setdefault((contrast.design, contrast.name), key)
        return keys

    @cached_property
    def family(self) -> Mapping[str, Contrast | None]:
        """The comparisons that are tested, by key; None for the rows of a path that are not chosen yet."""
        found: dict[str, Contrast | None] = {}
        for contrast in self.contrasts:
            if contrast.tested and contrast.design != "path":
                found.setdefault(self.key(contrast), contrast)
        if "path" in self.rows:  # last: the order is the same, however many are chosen by now
            chosen = {self.key(contrast): contrast for contrast in self.contrasts if contrast.design == "path"}
            keys = [_path_key(self.study, place) for place in range(len(self.study.trunk))]
            found |= {key: chosen.get(key) for key in keys}
        return found

    def withdrawn(self, others: Iterable[Frozen]) -> int:
        """Count the comparisons of other versions' frozen plans that this one no longer has."""
        return len({key for frozen in others for key in self.keys_of(frozen)} - self.family.keys())

    def keys_of(self, frozen: Frozen) -> set[str]:
        """Return the comparisons of a frozen plan. Before schema 2 they had no keys: there, arms go by their names."""
        names = {(c.design, c.minuend, c.subtrahend): self.key(c) for c in self.contrasts if len(c.weights) == 2}
        return {
            each["key"] if isinstance(each, dict) else names.get(tuple(each), "/".join(each))
            for each in frozen["contrasts"]
        }

    def frozen(self) -> dict[str, Any]:
        """Return what is fixed before the first trial runs: the comparisons and how they are made."""
        metric = self.study.metrics[self.study.primary]
        tuned = self.study.model_dump(mode="json", include={"tune", "budget"})
        return {
            **tuned,  # nothing where nothing is tuned
            **({"fusing": dict(self.fusing)} if self.fusing else {}),
            **({"sharing": dict(self.sharing)} if self.sharing else {}),
            "primary": self.study.primary,
            "goal": metric.goal,
            "margin": metric.margin,
            "on_diverged": metric.on_diverged,
            "on_oom": metric.on_oom,
            "analysis": self.study.analysis.model_dump(mode="json"),
            "seeds": self.study.seeds.model_dump(mode="json"),
            "confirm_seeds": list(self.study.fresh_seeds),
            "numbers": [*self.study.tuning_seeds, *self.study.seeds.numbers, *self.study.fresh_seeds],
            "contrasts": [
                {"key": key, "design": "path", "name": f"step {key.rpartition('-')[2]} of the path"}
                if contrast is None or contrast.design == "path"
                else {"key": key, "design": contrast.design, "name": contrast.name, "arms": dict(contrast.weights)}
                for key, contrast in self.family.items()
            ],
        }


def open_plan(
    path: str | Path,
    *,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Plan:
    """Read a study and expand it, as ``plan_from`` does."""
    plan = plan_from(read_document(path), profile=profile, overrides=overrides)
    return only_arms(plan, only) if only else plan


def plan_from(read: Document, *, profile: str | None = None, overrides: Sequence[str] = ()) -> Plan:
    """Expand what is declared. Raises StudyError with all its faults, those of the designs included."""
    study, faults = study_from(read, profile=profile, overrides=overrides)
    if study is None:
        raise StudyError(sorted_faults(faults))
    plan, found = _expanded(study)
    if faults or plan is None:
        raise StudyError(sorted_faults([*faults, *found]))
    return plan


def plans_of(path: str | Path) -> tuple[list[Plan], list[Fault]]:
    """Return the plans of a file, without and with each of its profiles, and all faults that stand in their way."""
    plans: list[Plan] = []
    faults: list[Fault] = []
    try:
        profiles = profiles_of(path)
    except StudyError as error:
        return [], list(error.faults)
    for profile in (None, *profiles):
        try:
            plans.append(open_plan(path, profile=profile))
        except StudyError as error:
            for fault in error.faults:
                # a fault of the file itself is met again with each profile
                if (fault.where, fault.message) not in {(known.where, known.message) for known in faults}:
                    told = f"{fault.message} (with the profile `{profile}`)" if profile else fault.message
                    faults.append(replace(fault, message=told))
    return plans, sorted_faults(faults)


def make_plan(study: Study, told: Mapping[str, Told] = UNTOLD, earlier: Sequence[Frozen] = ()) -> Plan:
    """Expand a study that is known to be sound, as far as what is ``told`` of trials (by fingerprint) leads.

    ``earlier`` are the frozen plans of its other versions, whose comparisons are corrected for as well. Raises
    StudyError with the faults of its designs.
    """
    plan, faults = _expanded(study, told, earlier)
    if plan is None:
        raise StudyError(faults)
    return plan


def fingerprint(study: Study, settings: Settings, seed: int) -> str:
    """Return the identity of a trial: SHA-256 of what is declared about it, in hexadecimal.

    Fields of ``execution`` at their default are left out, so that a later version may add one without new identities.
    """
    return _identity(study, settings).at(seed)


def fingerprint_of(*, settings: Settings, seed: int, task: str, execution: Mapping[str, Any], gpus: float) -> str:
    """Return the identity of a trial from what a store keeps of it."""
    return _identity_of(settings, task, Execution(**execution), gpus).at(seed)


@dataclass(frozen=True)
class _Identity:
    """What an arm's trials have in common: the canonical text of their content up to the seed, and from there on."""

    before: str
    after: str

    def at(self, seed: int) -> str:
        return _sha256(f"{self.before}{seed}{self.after}")


def _identity(study: Study, settings: Settings) -> _Identity:
    return _identity_of(settings, str(study.task), study.execution, study.resources.gpus)


def _identity_of(settings: Settings, task: str, execution: Execution, gpus: float) -> _Identity:
    # in the order of canonical text, "device", "execution", "seed", "settings", "task": the seed is between two parts
    chosen = execution.model_dump(mode="json", exclude_defaults=True)
    kind = "cuda" if gpus else "cpu"
    # how many take part changes what is computed: each has its share of a batch
    device = canonical({"device": kind if gpus <= 1 else f"{gpus:g} {kind}", "execution": chosen})
    content = canonical({"settings": settings, "task": task})
    return _Identity(f'{device[:-1]},"seed":', f",{content[1:]}")


def _expanded(
    study: Study, told: Mapping[str, Told] = UNTOLD, earlier: Sequence[Frozen] = ()
) -> tuple[Plan | None, list[Fault]]:
    """Return the plan, or None and the faults of the designs."""
    tell = _Teller(study, told)
    expansion = expand_designs(study, lambda current, candidates: _best_of(study, tell, current, candidates))
    faults = list(expansion.faults)
    most = len(study.seeds.numbers) + len(study.fresh_seeds)
    each = most + study.candidates * len(study.tuning_seeds)
    count = len(expansion.arms) * each
    if count > MAX_TRIALS:
        of_one = f"{each:,} trials with those that tune" if study.tune else f"{most:,} seeds"
        message = f"{len(expansion.arms):,} arms × {of_one} are {count:,} trials"
        faults.append(Fault(message, study.where("seeds"), f"a study has at most {MAX_TRIALS:,}"))
    if faults:
        return None, faults
    plan = Plan(study, expansion.arms, expansion.contrasts, rows=expansion.by_design)
    family = plan.family
    tested = {key: contrast for key, contrast in family.items() if contrast is not None}
    tell.arms = {arm.name: arm for arm in plan.arms}
    size = len(family) + plan.withdrawn(earlier)
    given = replicate(study, [arm.name for arm in plan.arms], tested, tell, family=size)
    settings = {arm.name: canonical(arm.settings) for arm in plan.arms}
    widest: dict[str, set[int]] = {}
    for name, seeds in given.seeds.items():  # equal settings are the same trials, under whatever names
        widest.setdefault(settings[name], set()).update(seeds)
    tuned = {arm.name: tell.tuned(arm) for arm in plan.arms} if study.tune else {}
    ready = [arm.name for arm in plan.arms if not study.tune or tuned[arm.name].chosen is not None]
    confirmed = _confirmed(study, expansion, tell)
    asked: dict[tuple[str, Role], Collection[int]] = {(name, "tune"): study.tuning_seeds for name in tuned}
    asked |= {(name, "main"): widest[settings[name]] for name in ready}
    asked |= {(name, "confirm"): study.fresh_seeds for name in ready if name in confirmed}
    return replace(plan, seeds=asked, reached=given.reached, tuned=tuned), []


def _replicates(plan: Plan) -> Iterator[Replicate]:
    """Yield the trials that tune, the first candidate of every arm first, and then the others, seed by seed."""
    study = plan.study
    for index in range(max((len(each.candidates) for each in plan.tuned.values()), default=0)):
        for arm in plan.arms:
            for candidate in plan.tuned[arm.name].candidates[index : index + 1]:
                settings = patched(arm.settings, candidate)
                for seed in plan.seeds.get((arm.name, "tune"), ()):
                    yield Replicate(arm.name, seed, _trial(study, settings, seed), "tune", index + 1)
    of_arm = _Trials(study, lambda arm: plan.tuned[arm.name])
    roles: Mapping[Role, Sequence[int]] = {"main": study.seeds.numbers, "confirm": study.fresh_seeds}
    for role, seeds in roles.items():
        for seed in seeds:
            for arm in plan.arms:
                if seed in plan.seeds.get((arm.name, role), ()):
                    yield Replicate(arm.name, seed, of_arm.at(arm, seed), role)


def _trial(study: Study, settings: Settings, seed: int) -> Trial:
    return Trial(fingerprint(study, settings, seed), settings, seed)


class _Trials:
    """Makes the trials of arms, with the settings that tuning chose; what they have in common is made once per arm."""

    def __init__(self, study: Study, tuned: Callable[[Arm], Tuned]) -> None:
        self._study = study
        self._tuned = tuned
        self._of_arm: dict[str, tuple[Settings, _Identity]] = {}

    def at(self, arm: Arm, seed: int) -> Trial:
        if arm.name not in self._of_arm:
            chosen = self._tuned(arm).chosen if self._study.tune else None
            settings = patched(arm.settings, chosen or {})
            self._of_arm[arm.name] = settings, _identity(self._study, settings)
        settings, identity = self._of_arm[arm.name]
        return Trial(identity.at(seed), settings, seed)


class _Teller:
    """Finds what is told of an arm's trials."""

    def __init__(self, study: Study, told: Mapping[str, Told]) -> None:
        self.arms: dict[str, Arm] = {}
        self._study = study
        self._told = told
        self._trials = _Trials(study, self.tuned)
        self._tuned: dict[str, Tuned] = {}

    def __call__(self, arm: str, seeds: Sequence[int]) -> dict[int, Told]:
        if self._study.tune and self.tuned(self.arms[arm]).chosen is None:
            # what can't be run: not asked for yet, or for ever without a value
            return dict.fromkeys(seeds, Told("failed" if self.tuned(self.arms[arm]).is_complete else "waiting"))
        return {seed: self._what_of(self._trials.at(self.arms[arm], seed)) for seed in seeds}

    def tuned(self, arm: Arm) -> Tuned:
        """Return how far the tuning of an arm is."""
        if arm.name not in self._tuned:
            self._tuned[arm.name] = tune(self._study, lambda candidate: self._of_candidate(arm, candidate))
        return self._tuned[arm.name]

    def _what_of(self, trial: Trial) -> Told:
        return self._told.get(trial.fingerprint, Told("waiting"))

    def _of_candidate(self, arm: Arm, candidate: Settings) -> dict[int, Told]:
        settings = patched(arm.settings, candidate)
        return {seed: self._what_of(_trial(self._study, settings, seed)) for seed in self._study.tuning_seeds}


def _best_of(study: Study, tell: _Teller, current: Arm, candidates: Sequence[Arm]) -> Arm | None:
    """Return the candidate with the best mean, once every trial of them has ended; None before, or if none has one."""
    metric = study.metrics[study.primary]
    means: dict[str, float] = {}
    for arm in (current, *candidates):
        tell.arms[arm.name] = arm
        told = tell(arm.name, study.seeds.numbers)
        if any(each.status not in SETTLED for each in told.values()):
            return None
        found = scored(told, metric)
        if found.values and not found.undefined:
            means[arm.name] = fmean(found.values.values())
    sound = [arm for arm in candidates if arm.name in means]
    best: Callable[..., Arm] = max if metric.goal == "max" else min
    return best(sound, key=lambda arm: means[arm.name]) if sound else None


def _confirmed(study: Study, expansion: Expansion, tell: _Teller) -> set[str]:
    """Return the arms that are trained on fresh seeds too: all of a study that asks for it, and what a path chose."""
    names = {name for design, arms in expansion.by_design.items() if design != "path" for name in arms}
    tried = expansion.by_design.get("path", ())
    told = (each for arm in tried for each in tell(arm, study.seeds.numbers).values())
    is_complete = all(each.status in SETTLED for each in told)
    chosen = {arm for contrast in expansion.contrasts if contrast.design == "path" for arm in contrast.arms}
    return (names if study.confirm_seeds is not None else set()) | (chosen if is_complete else set())


def _path_key(study: Study, place: int) -> str:
    steps = _sha256(canonical([study.settings, *(step.set for step in study.trunk)]))[:16]
    return f"path-{steps}-{place + 1}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def only_arms(plan: Plan, only: Sequence[str]) -> Plan:
    """Keep the trials of the named arms and of what they are compared with; the comparisons stay declared.

    Raises StudyError where an arm is not there.
    """
    if "path" in plan.rows:
        hint = "a path chooses among all steps: leave --only out"
        raise StudyError([Fault("a study with the design `path` is run as a whole", "--only", hint)])
    names = [arm.name for arm in plan.arms]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise StudyError(Fault(f"there is no arm `{name}`", "--only", did_you_mean(name, names)) for name in unknown)
    wanted = set(only) | {c.other for c in plan.contrasts if c.arm in only and c.tested}
    return plan.restricted(wanted)
