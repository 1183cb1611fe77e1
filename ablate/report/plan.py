"""``ablate plan``: every arm with exactly what differs, what is done, and what the rest costs."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ablate.plan.cost import ArmCost, Cost
from ablate.plan.designs import Contrast
from ablate.plan.trials import Plan
from ablate.study.words import duration


def print_plan(plan: Plan, cost: Cost, console: Console) -> None:
    """Print a plan to a console: a table per design, then the trials and their cost."""
    study = plan.study
    metric = study.metrics[study.primary]
    better = "higher" if metric.goal == "max" else "lower"
    unit = f" ({metric.unit})" if metric.unit else ""
    console.print(Text(f"{study.title}: {study.question}" if study.question else study.title, style="bold"))
    console.print(Text(f"primary metric {study.primary}{unit}, {better} is better; seeds {_seeds(study.seeds)}"))
    costs = {each.arm: each for each in cost.arms}
    for design in dict.fromkeys(contrast.design for contrast in plan.contrasts):
        console.print()
        console.print(_table(plan, design, costs))
    if not plan.contrasts:
        console.print(Text("the study has no steps: only the baseline is run"))
    console.print()
    for line in _totals(cost):
        console.print(Text(line), soft_wrap=True)


def _table(plan: Plan, design: str, costs: dict[str, ArmCost]) -> Table:
    rows = [contrast for contrast in plan.contrasts if contrast.design == design]
    # the baseline, the full model, and references that no row is named after
    others = [name for name in dict.fromkeys(c.other for c in rows) if name not in {c.arm for c in rows}]
    table = Table(title=design, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, expand=False)
    table.add_column("arm", overflow="fold")
    table.add_column("compared with", overflow="fold")
    table.add_column("what differs", overflow="fold", ratio=1)
    table.add_column("done", justify="right", no_wrap=True)
    table.add_column("a trial", justify="right", no_wrap=True)
    for name in others:
        steps = plan.arm(name).steps
        what = "the settings as they stand" if not steps else "baseline plus " + ", ".join(steps)
        table.add_row(Text(name), "", Text(what, style="dim"), *_done(costs[name]))
    for row in rows:
        branch = " (branch)" if row.branch else ""
        table.add_row(Text(row.arm + branch), Text(row.other), _differs(row), *_done(costs[row.arm]))
    return table


def _differs(row: Contrast) -> Text:
    lines = [str(change) for change in row.changes]
    if row.note:
        lines.append(f"({row.note})")
    return Text("\n".join(lines))


def _done(cost: ArmCost) -> tuple[str, str]:
    done = f"{cost.done}/{cost.planned}" + (f" ({cost.failed} failed)" if cost.failed else "")
    if cost.trial_s is None:
        return done, "?"
    return done, duration(cost.trial_s) + ("" if cost.measured else " (timed)")


def _totals(cost: Cost) -> list[str]:
    failed = f", {cost.failed} failed (`ablate retry`)" if cost.failed else ""
    lines = [f"{cost.trials:,} trials: {cost.done:,} done, {cost.to_do:,} to do{failed}"]
    if cost.to_do:
        known = f"about {duration(cost.seconds)} of slot time" if cost.seconds else "no cost is known yet"
        if cost.unknown and cost.seconds:
            known += f", plus {len(cost.unknown)} arms whose cost is not known"
        hint = "; `ablate plan --time` measures it" if cost.unknown else ""
        lines.append(f"cost: {known}{hint}")
    return lines


def _seeds(seeds: tuple[int, ...]) -> str:
    if len(seeds) > 2 and seeds == tuple(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}…{seeds[-1]}"
    return ", ".join(map(str, seeds))
