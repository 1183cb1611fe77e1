"""The typed study: frozen, the same after a round trip through JSON, and described by a JSON Schema."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from ablate.plan.trials import make_plan, open_plan, plans_of
from ablate.study.document import Document, read_document
from ablate.study.editors import json_schema
from ablate.study.reading import profiles_of
from ablate.study.schema import Resources, from_document, is_name, step_of

STUDIES = Path(__file__).parents[2] / "studies"
MALFORMED = Path(__file__).parent / "malformed"
VALIDATOR = Draft202012Validator(json_schema())


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_our_own_studies_are_sound(path: Path) -> None:
    plans, faults = plans_of(path)
    assert faults == []
    assert len(plans) == 1 + len(read_document(path).value.get("profiles", {}))
    assert list(VALIDATOR.iter_errors(read_document(path).value)) == []


def test_json_schema_is_valid() -> None:
    Draft202012Validator.check_schema(json_schema())
    assert json_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize(
    "study",
    [
        "key-unknown", "key-misspelt-required", "key-underscore-alias", "schema-other", "name-bad", "metrics-empty",
        "metric-goal-word", "metric-bad-name", "metric-margin-zero", "metric-margin-text", "metric-on-diverged-text",
        "settings-empty", "steps-mapping", "step-branch-yes", "step-empty-set",
        "step-requires-text", "step-conflicts-text", "designs-text", "designs-empty", "design-unknown",
        "design-options-of-ladder", "design-unknown-option", "design-spelt-out", "design-factorial-empty",
        "design-factorial-misspelt", "design-factorial-number", "design-factorial-one-step",
        "design-factorial-resolution", "design-factorial-twice", "design-fractional-resolution-key",
        "design-fractional-resolution-misspelt", "design-fractional-resolution-number", "design-path-options",
        "seeds-quoted", "seeds-repeated", "seeds-zero", "seeds-looks-below-three", "seeds-looks-empty",
        "seeds-looks-misspelt", "seeds-looks-number", "seeds-weights-negative", "seeds-weights-of-nothing",
        "seeds-anytime-not-built", "seeds-mode-unknown", "seeds-precision-half-width-true",
        "seeds-precision-half-width-zero", "seeds-precision-pilot-two", "seeds-precision-without-half-width",
        "seeds-precision-without-mode", "confirm-seeds-looks", "confirm-seeds-zero", "analysis-correction-unknown",
        "analysis-pairing-unknown", "analysis-select-best-not-built", "analysis-variance-not-built", "execution-true",
        "execution-quoted-number", "resources-gpus-too-many", "resources-per-gpu-zero", "resources-unknown",
        "reference-without-source",
        "task-without-function", "profile-bad-name", "profile-not-a-mapping",
    ],
)  # fmt: skip
def test_an_editor_sees_the_same_mistakes(study: str) -> None:
    assert list(VALIDATOR.iter_errors(read_document(MALFORMED / f"{study}.yaml").value))


@pytest.mark.parametrize(
    "part",
    [
        {"seeds": [3, 1]}, {"seeds": 5}, {"resources": {"timeout": "90s"}}, {"resources": {"timeout": 5}},
        {"task": {"command": "python train.py {settings.json} --seed {seed}"}},
        {"task": {"command": "python t.py", "flags": "hydra", "environment": {"A": "{seed}"}}},
        {"task": {"command": "python t.py", "metrics_from": {"csv": "a"}}},
        {"task": {"command": "python t.py", "metrics_from": {"pattern": "a", "names": {"val_acc": "b"}}}},
        {"task": {"command": "python t.py", "metrics_from": {"pattern": ["a", "b"]}}},
        {"designs": [{"leave-one-out": {"except": ["wide"]}}, "ladder"]}, {"execution": {}}, {"reference": None},
        {"steps": [{"name": "wide", "from": "baseline", "branch": True, "group": "g", "set": {"a": [2]}}]},
        {"steps": [{"name": "wide", "conflicts": ["deep"], "set": {"a": [2]}}]},
        {"metrics": {"acc": {"goal": "max", "margin": 0.5, "on_diverged": -1}}},
        {"designs": ["factorial", "fractional", "path"]}, {"designs": [{"factorial": ["a", "b"]}]},
        {"designs": [{"fractional": ["a", "b", "c"]}]}, {"designs": [{"resolution": "V", "fractional": list("abcde")}]},
        {"seeds": {"looks": [3, 5, 8, 12, 20]}}, {"seeds": {"looks": [5]}},
        {"seeds": {"looks": [3, 5], "weights": [0.25, 0.75]}}, {"seeds": {"looks": [4], "weights": [1]}},
        {"seeds": {"mode": "precision", "half_width": 1}},
        {"seeds": {"mode": "precision", "half_width": 0.5, "pilot": 3, "most": 3}},
        {"confirm_seeds": 5}, {"confirm_seeds": [11, 0]}, {"confirm_seeds": None},
        {"analysis": {"correction": "bh", "pairing": "none", "scope": "population", "alpha": 0.1, "select": "last"}},
    ],
    ids=str,
)  # fmt: skip
def test_an_editor_accepts_what_we_accept(part: dict[str, Any]) -> None:
    value = {**SMALL, **part}
    study = from_document(value, Document("f", value, {}), "")
    assert list(VALIDATOR.iter_errors(value)) == []
    spec = study.spec()
    assert from_document(spec, Document("f", spec, {}), "").spec() == spec, "the store keeps it as it is"
    assert list(VALIDATOR.iter_errors(spec)) == []


SMALL: dict[str, Any] = {
    "schema": "ablate/v1",
    "name": "demo",
    "task": "json:loads",
    "metrics": {"acc": {"goal": "max"}},
    "settings": {"a": [1], "b": 0.5},
    "steps": [{"name": "wide", "set": {"a": [2]}}],
}


@pytest.mark.parametrize(
    ("name", "profile"),
    [(path.stem, profile) for path in sorted(STUDIES.glob("*.yaml")) for profile in (None, *profiles_of(path))],
)
def test_round_trip(name: str, profile: str | None) -> None:
    """The store keeps a study as JSON, and a report expands it again: the same trials, the same comparisons."""
    plan = open_plan(STUDIES / f"{name}.yaml", profile=profile)
    spec = json.loads(json.dumps(plan.study.spec()))
    again = make_plan(from_document(spec, Document(name, spec, {}), profile or ""))
    assert again.study.spec() == plan.study.spec()
    assert again.trials() == plan.trials()
    assert (again.arms, again.contrasts, again.frozen()) == (plan.arms, plan.contrasts, plan.frozen())


def test_round_trip_of_design_options() -> None:
    value = {**SMALL, "designs": ["ladder", {"leave-one-out": {"except": ["wide"]}}], "resources": {"timeout": "2h"}}
    study = from_document(value, Document("f", value, {}), "")
    spec = study.spec()
    assert spec["designs"] == value["designs"]
    assert spec["resources"]["timeout"] == 7200.0
    assert from_document(spec, Document("f", spec, {}), "").spec() == spec


def test_defaults() -> None:
    study = from_document(SMALL, Document("f", SMALL, {}), "")
    assert [design.name for design in study.designs] == ["ladder"]
    assert (study.seeds.numbers, study.seeds.are_fixed, study.grows) == ((1, 2, 3, 4, 5), True, False)
    assert (study.fresh_seeds, study.role("ladder"), study.role("path")) == ((), "main", "confirm")
    assert study.analysis.model_dump() == {
        "alpha": 0.05, "correction": "holm", "pairing": "seed", "select": "last", "scope": "test-set",
    }  # fmt: skip
    assert (study.execution.dtype, study.execution.threads) == ("float32", 1)
    assert (study.resources.gpus, study.resources.cpus, study.resources.retries) == (0, None, 0)
    assert study.primary == "acc"
    assert study.step("wide").label == "wide"


@pytest.mark.parametrize(
    ("seeds", "first", "last", "grows"),
    [
        (4, (1, 2, 3, 4), 4, False),
        ([9, 2], (9, 2), 2, False),
        ({"looks": [3, 5, 8]}, (1, 2, 3), 8, True),
        ({"mode": "precision", "half_width": 1}, tuple(range(1, 9)), 50, True),
        ({"mode": "precision", "half_width": 1, "pilot": 3, "most": 7}, (1, 2, 3), 7, True),
    ],
)
def test_seeds(seeds: Any, first: tuple[int, ...], last: int, grows: bool) -> None:
    value = {**SMALL, "seeds": seeds}
    study = from_document(value, Document("f", value, {}), "")
    assert (study.seeds.first, study.seeds.numbers[-1], study.grows) == (first, last, grows)


@pytest.mark.parametrize(
    ("looks", "weights"), [([3, 5, 8, 12, 20], (0.05, 0.15, 0.2, 0.2, 0.4)), ([4, 8], (0.5, 0.5)), ([5], (1.0,))]
)
def test_weights_of_looks_sum_to_one(looks: list[int], weights: tuple[float, ...]) -> None:
    value = {**SMALL, "seeds": {"looks": looks}}
    study = from_document(value, Document("f", value, {}), "")
    assert (study.seeds.weights, sum(study.seeds.weights)) == (weights, pytest.approx(1))


@pytest.mark.parametrize(
    ("parts", "fresh"),
    [
        ({"confirm_seeds": 2}, (6, 7)),
        ({"confirm_seeds": 2, "seeds": [9, 4]}, (10, 11)),
        ({"confirm_seeds": [8, 0]}, (8, 0)),
        ({"designs": ["path"], "seeds": [3, 7, 5]}, (8, 9, 10)),
        ({"designs": ["ladder", "path"], "confirm_seeds": [1, 2, 4], "seeds": [9]}, (1, 2, 4)),
    ],
)
def test_fresh_seeds(parts: dict[str, Any], fresh: tuple[int, ...]) -> None:
    value = {**SMALL, **parts}
    study = from_document(value, Document("f", value, {}), "")
    assert study.fresh_seeds == fresh
    assert study.role("ladder") == ("confirm" if "confirm_seeds" in parts else "main")


def test_nothing_can_be_changed() -> None:
    study = make_plan(from_document(copy.deepcopy(SMALL), Document("f", SMALL, {}), "")).study
    for thing, name in [
        (study, "name"), (study.metrics["acc"], "goal"), (study.steps[0], "branch"), (study.designs[0], "name"),
        (study.analysis, "alpha"), (study.seeds, "numbers"), (study.execution, "threads"), (study.resources, "gpus"),
    ]:  # fmt: skip
        with pytest.raises(ValidationError, match="frozen"):
            setattr(thing, name, "other")
    for thing in (make_plan(study), make_plan(study).arms[0], make_plan(study).replicates[0].trial):
        with pytest.raises(AttributeError):
            setattr(thing, "seed" if hasattr(thing, "seed") else "study", 5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1.5h", 5400), ("30m", 1800), ("2 m", 120), (5, 5), (0.5, 0.5)]
)
def test_durations(text: Any, seconds: float) -> None:
    assert Resources.model_validate_json(json.dumps({"timeout": text})).timeout == seconds


@pytest.mark.parametrize("text", ["90", "m", "1d", "-1s", "1e3s", "", "1h30m"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValidationError):
        Resources.model_validate_json(json.dumps({"timeout": text}))


def test_names() -> None:
    assert all(map(is_name, ["a", "depth-5", "1", "a" * 64]))
    assert not any(map(is_name, ["", "-a", "A", "a_b", "a\n", "a" * 65, "ä"]))
    assert [step_of(arm) for arm in ("only-a", "without-a", "a", "full")] == ["a", "a", "a", "full"]


def keys_of(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key that an editor offers, with its schema."""
    if isinstance(node, dict):
        for name, found in node.get("properties", {}).items():
            if "const" not in found:  # of a condition
                yield f"{path}/{name}", found
    for name, part in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from keys_of(part, f"{path}/{name}")


def test_every_key_says_what_it_is_for() -> None:
    """Editors show it beside the cursor, and a reference is made from it."""
    found = dict(keys_of(json_schema()))
    assert len(found) > 60
    assert [path for path, key in found.items() if not key.get("description", "").strip()] == []
