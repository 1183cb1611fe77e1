"""What a shell offers at Tab: study files, profiles, studies of the store, arms. It never fails, and says nothing.

A shell asks at every Tab: nothing here loads torch, and the store is asked by sqlite3 alone, which only reads.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

Find = Callable[[click.Context, str], Iterable[str]]
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

_MOST_FILES = 500
_HEAD = 8192  # bytes in which a study file says what it is
_LATEST_FIRST = """
    SELECT s.id, s.name, s.profile FROM study s LEFT JOIN runner r ON r.study = s.id
    GROUP BY s.id ORDER BY coalesce(max(r.started), 0) DESC, s.id DESC
"""


class _Bash(BashComplete):
    """Bash, where `basenet@quick` is one word."""

    source_template = BashComplete.source_template + "COMP_WORDBREAKS=${COMP_WORDBREAKS//@/}\n"


add_completion_class(_Bash)


def offer(find: Find) -> Complete:
    """Return what click asks at Tab: those of the words found that begin like what is typed."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            with warnings.catch_warnings(action="ignore"):
                return [CompletionItem(word) for word in find(ctx, incomplete) if word.startswith(incomplete)]
        except Exception:  # a half-written line is no place to report from: the command will say what is wrong
            return []

    return complete


def study_files(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the study files beside what is typed and one folder below; where there is none, leave it to the shell."""
    found = offer(lambda _, typed: _study_files(typed))(ctx, _, incomplete)
    return found or [CompletionItem(incomplete, type="file")]


def profiles(ctx: click.Context, _: str) -> list[str]:
    """Return the profiles of the study file on the line."""
    from ablate.study.document import read_document

    return list(read_document(_study(ctx)).value["profiles"])


def titles(ctx: click.Context, _: str) -> list[str]:
    """Return the studies of the store, the one last run first."""
    return list(dict.fromkeys(title for _, title in _studies(ctx)))


def arms(ctx: click.Context, _: str) -> list[str]:
    """Return the arms of the study on the line, else of the one last run."""
    return _arms(ctx, ctx.params.get("name") or next(iter(ctx.args), None))


def arms_or_titles(ctx: click.Context, typed: str) -> list[str]:
    """Return what `logs` takes: arms and studies, and after a study its arms."""
    words = ctx.params.get("words") or ()
    return _arms(ctx, words[0]) if words else [*_arms(ctx, None), *titles(ctx, typed)]


def listed(find: Find) -> Find:
    """Return the same for one of several words with commas between them: the last one is completed."""

    def completed(ctx: click.Context, typed: str) -> list[str]:
        before, comma, _ = typed.rpartition(",")
        taken = before.split(",")
        return [f"{before}{comma}{word}" for word in find(ctx, typed) if word not in taken]

    return completed


def planned_arms(ctx: click.Context, _: str) -> list[str]:
    """Return the arms that the study file on the line declares."""
    from ablate.plan.trials import open_plan

    plan = open_plan(_study(ctx), profile=ctx.params.get("profile"))
    return [arm.name for arm in plan.arms]


def templates(_: click.Context, __: str) -> list[str]:
    from ablate.study.starter import TEMPLATES

    return list(TEMPLATES)


def _study_files(typed: str) -> list[str]:
    shown = typed.rpartition("/")[0]
    folder = Path(f"{shown}/" if "/" in typed else ".").expanduser()
    paths = islice((p for pattern in ("*.y*ml", "*/*.y*ml") for p in sorted(folder.glob(pattern))), _MOST_FILES)
    prefix = f"{shown}/" if "/" in typed else ""
    return [f"{prefix}{path.relative_to(folder)}" for path in paths if _is_study(path)]


def _is_study(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return b"ablate/v1" in file.read(_HEAD)


def _study(ctx: click.Context) -> str:
    """Return the study file on the line; behind an option without its value yet, click leaves it among the rest."""
    return str(ctx.params.get("study") or ctx.args[0])


def _studies(ctx: click.Context) -> list[tuple[int, str]]:
    rows = _rows(ctx, _LATEST_FIRST)
    return [(number, f"{name}@{profile}" if profile else name) for number, name, profile in rows]


def _arms(ctx: click.Context, title: str | None) -> list[str]:
    number = next(number for number, each in _studies(ctx) if title in (None, each))
    return [name for (name,) in _rows(ctx, "SELECT name FROM arm WHERE study = ? ORDER BY position", number)]


def _rows(ctx: click.Context, sql: str, *values: Any) -> list[Any]:
    """Ask the store. One on a server is not asked: a shell must not wait for a network."""
    import sqlite3  # late, as every command imports this module

    from ablate.store.project import store_location

    path = Path(store_location(ctx.params.get("location"))).resolve()
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=0.5)) as connection:
        connection.execute("PRAGMA trusted_schema=OFF")
        return connection.execute(sql, values).fetchall()
