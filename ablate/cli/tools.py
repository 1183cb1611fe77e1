"""Commands beside a study: the Optuna mirror, its dashboard, the doctor."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ablate.cli.common import existing_store, open_store, say
from ablate.cli.options import data_option, examples, store_option
from ablate.errors import EXIT_ENVIRONMENT, EXIT_INTERRUPTED
from ablate.report.numbers import plural
from ablate.report.text import visible
from ablate.study.words import without_secrets


@click.command(epilog=examples("ablate mirror", "ablate mirror --rebuild"))
@store_option
@click.option("--rebuild", is_flag=True, help="Draw all of it again, from the store alone.")
def mirror(location: str | None, rebuild: bool) -> None:
    """Bring the Optuna mirror up to date.

    It is mirror.db beside the store. A run does so by itself.
    """
    from ablate.mirror.optuna import refresh
    from ablate.mirror.place import mirror_file

    store = open_store(location, read_only=True)
    synced = refresh(store, rebuild=rebuild, say=say)
    if synced is None:
        say(f"{mirror_file(store)}: a run or a dashboard keeps it up to date")
    else:
        say(f"{mirror_file(store)}: {plural(synced.studies, 'study version')}, {plural(synced.trials, 'trial')}")


@click.command(epilog=examples("ablate dashboard --port 0"))
@store_option
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

    store = open_store(location, read_only=True)
    server = open_server(port)
    refresh(store, say=say)
    drawn = Mirror(store, mirror_file(store))
    drawn.write_notes()
    with following(say) as follow:
        follow(store)
        say(f"dashboard: {address(server)}/ (Ctrl-C ends it)")
        try:
            serve(server, drawn.storage())
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)


@click.command(epilog=examples("ablate doctor", "ablate doctor --verify"))
@store_option
@data_option
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
    for check in examine(where, lambda: existing_store(location), data_dir, thorough=verify):
        click.echo(visible(str(check), keep="\n\t"))  # names out of a store from elsewhere may stand in it
        checks.append(check)
    if any(check.level == "error" for check in checks):
        sys.exit(EXIT_ENVIRONMENT)
