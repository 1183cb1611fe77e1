"""What commands share: words to the user, and the opening of plans and stores."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ablate.report.numbers import plural
from ablate.report.text import in_encoding, visible

if TYPE_CHECKING:
    from rich.console import Console

    from ablate.plan.trials import Plan
    from ablate.store.facts import StoredStudy
    from ablate.store.store import Store


def say(text: str) -> None:
    """Say something to the user: on stderr, whatever characters it takes."""
    click.echo(in_encoding(visible(text, keep="\n\t"), sys.stderr.encoding), err=True)


def stdout() -> Console:
    from ablate.report.console import make_console

    return make_console()


def stderr() -> Console:
    from ablate.report.console import make_console

    return make_console(stderr=True)


@contextmanager
def writing(what: str, place: Path) -> Iterator[None]:
    """Say what can't be written where a user wanted it: something in the way, a full disk."""
    from ablate.errors import EnvironmentFault

    try:
        yield
    except OSError as error:
        message = f"{what} can't be written: {error.strerror or error}"
        raise EnvironmentFault(message, where=str(error.filename or place), hint="name a folder that can be") from None


@contextmanager
def resumable() -> Iterator[None]:
    """End with the signal's own exit code, and say how to go on, where a signal stops what is done here."""
    from ablate.run.provenance import command_line
    from ablate.run.stopping import Stopped, exit_code_of, stop_requests

    try:
        with stop_requests():
            yield
    except Stopped as stop:
        say(f"nothing is lost; resume with: {command_line()}")
        sys.exit(exit_code_of(stop.number))


def size_of(made: Plan) -> str:
    """Return how many arms, seeds and trials a plan has, in words."""
    arms = len({each.arm for each in made.replicates})
    of = f"{arms} of " if arms < len(made.arms) else ""
    rule = made.study.seeds
    more = len(rule.numbers) > len(rule.first)
    seeds = f"{len(rule.first)} to {len(rule.numbers)} seeds" if more else plural(len(rule.first), "seed")
    if made.study.confirm_seeds is not None:
        seeds = f"({seeds} + {len(made.study.fresh_seeds)} fresh ones)"
    if made.study.tune:
        on = f" × {len(made.study.tuning_seeds)} seeds" if len(made.study.tuning_seeds) > 1 else ""
        seeds = f"({plural(made.study.candidates, 'candidate')}{on} + {seeds})"
    so_far = " at first" if made.study.grows else ""
    return f"{of}{plural(len(made.arms), 'arm')} × {seeds}, {plural(len(made.trials()), 'trial')}{so_far}"


def open_store(location: str | None, *, create: bool = False, read_only: bool = False) -> Store:
    """Open the store until the command ends."""
    from ablate.store.project import named_store

    store = named_store(location, create=create, read_only=read_only)
    click.get_current_context().call_on_close(store.close)
    return store


def existing_store(location: str | None, *, read_only: bool = True) -> Store | None:
    """Open the store until the command ends; None where there is none yet."""
    from ablate.store import project

    store = project.existing_store(location, read_only=read_only)
    if store is not None:
        click.get_current_context().call_on_close(store.close)
    return store


def open_study(name: str | None, location: str | None) -> tuple[Store, StoredStudy]:
    """Open the store to read, and find a study in it: by title, by file, or the one last run."""
    from ablate.store.facts import find_study

    store = open_store(location, read_only=True)
    stored = find_study(store, title_of(name) if name is not None else None)
    if name is None:
        say(f"study last run: {stored.title}")
    return store, stored


def title_of(name: str) -> str:
    """Return a study's title; a path to its file will do."""
    if not os.path.isfile(name):  # unlike Path's, it takes any name: of 300 letters, with a NUL
        return name
    from ablate.study.document import read_document

    return str(read_document(name).value.get("name", name))


def store_words(location: str | None) -> str:
    """Return what other commands need to find the same store. A URL may hold a password, and is not repeated."""
    if location is None or location == os.environ.get("ABLATE_STORE"):
        return ""
    return f" --store {'URL' if '://' in location else shlex.quote(location)}"
