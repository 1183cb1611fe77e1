"""The JSON Schema of a study file, as ``ablate schema`` prints it for editors."""

from __future__ import annotations

from itertools import combinations
from typing import Any, get_args

from pydantic import BaseModel

from ablate.study.schema import MAX_CANDIDATES, MAX_SEEDS, NAME, SMALLEST_TEST, Design, DesignName, Resolution, Study


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a study file, ``profiles`` included."""
    schema = Study.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "ablate study"
    schema["properties"]["profiles"] = {
        "type": "object",
        "description": "named patches of this study: `--profile NAME` runs it with one, as a study of its own",
        "propertyNames": {"pattern": NAME},
        "additionalProperties": {
            "type": "object",
            "description": "a named patch; maps merge deeply, lists are replaced, null deletes; steps by their names",
        },
    }
    schema["properties"]["metrics"]["additionalProperties"] = False  # pydantic only gives the pattern of a good name
    schema["$defs"]["Design"] = {"anyOf": [{"enum": list(get_args(DesignName))}, *_design_with_options()["anyOf"]]}
    schema["$defs"]["Seeds"] = _seeds_forms()
    schema["$defs"]["Task"] = _task_forms(schema["$defs"]["Task"])
    schema["$defs"]["MetricsFrom"] = _metrics_forms(schema["$defs"]["MetricsFrom"])
    schema["$defs"]["Budget"] = _budget_forms(schema["$defs"]["Budget"])
    schema["properties"]["confirm_seeds"]["anyOf"] = [*_listed_seeds(), {"type": "null"}]
    return schema


def _design_with_options() -> dict[str, Any]:
    names = {"type": "array", "items": {"type": "string"}}
    kept = {**names, "description": _told(Design, "except_")}
    options = {"type": "object", "properties": {"except": kept}, "additionalProperties": False}
    crossed = {**names, "uniqueItems": True, "description": _told(Design, "steps")}
    forms: list[dict[str, Any]] = [
        {"leave-one-out": {**options, "description": "the full model, and it less each step"}},
        {"factorial": {**crossed, "minItems": 2}},
        {
            "fractional": {**crossed, "minItems": 3},
            "resolution": {"enum": list(get_args(Resolution)), "description": _told(Design, "resolution")},
        },
    ]
    return {
        "anyOf": [
            {"type": "object", "properties": form, "required": [next(iter(form))], "additionalProperties": False}
            for form in forms
        ]
    }


def _told(model: type[BaseModel], field: str) -> str:
    """Return what a field is for, in the words of the study's schema."""
    return model.model_fields[field].description or ""


def _listed_seeds() -> list[dict[str, Any]]:
    seed = {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1}
    return [
        {"type": "integer", "minimum": 1, "maximum": MAX_SEEDS},
        {"type": "array", "items": seed, "minItems": 1, "uniqueItems": True},
    ]


def _seeds_forms() -> dict[str, Any]:
    count = {"type": "integer", "minimum": SMALLEST_TEST, "maximum": MAX_SEEDS}
    share = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    looks = {
        "looks": {
            "type": "array", "items": count, "minItems": 1, "uniqueItems": True,
            "description": "rising numbers of seeds at which the arms are compared; only what is unsettled goes on",
        },
        "weights": {
            "type": "array", "items": share, "minItems": 1,
            "description": "how alpha is shared out among the looks; they sum to 1",
        },
    }  # fmt: skip
    precision = {
        "mode": {"enum": ["precision"], "description": "as many seeds as make each interval narrow enough"},
        "half_width": {
            "type": "number", "exclusiveMinimum": 0,
            "description": "of each interval, in the unit of the primary metric",
        },
        "pilot": {**count, "description": "seeds at first, from which the number needed is reckoned [8]"},
        "most": {**count, "description": "seeds at most [50]"},
    }  # fmt: skip
    return {
        "anyOf": [
            *_listed_seeds(),
            {"type": "object", "properties": looks, "required": ["looks"], "additionalProperties": False},
            {
                "type": "object",
                "properties": precision,
                "required": ["mode", "half_width"],
                "additionalProperties": False,
            },
        ]
    }


def _budget_forms(budget: dict[str, Any]) -> dict[str, Any]:
    count = {"type": "integer", "minimum": 2, "maximum": MAX_CANDIDATES}
    fields = budget["properties"]
    fields["candidates"] = {**count, "description": fields["candidates"]["description"]}
    fields["seeds"] = {"anyOf": _listed_seeds(), "description": fields["seeds"]["description"]}
    grid = {"properties": {"sampler": {"const": "grid"}}, "required": ["sampler"]}
    return {"anyOf": [count, {**budget, "anyOf": [{"required": ["candidates"]}, grid]}]}


def _task_forms(command: dict[str, Any]) -> dict[str, Any]:
    function = command["properties"].pop("function")
    return {"anyOf": [function["anyOf"][0], {**command, "required": ["command"]}]}


def _metrics_forms(source: dict[str, Any]) -> dict[str, Any]:
    fields = source["properties"]
    fields["pattern"] = {
        "anyOf": [{"type": "string"}, fields["pattern"]],
        "description": fields["pattern"]["description"],
    }
    ways = [name for name in fields if name != "names"]
    several = [{"required": [one, other]} for one, other in combinations(ways, 2)]
    return {**source, "not": {"anyOf": several}}
