"""What a study may hold: frozen, typed, and strict about unknown keys. ``ablate schema`` prints it for editors."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ablate.study.document import Document
from ablate.study.settings import Settings

NAME = r"^[a-z0-9][a-z0-9-]{0,63}$"
NAME_RULE = "lower-case letters, digits and `-`, at most 64"
TASK = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
METRIC_NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
BASELINE = "baseline"
FULL = "full"
MAX_SEEDS = 10_000
MAX_STEPS = 1_000

Name = Annotated[str, Field(pattern=NAME)]


def is_name(text: str) -> bool:
    """Tell whether a step, a study or a profile may be called so."""
    return re.fullmatch(NAME, text) is not None and not text.endswith("\n")


def step_of(arm: str) -> str:
    """Return the step that an arm is named after: ``residual`` of ``without-residual``."""
    return arm.removeprefix("only-").removeprefix("without-")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Metric(_Model):
    """A number that the task reports. The first one of a study is its primary metric."""

    goal: Literal["max", "min"]
    unit: str = ""
    title: str = ""


class Step(_Model):
    """One component under study: a patch on the settings."""

    name: Name
    title: str = ""
    set: dict[str, Any] = Field(min_length=1, description="dotted setting → value")
    from_: str | None = Field(None, alias="from", description="the parent in a ladder: `baseline` or a step above")
    branch: bool = Field(False, description="tried, and not built upon")
    requires: tuple[str, ...] = Field((), description="steps without which this one has no meaning")
    group: Name | None = Field(None, description="alternatives: at most one of a group is built upon")

    @property
    def label(self) -> str:
        return self.title or self.name


DesignName = Literal["ladder", "leave-one-out", "one-at-a-time"]
_DESIGN_FORM = "takes names of designs, or one with its options as `leave-one-out: {except: [...]}`"


class Design(_Model):
    """A rule that turns the steps into arms."""

    name: DesignName
    except_: tuple[str, ...] = Field((), alias="except", description="leave-one-out: steps that are not removed")

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict) or len(value) != 1:
            raise PydanticCustomError("form", _DESIGN_FORM)
        ((name, options),) = value.items()
        if not isinstance(options, dict) or "name" in options:
            raise PydanticCustomError("form", _DESIGN_FORM)
        # a before-validator hands Python values on, where strict wants a tuple
        return {"name": name, **{key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}}

    @model_validator(mode="after")
    def _except_only_where_removed(self) -> Design:
        if self.except_ and self.name != "leave-one-out":
            raise PydanticCustomError("form", "takes `except` for leave-one-out only")
        return self

    @model_serializer
    def _to_yaml(self) -> Any:
        return {self.name: {"except": list(self.except_)}} if self.except_ else self.name


class Analysis(_Model):
    """How the numbers are compared; fixed before the first trial runs."""

    alpha: float = Field(0.05, gt=0, lt=0.5)
    pairing: Literal["seed"] = "seed"
    select: Literal["last"] = "last"


class Execution(_Model):
    """How a trial computes, not what: the same for every arm, and part of a trial's identity."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = Field(1, ge=1, le=1024)


def _seconds(value: Any) -> Any:
    """Durations are seconds, or text like ``90s``, ``30m``, ``4h``."""
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smh])", value)
        if not match:
            raise PydanticCustomError("form", "takes seconds, or a time like `90s`, `30m` or `4h`")
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
    return value


Seconds = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=float | str), Field(gt=0)]


class Resources(_Model):
    """What one trial needs while it runs."""

    gpus: int = Field(0, ge=0, le=1)
    cpus: int | None = Field(None, ge=1, description="CPU cores of a slot; default: execution.threads")
    timeout: Seconds | None = Field(None, description="an attempt that runs longer is ended")
    stall_timeout: Seconds | None = Field(None, description="an attempt that records nothing for so long is ended")
    retries: int = Field(0, ge=0, le=100, description="further attempts after an error of the task")


class Reference(_Model):
    """Published figures, printed beside ours: metric → arm → value."""

    source: str
    values: dict[str, dict[str, float]]


def _seed_list(value: Any) -> Any:
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


Seeds = Annotated[
    tuple[int, ...], BeforeValidator(_seed_list, json_schema_input_type=int | list[int]), Field(min_length=1)
]


class Study(_Model):
    """One declared question. Everything that a run or a report needs to know is in it."""

    schema_: Literal["ablate/v1"] = Field(alias="schema")
    name: Name
    question: str = ""
    task: str = Field(pattern=TASK, max_length=200, description="module:function")
    metrics: dict[Annotated[str, Field(pattern=METRIC_NAME)], Metric] = Field(min_length=1)
    settings: Settings = Field(min_length=1)
    steps: tuple[Step, ...] = Field((), max_length=MAX_STEPS)
    designs: tuple[Design, ...] = Field((Design.model_validate("ladder"),), min_length=1)
    seeds: Seeds = (1, 2, 3, 4, 5)
    analysis: Analysis = Analysis()
    execution: Execution = Execution()
    resources: Resources = Resources()
    reference: Reference | None = None
    assumed: dict[str, str] = {}

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
        return self._document.name

    @property
    def primary(self) -> str:
        return next(iter(self.metrics))

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


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a study file, ``profiles`` included."""
    schema = Study.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "ablate study"
    schema["properties"]["profiles"] = {
        "type": "object",
        "propertyNames": {"pattern": NAME},
        "additionalProperties": {
            "type": "object",
            "description": "a named patch; maps merge deeply, lists are replaced, null deletes; steps by their names",
        },
    }
    schema["properties"]["metrics"]["additionalProperties"] = False  # pydantic only gives the pattern of a good name
    schema["$defs"]["Design"] = {"anyOf": [{"enum": list(get_args(DesignName))}, _design_with_options()]}
    return schema


def _design_with_options() -> dict[str, Any]:
    options = {
        "type": "object",
        "properties": {"except": {"type": "array", "items": {"type": "string"}}},
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"leave-one-out": options},
        "required": ["leave-one-out"],
        "additionalProperties": False,
    }
