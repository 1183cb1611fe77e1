"""What a study may hold: frozen, typed, and strict about unknown keys."""

from __future__ import annotations

import json
import re
from collections import Counter
from math import fsum, inf, isclose, prod
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ablate.stats.replication import LOOKS, WEIGHTS
from ablate.study.document import Document
from ablate.study.settings import Settings, canonical, get, show
from ablate.study.words import nearest

NAME = r"^[a-z0-9][a-z0-9-]{0,63}$"
NAME_RULE = "lower-case letters, digits and `-`, at most 64"
TASK = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
METRIC_NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
BASELINE = "baseline"
FULL = "full"
MAX_SEEDS = 10_000
MAX_STEPS = 1_000
FIRST_TUNING_SEED = 1_000_001  # beyond all that a count of `seeds` may ever reach: more seeds never tune anew
MAX_CANDIDATES = 1_000
SMALLEST_TEST = 3  # seeds: with two, one degree of freedom is left, and an interval 12.7 standard errors wide

Role = Literal["main", "confirm", "tune"]

Name = Annotated[str, Field(pattern=NAME)]


def is_name(text: str) -> bool:
    """Tell whether a step, a study or a profile may be called so."""
    return re.fullmatch(NAME, text) is not None and not text.endswith("\n")


def step_of(arm: str) -> str:
    """Return the step that an arm is named after: ``residual`` of ``without-residual``."""
    return arm.removeprefix("only-").removeprefix("without-")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


_SOURCES = ("json", "csv", "tensorboard", "pattern")
_SOURCE_FORM = (
    "takes one of `json`, `csv`, `tensorboard` (a path) and `pattern`; without one, printed JSON lines are read"
)
_TASK_FORM = "takes `module:function`, or a mapping like `{command: python train.py --lr {train.lr} --seed {seed}}`"


class MetricsFrom(_Model):
    """Where the metrics of a command are found. ``names``: how the source calls them, where it does otherwise."""

    json_: str | None = Field(None, alias="json", min_length=1, description="a JSON file, or JSON lines (.jsonl)")
    csv: str | None = Field(None, min_length=1, description="a CSV file with a row an epoch")
    tensorboard: str | None = Field(None, min_length=1, description="a folder of TensorBoard event files")
    pattern: tuple[str, ...] = Field((), description="of printed lines: its named groups are metrics, and `epoch`")
    names: dict[str, str] = Field({}, description="metric → its name in the source")

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        if not isinstance(value, dict) or len(value.keys() & set(_SOURCES)) > 1:
            raise PydanticCustomError("form", _SOURCE_FORM)
        pattern = value.get("pattern", ())
        as_list = [pattern] if isinstance(pattern, str) else pattern
        return {**value, "pattern": tuple(as_list) if isinstance(as_list, list) else as_list}

    @model_serializer(mode="wrap")
    def _to_yaml(self, handler: SerializerFunctionWrapHandler) -> Any:
        return _given(handler(self))


class Task(_Model):
    """What is run for each trial: a function of Python, or a command."""

    function: str | None = Field(None, pattern=TASK, max_length=200, description="module:function")
    command: str | None = Field(None, min_length=1, max_length=10_000, description="split into words, then filled")
    flags: Literal["argparse", "hydra"] | None = Field(None, description="how true, false, null and lists are written")
    environment: dict[str, str] = Field({}, description="variable → value, which is filled like the command")
    metrics_from: MetricsFrom = Field(MetricsFrom(), description="where they are found; without it, printed JSON lines")

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"function": value}
        if not isinstance(value, dict) or "function" in value or nearest("command", value) is None:
            raise PydanticCustomError("form", _TASK_FORM)
        return value  # one misspelt is an unknown key

    @model_serializer(mode="wrap")
    def _to_yaml(self, handler: SerializerFunctionWrapHandler) -> Any:
        if self.function is not None:
            return self.function
        return _given(handler(self))

    @property
    def label(self) -> str:
        """The task as messages and reports name it."""
        return self.function or self.command or ""

    def __str__(self) -> str:
        """The task as one text, which is part of a trial's identity."""
        return self.function or canonical(self.model_dump(mode="json", by_alias=True))


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: part for key, part in fields.items() if part not in (None, {}, [], ())}


