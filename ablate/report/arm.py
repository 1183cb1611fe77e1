"""``ablate show``: all about one arm, down to the attempts and what they ran on."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from ablate.analyse.arm_details import ArmDetails, AttemptDetails, SeedDetails
from ablate.report.numbers import plural
from ablate.report.text import in_encoding, visible
from ablate.study.settings import leaves, show
from ablate.study.words import duration

_INDENT = 2


def print_arm(arm: ArmDetails, console: Console) -> None:
    """Print it. Facts of the environment that attempts share are printed once, at the end."""
    _print(console, f"{arm.study}: {arm.name}", style="bold")
    if arm.title != arm.name:
        _print(console, arm.title)
    if arm.parent is None:
        _print(console, "the baseline: it is compared with nothing")
    else:
        _print(console, f"parent {arm.parent}; what differs from it:")
        for change in arm.changes or ("nothing",):
            _print(console, change, indent=_INDENT)
    for row in arm.compared:
        _print(console, f"{row.design}: its effect is {row.minuend} less {row.subtrahend}")
    _print_settings(arm, console)
    for seed in arm.seeds:
        _print_seed(seed, arm, console)
    _print_environments(arm, console)


def _print_settings(arm: ArmDetails, console: Console) -> None:
    console.print()
    _print(console, "settings", style="bold")
    for path, value in leaves(arm.settings):
        _print(console, f"{path}: {show(value)}", indent=_INDENT)


def _print_seed(seed: SeedDetails, arm: ArmDetails, console: Console) -> None:
    result = seed.result
    console.print()
    state = result.state if result.status == "finished" else result.status
    state = "pruned" if result.outcome == "pruned" else state
    seconds = f", {duration(result.seconds)}" if result.seconds is not None else ""
    reason = f": {result.reason}" if result.reason else ""
    which = f"candidate {result.candidate}, " if result.candidate is not None else ""
    _print(console, f"{which}seed {result.seed}: {state}{seconds}{reason}", style="bold")
    for value in seed.tuned:
        _print(console, value, indent=_INDENT)
    others = [name for name in result.values if name not in arm.metrics]
    names = [name for name in arm.metrics if name in result.values] + others
    if result.has_result and names:
        _print(console, ", ".join(f"{name} {_number(result.values[name])}" for name in names), indent=_INDENT)
    for attempt in seed.attempts:
        for line in _attempt(attempt):
            _print(console, line, indent=_INDENT)
        if attempt.slot != "imported":  # such a one has no folder
            _print(console, attempt.folder, indent=2 * _INDENT, wrap=False)


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else str(value)


def _attempt(attempt: AttemptDetails) -> Iterator[str]:
    took = attempt.seconds
    if took is None and attempt.ended is not None:
        took = attempt.ended - attempt.started
    after = f" after {duration(max(0.0, took))}" if took is not None else ""
    resumed = f", resumed from attempt {attempt.resumed_from}" if attempt.resumed_from is not None else ""
    stands = ", its result stands" if attempt.stands else ""
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt.started))
    ended = f"{attempt.outcome}{after}{resumed}{stands}"
    if attempt.slot == "imported":
        source = attempt.environment.get("imported_run") or attempt.environment.get("imported_from", "elsewhere")
        yield f"attempt {attempt.number}: imported from {source}{stands}; {began}"
        return
    yield f"attempt {attempt.number}: {ended}; on {attempt.host}, {attempt.slot}, {began}"
    if attempt.reused:
        of = f" of {attempt.reused.arm}" if attempt.reused.arm else " of a shorter trial"
        spared = f"{plural(attempt.reused.epochs, 'epoch')}, {duration(attempt.reused.seconds)}"
        yield f"{'':{_INDENT}}went on from the end{of} at this seed: {spared} not spent again"
    if attempt.error:
        yield f"{'':{_INDENT}}{attempt.error}"


def _print_environments(arm: ArmDetails, console: Console) -> None:
    """Print what every attempt has in common, then what only some of them have."""
    attempts = [attempt for seed in arm.seeds for attempt in seed.attempts]
    if not attempts:
        return
    common = common_facts(attempts)
    console.print()
    _print(console, f"environment of {plural(len(attempts), 'attempt')}", style="bold")
    _print_facts(common, console)
    for facts, names in other_facts(arm, common):
        console.print()
        _print(console, f"environment of {', '.join(names)}", style="bold")
        _print_facts(facts, console)


def common_facts(attempts: Sequence[AttemptDetails]) -> dict[str, str]:
    """Return the facts of the environment that are the same for all of these attempts, of which there is one."""
    first, *others = (attempt.environment for attempt in attempts)
    return {key: value for key, value in first.items() if all(each.get(key) == value for each in others)}


def other_facts(arm: ArmDetails, common: Collection[str]) -> list[tuple[dict[str, str], list[str]]]:
    """Return the facts that are not common, with the attempts that have them, as seed and number."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for seed in arm.seeds:
        for attempt in seed.attempts:
            rest = tuple((key, value) for key, value in attempt.environment.items() if key not in common and value)
            groups.setdefault(rest, []).append(f"{_name(seed)} attempt {attempt.number}")
    return [(dict(rest), names) for rest, names in groups.items() if rest]


def _name(seed: SeedDetails) -> str:
    candidate = seed.result.candidate
    return f"seed {seed.result.seed}" if candidate is None else f"candidate {candidate} seed {seed.result.seed}"


def _print_facts(facts: Mapping[str, str], console: Console) -> None:
    for key, value in facts.items():
        first, *further = value.splitlines() or [""]
        if value:
            _print(console, f"{key}: {first}", indent=_INDENT)
        for line in further:
            _print(console, line, indent=2 * _INDENT, wrap=False)


def _print(console: Console, text: str, *, style: str = "", indent: int = 0, wrap: bool = True) -> None:
    printable = in_encoding(visible(text), console.encoding)
    lines = [printable]
    if wrap and cell_len(printable) > console.width - indent:
        first, *rest = Text(printable).wrap(console, max(20, console.width - indent - _INDENT))
        lines = [first.plain, *(" " * _INDENT + line.plain for line in rest)]
    for line in lines:
        console.print(Text((" " * indent + line).rstrip(), style=style), soft_wrap=True)
