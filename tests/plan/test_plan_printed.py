"""What ``ablate plan`` prints. After a change of the layout, look at the difference:

ABLATE_UPDATE_GOLDEN=1 pytest tests/plan/test_plan_printed.py && git diff tests/plan/printed.txt
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from ablate.plan.cost import cost_of
from ablate.plan.trials import Plan, open_plan
from ablate.report.plan import print_plan

HERE = Path(__file__).parent
STUDY = HERE / "printed.yaml"
GOLDEN = HERE / "printed.txt"


def printed(plan: Plan, *, width: int = 80, encoding: str = "utf-8", **known: Any) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    cost = cost_of(plan, **{"states": {}, "seconds": {}, "estimates": {}, **known})
    print_plan(plan, cost, Console(file=file, width=width, highlight=False))
    file.seek(0)
    return file.read()


def half_done(plan: Plan) -> dict[str, Any]:
    """Two seeds are done, one trial has failed; of one arm nothing is known but a timing, of another nothing."""
    states, seconds = {}, {}
    for each in plan.replicates:
        if each.seed < 3 and each.arm not in ("augment", "tabulated"):
            states[each.trial.fingerprint] = "failed" if (each.arm, each.seed) == ("depth-5", 2) else "done"
            seconds[each.trial.fingerprint] = 100.0 * len(plan.arm(each.arm).steps) + 4.2 + each.seed
    return {"states": states, "seconds": seconds, "estimates": {"augment": 7300.0}}


def all_done(plan: Plan) -> dict[str, Any]:
    return {"states": dict.fromkeys(plan.trials(), "done"), "seconds": dict.fromkeys(plan.trials(), 61.0)}


def blocks() -> dict[str, str]:
    ladder = open_plan(STUDY)
    others = open_plan(STUDY, overrides=["designs=[one-at-a-time, leave-one-out]"])
    minimal = open_plan(STUDY, profile="minimal")
    only = open_plan(STUDY, only=["residual-scale"])
    return {
        "a ladder, nothing known, 80 columns": printed(ladder),
        "a ladder, half done, 120 columns": printed(ladder, width=120, **half_done(ladder)),
        "a ladder, half done, 60 columns": printed(ladder, width=60, **half_done(ladder)),
        "two designs, ASCII": printed(others, encoding="ascii"),
        "a profile, all done": printed(minimal, **all_done(minimal)),
        "one arm only": printed(only),
    }


def test_golden() -> None:
    text = "\n".join(f"### {name}\n{block}" for name, block in blocks().items())
    if os.environ.get("ABLATE_UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


@pytest.mark.parametrize("width", [30, 46, 80, 120, 300])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_lines_fit_and_end_where_they_end(width: int, encoding: str) -> None:
    plan = open_plan(STUDY, overrides=["designs=[ladder, one-at-a-time, leave-one-out]"])
    for line in printed(plan, width=width, encoding=encoding).splitlines():
        assert cell_len(line) <= width, line
        assert line == line.rstrip()
        assert line.isprintable()


def test_every_change_can_be_found_as_it_is_written() -> None:
    """On a wide screen no line is broken, so that a search for a setting finds it with its values."""
    plan = open_plan(STUDY)
    lines = [line.strip() for line in printed(plan, width=300).splitlines()]
    for contrast in (each for each in plan.contrasts if each.tested):
        assert all(str(change) in lines for change in contrast.changes)
        assert any(
            line.startswith(f"{contrast.arm}, compared with {contrast.other}") or contrast.branch for line in lines
        )


def test_the_study_s_own_flags_reach_the_page() -> None:
    plan = open_plan(STUDY, overrides=["metrics={loss: {goal: min}}", "designs=[ladder]"])
    assert "primary metric loss, lower is better; seeds 1-3" in printed(plan)


def test_no_steps(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        "schema: ablate/v1\nname: a\ntask: json:loads\nmetrics: {m: {goal: min}}\nsettings: {x: 1}\nseeds: [4]\n"
    )
    assert printed(open_plan(path)) == (
        "a\nprimary metric m, lower is better; seeds 4\nthe study has no steps: only the baseline is run\n\n"
        "1 trial: 0 done, 1 to do\ncost: not known yet; `ablate plan --time` measures it\n"
    )