class Metric(_Model):
    """A number that the task reports. The first one of a study is its primary metric."""

    goal: Literal["max", "min"] = Field(description="whether larger or smaller is better")
    unit: str = Field("", description='printed beside it; with "%" the task returns 71.3, not 0.713')
    title: str = Field("", description="as tables call it; without one, its name")
    margin: float | None = Field(None, gt=0, allow_inf_nan=False, description="a smaller effect is called no effect")
    on_diverged: float | None = Field(None, allow_inf_nan=False, description="the value that a diverged seed is given")
    on_oom: float | None = Field(None, allow_inf_nan=False, description="the value of a seed whose memory ran out")


class Step(_Model):
    """One component under study: a patch on the settings."""

    name: Name = Field(description="names the arm: lower-case letters, digits and `-`")
    title: str = Field("", description="the change in words, as tables print it; without one, the name")
    set: dict[str, Any] = Field(min_length=1, description="dotted setting → value")
    from_: str | None = Field(None, alias="from", description="the parent in a ladder: `baseline` or a step above")
    branch: bool = Field(False, description="tried, and not built upon")
    requires: tuple[str, ...] = Field((), description="steps without which this one has no meaning")
    conflicts: tuple[str, ...] = Field((), description="steps that can't be on together with this one")
    group: Name | None = Field(None, description="alternatives: at most one of a group is built upon")

    @property
    def label(self) -> str:
        return self.title or self.name


DesignName = Literal["ladder", "leave-one-out", "one-at-a-time", "factorial", "fractional", "path"]
Resolution = Literal["III", "IV", "V", "VI", "VII", "VIII"]
_DESIGN_FORM = (
    "takes names of designs, or one with its options: `leave-one-out: {except: [...]}`, `factorial: [...]`, "
    "`fractional: [...]` with `resolution: IV`"
)
_DESIGNS = get_args(DesignName)
_WITH_STEPS = ("factorial", "fractional")


class Design(_Model):
    """A rule that turns the steps into arms."""

    name: DesignName
    except_: tuple[str, ...] = Field((), alias="except", description="leave-one-out: steps that are not removed")
    steps: tuple[str, ...] = Field((), description="factorial, fractional: the steps that are crossed; none: all")
    resolution: Resolution | None = Field(None, description="fractional: what main effects are kept apart from")

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict) or not value:
            raise PydanticCustomError("form", _DESIGN_FORM)
        name = next((key for key in value if key in _DESIGNS), next(iter(value)))
        options, further = value[name], {key: option for key, option in value.items() if key != name}
        if isinstance(options, list) and options and (name in _WITH_STEPS or name not in _DESIGNS):
            if {"name", "steps", "except"} & further.keys():
                raise PydanticCustomError("form", _DESIGN_FORM)
            return {"name": name, "steps": tuple(options), **further}
        if not isinstance(options, dict) or {"name", "steps", "resolution"} & options.keys() or further:
            raise PydanticCustomError("form", _DESIGN_FORM)
        # a before-validator hands Python values on, where strict wants a tuple
        return {"name": name, **{key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}}

    @model_validator(mode="after")
    def _options_of_this_design(self) -> Design:
        if self.except_ and self.name != "leave-one-out":
            raise PydanticCustomError("form", "takes `except` for leave-one-out only")
        if self.resolution and self.name != "fractional":
            raise PydanticCustomError("form", "takes `resolution` for fractional only")
        return self

    @model_serializer
    def _to_yaml(self) -> Any:
        if self.except_:
            return {self.name: {"except": list(self.except_)}}
        if self.steps:
            return {self.name: list(self.steps), **({"resolution": self.resolution} if self.resolution else {})}
        return self.name


