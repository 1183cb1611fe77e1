"""The table of figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.chaos.chaos import KINDS
from tests.chaos.evidence import Figures, quantile


def _seconds(values: Sequence[float]) -> str:
    if not values:
        return "–"
    p50, p99, longest = (quantile(values, share) for share in (0.5, 0.99, 1))
    return f"{p50:.2f} / {p99:.2f} / {longest:.2f} s ({len(values)})"


ROWS: dict[str, Callable[[Figures], str]] = {
    "store": lambda each: each.store,
    "**kills** (SIGKILL)": lambda each: f"**{each.kills}**",
    **{
        f"of a {kind}" if not kind.startswith("frozen") else f"{kind.removeprefix('frozen ')}s frozen (SIGSTOP)": (
            lambda each, kind=kind: str(each.blows.get(kind, 0))  # type: ignore[misc]
        )
        for kind in KINDS
    },
    "restarts of the database server": lambda each: str(each.restarts) if each.store != "SQLite" else "–",
    "runs begun while it was away, that gave up": lambda each: str(each.turned_away) if each.store != "SQLite" else "–",
    "trials": lambda each: str(each.trials),
    "attempts": lambda each: str(each.attempts),
    "attempts that went on from a checkpoint": lambda each: str(each.resumed),
    "epochs of the study": lambda each: str(each.epochs),
    "epochs run more than once": lambda each: str(each.replayed),
    "… of these with other numbers": lambda each: str(each.mismatches),
    "trials lost": lambda each: str(each.lost),
    "trials done twice": lambda each: str(each.duplicated),
    "processes left over": lambda each: str(each.orphans),
    "numbers equal to the quiet run's": lambda each: f"{each.numbers} of {each.numbers}",
    "tensors of checkpoints and weights equal": lambda each: (
        f"{each.tensors} of {each.tensors}" if each.tensors else "–"
    ),
    "trials set aside after three deaths in a row, and retried": lambda each: str(each.set_aside),
    "worker killed → trial waiting, p50 / p99 / longest": lambda each: _seconds(each.worker_kills),
    "worker killed → trial claimed": lambda each: _seconds(each.worker_kills_taken_up),
    "runner killed, another at work → trial waiting": lambda each: _seconds(each.runner_kills),
    "runner killed, another at work → trial claimed": lambda each: _seconds(each.runner_kills_taken_up),
    "runner killed, none at work → trial waiting": lambda each: _seconds(each.lonely_runner_kills),
    "runner killed, none at work → trial claimed": lambda each: _seconds(each.lonely_runner_kills_taken_up),
    "time, and of the quiet run": lambda each: f"{each.seconds:.0f} s, {each.quiet_seconds:.0f} s",
    "time ÷ quiet time": lambda each: f"{each.seconds / each.quiet_seconds:.1f}",
    "seconds per kill": lambda each: f"{each.seconds / each.kills:.1f}",
    "seed": lambda each: str(each.seed),
}


def markdown(figures: Sequence[Figures]) -> str:
    """Return the figures as a markdown table, a column per run."""
    lines = ["| | " + " | ".join(each.study for each in figures) + " |", "|:--|" + "--:|" * len(figures)]
    lines += [f"| {name} | " + " | ".join(cell(each) for each in figures) + " |" for name, cell in ROWS.items()]
    return "\n".join(lines)
