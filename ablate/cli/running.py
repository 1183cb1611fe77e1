"""Commands that fill the store: run, import, retry."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ablate import completion
from ablate.cli.common import (
    existing_store,
    open_store,
    resumable,
    say,
    size_of,
    stderr,
    stdout,
    title_of,
)
from ablate.cli.options import Selection, arms_named, data_option, examples, name_argument, store_option, study_options
from ablate.errors import EXIT_FAILED_TRIALS, AblateError
from ablate.report.numbers import plural

if TYPE_CHECKING:
    from ablate.plan.trials import Plan
    from ablate.run.runner import Summary
    from ablate.run.studies import OldCode
    from ablate.store.store import Store


@click.command(
    epilog=examples(
        "ablate run mine.yaml",
        "ablate run mine.yaml --only batchnorm,wide --seeds 1",
        "ablate run mine.yaml -j 1 --set resources.gpus=0",
    )
)
@study_options
@store_option
@data_option
@click.option("-j", "--jobs", type=click.IntRange(1, 1024), metavar="N", help="At most so many trials at once.")
@click.option("--keep", "choice", flag_value="keep", help="The code has changed: keep what older code trained.")
@click.option("--fresh", "choice", flag_value="fresh", help="Train again what other code or versions trained.")
@click.option("--no-mirror", is_flag=True, envvar="ABLATE_NO_MIRROR", help="Keep no Optuna mirror beside the run.")
@click.option("--queue", is_flag=True, help="Train nothing here: leave it to agents (`ablate agent`).")
def run(
    selection: Selection,
    location: str | None,
    data_dir: Path | None,
    jobs: int | None,
    choice: str | None,
    no_mirror: bool,
    queue: bool,
) -> None:
    """Run what is missing of a study, then print its table. The same command resumes it."""
    if queue:
        _queue(selection, location, choice)
        return
    with resumable():
        from ablate.api import run_plan
        from ablate.run.options import Options
        from ablate.run.stopping import Stopped

        made = selection.plan()
        arms = selection.arms(made)
        say(f"{made.study.title}: {size_of(made)}")
        summary, store = run_plan(
            made,
            location=location,
            options=Options(jobs=jobs, arms=arms, data_dir=data_dir),
            old_code=lambda count: _old_code(count, choice),
            fresh=choice == "fresh",
            mirror=not no_mirror,
            say=say,
            console=stderr(),
        )
        click.get_current_context().call_on_close(store.close)
        _say_summary(made, summary)
        if summary.count("done"):
            _print_terminal_report(store, made.study.title)
        if summary.stopped_by is not None:
            raise Stopped(summary.stopped_by)
    if summary.count("failed"):
        sys.exit(EXIT_FAILED_TRIALS)


@click.command(
    "import",
    epilog=examples(
        "ablate import mine.yaml --csv results.csv --map acc=test/acc --ignore host",
        "ablate import mine.yaml --mlflow mlflow.db --map arm=tag:mlflow.runName",
    ),
)
@study_options
@store_option
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="A row per trial, or per trial and epoch.")
@click.option("--mlflow", "runs", type=click.Path(path_type=Path), help="MLflow's database, or its folder of runs.")
@click.option("--experiment", metavar="NAME", help="Of a database with several, the runs of this one.")
@click.option("--map", "names", metavar="NAME=COLUMN", multiple=True, help="What the source calls a word of the study.")
@click.option("--ignore", "ignored", metavar="COLUMN", multiple=True, help="Pass over a column; `*` stands for any.")
@click.option("--replace", is_flag=True, help="Take these numbers in place of others imported before.")
def import_results(
    selection: Selection,
    location: str | None,
    csv_file: Path | None,
    runs: Path | None,
    experiment: str | None,
    names: tuple[str, ...],
    ignored: tuple[str, ...],
    replace: bool,
) -> None:
    """Take results that were made elsewhere as trials of a study.

    All or none. Trains nothing, runs no user code.
    """
    from ablate.plan.matching import matched
    from ablate.run.provenance import importer_facts
    from ablate.store.facts import grown_plan, settled_plan
    from ablate.store.foreign import read_csv
    from ablate.store.foreign_mlflow import read_mlflow
    from ablate.store.imports import record_results

    if (csv_file is None) == (runs is None):
        raise click.UsageError("name one source: --csv FILE, or --mlflow PATH")
    made = selection.plan()
    arms = selection.arms(made)
    store = existing_store(location, read_only=False)
    made = grown_plan(store, settled_plan(store, made).settled().study).restricted(arms)
    renamed = _renamed(names)
    if experiment is not None and runs is None:
        raise click.UsageError("--experiment goes with --mlflow")
    if csv_file is not None:
        table, others = read_csv(csv_file, metrics=made.study.metrics, names=renamed), 0
    else:
        assert runs is not None
        table, others = read_mlflow(runs, experiment=experiment, names=renamed)
    found = matched(made, table, ignored=ignored)
    store = store or open_store(location, create=True)
    done = record_results(store, made, found, importer=importer_facts(), replace=replace)
    say(f"{made.study.title}: {plural(done.new, 'trial')} imported{f', {done.same} there already' * bool(done.same)}")
    if others:
        say(f"passed over: {plural(others, 'run')} that did not finish or {'was' if others == 1 else 'were'} deleted")


@click.command(epilog=examples("ablate retry", "ablate retry mine --only wide"))
@name_argument
@store_option
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

    store = open_store(location)
    stored = find_study(store, title_of(name) if name is not None else None)
    count = reopen(store, stored.id, states=["failed"], arms=arms_named(only) or None)
    say(f"{stored.title}: {plural(count, 'failed trial') if count else 'no failed trial'} back in the queue")
    if count:
        say(f"run them with: {plain_command(stored)}")


def _queue(selection: Selection, location: str | None, choice: str | None) -> None:
    """Record a study for agents to run, and say where it is now."""
    with resumable():
        from ablate.api import queue_plan

        made = selection.plan()
        store, left = queue_plan(
            made,
            location=location,
            arms=selection.arms(made),
            old_code=lambda count: _old_code(count, choice),
            fresh=choice == "fresh",
            say=say,
        )
        click.get_current_context().call_on_close(store.close)
        say(f"{made.study.title}: {size_of(made)}; {left.waiting:,} wait for agents, {left.running:,} run")


def _old_code(count: int, choice: str | None) -> OldCode:
    """Return what to do with finished trials of other code: what the options say, or what a person answers."""
    if choice is not None:
        return "keep" if choice == "keep" else "fresh"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return "ask"
    say(f"the task's code has changed since {plural(count, 'finished trial')} of this study")
    answer = click.prompt("keep them, or train them afresh?", type=click.Choice(["keep", "fresh"]), err=True)
    return "keep" if answer == "keep" else "fresh"


def _say_summary(made: Plan, summary: Summary) -> None:
    parts = [f"{plural(summary.count('done'), 'trial')} done"]
    for state in ("failed", "running", "waiting"):
        if summary.count(state):
            parts.append(f"{summary.count(state)} {state}")
    trained = "trained nothing new" if not summary.attempts else plural(summary.attempts, "attempt")
    say(f"{made.study.title}: {', '.join(parts)} ({trained})")
    failed = {each.trial: each for each in summary.trials if each.state == "failed"}
    for each in failed.values():
        candidate = "" if each.candidate is None else f"candidate {each.candidate} "
        say(f"failed: {each.arm} {candidate}seed {each.seed}: {each.reason}")
    if failed:
        title = made.study.title
        say(f"hint: `ablate logs {title} ARM` shows why; once that is mended, `ablate retry {title}` puts them back")
        say("      in the queue, and the same `ablate run` runs them")


def _print_terminal_report(store: Store, title: str) -> None:
    from ablate.analyse.analysis import analyse
    from ablate.report.terminal import print_report
    from ablate.store.facts import find_study

    print_report(analyse(store, find_study(store, title)), stdout())


def _renamed(names: Sequence[str]) -> dict[str, str]:
    """Return what ``--map`` says: a word of the study, and what the source calls it."""
    found = {}
    for text in names:
        name, equals, column = (part.strip() for part in text.partition("="))
        if not (name and equals and column):
            raise AblateError(f"{text!r} is no NAME=COLUMN", where="--map", hint="--map val_acc=test/acc")
        found[name] = column
    return found