class Analysis(_Model):
    """How the numbers are compared; fixed before the first trial runs."""

    alpha: float = Field(0.05, gt=0, lt=0.5, description="the risk that is taken: intervals are of 1 - alpha")
    correction: Literal["holm", "bh"] = Field("holm", description="of p for the number of comparisons: Holm, or FDR")
    pairing: Literal["seed", "none"] = Field("seed", description="differences within each seed, or of the means")
    select: Literal["last"] = Field("last", description="the epoch that counts: the one the task returns at its end")
    scope: Literal["test-set", "population"] = Field(
        "test-set",
        description="what intervals speak of: population counts the test examples as drawn too; the task gives scores",
    )


MOST_FUSED = 64
PRESETS: dict[str, dict[str, str | int]] = {
    "exact": {"dtype": "float32", "memory_format": "channels_last", "threads": 1},
    "fast": {"dtype": "bfloat16", "memory_format": "channels_last", "threads": 1},
}


def _fuse(value: Any) -> Any:
    if value != "auto" and (type(value) is not int or not 1 <= value <= MOST_FUSED):
        raise PydanticCustomError("form", f"takes a number of seeds from 1 to {MOST_FUSED}, or `auto`")
    return value


Fuse = Annotated[Annotated[int, Field(ge=1, le=MOST_FUSED)] | Literal["auto"], BeforeValidator(_fuse)]


class Execution(_Model):
    """How a trial computes, not what: the same for every arm, and part of a trial's identity."""

    # an abbreviation: what is kept, hashed and shown are the keys that it stands for
    preset: Literal["exact", "fast"] | None = Field(
        None,
        exclude=True,
        description="short for the keys below: exact is float32, fast bfloat16; both channels_last, a thread per trial",
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="the arithmetic of the task, as it is told")
    memory_format: Literal["contiguous_format", "channels_last"] = Field(
        "contiguous_format", description="the layout of image tensors, as the task is told"
    )
    threads: int = Field(1, ge=1, le=1024, description="CPU threads of one trial; other counts give other bits")
    isolation: Literal["process", "warm"] = Field(
        "process",
        description="a fresh process for each attempt, or one for many: your module's globals then last from one "
        "trial to the next",
    )
    fuse: Fuse = Field(
        1,
        description="seeds of one arm that are trained in one model, for small networks on `train_classifier`; "
        "other counts give other bits. `auto`: the fastest, measured once for the whole study",
    )
    compile: bool = Field(
        False,
        description="the network of `train_classifier` by torch's compiler, once for all seeds of an arm; other bits. "
        "Other tasks are told",
    )
    graphs: bool = Field(
        False,
        description="each training iteration of `train_classifier` as one CUDA graph, for small networks on a GPU; "
        "other bits. Other tasks are told",
    )

    @property
    def members(self) -> int:
        """The number of seeds that are trained in one model; 1 where it is still to be chosen."""
        return 1 if self.fuse == "auto" else self.fuse

    @model_validator(mode="before")
    @classmethod
    def _preset_written_out(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("preset") not in list(PRESETS):
            return value
        meant = PRESETS[value["preset"]]
        for key, word in meant.items():
            if key in value and value[key] != word:
                raise PydanticCustomError("preset", "contradicts", {"key": key, "meant": f"{key}: {word}"})
        return meant | {name: word for name, word in value.items() if name != "preset"}


def _seconds(value: Any) -> Any:
    """Durations are seconds, or text like ``90s``, ``30m``, ``4h``."""
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smh])", value)
        if not match:
            raise PydanticCustomError("form", "takes seconds, or a time like `90s`, `30m` or `4h`")
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
    return value


MOST_PER_GPU = 64


def _per_gpu(value: Any) -> Any:
    if value != "auto" and (type(value) is not int or not 1 <= value <= MOST_PER_GPU):
        raise PydanticCustomError("form", f"takes a number of trials from 1 to {MOST_PER_GPU}, or `auto`")
    return value


PerGpu = Annotated[Annotated[int, Field(ge=1, le=MOST_PER_GPU)] | Literal["auto"], BeforeValidator(_per_gpu)]
Seconds = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=float | str), Field(gt=0)]


