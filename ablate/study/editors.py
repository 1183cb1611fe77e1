"""The JSON Schema of a study file, as ``ablate schema`` prints it for editors."""

from __future__ import annotations

from itertools import combinations
from typing import Any, get_args

from ablate.study.schema import MAX_CANDIDATES, MAX_SEEDS, NAME, SMALLEST_TEST, DesignName, Resolution, Study


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
    schema["$defs"]["Design"] = {"anyOf": [{"enum": list(get_args(DesignName))}, *_design_with_options()["anyOf"]]}
    schema["$defs"]["Seeds"] = _seeds_forms()
    schema["$defs"]["Task"] = _task_forms(schema["$defs"]["Task"])
    schema["$defs"]["MetricsFrom"] = _metrics_forms(schema["$defs"]["MetricsFrom"])
    schema["$defs"]["Budget"] = _budget_forms(schema["$defs"]["Budget"])
    schema["properties"]["confirm_seeds"]["anyOf"] = [*_listed_seeds(), {"type": "null"}]
    return schema


def _design_with_options() -> dict[str, Any]:
    names = {"type": "array", "items": {"type": "string"}}
    options = {"type": "object", "properties": {"except": names}, "additionalProperties": False}
    forms: list[dict[str, Any]] = [
        {"leave-one-out": options},
        {"factorial": {**names, "minItems": 2, "uniqueItems": True}},
        {
            "fractional": {**names, "minItems": 3, "uniqueItems": True},
            "resolution": {"enum": list(get_args(Resolution))},
        },
    ]
    return {
        "anyOf": [
            {"type": "object", "properties": form, "required": [next(iter(form))], "additionalProperties": False}
            for form in forms
        ]
    }


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
        "looks": {"type": "array", "items": count, "minItems": 1, "uniqueItems": True},
        "weights": {"type": "array", "items": share, "minItems": 1},
    }
    width = {"type": "number", "exclusiveMinimum": 0}
    precision = {"mode": {"enum": ["precision"]}, "half_width": width, "pilot": count, "most": count}
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
    budget["properties"]["candidates"] = count
    budget["properties"]["seeds"] = {"anyOf": _listed_seeds(), "description": "that judge; a count, or a list"}
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
