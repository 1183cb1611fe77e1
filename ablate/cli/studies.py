"""Commands for a study's file: write one, check it, plan it."""

from __future__ import annotations

import shlex
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import click

from ablate import completion
from ablate.cli.common import existing_store, say, size_of, stdout, writing
from ablate.cli.options import Selection, data_option, examples, store_option, study_options
from ablate.errors import Fault, StoreError, StudyError

if TYPE_CHECKING:
    from ablate.plan.trials import Plan
    from ablate.report.plan import Spread
    from ablate.store.store import Store


@click.command(epilog=examples("ablate init", "ablate init studies/mine --template function"))
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

    with writing("the starter", place):
        study, code = write_starter(place, template)
    say(f"written: {study}, {code}, and {study.parent / SCHEMA_FILE}, from which editors complete the study's keys")
    click.echo(shlex.join(["ablate", "plan", str(study)]))
    click.echo(shlex.join(["ablate", "run", str(study)]))


@click.command(epilog=examples("ablate validate studies/*.yaml"))
@click.argument("studies", nargs=-1, required=True, type=click.Path(), shell_complete=completion.study_files)
def validate(studies: tuple[str, ...]) -> None:
    """Check study files with all their profiles; run nothing."""
    from ablate.plan.trials import plans_of

    faults: list[Fault] = []
    for path in studies:
        plans, found = plans_of(path)
        for made in plans:
            click.echo(f"{path}: {made.study.title} is sound: {size_of(made)}")
        faults += found
    if faults:
        raise StudyError(faults)


@click.command(
    epilog=examples(
        "ablate plan mine.yaml",
        "ablate plan mine.yaml --profile quick --set train.lr=0.02",
        "ablate plan mine.yaml --time",
    )
)
@study_options
@store_option
@data_option
@click.option("--time", "timed", is_flag=True, help="Run each arm to its first record, to learn the cost.")
def plan(
    selection: Selection,
    location: str | None,
    data_dir: Path | None,
    timed: bool,
) -> None:
    """Show what a run would do, and what it costs.

    Arms, what differs, trials done and to do. Runs no user code without --time.
    """
    from ablate.plan.cost import cost_of
    from ablate.report.plan import print_plan
    from ablate.run.provenance import preloaded
    from ablate.run.workers import LOOP

    made = selection.plan()
    store = existing_store(location)
    estimates = {}
    if timed:
        estimates = _time_arms(made, data_dir)
    states, known = {}, {}
    if store is not None:
        from ablate.api import edit_lines
        from ablate.store.facts import grown_plan, known_seconds, settled_plan, states_of

        arms = selection.arms(made)
        made = settled_plan(store, made)
        made = grown_plan(store, made.study).restricted(arms)
        fingerprints = list(made.trials())
        states, known = states_of(store, fingerprints), known_seconds(store, fingerprints)
        for line in edit_lines(store, made):
            say(line)
    cost = cost_of(made, states=states, seconds=known, estimates=estimates)
    own_loop = LOOP in preloaded(made.study.task, made.study.folder)
    print_plan(made, cost, stdout(), spread=_spread(store, made), own_loop=own_loop)


@click.command(
    epilog=examples(
        "ablate schema > .ablate-schema.json    # and as the first line of a study:",
        "# yaml-language-server: $schema=.ablate-schema.json",
    )
)
def schema() -> None:
    """Print the JSON Schema of a study file, for editors."""
    import json

    from ablate.study.editors import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


def _time_arms(made: Plan, data_dir: Path | None) -> dict[str, float]:
    from ablate.run.studies import worker_server
    from ablate.run.timing import time_arms
    from ablate.study.words import duration

    environment = {"ABLATE_DATA": str(data_dir.resolve())} if data_dir else {}
    found = {}
    with worker_server() as workers:
        for timing in time_arms(made, workers, study_folder=made.study.folder, environment=environment):
            if timing.error:
                say(f"{timing.arm}: not timed: {timing.error}")
            elif timing.trial_s is None:
                say(f"{timing.arm}: first record after {duration(timing.first_record_s or 0)}; epochs unknown")
            else:
                found[timing.arm] = timing.trial_s
                say(f"{timing.arm}: about {duration(timing.trial_s)} a trial")
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