class Resources(_Model):
    """What one trial needs while it runs."""

    gpus: int = Field(0, ge=0, le=64, description="GPUs of one trial, all on one machine")
    # left out where none are shared: what a store keeps of a study stays as it was before they could be
    per_gpu: PerGpu = Field(
        1,
        exclude_if=lambda value: value == 1,
        description="trials that share one GPU, each in its own process; the bits are the same. `auto`: as many as fit "
        "and pay, measured once for the whole study",
    )
    cpus: int | None = Field(None, ge=1, description="CPU cores of a slot; default: execution.threads")
    timeout: Seconds | None = Field(None, description="an attempt that runs longer is ended")
    stall_timeout: Seconds | None = Field(None, description="an attempt that records nothing for so long is ended")
    retries: int = Field(0, ge=0, le=100, description="further attempts after an error of the task")

    @property
    def sharers(self) -> int:
        """The number of trials that share one GPU; 1 where it is still to be chosen."""
        return 1 if self.per_gpu == "auto" else self.per_gpu


class Reference(_Model):
    """Published figures, printed beside ours: metric → arm → value."""

    source: str = Field(description="where they were published")
    values: dict[str, dict[str, float]] = Field(description="metric → arm → published figure")


class Seeds(_Model):
    """The replicates of every arm: how many at first, and by which rule there are more.

    ``numbers`` are all that may be run, in order. ``looks``: at each, the first so many are compared, and only
    unsettled comparisons go on; ``weights`` share alpha among the looks. ``half_width``: after ``pilot`` seeds, as many
    as make each interval so narrow.
    """

    numbers: tuple[int, ...] = Field(min_length=1)
    looks: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    half_width: float | None = None
    pilot: int = 0

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return {"numbers": _seed_list(value)}
        return _precision(value) if value.keys() & _PRECISION else _adaptive(value)

    @model_serializer
    def _to_yaml(self) -> Any:
        if self.looks:
            return {"looks": list(self.looks), "weights": list(self.weights)}
        if self.half_width is not None:
            return {
                "mode": "precision", "half_width": self.half_width, "pilot": self.pilot, "most": len(self.numbers)
            }  # fmt: skip
        return list(self.numbers)

    @property
    def first(self) -> tuple[int, ...]:
        """The seeds that every arm is given before anything is looked at."""
        return self.numbers[: self.looks[0] if self.looks else self.pilot or None]

    @property
    def are_fixed(self) -> bool:
        return not self.looks and self.half_width is None


def _seed_list(value: Any) -> tuple[int, ...]:
    if type(value) is int:
        if not 1 <= value <= MAX_SEEDS:
            raise PydanticCustomError("form", f"takes a count between 1 and {MAX_SEEDS:,}")
        return tuple(range(1, value + 1))
    if not isinstance(value, (list, tuple)) or not value or any(type(seed) is not int for seed in value):
        raise PydanticCustomError("form", "takes a count like `5`, or a list like `[1, 2, 3]`")
    if any(not 0 <= seed < 1 << 31 for seed in value):
        raise PydanticCustomError("form", "takes seeds between 0 and 2147483647")
    seed, count = Counter(value).most_common(1)[0]
    if count > 1:
        raise PydanticCustomError("form", f"has the seed {seed} twice, which would be one trial")
    return tuple(value)


_LOOKS_FORM = "takes looks like `{looks: [3, 5, 8, 12, 20]}`; `weights`, one for each look, may share out alpha"


