"""The report as one HTML file: it loads nothing, holds no script, and is the same bytes for the same store."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ablate import __version__
from ablate.analyse.arm_details import ArmDetails, SeedDetails
from ablate.analyse.details import MOST_ARMS, MOST_TRIALS, FailureDetails, StudyDetails, shown_role
from ablate.analyse.findings import Analysis, DesignResult
from ablate.plan.designs import BOTH
from ablate.report import drawings
from ablate.report.answer import answer, standing
from ablate.report.arm import common_facts, other_facts
from ablate.report.designs import build_tables
from ablate.report.notes import Note, drift_notes
from ablate.report.numbers import duration, fixed, listed, plural, quantity, seed_list
from ablate.report.table import Column, Difference, Row, Table, Value, digits_of
from ablate.report.text import one_line, visible
from ablate.study.settings import leaves, show

# facts that differ from attempt to attempt and say nothing of its result
_VOLATILE = {"command", "slot", "compiles", "compile_seconds"}


@cache
def _templates() -> Environment:
    """Return the page's templates. Whatever a study says comes out as text: escaped, on one line, without controls."""
    made = Environment(
        loader=PackageLoader("ablate.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: one_line(value) if isinstance(value, str) and not hasattr(value, "__html__") else value,
    )
    made.filters["lines"] = lambda lines: Markup("\n").join(visible(line, keep="\t") for line in lines)
    return made


# --- a table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cell:
    """A cell as it is printed: its text, what follows it in grey, and the words that style it."""

    text: str
    rest: str = ""
    style: str = ""


@dataclass(frozen=True)
class _Mark:
    """The mark of a note about rows, by which a row names it."""

    sign: str
    note: Note


def table_html(table: Table, *, name: str = "table") -> str:
    """Return a table with its notes as HTML. ``name`` tells its marks from those of other tables of one page."""
    about_rows = [note for note in table.notes if note.rows]
    marks = [_Mark(_sign(index), note) for index, note in enumerate(about_rows)]
    by_row: dict[str, list[str]] = {}
    for mark in marks:
        for row in mark.note.rows:
            by_row.setdefault(str(row), []).append(mark.sign)
    return (
        _templates()
        .get_template("table.html")
        .render(
            name=name,
            table=table,
            rows=[(row, [_cell(row, column) for column in table.columns]) for row in table.rows],
            marks=marks,
            by_row=by_row,
            general=[
                *(n.text for n in table.notes if not n.rows and not n.item),
                *([table.bold] if table.bold else []),
            ],
            items=[note.text for note in table.notes if not note.rows and note.item],
            seed_list=seed_list,
        )
    )


def _sign(index: int) -> str:
    """``a`` … ``z``, ``aa``, ``ab`` …"""
    return (_sign(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


def _cell(row: Row, column: Column) -> _Cell:
    text = row.cells.get(column.key, "")
    style = "right" if column.right else ""
    if isinstance(text, Difference):
        return _Cell(text.mean, f"[{text.low}, {text.high}]" if text.low else "", style)
    if isinstance(text, Value):
        style += " best" if text.best else ""
        if text.sd:
            return _Cell(text.mean, f"± {text.sd}{text.mark}", style)
        return _Cell(text.mean + text.mark, style=style)
    if column.key == "label":
        return _Cell(text.removeprefix("└ "), style="branch" if row.branch else "")
    if column.key == "verdict" and text:
        kind = drawings.KINDS.get(row.plot.verdict, "untested") if row.plot else "untested"
        return _Cell(text, style=f"verdict {kind}")
    return _Cell(text, style=style)


# --- the page ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Section:
    """A table with what is drawn of it. ``effect`` is what the table calls its effects."""

    name: str
    heading: str
    progress: str
    table: Markup
    effect: str
    waterfall: drawings.Rows | None
    forest: drawings.Rows | None
    map: drawings.Map | None


@dataclass(frozen=True)
class _Arm:
    """One arm with its notes, its seeds as cells, and the facts of its environment that not all arms share."""

    details: ArmDetails
    notes: tuple[str, ...]
    metrics: tuple[str, ...]
    seeds: tuple[tuple[str, ...], ...]
    candidates: int
    settings: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    others: tuple[tuple[str, Mapping[str, str]], ...]


def render(analysis: Analysis, details: StudyDetails) -> str:
    """Return the report as one HTML page."""
    is_large = len(analysis.arms) > MOST_ARMS
    with_seeds = not is_large and analysis.counts.planned <= MOST_TRIALS
    everywhere = _everywhere(details)
    return (
        _templates()
        .get_template("page.html")
        .render(
            analysis=analysis,
            details=details,
            version=__version__,
            command=f"ablate report {analysis.title} --html",
            answer=answer(analysis),
            standing=standing(analysis),
            sections=[
                _section(analysis, table, f"t{number}", with_seeds=with_seeds)
                for number, table in enumerate(build_tables(analysis), start=1)
            ],
            curves=drawings.learning_curves(details.courses, analysis.metrics),
            panel=drawings,
            clouds=drawings.clouds(analysis, details.costs),
            costs=_cost_rows(analysis, details),
            costs_left_out=_costs_left_out(analysis, details),
            arms=[_arm(analysis, arm, everywhere, with_seeds=with_seeds) for arm in details.arms],
            failures=[(_failed(failure), failure) for failure in details.failures],
            facts=everywhere,
            left_out=_left_out(is_large, with_seeds=with_seeds),
            level=f"{100 * (1 - analysis.alpha):g}%",
        )
    )


def _left_out(is_large: bool, *, with_seeds: bool) -> str:
    if is_large:
        return (
            f"More than {MOST_ARMS} arms: this page has their tables and effects. Left out are the values of seeds, "
            "learning curves, costs, arms and failures: `ablate report --csv`, `ablate show ARM` and `ablate status`."
        )
    if not with_seeds:
        return f"More than {MOST_TRIALS:,} trials: what each seed measured is left out; `ablate report --csv` has it."
    return ""


def _section(analysis: Analysis, table: Table, name: str, *, with_seeds: bool) -> _Section:
    heading = table.heading.removeprefix(f"{analysis.title}: ")
    design = next((each for each in analysis.designs if each.name == table.design), None)
    is_first = table.heading == f"{analysis.title}: {table.design}"  # a design may have further tables
    effect = next((column.title for column in table.columns if column.key == "effect"), "")
    is_models = any(column.key.startswith("step:") for column in table.columns)
    return _Section(
        name=name,
        heading=_sentence(heading.replace("-", " ") if is_first else heading),
        progress=_sentence(table.progress),
        table=Markup(table_html(table, name=name)),
        effect=_sentence(effect.partition(" [")[0]),
        waterfall=_waterfall(analysis, design, table),
        # side by side, the effects are those of the table of leave-one-out
        forest=None
        if is_models or table.design == BOTH
        else drawings.forest(table, analysis.primary, with_seeds=with_seeds),
        map=drawings.interactions(analysis, design, table.places) if design and is_first else None,
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _waterfall(analysis: Analysis, design: DesignResult | None, table: Table) -> drawings.Rows | None:
    if design is None or design.name not in ("ladder", "path") or len(analysis.arms) > MOST_ARMS:
        return None
    return drawings.waterfall(analysis, design, table)


def _cost_rows(analysis: Analysis, details: StudyDetails) -> list[tuple[str, ...]]:
    """Return what the clouds of costs draw, in numbers: number, arm, value, time, parameters, FLOPs."""
    places = digits_of(analysis, analysis.arms, ()).cells[analysis.primary.name]
    return [
        (
            str(cost.number),
            cost.arm,
            drawings.interval_text(cost.value, lambda value: fixed(value, places)),
            drawings.interval_text(cost.seconds, lambda value: duration(max(0.0, value))) if cost.seconds else "",
            "" if cost.parameters is None else quantity(cost.parameters),
            "" if cost.flops is None else quantity(cost.flops),
        )
        for cost in details.costs
    ]


def _costs_left_out(analysis: Analysis, details: StudyDetails) -> str:
    planned = sum(arm.role == shown_role(analysis) for arm in analysis.arms)
    number = planned - len(details.costs)
    return f"Left out: {plural(number, 'arm')} without a value, or with a seed that diverged." if number else ""


def _failed(failure: FailureDetails) -> str:
    which = f"candidate {failure.candidate}, " if failure.candidate is not None else ""
    tries = f", {plural(failure.attempts, 'attempt')}" if failure.attempts > 1 else ""
    return f"{failure.arm}, {which}seed {failure.seed}: {failure.outcome or 'failed'}{tries}"


def _everywhere(details: StudyDetails) -> dict[str, str]:
    """Return the facts that all attempts of the study share."""
    attempts = [attempt for arm in details.arms for seed in arm.seeds for attempt in seed.attempts]
    facts = common_facts(attempts) if attempts else {}
    return {key: value for key, value in facts.items() if value and key not in _VOLATILE}


def _arm(analysis: Analysis, arm: ArmDetails, everywhere: Mapping[str, str], *, with_seeds: bool) -> _Arm:
    results = [each for each in analysis.arms if each.name == arm.name]
    attempts = [attempt for seed in arm.seeds for attempt in seed.attempts]
    own = common_facts(attempts) if attempts else {}
    known = {**everywhere, **own, **dict.fromkeys(_VOLATILE)}
    trials = [seed for seed in arm.seeds if seed.result.candidate is None]
    metrics = tuple(name for name in arm.metrics if any(name in seed.result.values for seed in trials))
    return _Arm(
        details=arm,
        notes=tuple(dict.fromkeys(note for result in results for note in drift_notes(result))),
        metrics=metrics,
        seeds=tuple(_seed(seed, metrics) for seed in trials) if with_seeds else (),
        candidates=len(arm.seeds) - len(trials),
        settings=tuple((path, show(value)) for path, value in leaves(arm.settings)) if arm.parent is None else (),
        facts=tuple((key, value) for key, value in own.items() if value and key not in {*everywhere, *_VOLATILE}),
        others=tuple((listed(names), facts) for facts, names in other_facts(arm, known)) if with_seeds else (),
    )


def _seed(seed: SeedDetails, metrics: tuple[str, ...]) -> tuple[str, ...]:
    result = seed.result
    state = result.outcome if result.status == "failed" and result.outcome else result.status
    tries = f" ({plural(result.attempts, 'attempt')})" if result.attempts > 1 else ""
    return (
        str(result.seed),
        *(_number(result.values.get(name)) for name in metrics),
        "" if result.seconds is None else duration(result.seconds),
        f"{state}{tries}{' (imported)' if result.source == 'imported' else ''}",
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}" if math.isfinite(value) else str(value)
