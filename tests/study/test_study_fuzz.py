"""Whatever stands in a study file, reading it gives a plan or faults that a person can read, and soon."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from ablate.errors import StudyError
from ablate.plan.outcomes import Told
from ablate.plan.trials import Plan, make_plan, open_plan, plans_of
from ablate.study.settings import canonical
from tests.study.inputs import SMALL

LEAST: dict[str, object] = {
    "schema": "ablate/v1",
    "name": "demo",
    "task": "json:loads",
    "metrics": {"a": {"goal": "max"}},
    "settings": {"a": 1, "b": {"c": [1], "d": None}},
}
SOAK = bool(os.environ.get("ABLATE_TEST_SOAK"))
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(7200 if SOAK else 600)
@pytest.mark.parametrize(("target", "count"), [("study", 2000), ("commands", 100), ("options", 300)])
def test_whatever_is_asked_is_answered(target: str, count: int, tmp_path: Path) -> None:
    """In forked batches, each input within its CPU time and memory (see ``tests.fuzz``)."""
    seed = int(os.environ.get("ABLATE_TEST_FUZZ_SEED", "20261121"))
    options = ["--seed", str(seed), "--count", str(count * (10 if SOAK else 1)), "--keep", str(tmp_path)]
    command = [sys.executable, "-m", "tests.fuzz", target, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout)  # the figures, where they are asked for with -s
    assert done.returncode == 0, done.stdout + done.stderr


def check(data: bytes, folder: Path, profile: str | None = None) -> Plan | None:
    """Read a study; where it is refused, its message must be fit to print."""
    path = folder / "study.yaml"
    path.write_bytes(data)
    try:
        return open_plan(path, profile=profile)
    except StudyError as error:
        faults = error.faults
    assert faults
    for fault in faults:
        assert fault.message
        assert not re.search(r"(?<![`\w])None\b|pydantic|ruamel|\[type=", fault.message), fault
        lines = str(fault).splitlines()
        assert len(lines) == (2 if fault.hint else 1)
        assert all(line.isprintable() for line in lines), fault
    return None


@given(st.binary(max_size=200))
@settings(
    max_examples=200, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    check(data, tmp_path)
    check(SMALL.encode() + data, tmp_path)


words = st.sampled_from(
    ["name", "set", "from", "a", "b", "b.c", "b.d", "x", "y", "baseline", "full", "seed", "except", "leave-one-out",
     "ladder", "looks", "factorial", "values", "source", "acc", "goal", "max", "title", "gpus", "timeout", "threads",
     "dtype", "", "a.b", "fractional", "path", "resolution", "IV", "mode", "precision", "half_width", "pilot", "most",
     "weights", "margin", "on_diverged", "conflicts", "requires"]
)  # fmt: skip
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | words
    | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(words, below, max_size=3),
    max_leaves=8,
)
sections = st.sampled_from(
    ["name", "question", "task", "metrics", "settings", "steps", "designs", "seeds", "confirm_seeds", "analysis",
     "execution", "resources", "reference", "assumed", "profiles", "tune", "schema"]
)  # fmt: skip


@given(st.dictionaries(sections, json_values, min_size=1, max_size=3))
@settings(
    max_examples=300, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_any_values_in_any_section(tmp_path: Path, parts: dict[str, object]) -> None:
    check(json.dumps({**LEAST, **parts}).encode(), tmp_path)
    plans_of(tmp_path / "study.yaml")


patches = st.fixed_dictionaries(
    {}, optional={"a": st.integers(1, 9), "b.c": st.lists(st.integers(1, 3), max_size=2), "b.d": st.integers(1, 9)}
)


@st.composite
def steps_like(draw: st.DrawFn) -> list[dict[str, object]]:
    """Steps that fit the settings, and each other more often than not."""
    names = draw(st.permutations(["x", "y", "z", "only-x"]))[: draw(st.integers(0, 4))]
    steps: list[dict[str, object]] = []
    for index, name in enumerate(names):
        step: dict[str, object] = {"name": name, "set": draw(patches.filter(bool)), "branch": draw(st.booleans())}
        others = st.sampled_from(["baseline", *names[:index]])
        if draw(st.booleans()):
            step["from"] = draw(others)
        if index and draw(st.booleans()):
            step["requires"] = [draw(st.sampled_from(names[: index + draw(st.integers(0, 1))]))]
        if draw(st.integers(0, 3)) == 0:
            step["conflicts"] = [draw(st.sampled_from(names))]
        if draw(st.integers(0, 3)) == 0:
            step["group"] = "g"
        steps.append(step)
    return steps


designs_like = st.lists(
    st.sampled_from(
        ["ladder", "one-at-a-time", "leave-one-out", {"leave-one-out": {"except": ["x"]}}, "factorial", "fractional",
         "path", {"factorial": ["x", "y"]}, {"fractional": ["x", "y", "z"], "resolution": "III"}]
    ),
    min_size=1,
    max_size=2,
)  # fmt: skip


@given(steps_like(), designs_like)
@settings(
    max_examples=500, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_any_steps_in_any_design(tmp_path: Path, steps: list[dict[str, object]], designs: list[object]) -> None:
    plan = check(json.dumps({**LEAST, "steps": steps, "designs": designs}).encode(), tmp_path)
    event("sound" if plan else "faults")
    if plan is not None:
        for contrast in plan.contrasts:
            assert sum(weight for _, weight in contrast.weights) == pytest.approx(0)
            assert len(set(contrast.arms)) == len(contrast.arms) > 1
            if contrast.arm:
                assert contrast.changes
                assert plan.arm(contrast.arm).settings != plan.arm(contrast.other).settings
                assert {contrast.minuend, contrast.subtrahend} == {contrast.arm, contrast.other}
        for arms in plan.rows.values():
            assert len({canonical(plan.arm(arm).settings) for arm in arms}) == len(arms)
        tell = {name: Told("finished", float(int(name, 16) % 97)) for name in plan.trials()}
        for _ in steps:  # along a path, no choice leads to a fault
            plan = make_plan(plan.study, tell)
            tell |= {name: Told("finished", float(int(name, 16) % 97)) for name in plan.trials()}