def _adaptive(value: dict[str, Any]) -> dict[str, Any]:
    looks = value.get("looks")
    if value.keys() - {"looks", "weights"} or not isinstance(looks, list) or any(type(n) is not int for n in looks):
        raise PydanticCustomError("form", _LOOKS_FORM)
    if looks != sorted(set(looks)) or not looks:
        raise PydanticCustomError("form", "takes `looks` that rise, like `[3, 5, 8, 12, 20]`")
    if looks[0] < SMALLEST_TEST or looks[-1] > MAX_SEEDS:
        raise PydanticCustomError("form", f"takes `looks` between {SMALLEST_TEST} and {MAX_SEEDS:,} seeds")
    weights = value.get("weights", WEIGHTS if len(looks) == len(LOOKS) else [1 / len(looks)] * len(looks))
    if not isinstance(weights, (list, tuple)) or any(type(w) not in (int, float) or not 0 < w <= 1 for w in weights):
        raise PydanticCustomError("form", "takes `weights` between 0 and 1 that sum to 1, like `[0.5, 0.5]`")
    if len(weights) != len(looks) or not isclose(fsum(weights), 1, abs_tol=1e-6):
        raise PydanticCustomError("form", "takes one weight for each look, and weights that sum to 1")
    numbers = tuple(range(1, looks[-1] + 1))
    return {"numbers": numbers, "looks": tuple(looks), "weights": tuple(map(float, weights))}


_PRECISION = {"mode", "half_width", "pilot", "most"}
_PRECISION_FORM = "takes `{mode: precision, half_width: 0.5}`; `pilot` (or 8) and `most` (or 50) count seeds"


def _precision(value: dict[str, Any]) -> dict[str, Any]:
    half_width: Any = value.get("half_width")
    pilot, most = value.get("pilot", 8), value.get("most", 50)
    if value.get("mode") != "precision" or value.keys() - _PRECISION:
        raise PydanticCustomError("form", _PRECISION_FORM)
    if type(half_width) not in (int, float) or any(type(each) is not int for each in (pilot, most)):
        raise PydanticCustomError("form", _PRECISION_FORM)
    if not 0 < half_width < inf:
        raise PydanticCustomError("form", "takes a `half_width` above 0, in the unit of the primary metric")
    if not SMALLEST_TEST <= pilot <= most <= MAX_SEEDS:
        message = f"takes a `pilot` of {SMALLEST_TEST} seeds or more, and as `most` no fewer, up to {MAX_SEEDS:,}"
        raise PydanticCustomError("form", message)
    return {"numbers": tuple(range(1, most + 1)), "half_width": float(half_width), "pilot": pilot}


_RANGE_FORM = "takes a range like `{low: 0.001, high: 1, log: true}`, or `{choices: [...]}`"
_BUDGET_FORM = "takes a number of candidates like `16`, or `{candidates: 16, sampler: qmc, seeds: 2, prune: true}`"


def _number(value: Any) -> Any:
    if type(value) not in (int, float) or not -inf < value < inf:
        raise PydanticCustomError("form", "takes a number")
    return value


def _tuning_seeds(value: Any) -> tuple[int, ...]:
    """A count counts on from where no other count comes."""
    seeds = _seed_list(value)
    return tuple(seed + FIRST_TUNING_SEED - 1 for seed in seeds) if type(value) is int else seeds


Number = Annotated[Any, BeforeValidator(_number, json_schema_input_type=float)]
TuningSeeds = Annotated[tuple[int, ...], BeforeValidator(_tuning_seeds, json_schema_input_type=int | list[int])]


