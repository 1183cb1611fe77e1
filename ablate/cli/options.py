"""Arguments and options that several commands take, and the examples below their help."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ablate import completion
from ablate.errors import AblateError

if TYPE_CHECKING:
    from ablate.plan.trials import Plan

LOCATION = "ablate.location"  # of the store a command was given, in click's context
STORE_HELP = "Path or URL of the store [default: runs/ablate.db of the project; $ABLATE_STORE]."
FOLDER = click.Path(file_okay=False, path_type=Path)


class Group(click.Group):
    """A group that is asked for its help by its bare name, which click would call an error, with all help in it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])


@dataclass(frozen=True)
class Selection:
    """What ``study_options`` say: a study file, changed by options, and which of its arms."""

    study: str
    profile: str | None
    overrides: tuple[str, ...]
    seeds: str | None
    only: str | None

    def plan(self) -> Plan:
        """Return the plan. Raises AblateError, StudyError."""
        from ablate.plan.trials import open_plan

        overrides = self.overrides
        if self.seeds is not None:
            listed = f"[{self.seeds}]"
            if self.seeds == "0" or not all(part.strip().isdecimal() for part in self.seeds.split(",")):
                message = f"{self.seeds!r} is neither a count nor a list of seeds"
                raise AblateError(message, where="--seeds", hint="5, or 1,2,7")
            overrides = (*overrides, f"seeds={self.seeds if self.seeds.isdecimal() else listed}")
        return open_plan(self.study, profile=self.profile, overrides=overrides, only=arms_named(self.only))

    def arms(self, made: Plan) -> tuple[str, ...] | None:
        """Return the arms of its plan; None for the whole study."""
        return tuple(dict.fromkeys(each.arm for each in made.replicates)) if self.only else None


def arms_named(text: str | None) -> list[str]:
    """Return the arms that ``--only`` names. An option that names none is a mistake, not the whole study."""
    if text is None:
        return []
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise AblateError("no arm is named", where="--only", hint="leave the option out for the whole study")
    return names


def study_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a study; it is called with a ``Selection`` first."""

    @functools.wraps(command)
    def selected(
        study: str,
        profile: str | None,
        overrides: tuple[str, ...],
        seeds: str | None,
        only: str | None,
        **others: Any,
    ) -> Any:
        return command(Selection(study, profile, overrides, seeds, only), **others)

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
        selected = option(selected)
    return selected


def _note_location(ctx: click.Context, _: click.Parameter, location: str | None) -> str | None:
    ctx.meta[LOCATION] = location
    return location


store_option = click.option(
    "--store", "location", metavar="PATH|URL", envvar="ABLATE_STORE", help=STORE_HELP, callback=_note_location
)
data_option = click.option(
    "--data-dir", type=click.Path(path_type=Path), envvar="ABLATE_DATA", help="Where data sets lie [$ABLATE_DATA]."
)
complete_title = completion.offer(completion.titles)
name_argument = click.argument("name", required=False, shell_complete=complete_title)


def examples(*lines: str) -> str:
    """Return what stands below the options of a command's help."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
