"""Commands that show results: tables, pages and figures, comparisons, other tools' formats."""

from __future__ import annotations

import gc
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ablate.cli.common import open_study, say, stdout, writing
from ablate.cli.options import FOLDER, complete_title, examples, name_argument, store_option
from ablate.errors import AblateError
from ablate.report.numbers import plural

if TYPE_CHECKING:
    from ablate.analyse.findings import Analysis
    from ablate.store.facts import StoredStudy
    from ablate.store.store import Store


@click.command(
    epilog=examples(
        "ablate report --markdown > table.md",
        "ablate report mine@quick --html > report.html",
        "ablate report --columns steps,n,val_acc,effect",
    )
)
@name_argument
@store_option
@click.option("--markdown", "form", flag_value="markdown", help="A GitHub-flavoured table with footnotes.")
@click.option("--latex", "form", flag_value="latex", help="Tables for a paper (booktabs, siunitx).")
@click.option("--csv", "form", flag_value="csv", help="A row per trial, every number.")
@click.option("--json", "form", flag_value="json", help="Everything: arms, effects, trials.")
@click.option("--html", "form", flag_value="html", help="One page with tables, figures and details; loads nothing.")
@click.option(
    "--columns",
    metavar="A,B,…",
    help="Columns of the table and their order: steps, n, a metric's name, effect, p, verdict, published, time, …",
)
@click.option(
    "--figures",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the figures there (PDF, SVG, PNG) instead: effects, ladder, learning curves, cost, tuning.",
)
def report(name: str | None, location: str | None, form: str | None, columns: str | None, figures: Path | None) -> None:
    """Print the comparison table of a study.

    By name (basenet, basenet@quick), by file, or of the one last run.
    """
    names = _column_names(columns, form, figures)
    gc.disable()  # all that is made here is needed to the end; of 100,000 trials a fifth of the time went into looking
    store, stored = open_study(name, location)
    if figures is not None:
        _write_figures(store, stored, figures)
        return
    if form == "csv":
        from ablate.analyse.frames import trials_frame
        from ablate.report import csv

        click.echo(csv.render(trials_frame(store, stored)), nl=False)
        return
    from ablate.analyse.analysis import analyse

    analysis = analyse(store, stored)
    if form == "html":
        from ablate.analyse.details import study_details
        from ablate.report import html
        from ablate.run.logs import tail

        page = html.render(analysis, study_details(store, stored, analysis, log_of=tail))
        click.echo(page.encode(), nl=False)  # in UTF-8, as the page says of itself, whatever the terminal's encoding
        return
    if form == "json":
        from ablate.analyse.curves import study_curves
        from ablate.report import json

        click.echo(json.render(analysis, study_curves(store, stored, analysis)), nl=False)
        return
    _print_analysis(analysis, form, names)


@click.command(
    epilog=examples("ablate export --tensorboard events", "ablate export mine@quick --mlflow tracking --wandb offline")
)
@name_argument
@store_option
@click.option("--tensorboard", "board", metavar="DIR", type=FOLDER, help="Event files: a folder per trial.")
@click.option("--mlflow", "runs", metavar="DIR", type=FOLDER, help="A database of runs, mlflow.db, in a folder.")
@click.option("--wandb", "offline", metavar="DIR", type=FOLDER, help="Offline runs of Weights & Biases.")
def export(name: str | None, location: str | None, board: Path | None, runs: Path | None, offline: Path | None) -> None:
    """Write the trials of a study as runs of another tool.

    They land in a folder; nothing is sent anywhere. Each finished trial has its curves (by epoch), final metrics
    (final/NAME), settings, seed, arm, outcome and what it ran on. Doing it twice is the same as doing it once; trials
    that were finished since are added.
    """
    from ablate.export import mlflow, tensorboard, wandb
    from ablate.export.records import records_of

    wanted: list[tuple[str, Path | None, Callable[..., object]]] = [
        ("tensorboard --logdir", board, tensorboard.write_runs),
        ("mlflow ui --backend-store-uri", runs, mlflow.write_runs),
        ("wandb sync", offline, wandb.write_runs),
    ]
    if not any(place for _, place, _ in wanted):
        raise click.UsageError("name what to write: --tensorboard DIR, --mlflow DIR or --wandb DIR")
    store, stored = open_study(name, location)
    records = records_of(store, stored)
    if not records:
        raise AblateError(f"no trial of `{stored.title}` is finished", hint="`ablate status` shows how far it has come")
    for viewer, place, write in wanted:
        if place is not None:
            with writing("the runs", place):
                written = str(write(records, place))
            say(f"{stored.title}: {plural(len(records), 'trial')} in {place}")
            click.echo(f"{viewer} {shlex.quote(written)}{'/offline-run-*' * (place == offline)}")


@click.command(
    epilog=examples("ablate compare mine@quick mine", "ablate compare mine:1 mine:2 --markdown", "ablate compare mine")
)
@click.argument("first", metavar="A", shell_complete=complete_title)
@click.argument("second", metavar="[B]", required=False, shell_complete=complete_title)
@store_option
@click.option("--other-store", metavar="PATH|URL", help="Where A lies, if not in the store of B.")
@click.option("--markdown", "form", flag_value="markdown", help="A GitHub-flavoured table with footnotes.")
@click.option("--latex", "form", flag_value="latex", help="A table for a paper (booktabs, siunitx).")
@click.option("--json", "form", flag_value="json", help="Everything: arms, effects, trials.")
def compare(first: str, second: str | None, location: str | None, other_store: str | None, form: str | None) -> None:
    """Compare two studies arm by arm.

    They are named like basenet, basenet@quick, or basenet:1 for its first version. With A alone: the study before and
    after it was trained afresh, on other code or other versions.
    """
    from ablate.analyse.comparing import compare_studies, compare_with_earlier

    if second is None:
        if other_store is not None:
            raise click.UsageError("--other-store says where A lies; name B as well")
        analysis = compare_with_earlier(*open_study(first, location))
    else:
        analysis = compare_studies(open_study(first, other_store or location), open_study(second, location))
    _print_analysis(analysis, form)


def _column_names(columns: str | None, form: str | None, figures: Path | None) -> tuple[str, ...]:
    if columns is None:
        return ()
    if form in ("csv", "json", "html") or figures is not None:
        raise click.UsageError("--columns is for tables: text, --markdown, --latex")
    names = tuple(name.strip() for name in columns.split(",") if name.strip())
    if not names:
        raise click.UsageError("--columns names none; such as --columns steps,n,effect")
    return names


def _print_analysis(analysis: Analysis, form: str | None, columns: Sequence[str] = ()) -> None:
    if form is None:
        from ablate.report.terminal import print_report

        print_report(analysis, stdout(), columns)
    elif form == "markdown":
        from ablate.report import markdown

        click.echo(markdown.render(analysis, columns), nl=False)
    elif form == "latex":
        from ablate.report import latex

        click.echo(latex.render(analysis, columns), nl=False)
    else:
        from ablate.report import json

        click.echo(json.render(analysis), nl=False)


def _write_figures(store: Store, stored: StoredStudy, folder: Path) -> None:
    from ablate.analyse.analysis import analyse
    from ablate.analyse.curves import study_curves
    from ablate.report.figures import write_figures

    with writing("the figures", folder):
        analysis = analyse(store, stored)
        written = write_figures(analysis, study_curves(store, stored, analysis), folder)
    if not written:
        raise AblateError(
            f"there is no figure for `{stored.title}`",
            hint="figures show effects, curves and cost: nothing has a value yet",
        )
    for path in written:
        click.echo(path)