class Range(_Model):
    """What a tuned setting may be: a number from ``low`` to ``high``, by ``step`` if there is one, or a choice."""

    low: Number = Field(None, description="the smallest value")
    high: Number = Field(None, description="the largest value")
    log: bool = Field(False, description="search evenly in the logarithm")
    step: Number = Field(None, gt=0, description="only low, low + step, low + 2 step, …")
    choices: tuple[Any, ...] = Field((), description="the values, in place of a range")

    @model_validator(mode="after")
    def _one_form(self) -> Range:
        numbers = (self.low, self.high)
        if bool(self.choices) == (numbers != (None, None)) or (None in numbers and not self.choices):
            raise PydanticCustomError("form", _RANGE_FORM)
        if self.choices and (self.log or self.step is not None):
            raise PydanticCustomError("form", "takes `log` and `step` for a range of numbers only")
        if self.log and self.step is not None:
            raise PydanticCustomError("form", "takes `log` or `step`, not both")
        return self

    @model_serializer(mode="wrap")
    def _to_yaml(self, handler: SerializerFunctionWrapHandler) -> Any:
        return {
            key: value for key, value in handler(self).items() if value not in (None, (), []) and value is not False
        }

    def __str__(self) -> str:
        """The range as tables name it."""
        if self.choices:
            return f"one of {', '.join(map(show, self.choices))}"
        how = " (log)" if self.log else f" by {self.step:g}" if self.step else ""
        return f"{self.low:g} to {self.high:g}{how}"

    def size(self, *, whole: bool = False) -> int | None:
        """Return how many points there are; None for a range that has no step, unless it is of ``whole`` numbers."""
        if self.choices:
            return len(self.choices)
        step = 1 if self.step is None and whole else self.step
        if step is None or self.low is None or self.high is None:
            return None
        steps = (self.high - self.low) / step
        return int(steps + 1e-9) + 1 if steps < 1e9 else 10**9  # more than any budget has

    def point(self, index: int) -> Any:
        """Return a point, from 0 at the low end on; of whole numbers without a step, each is one."""
        if self.choices or self.low is None:
            return self.choices[index]
        value = self.low + index * (1 if self.step is None else self.step)
        return value if isinstance(value, int) else float(f"{value:.10g}")

    def points(self) -> tuple[Any, ...]:
        """Return all points of the grid, from low to high."""
        return tuple(self.point(index) for index in range(self.size() or 0))


class Budget(_Model):
    """How the tuned settings are searched, for every arm alike, on seeds that no table uses."""

    candidates: int | None = Field(
        None, ge=2, le=MAX_CANDIDATES, description="settings tried per arm; grid: all points"
    )
    sampler: Literal["tpe", "qmc", "grid"] = Field("tpe", description="learning from results, evenly spread, or all")
    seeds: TuningSeeds = Field((FIRST_TUNING_SEED,), description="that judge candidates; a count, or a list")
    prune: bool = Field(False, description="end a candidate that is behind the median of its arm's others")

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        given = {"candidates": value} if type(value) is int else value
        if not isinstance(given, dict):
            raise PydanticCustomError("form", _BUDGET_FORM)
        if given.get("candidates") is None and given.get("sampler") != "grid":
            raise PydanticCustomError("form", _BUDGET_FORM)
        return given


def _confirm_seeds(value: Any) -> Any:
    """A count stays one: which seeds it means depends on ``seeds``."""
    return value if type(value) is int and 1 <= value <= MAX_SEEDS else _seed_list(value)


ConfirmSeeds = Annotated[int | tuple[int, ...], BeforeValidator(_confirm_seeds, json_schema_input_type=int | list[int])]


