"""The studies behind the golden files: each shows something that a report must say right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.truth import DIVERGED, FAILED, STUDY, WAITING, Fate, Filled, fill, truth_study

HOSTILE = {
    "batchnorm": "a | pipe, `code`, *bold*, _it_, [link](http://x), <b>, $x$, &lt; ~~no~~ \\ [red]rich[/red]",
    "batchnorm-after-relu": '=HYPERLINK("http://x")',
    "depth-6": "line\nbreak\x1b[31m and \u202eright to left",
    "residual": "深さを変える：全部の層を二倍にして残差接続を足す",
    "residual-scale": "# heading? @everyone :smile:",
}


@dataclass(frozen=True)
class Case:
    """Changes of the truth study, the fates of trials by (arm, seed), and how many epochs each records."""

    study: Mapping[str, Any] = field(default_factory=dict)
    fates: Mapping[tuple[str, int], Fate] = field(default_factory=dict)
    epochs: int = 0

    def fill(self, folder: Path) -> Filled:
        return fill(folder, truth_study(**self.study), self.fates, epochs=self.epochs)


CASES = {
    "ladder": Case(
        {
            "reference": {
                "source": "A. Student, BaseNet, course report, table 2",
                "values": {"val_acc": {"baseline": 23, "batchnorm": 31.4, "residual-scale": 64}},
            },
            "assumed": {"train.lr": "the report does not say; the best of three on the baseline."},
        }
    ),
    "troubled": Case(
        fates={
            ("batchnorm", 2): FAILED,
            ("depth-6", 3): DIVERGED,
            ("residual-scale", 1): Fate(code="0ther"),
            ("residual-scale", 5): WAITING,
        }
    ),
    "one-seed": Case({"seeds": 1}),
    "two-seeds": Case({"seeds": 2}),
    "leave-one-out": Case({"designs": ["leave-one-out"]}),
    "one-at-a-time": Case({"designs": ["one-at-a-time"]}),
    "factorial": Case(
        {
            "steps": [step for step in STUDY["steps"] if step["name"] in ("batchnorm", "depth-6", "residual")],
            "designs": ["factorial"],
            "metrics": {"val_acc": {"goal": "max", "unit": "%", "margin": 1.0}},
        },
        epochs=4,
    ),
    "tuned": Case(
        {
            "tune": {"train.lr": {"choices": [0.001, 0.01, 0.1]}, "train.epochs": {"low": 10, "high": 20, "step": 5}},
            "budget": {"sampler": "grid", "seeds": 2},
        },
        {("depth-6", 1_000_001): FAILED},
    ),
    "hostile": Case(
        {
            "question": "Does `<script>` | break *it*?",
            "seeds": 3,
            "steps": [{**step, "title": HOSTILE[step["name"]]} for step in STUDY["steps"]],
            "metrics": {"val_acc": {"goal": "max", "unit": "|%|", "title": "_acc_ [x](y)"}},
        },
        {("residual", 2): Fate("error", "failed", reason="ValueError: <b> | `x` \x1b[31m")},
    ),
}
