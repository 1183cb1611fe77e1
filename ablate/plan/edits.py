"""What an edit of a study changed, in the words of its file: told before the next run, so nothing is a surprise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ablate.study.settings import canonical, differences

Spec = Mapping[str, Any]  # what ``Study.spec`` gives, as it is kept

SHOWN = 12
_ELSEWHERE = ("name", "steps")


def edits(before: Spec, after: Spec) -> list[str]:
    """Return a line for each change from one version of a study to another; of very many, the first and a count."""
    old, new = _steps(before), _steps(after)
    lines = [str(change) for change in differences(_rest(before), _rest(after))]
    lines += [f"step added: {name}" for name in new if name not in old]
    lines += [f"step removed: {name}" for name in old if name not in new]
    both = [name for name in new if name in old]
    if both != [name for name in old if name in new]:
        lines.append(f"the order of the steps: {', '.join(new)}")
    for name in both:
        lines += [f"step {name}: {change}" for change in differences(old[name], new[name])]
    if not lines and canonical(list(before["metrics"])) != canonical(list(after["metrics"])):
        lines.append(f"the primary metric: {next(iter(before['metrics']))} → {next(iter(after['metrics']))}")
    more = len(lines) - SHOWN
    return [*lines[:SHOWN], f"and {more} more changes"] if more > 1 else lines


def _steps(spec: Spec) -> dict[str, Any]:
    return {step["name"]: step for step in spec.get("steps", ())}


def _rest(spec: Spec) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key not in _ELSEWHERE}