class Study(_Model):
    """One declared question. Everything that a run or a report needs to know is in it."""

    schema_: Literal["ablate/v1"] = Field(alias="schema", description="the format of this file")
    name: Name = Field(description="the study's name, as commands take it: lower-case letters, digits and `-`")
    question: str = Field("", description="what the study asks, in a sentence; printed above its table")
    task: Task = Field(description="what is run for each trial: module:function, or a mapping with a command")
    metrics: dict[Annotated[str, Field(pattern=METRIC_NAME)], Metric] = Field(
        min_length=1, description="what the task reports; the first is the primary one, which verdicts are on"
    )
    settings: Settings = Field(
        min_length=1, description="the baseline: all that the task receives; null for what only a step sets"
    )
    steps: tuple[Step, ...] = Field(
        (), max_length=MAX_STEPS, description="the components under study, in order: each a patch on the settings"
    )
    designs: tuple[Design, ...] = Field(
        (Design.model_validate("ladder"),), min_length=1, description="the rules that turn the steps into arms"
    )
    seeds: Seeds = Field(
        Seeds.model_validate(5), description="of every arm: a count, a list, looks, or a precision to be reached"
    )
    # left out where nothing is tuned: what a store keeps of a study stays as it was before there was tuning
    tune: dict[str, Range] = Field({}, exclude_if=lambda value: not value, description="dotted setting → its range")
    budget: Budget | None = Field(
        None, exclude_if=lambda value: value is None, description="how many settings are tried for each arm, and how"
    )
    confirm_seeds: ConfirmSeeds | None = Field(None, description="fresh seeds: every table is made from these alone")
    analysis: Analysis = Field(Analysis(), description="how the numbers are compared; fixed before the first trial")
    execution: Execution = Field(Execution(), description="how a trial computes, not what; the same for every arm")
    resources: Resources = Field(Resources(), description="what one trial needs while it runs, and its limits")
    reference: Reference | None = Field(None, description="published figures, printed beside ours")
    assumed: dict[str, str] = Field({}, description="what a source leaves open → what is assumed; below the table")

    # which profile made it, and the file it came from (for messages); not part of what it says
    _profile: str = PrivateAttr("")
    _document: Document = PrivateAttr(Document("study", {}, {}))

    @property
    def profile(self) -> str:
        return self._profile

    @property
    def title(self) -> str:
        """The study's name with its profile, as commands take and print it."""
        return f"{self.name}@{self._profile}" if self._profile else self.name

    @property
    def file(self) -> str:
        """The study file; empty for a study that was declared in Python."""
        return self._document.name

    @property
    def folder(self) -> Path:
        """Where the task lies, and where a command runs."""
        return self._document.folder.resolve()

    @property
    def primary(self) -> str:
        return next(iter(self.metrics))

    @property
    def trunk(self) -> tuple[Step, ...]:
        """The steps that are built upon: those of the full model."""
        return tuple(step for step in self.steps if not step.branch)

    @property
    def fresh_seeds(self) -> tuple[int, ...]:
        """The seeds that confirm what others chose: those declared, or for a path as many again as chose it."""
        declared = self.confirm_seeds
        if declared is None:
            declared = len(self.seeds.numbers) if any(design.name == "path" for design in self.designs) else ()
        if isinstance(declared, tuple):
            return declared
        first = max(self.seeds.numbers) + 1
        return tuple(range(first, first + declared))

    @property
    def grows(self) -> bool:
        """Tell whether results ask for more: further candidates, further seeds, or further arms along a path."""
        return bool(self.tune) or not self.seeds.are_fixed or any(design.name == "path" for design in self.designs)

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """The seeds that choose the tuned settings of each arm; no table is made from them."""
        return self.budget.seeds if self.budget and self.tune else ()

    @property
    def candidates(self) -> int:
        """How many settings are tried for each arm: the budget, or all that there are where these are fewer."""
        if not self.tune or self.budget is None:
            return 0
        sizes = [found.size(whole=self.is_whole(path)) for path, found in self.tune.items()]
        most = self.budget.candidates or prod(size or 1 for size in sizes)
        return most if None in sizes else min(most, prod(size or 1 for size in sizes))

    def is_whole(self, path: str) -> bool:
        """Tell whether a tuned setting takes integers alone; where it is null in the settings, its range decides."""
        value, found = get(self.settings, path), self.tune[path]
        return type(value) is int or (value is None and {type(found.low), type(found.high)} == {int})

    def role(self, design: str) -> Role:
        """Return whose seeds a design's table is made from: a path's are chosen on one set, measured on another."""
        return "main" if self.confirm_seeds is None and design != "path" else "confirm"

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    def where(self, *place: str | int) -> str:
        """Return ``file:line`` of a place in the study, for messages."""
        return self._document.where(place)

    def where_step(self, name: str) -> str:
        index = next(i for i, step in enumerate(self.steps) if step.name == name)
        return self.where("steps", index)

    def spec(self) -> dict[str, Any]:
        """Return the whole study as plain JSON: what the store keeps of it."""
        return self.model_dump(mode="json", by_alias=True)


def from_document(value: dict[str, Any], document: Document, profile: str) -> Study:
    """Validate plain values. Raises pydantic's ValidationError."""
    # as JSON, because there strict still lets a list be a tuple, and a quoted "2" is no number
    study = Study.model_validate_json(json.dumps(value))
    study._profile = profile
    study._document = document
    return study
