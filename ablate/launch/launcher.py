"""What all launchers have in common: what is asked for, what is kept of a start, and which store is fit for it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from ablate.errors import AblateError
from ablate.store.project import project_folder, store_location
from ablate.study.words import did_you_mean, without_secrets
from ablate.train.folder import make_folder


@dataclass(frozen=True)
class Wanted:
    """Agents as they are asked for: how many, what each has, and what it is told."""

    count: int
    gpus: int
    cpus: int
    words: tuple[str, ...]  # of `ablate agent`, behind these two
    store: str  # a URL without a password
    folder: Path  # of the project: where they work
    studies: tuple[str, ...] = ()  # their titles; all of the store where there are none

    @property
    def environment(self) -> dict[str, str]:
        return {"ABLATE_STORE": self.store}


@dataclass(frozen=True)
class Start:
    """Agents that were started: kept in the project's `runs/agents`, where it outlives the machine that did it."""

    engine: str
    handle: str
    count: int
    words: tuple[str, ...]
    at: float
    where: str = ""  # the engine's address, where it has one

    @property
    def name(self) -> str:
        return f"{self.engine}-{self.handle}"

    @property
    def note(self) -> str:
        """The file of what is kept of it."""
        return f"{self.name}.json"


class Launcher(Protocol):
    """An engine that starts agents. What it says of them is for show: the store's leases are the truth."""

    def submit(self, wanted: Wanted) -> str:
        """Start agents and return a handle. Raises AblateError."""
        ...

    def status(self, handle: str) -> Mapping[str, int]:
        """Return how many there are by state, in the engine's words; nothing where it knows the handle no more."""
        ...

    def cancel(self, handle: str) -> None:
        """End them: each writes a checkpoint and releases its trials. Raises AblateError."""
        ...


def shared_store(location: str | None) -> str:
    """Return the URL of a store that other machines can reach. Raises AblateError for any other."""
    named = store_location(location)
    if "://" not in named or named.startswith("sqlite"):
        raise AblateError(
            "agents on other machines can't share an SQLite file: its locks hold on one machine only",
            where=without_secrets(named),
            hint="use PostgreSQL (--store postgresql+psycopg://…); on this machine alone, `ablate agent` will do",
        )
    if without_secrets(named) != named:
        raise AblateError(
            "the URL of the store holds a password or options, and scripts and schedulers would show them to others",
            where=without_secrets(named),
            hint="leave them out, and keep the password in ~/.pgpass (chmod 600) or in PGPASSWORD",
        )
    return named


def agents_folder() -> Path:
    """Return where a project keeps what it started elsewhere: notes, scripts, and what agents print."""
    return project_folder() / "runs" / "agents"


def keep(start: Start, folder: Path) -> None:
    make_folder(folder)
    write_note(folder / start.note, json.dumps(asdict(start), indent=2) + "\n")


def write_note(file: Path, text: str) -> None:
    """Write a file whole. Agents do without it: where it is missing, their engine knows them all the same."""
    aside = file.with_name(f".{file.name}")
    aside.write_text(text)
    aside.replace(file)


def kept(folder: Path) -> Iterator[Start]:
    """Yield what was started from this project and not cancelled, the oldest first."""
    for file in sorted(folder.glob("*.json"), key=os.path.getmtime):
        try:
            values = json.loads(file.read_text())
            start = Start(**{**values, "words": tuple(values["words"])})
        except (OSError, ValueError, TypeError, LookupError):
            raise AblateError(
                "this note of started agents can't be read",
                where=str(file),
                hint="remove it; `squeue` or `ray list actors` still knows what it was of",
            ) from None
        yield start


def named(folder: Path, name: str) -> Start:
    """Return one start by its name. Raises AblateError."""
    starts = {start.name: start for start in kept(folder)}
    if name not in starts:
        raise AblateError(
            f"no agents `{name}` were started from here", where=str(folder), hint=did_you_mean(name, starts)
        )
    return starts[name]


def forget(start: Start, folder: Path) -> None:
    (folder / start.note).unlink(missing_ok=True)


def started(launcher: Launcher, engine: str, wanted: Wanted, folder: Path, *, where: str = "") -> Start:
    """Start agents, and keep what is needed to ask after them."""
    start = Start(engine, launcher.submit(wanted), wanted.count, wanted.words, time.time(), where)
    keep(start, folder)
    return start


def words_of_agent(studies: Sequence[str], options: Mapping[str, str | None]) -> tuple[str, ...]:
    """Return the words behind `ablate agent`."""
    return (*studies, *(word for name, value in options.items() if value is not None for word in (name, value)))
