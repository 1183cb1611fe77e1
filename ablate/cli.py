"""The command line. Thin: it composes rooms, and imports one inside the command that needs it.

Data goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import errno
import gc
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from ablate import __version__, completion
from ablate.errors import (
    EXIT_BUG,
    EXIT_ENVIRONMENT,
    EXIT_FAILED_TRIALS,
    EXIT_INTERRUPTED,
    EXIT_REQUEST,
    AblateError,
    Fault,
    StoreError,
    StudyError,
)
from ablate.failpoints import failpoint
from ablate.report.text import in_encoding, make_streams_safe, visible
from ablate.study.words import without_secrets

if TYPE_CHECKING:
    from rich.console import Console

    from ablate.analyse.findings import Analysis
    from ablate.plan.trials import Plan
    from ablate.report.plan import Spread
    from ablate.run.runner import Summary
    from ablate.run.studies import OldCode
    from ablate.store.facts import StoredStudy
    from ablate.store.store import Store

_LOCATION = "ablate.location"  # of the store a command was given, in click's context
STORE_HELP = "Path or URL of the store [default: runs/ablate.db of the project; $ABLATE_STORE]."


class _ReaderGone(Exception):
    """The reader of our pipe has gone (`| head`)."""


class _Commands(click.Group):
    """Lists the commands in the order of a study's life, not of the alphabet."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])  # click would call a bare `ablate` an error, all help in it

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _ReaderGone from None  # click would make it exit code 1, which says that trials failed
        except (AblateError, click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception as error:
            damage = _damage_of_store(ctx.meta.get(_LOCATION)) if _LOCATION in ctx.meta else None
            if damage is None:
                raise
            raise damage from error

    def list_commands(self, _: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ablate")
def cli() -> None:
    """Ablation studies in PyTorch: one YAML file to a table you can publish.

    \b
    ablate init mine            write a study to begin with: mine.yaml, mine.py
    ablate plan mine.yaml       what would run, and what it costs
    ablate run mine.yaml        run it; the same command resumes it
    ablate report --markdown    the table of the study last run
    """


def _examples(*lines: str) -> str:
    """Return what stands below the options of a command's help."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def _study_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.argument("study", type=click.Path(), shell_complete=completion.study_files),
        click.option(
            "--profile",
            metavar="NAME",
            help="A profile of the study file: a study of its own.",
            shell_complete=completion.offer(completion.profiles),
        ),
        click.option("--set", "overrides", metavar="PATH=VALUE", multiple=True, help="Override a setting or resource."),
        click.option("--seeds", metavar="N|A,B,…", help="How many seeds, or which."),
        click.option(
            "--only",
            metavar="ARM,…",
            help="These arms and what they are compared with.",
            shell_complete=completion.offer(completion.listed(completion.planned_arms)),
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


_complete_title = completion.offer(completion.titles)
_name_argument = click.argument("name", required=False, shell_complete=_complete_title)


def _note_location(ctx: click.Context, _: click.Parameter, location: str | None) -> str | None:
    ctx.meta[_LOCATION] = location
    return location


_store_option = click.option(
    "--store", "location", metavar="PATH|URL", envvar="ABLATE_STORE", help=STORE_HELP, callback=_note_location
)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_data_option = click.option(
    "--data-dir", type=click.Path(path_type=Path), envvar="ABLATE_DATA", help="Where data sets lie [$ABLATE_DATA]."
)


@cli.command(epilog=_examples("ablate init", "ablate init studies/mine --template function"))
@click.argument("place", required=False, default=".", type=click.Path(path_type=Path), metavar="[NAME]")
@click.option(
    "--template",
    metavar="NAME",
    default="classifier",
    show_default=True,
    help="One of those above.",
    shell_complete=completion.offer(completion.templates),
)
def init(place: Path, template: str) -> None:
    """Write a starter study that runs at once, with its code.

    It is meant to be made your own. NAME may begin with a folder, or be one. Nothing is overwritten. The templates:

    \b
    classifier   the loop for image classification that comes with ablate
    function     a training loop of your own, as a function
    command      a training script of your own, left as it is
    tuned        every arm at a learning rate of its own

    All run in about a minute, on digits that need no download.
    """
    from ablate.study.starter import SCHEMA_FILE, write_starter

    with _writing("the starter", place):
        study, code = write_starter(place, template)
    _say(f"written: {study}, {code}, and {study.parent / SCHEMA_FILE}, from which editors complete the study's keys")
    click.echo(shlex.join(["ablate", "plan", str(study)]))
    click.echo(shlex.join(["ablate", "run", str(study)]))


@cli.command(
    epilog=_examples(
        "ablate plan mine.yaml",
        "ablate plan mine.yaml --profile quick --set train.lr=0.02",
        "ablate plan mine.yaml --time",
    )
)
@_study_options
@_store_option
@_data_option
@click.option("--time", "timed", is_flag=True, help="Run each arm to its first record, to learn the cost.")
def plan(
    study: str,
    profile: str | None,
    overrides: tuple[str, ...],
    seeds: str | None,
    only: str | None,
    location: str | None,
    data_dir: Path | None,
    timed: bool,
) -> None:
    """Show what a run would do, and what it costs.

    Arms, what differs, trials done and to do. Runs no user code without --time.
    """
    from ablate.plan.cost import cost_of
    from ablate.report.plan import print_plan

    made = _open_plan(study, profile, overrides, seeds, only)
    store = _existing_store(location)
    estimates = {}
    if timed:
        estimates = _time_arms(made, data_dir)
    states, known = {}, {}
    if store is not None:
        from ablate.api import edit_lines
        from ablate.store.facts import grown_plan, known_seconds, states_of

        arms = {each.arm for each in made.replicates} if only else None
        made = grown_plan(store, made.study).restricted(arms)
        fingerprints = list(made.trials())
        states, known = states_of(store, fingerprints), known_seconds(store, fingerprints)
        for line in edit_lines(store, made):
            _say(line)
    cost = cost_of(made, states=states, seconds=known, estimates=estimates)
    print_plan(made, cost, _stdout(), spread=_spread(store, made))


@cli.command(epilog=_examples("ablate validate studies/*.yaml"))
@click.argument("studies", nargs=-1, required=True, type=click.Path(), shell_complete=completion.study_files)
def validate(studies: tuple[str, ...]) -> None:
    """Check study files with all their profiles; run nothing."""
    from ablate.plan.trials import plans_of

    faults: list[Fault] = []
    for path in studies:
        plans, found = plans_of(path)
        for made in plans:
            click.echo(f"{path}: {made.study.title} is sound: {_size(made)}")
        faults += found
    if faults:
        raise StudyError(faults)


@cli.command(
    epilog=_examples(
        "ablate run mine.yaml",
        "ablate run mine.yaml --only batchnorm,wide --seeds 1",
        "ablate run mine.yaml -j 1 --set resources.gpus=0",
    )
)
@_study_options
@_store_option
@_data_option
@click.option("-j", "--jobs", type=click.IntRange(1, 1024), metavar="N", help="At most so many trials at once.")
@click.option("--keep", "choice", flag_value="keep", help="The code has changed: keep what older code trained.")
@click.option("--fresh", "choice", flag_value="fresh", help="Train again what other code or versions trained.")
@click.option("--no-mirror", is_flag=True, envvar="ABLATE_NO_MIRROR", help="Keep no Optuna mirror beside the run.")
def run(
    study: str,
    profile: str | None,
    overrides: tuple[str, ...],
    seeds: str | None,
    only: str | None,
    location: str | None,
    data_dir: Path | None,
    jobs: int | None,
    choice: str | None,
    no_mirror: bool,
) -> None:
    """Run what is missing of a study, then print its table. The same command resumes it."""
    with _resumable():
        from ablate.api import run_plan
        from ablate.run.runner import Options
        from ablate.run.stopping import Stopped

        made = _open_plan(study, profile, overrides, seeds, only)
        arms = tuple(dict.fromkeys(each.arm for each in made.replicates)) if only else None
        _say(f"{made.study.title}: {_size(made)}")
        summary, store = run_plan(
            made,
            location=location,
            options=Options(jobs=jobs, arms=arms, data_dir=data_dir),
            old_code=lambda count: _old_code(count, choice),
            fresh=choice == "fresh",
            mirror=not no_mirror,
            say=_say,
            console=_stderr(),
        )
        click.get_current_context().call_on_close(store.close)
        _say_summary(made, summary)
        if summary.count("done"):
            _print_terminal_report(store, made.study.title)
        if summary.stopped_by is not None:
            raise Stopped(summary.stopped_by)
    if summary.count("failed"):
        sys.exit(EXIT_FAILED_TRIALS)


@cli.command(
    "import",
    epilog=_examples(
        "ablate import mine.yaml --csv results.csv --map acc=test/acc --ignore host",
        "ablate import mine.yaml --mlflow mlruns --map arm=tag:mlflow.runName",
    ),
)
@_study_options
@_store_option
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="A row per trial, or per trial and epoch.")
@click.option("--mlflow", "runs", type=click.Path(path_type=Path), help="A folder of runs, as MLflow keeps them.")
@click.option("--map", "names", metavar="NAME=COLUMN", multiple=True, help="What the source calls a word of the study.")
@click.option("--ignore", "ignored", metavar="COLUMN", multiple=True, help="Pass over a column; `*` stands for any.")
@click.option("--replace", is_flag=True, help="Take these numbers in place of others imported before.")
def import_results(
    study: str,
    profile: str | None,
    overrides: tuple[str, ...],
    seeds: str | None,
    only: str | None,
    location: str | None,
    csv_file: Path | None,
    runs: Path | None,
    names: tuple[str, ...],
    ignored: tuple[str, ...],
    replace: bool,
) -> None:
    """Take results that were made elsewhere as trials of a study.

    All or none. Trains nothing, runs no user code.
    """
    from ablate.plan.matching import matched
    from ablate.run.provenance import importer_facts
    from ablate.store.facts import grown_plan
    from ablate.store.foreign import read_csv, read_mlflow
    from ablate.store.imports import record_results

    if (csv_file is None) == (runs is None):
        raise click.UsageError("name one source: --csv FILE, or --mlflow FOLDER")
    made = _open_plan(study, profile, overrides, seeds, only)
    arms = {each.arm for each in made.replicates} if only else None
    store = _existing_store(location, read_only=False)
    made = grown_plan(store, made.study).restricted(arms)
    renamed = _renamed(names)
    if csv_file is not None:
        table, others = read_csv(csv_file, metrics=made.study.metrics, names=renamed), 0
    else:
        assert runs is not None
        table, others = read_mlflow(runs, names=renamed)
    found = matched(made, table, ignored=ignored)
    store = store or _open_store(location, create=True)
    done = record_results(store, made, found, importer=importer_facts(), replace=replace)
    _say(f"{made.study.title}: {_count(done.new, 'trial')} imported{f', {done.same} there already' * bool(done.same)}")
    if others:
        _say(f"passed over: {_count(others, 'run')} that did not finish or {'was' if others == 1 else 'were'} deleted")


@cli.command(epilog=_examples("ablate status", "ablate status mine@quick"))
@_name_argument
@_store_option
def status(name: str | None, location: str | None) -> None:
    """Show how far a study has come.

    Who is at work on it, what failed and what to do next. Changes nothing.
    """
    from ablate.analyse.standing import standing
    from ablate.report.status import print_standing
    from ablate.run.liveness import is_alive

    store, stored = _stored(name, location)
    found = standing(store, stored, is_alive=lambda runner: is_alive(runner, store))
    print_standing(found, _stdout(), now=store.now(), options=_store_words(location))


@cli.command(epilog=_examples("ablate watch"))
@_name_argument
@_store_option
def watch(name: str | None, location: str | None) -> None:
    """Follow a running study from another terminal.

    The picture is the one that `ablate run` shows.
    """
    from ablate.analyse.results import stored_study
    from ablate.analyse.standing import standing
    from ablate.report.status import summary
    from ablate.run.liveness import is_alive
    from ablate.run.progress import Progress
    from ablate.run.watch import WATCH_FOOTER, follow_study
    from ablate.store.facts import trials_of

    store, stored = _stored(name, location)
    progress = Progress(stored_study(stored), trials_of(store, stored.id), _stderr(), footer=WATCH_FOOTER)
    follow_study(store, stored.id, progress)
    found = standing(store, stored, is_alive=lambda runner: is_alive(runner, store))
    _say(f"{stored.title}: {summary(found.counts)}")
    if found.counts.waiting or found.counts.running:
        _say(f"nobody is at work on it; go on with: {found.command}")


@cli.command(
    options_metavar="[OPTIONS]",
    epilog=_examples("ablate logs", "ablate logs batchnorm --seed 2 -n 20", "ablate logs mine wide -f"),
)
@click.argument("words", nargs=-1, metavar="[NAME] [ARM]", shell_complete=completion.offer(completion.arms_or_titles))
@_store_option
@click.option("--seed", type=int, metavar="N", help="The trial of this seed.")
@click.option(
    "--candidate",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of an arm that is tuned, the candidate of this number.",
)
@click.option(
    "--attempt", "number", type=click.IntRange(min=1), metavar="N", help="This attempt [default: the latest]."
)
@click.option("-n", "--lines", "last", type=click.IntRange(min=0), metavar="N", help="Only the last lines, so many.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the attempt ends.")
def logs(
    words: tuple[str, ...],
    location: str | None,
    seed: int | None,
    candidate: int | None,
    number: int | None,
    last: int | None,
    follow: bool,
) -> None:
    """Print what an attempt printed.

    Of the first failed trial, else of a running one, else of the last.
    """
    from ablate.run import logs

    if len(words) > 2:
        raise click.UsageError(f"expected a study and an arm, got {len(words)} words")
    store = _open_store(location, read_only=True)
    stored, arm = logs.named(store, [_title(word) for word in words[:1]] + list(words[1:]))
    attempt = logs.chosen_attempt(store, stored, arm=arm, seed=seed, number=number, candidate=candidate)
    path = logs.log_file(store, attempt, wanted=not follow)
    outcome = attempt.outcome or "running"
    which = f"candidate {candidate} seed {attempt.seed}" if candidate else f"seed {attempt.seed}"
    _say(f"{stored.title}: {arm or attempt.arm} {which}, attempt {attempt.claim} ({outcome}): {path}")
    ended = logs.end_of(store, stored, attempt)
    printed = False
    for line in logs.follow(path, last=last, ended=ended) if follow else logs.lines(path, last=last):
        print(line, flush=follow)
        printed = True
    if not printed and last != 0:
        _say("(it printed nothing)")


@cli.command(epilog=_examples("ablate show batchnorm", "ablate show batchnorm mine@quick"))
@click.argument("arm", shell_complete=completion.offer(completion.arms))
@_name_argument
@_store_option
def show(arm: str, name: str | None, location: str | None) -> None:
    """Show all about one arm.

    What differs, settings, results by seed, attempts and what they ran on.
    """
    from ablate.analyse.arm_details import arm_details
    from ablate.report.arm import print_arm

    store, stored = _stored(name, location)
    print_arm(arm_details(store, stored, arm), _stdout())


@cli.command(
    epilog=_examples(
        "ablate report --markdown > table.md",
        "ablate report mine@quick --html > report.html",
        "ablate report --columns steps,n,val_acc,effect",
    )
)
@_name_argument
@_store_option
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
    store, stored = _stored(name, location)
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

        click.echo(json.render(analysis, study_curves(store, stored)), nl=False)
        return
    _print_analysis(analysis, form, names)


def _column_names(columns: str | None, form: str | None, figures: Path | None) -> tuple[str, ...]:
    if columns is None:
        return ()
    if form in ("csv", "json", "html") or figures is not None:
        raise click.UsageError("--columns is for tables: text, --markdown, --latex")
    names = tuple(name.strip() for name in columns.split(",") if name.strip())
    if not names:
        raise click.UsageError("--columns names none; such as --columns steps,n,effect")
    return names


@cli.command(
    epilog=_examples("ablate export --tensorboard events", "ablate export mine@quick --mlflow tracking --wandb offline")
)
@_name_argument
@_store_option
@click.option("--tensorboard", "board", metavar="DIR", type=_FOLDER, help="Event files: a folder per trial.")
@click.option("--mlflow", "runs", metavar="DIR", type=_FOLDER, help="A database of runs, mlflow.db, in a folder.")
@click.option("--wandb", "offline", metavar="DIR", type=_FOLDER, help="Offline runs of Weights & Biases.")
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
    store, stored = _stored(name, location)
    records = records_of(store, stored)
    if not records:
        raise AblateError(f"no trial of `{stored.title}` is finished", hint="`ablate status` shows how far it has come")
    for viewer, place, write in wanted:
        if place is not None:
            with _writing("the runs", place):
                written = str(write(records, place))
            _say(f"{stored.title}: {_count(len(records), 'trial')} in {place}")
            click.echo(f"{viewer} {shlex.quote(written)}{'/offline-run-*' * (place == offline)}")


def _write_figures(store: Store, stored: StoredStudy, folder: Path) -> None:
    from ablate.analyse.analysis import analyse
    from ablate.analyse.curves import study_curves
    from ablate.report.figures import write_figures

    with _writing("the figures", folder):
        written = write_figures(analyse(store, stored), study_curves(store, stored), folder)
    if not written:
        raise AblateError(
            f"there is no figure for `{stored.title}`",
            hint="figures show effects, curves and cost: nothing has a value yet",
        )
    for path in written:
        click.echo(path)


@cli.command(
    epilog=_examples("ablate compare mine@quick mine", "ablate compare mine:1 mine:2 --markdown", "ablate compare mine")
)
@click.argument("first", metavar="A", shell_complete=_complete_title)
@click.argument("second", metavar="[B]", required=False, shell_complete=_complete_title)
@_store_option
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
        analysis = compare_with_earlier(*_stored(first, location))
    else:
        analysis = compare_studies(_stored(first, other_store or location), _stored(second, location))
    _print_analysis(analysis, form)


@cli.command(epilog=_examples("ablate retry", "ablate retry mine --only wide"))
@_name_argument
@_store_option
@click.option(
    "--only",
    metavar="ARM,…",
    help="Only the failed trials of these arms.",
    shell_complete=completion.offer(completion.listed(completion.arms)),
)
def retry(name: str | None, location: str | None, only: str | None) -> None:
    """Put the failed trials of a study back in the queue.

    `ablate run` then runs them.
    """
    from ablate.analyse.standing import plain_command
    from ablate.store.claims import reopen
    from ablate.store.facts import find_study

    store = _open_store(location)
    stored = find_study(store, _title(name) if name else None)
    count = reopen(store, stored.id, states=["failed"], arms=_split(only) or None)
    _say(f"{stored.title}: {_count(count, 'failed trial') if count else 'no failed trial'} back in the queue")
    if count:
        _say(f"run them with: {plain_command(stored)}")


@cli.command(epilog=_examples("ablate mirror", "ablate mirror --rebuild"))
@_store_option
@click.option("--rebuild", is_flag=True, help="Draw all of it again, from the store alone.")
def mirror(location: str | None, rebuild: bool) -> None:
    """Bring the Optuna mirror up to date.

    It is mirror.db beside the store. A run does so by itself.
    """
    from ablate.mirror.optuna import refresh
    from ablate.mirror.place import mirror_file

    store = _open_store(location, read_only=True)
    synced = refresh(store, rebuild=rebuild, say=_say)
    if synced is None:
        _say(f"{mirror_file(store)}: a run or a dashboard keeps it up to date")
    else:
        _say(f"{mirror_file(store)}: {_count(synced.studies, 'study version')}, {_count(synced.trials, 'trial')}")


@cli.command(epilog=_examples("ablate dashboard --port 0"))
@_store_option
@click.option(
    "--port", type=click.IntRange(0, 65535), metavar="N", default=8080, show_default=True, help="0 takes a free one."
)
def dashboard(location: str | None, port: int) -> None:
    """Show the studies in optuna-dashboard, until Ctrl-C.

    On this machine only: it has no login.
    """
    from ablate.mirror.dashboard import address, check_installed, open_server, serve

    check_installed()
    from ablate.mirror.follower import following
    from ablate.mirror.optuna import Mirror, refresh
    from ablate.mirror.place import mirror_file

    store = _open_store(location, read_only=True)
    server = open_server(port)
    refresh(store, say=_say)
    drawn = Mirror(store, mirror_file(store))
    drawn.write_notes()
    with following(_say) as follow:
        follow(store)
        _say(f"dashboard: {address(server)}/ (Ctrl-C ends it)")
        try:
            serve(server, drawn.storage())
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)


@cli.command(epilog=_examples("ablate doctor", "ablate doctor --verify"))
@_store_option
@_data_option
@click.option(
    "--verify", is_flag=True, help="Read all of the store and every checkpoint: nothing lost, nothing altered."
)
def doctor(location: str | None, data_dir: Path | None, verify: bool) -> None:
    """Check the installation, the machine and the store.

    Changes nothing. Exit code 4 if something is wrong.
    """
    from ablate.run.doctor import examine
    from ablate.store.project import store_location

    checks = []
    where = without_secrets(store_location(location))
    for check in examine(where, lambda: _existing_store(location), data_dir, thorough=verify):
        click.echo(visible(str(check), keep="\n\t"))  # names out of a store from elsewhere may stand in it
        checks.append(check)
    if any(check.level == "error" for check in checks):
        sys.exit(EXIT_ENVIRONMENT)


@cli.command(
    epilog=_examples(
        "ablate schema > .ablate-schema.json    # and as the first line of a study:",
        "# yaml-language-server: $schema=.ablate-schema.json",
    )
)
def schema() -> None:
    """Print the JSON Schema of a study file, for editors."""
    import json

    from ablate.study.editors import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


def main() -> None:
    """Run the command line and exit with one of the codes of ``ablate.errors``."""
    make_streams_safe()
    try:
        try:
            status = cli.main(prog_name="ablate", standalone_mode=False)
        except SystemExit as end:
            status = end.code
        sys.stdout.flush()
    except AblateError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except click.UsageError as error:
        _say(str(Fault(_lower(error.format_message()), hint=_usage_hint(error))))
        sys.exit(EXIT_REQUEST)
    except click.ClickException as error:
        _say(str(Fault(_lower(error.format_message()))))
        sys.exit(EXIT_REQUEST)
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except (BrokenPipeError, _ReaderGone):
        _drop_output()  # not an error
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            _say(str(_refusal(error)))
            _drop_output()
            sys.exit(EXIT_ENVIRONMENT)
        _say(without_secrets(f"error: a fault of ablate itself: {type(error).__name__}: {error}"))
        _say_crash()
        sys.exit(EXIT_BUG)
    sys.exit(status if isinstance(status, int) else 0)


# --- pieces of commands


@contextmanager
def _writing(what: str, place: Path) -> Iterator[None]:
    """Say what can't be written where a user wanted it: something in the way, a full disk."""
    from ablate.errors import EnvironmentFault

    try:
        yield
    except OSError as error:
        message = f"{what} can't be written: {error.strerror or error}"
        raise EnvironmentFault(message, where=str(error.filename or place), hint="name a folder that can be") from None


@contextmanager
def _resumable() -> Iterator[None]:
    """End with the signal's own exit code, and say how to go on, where a signal stops what is done here."""
    from ablate.run.provenance import command_line
    from ablate.run.stopping import Stopped, exit_code_of, stop_requests

    try:
        with stop_requests():
            yield
    except Stopped as stop:
        _say(f"nothing is lost; resume with: {command_line()}")
        sys.exit(exit_code_of(stop.number))


def _open_plan(study: str, profile: str | None, overrides: Sequence[str], seeds: str | None, only: str | None) -> Plan:
    from ablate.plan.trials import open_plan

    if seeds is not None:
        if seeds == "0" or not all(part.strip().isdecimal() for part in seeds.split(",")):
            raise AblateError(f"{seeds!r} is neither a count nor a list of seeds", where="--seeds", hint="5, or 1,2,7")
        overrides = [*overrides, f"seeds={seeds if seeds.isdecimal() else f'[{seeds}]'}"]
    return open_plan(study, profile=profile, overrides=overrides, only=_split(only))


def _renamed(names: Sequence[str]) -> dict[str, str]:
    """Return what ``--map`` says: a word of the study, and what the source calls it."""
    found = {}
    for text in names:
        name, equals, column = (part.strip() for part in text.partition("="))
        if not (name and equals and column):
            raise AblateError(f"{text!r} is no NAME=COLUMN", where="--map", hint="--map val_acc=test/acc")
        found[name] = column
    return found


def _old_code(count: int, choice: str | None) -> OldCode:
    """Return what to do with finished trials of other code: what the options say, or what a person answers."""
    if choice is not None:
        return "keep" if choice == "keep" else "fresh"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return "ask"
    _say(f"the task's code has changed since {_count(count, 'finished trial')} of this study")
    answer = click.prompt("keep them, or train them afresh?", type=click.Choice(["keep", "fresh"]), err=True)
    return "keep" if answer == "keep" else "fresh"


def _time_arms(made: Plan, data_dir: Path | None) -> dict[str, float]:
    from ablate.run.studies import worker_server
    from ablate.run.timing import time_arms
    from ablate.study.words import duration

    environment = {"ABLATE_DATA": str(data_dir.resolve())} if data_dir else {}
    found = {}
    with worker_server() as workers:
        for timing in time_arms(made, workers, study_folder=made.study.folder, environment=environment):
            if timing.error:
                _say(f"{timing.arm}: not timed: {timing.error}")
            elif timing.trial_s is None:
                _say(f"{timing.arm}: first record after {duration(timing.first_record_s or 0)}; epochs unknown")
            else:
                found[timing.arm] = timing.trial_s
                _say(f"{timing.arm}: about {duration(timing.trial_s)} a trial")
    return found


def _spread(store: Store | None, made: Plan) -> Spread | None:
    """Return the spread of differences in what was run of this study so far: a pilot, an earlier version, itself."""
    from ablate.analyse.analysis import analyse
    from ablate.report.plan import Spread
    from ablate.store.facts import find_study

    if store is None:
        return None
    try:
        sds = analyse(store, find_study(store, made.study.title)).spreads()
    except StoreError:
        return None  # it was never run, or by a version of ablate that this one can't read
    return Spread(median(sds), len(sds)) if sds else None


def _say_summary(made: Plan, summary: Summary) -> None:
    parts = [f"{_count(summary.count('done'), 'trial')} done"]
    for state in ("failed", "running", "waiting"):
        if summary.count(state):
            parts.append(f"{summary.count(state)} {state}")
    trained = "trained nothing new" if not summary.attempts else _count(summary.attempts, "attempt")
    _say(f"{made.study.title}: {', '.join(parts)} ({trained})")
    failed = {each.trial: each for each in summary.trials if each.state == "failed"}
    for each in failed.values():
        candidate = "" if each.candidate is None else f"candidate {each.candidate} "
        _say(f"failed: {each.arm} {candidate}seed {each.seed}: {each.reason}")
    if failed:
        title = made.study.title
        _say(f"hint: `ablate logs {title} ARM` shows why; once that is mended, `ablate retry {title}` puts them back")
        _say("      in the queue, and the same `ablate run` runs them")


def _print_analysis(analysis: Analysis, form: str | None, columns: Sequence[str] = ()) -> None:
    if form is None:
        from ablate.report.terminal import print_report

        print_report(analysis, _stdout(), columns)
    elif form == "markdown":
        from ablate.report import markdown

        click.echo(markdown.render(analysis, columns), nl=False)
    elif form == "latex":
        from ablate.report import latex

        click.echo(latex.render(analysis, columns), nl=False)
    else:
        from ablate.report import json

        click.echo(json.render(analysis), nl=False)


def _print_terminal_report(store: Store, title: str) -> None:
    from ablate.analyse.analysis import analyse
    from ablate.report.terminal import print_report
    from ablate.store.facts import find_study

    print_report(analyse(store, find_study(store, title)), _stdout())


def _stored(name: str | None, location: str | None) -> tuple[Store, StoredStudy]:
    """Open the store to read, and find a study in it: by title, by file, or the one last run."""
    from ablate.store.facts import find_study

    store = _open_store(location, read_only=True)
    stored = find_study(store, _title(name) if name else None)
    if name is None:
        _say(f"study last run: {stored.title}")
    return store, stored


def _store_words(location: str | None) -> str:
    """Return what other commands need to find the same store. A URL may hold a password, and is not repeated."""
    if location is None or location == os.environ.get("ABLATE_STORE"):
        return ""
    return f" --store {'URL' if '://' in location else shlex.quote(location)}"


def _existing_store(location: str | None, *, read_only: bool = True) -> Store | None:
    """Open the store until the command ends; None where there is none yet."""
    from ablate.store.project import existing_store

    store = existing_store(location, read_only=read_only)
    if store is not None:
        click.get_current_context().call_on_close(store.close)
    return store


def _damage_of_store(location: str | None) -> StoreError | None:
    """Return what is wrong with the store that a command failed on; None where it is sound, and the fault is ours."""
    from ablate.store.integrity import store_flaws

    try:
        store = _existing_store(location)
        flaws = store_flaws(store, thorough=True) if store is not None else []
    except StoreError as error:
        return error
    if store is None or not flaws:
        return None
    hint = "`ablate doctor --verify` lists all that is wrong; ablate leaves the file as it is"
    return StoreError(f"the store is damaged: {flaws[0]}", where=store.name, hint=hint)


def _open_store(location: str | None, *, create: bool = False, read_only: bool = False) -> Store:
    """Open the store until the command ends."""
    from ablate.store.project import named_store

    store = named_store(location, create=create, read_only=read_only)
    click.get_current_context().call_on_close(store.close)
    return store


def _title(name: str) -> str:
    """Return a study's title; a path to its file will do."""
    if not os.path.isfile(name):  # unlike Path's, it takes any name: of 300 letters, with a NUL
        return name
    from ablate.study.document import read_document

    return str(read_document(name).value.get("name", name))


def _split(text: str | None) -> list[str]:
    """Return the arms that ``--only`` names. An option that names none is a mistake, not the whole study."""
    if text is None:
        return []
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise AblateError("no arm is named", where="--only", hint="leave the option out for the whole study")
    return names


def _size(made: Plan) -> str:
    arms = len({each.arm for each in made.replicates})
    of = f"{arms} of " if arms < len(made.arms) else ""
    rule = made.study.seeds
    more = len(rule.numbers) > len(rule.first)
    seeds = f"{len(rule.first)} to {len(rule.numbers)} seeds" if more else _count(len(rule.first), "seed")
    if made.study.confirm_seeds is not None:
        seeds = f"({seeds} + {len(made.study.fresh_seeds)} fresh ones)"
    if made.study.tune:
        on = f" × {len(made.study.tuning_seeds)} seeds" if len(made.study.tuning_seeds) > 1 else ""
        seeds = f"({_count(made.study.candidates, 'candidate')}{on} + {seeds})"
    so_far = " at first" if made.study.grows else ""
    return f"{of}{_count(len(made.arms), 'arm')} × {seeds}, {_count(len(made.trials()), 'trial')}{so_far}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _stdout() -> Console:
    from ablate.report.console import make_console

    return make_console()


def _stderr() -> Console:
    from ablate.report.console import make_console

    return make_console(stderr=True)


def _say(text: str) -> None:
    click.echo(in_encoding(visible(text, keep="\n\t"), sys.stderr.encoding), err=True)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


def _usage_hint(error: click.UsageError) -> str:
    return f"`{error.ctx.command_path} --help` shows how it is used" if error.ctx else "`ablate --help`"


# what a disk says of itself: full, over the quota, at the limit of a file's size, read-only, not ours, broken
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def _drop_output() -> None:
    """Let nothing be flushed again at exit: nobody takes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refusal(error: OSError) -> Fault:
    """Return what a user can act on, where the disk or whoever reads our output refused to take what was written."""
    where = str(error.filename or "output")
    return Fault(f"it can't be written: {error.strerror}", where=where, hint="free some space, or make it writable")


def _say_crash() -> None:
    """Keep the traceback in a file that can be sent to others, and say where; on a full disk, say all of it."""
    text = f"ablate {__version__}, {sys.version}\n{shlex.join(sys.argv)}\n\n{traceback.format_exc()}"
    text = without_secrets(text)
    try:
        failpoint("crash-begun")
        descriptor, path = tempfile.mkstemp(".txt", f"ablate-crash-{time.strftime('%Y%m%d-%H%M%S')}-")
        with open(descriptor, "w") as file:
            file.write(text)
    except Exception as error:  # whatever it is, the traceback must not be lost to it
        _say(f"hint: please report it with these lines; no file could be written ({error})\n{text}")
    else:
        _say(f"hint: please report it with this file: {path}")
