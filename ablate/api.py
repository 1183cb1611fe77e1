"""From Python: a study declared, run and compared in a script or a notebook, by the code that the commands run.

``import ablate`` gives these names, and loads what they need when one is first used. The plain words (`ablate.plan`,
`ablate.run`, `ablate.report`) are the packages behind them.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

from ablate.analyse.findings import Analysis
from ablate.errors import AblateError, StoreError, StudyError
from ablate.plan.edits import edits
from ablate.plan.trials import Plan, make_plan, only_arms, open_plan, plan_from
from ablate.study.keywords import Declaration, declared
from ablate.study.schema import Study
from ablate.study.writing import to_yaml

if TYPE_CHECKING:
    from rich.console import Console

    from ablate.analyse.frames import Frame
    from ablate.results import Results
    from ablate.run.options import Options
    from ablate.run.runner import Summary
    from ablate.run.studies import OldCode
    from ablate.store.facts import Left, StoredStudy
    from ablate.store.store import Store

__all__ = [
    "AblateError",
    "Analysis",
    "Plan",
    "Study",
    "StudyError",
    "analyse_study",
    "declare",
    "load",
    "plan_study",
    "read_study",
    "render",
    "run_study",
    "to_yaml",
    "trials_frame",
]

Form = Literal["text", "markdown", "latex", "json"]


# --- the names of the package ----------------------------------------------------------------------------------------


def declare(*, folder: str | Path | None = None, profile: str | None = None, **keywords: Unpack[Declaration]) -> Study:
    """Return the study that a study file of these keys declares. Raises StudyError with all that is wrong with it.

    ``folder`` is where the module of the task lies: by default the one that a task given as a function was imported
    from, else the current one.
    """
    home = Path(folder) if folder is not None else None
    return plan_from(declared(keywords, folder=home), profile=profile).study


def read_study(path: str | Path, *, profile: str | None = None, overrides: Sequence[str] = ()) -> Study:
    """Return the study of a file. ``overrides`` are those of ``--set``. Raises StudyError with all its faults."""
    _refuse_text(overrides, "overrides", where="read_study")
    return open_plan(path, profile=profile, overrides=overrides).study


def plan_study(study: Study) -> Plan:
    """Return the arms, comparisons and trials of a study, as far as they are known before anything has run."""
    _refuse_no_study(study, where="plan_study")
    return make_plan(study)


def run_study(
    study: Study,
    *,
    jobs: int | None = None,
    only: Sequence[str] = (),
    store: str | Path | None = None,
    data_dir: str | Path | None = None,
    old_code: OldCode = "ask",
    mirror: bool = True,
    quiet: bool = False,
) -> Analysis:
    """Run what is missing of a study, as ``ablate run`` does, and return what is found. Again, it goes on.

    ``only`` names arms; ``store`` is a path or URL, by default that of the project. ``old_code``: where the task's code
    has changed since trials were finished, ``keep`` them or train them ``fresh``; ``ask`` refuses. Progress is printed
    to stderr, unless ``quiet``. Ctrl-C stops it with nothing lost, as KeyboardInterrupt. Raises AblateError.
    """
    from ablate.report.console import make_console
    from ablate.run.options import Options
    from ablate.run.stopping import handlers_kept

    _refuse_in_a_worker()
    _refuse_no_study(study, where="run_study")
    _refuse_text(only, "only", where="run_study")
    if old_code not in ("ask", "keep", "fresh"):
        raise AblateError(f"old_code is ask, keep or fresh, not {old_code!r:.40}", where="run_study")
    made = only_arms(make_plan(study), only) if only else make_plan(study)
    console = make_console(stderr=True)
    console.quiet = quiet
    with handlers_kept():
        summary, opened = run_plan(
            made,
            location=_named(store),
            options=Options(jobs, tuple(dict.fromkeys(each.arm for each in made.replicates)) if only else None,
                            Path(data_dir) if data_dir is not None else None),
            old_code=lambda _: old_code,
            fresh=old_code == "fresh",
            mirror=mirror and not os.environ.get("ABLATE_NO_MIRROR"),
            say=(lambda _: None) if quiet else _say,
            console=console,
        )  # fmt: skip
    if summary.stopped_by is not None:
        signal.raise_signal(summary.stopped_by)  # to whoever would have had it
    return _analysis(opened, study.title)


def analyse_study(study: Study | str | None = None, *, store: str | Path | None = None) -> Analysis:
    """Return what is found of a study so far: its version last run, by title (``basenet@quick``), or of the last one.

    Raises StoreError where the store has none.
    """
    from ablate.store.project import named_store

    return _analysis(named_store(_named(store), read_only=True), _title(study))


def load(study: Study | str | None = None, *, store: str | Path | None = None) -> Results:
    """Return the results of a study, for a notebook: frames, tables and figures. By title, or of the one last run.

    Raises StoreError where the store has none.
    """
    from ablate.results import Results
    from ablate.store.project import named_store

    opened = named_store(_named(store), read_only=True)
    return Results(opened, _found(opened, _title(study)))


def trials_frame(study: Study | str | None = None, *, store: str | Path | None = None) -> Frame:
    """Return a pandas frame with a row per arm and seed: metrics, the settings that differ, what it ran on."""
    from ablate.analyse import frames
    from ablate.store.project import named_store

    opened = named_store(_named(store), read_only=True)
    return frames.trials_frame(opened, _found(opened, _title(study)))


def render(analysis: Analysis, form: Form = "text", *, columns: Sequence[str] = ()) -> str:
    """Return the comparison table as text for a terminal, as Markdown, as LaTeX, or all that was found as JSON.

    ``columns`` names those that the table shows, and their order: `["steps", "n", "val_acc", "effect"]`.
    """
    from ablate.report import json, latex, markdown

    _refuse_text(columns, "columns", where="render")
    if form == "markdown":
        return markdown.render(analysis, columns)
    if form == "latex":
        return latex.render(analysis, columns)
    if form == "json":
        if columns:
            raise AblateError("JSON has no columns to choose: it holds everything", where="render")
        return json.render(analysis)
    if form != "text":
        raise AblateError(f"a report is text, markdown, latex or json, not {form!r:.40}", where="render")
    from ablate.report.terminal import to_text

    return to_text(analysis, columns)


# --- what the command line composes as well --------------------------------------------------------------------------


def run_plan(
    made: Plan,
    *,
    location: str | None,
    options: Options,
    old_code: Callable[[int], OldCode],
    fresh: bool,
    mirror: bool,
    say: Callable[[str], None],
    console: Console,
) -> tuple[Summary, Store]:
    """Run what is missing of a plan in the store that is named. ``say`` is told what was edited since the last run."""
    from ablate.mirror.follower import following
    from ablate.run.progress import Progress
    from ablate.run.studies import run_study
    from ablate.store.facts import settled_plan
    from ablate.store.project import existing_store, named_store

    existing = existing_store(location, read_only=False)
    made = settled_plan(existing, made)
    if existing is not None:
        for line in edit_lines(existing, made):
            say(line)
    with following(say, wanted=mirror) as beside:
        return run_study(
            made,
            existing=existing,
            make_store=lambda: named_store(location, create=True),
            options=options,
            old_code=old_code,
            fresh=fresh,
            progress=lambda trials: Progress(made.study, trials, console),
            beside=beside,
            say=say,
        )


def queue_plan(
    made: Plan,
    *,
    location: str | None,
    arms: Sequence[str] | None,
    old_code: Callable[[int], OldCode],
    fresh: bool,
    say: Callable[[str], None],
) -> tuple[Store, Left]:
    """Record what is missing of a plan for agents to run; return the store that is named, and what is left to do."""
    from ablate.run.studies import queue_study
    from ablate.store.facts import settled_plan
    from ablate.store.project import existing_store, named_store

    existing = existing_store(location, read_only=False)
    made = settled_plan(existing, made)
    if existing is not None:
        for line in edit_lines(existing, made):
            say(line)
    return queue_study(
        made,
        existing=existing,
        make_store=lambda: named_store(location, create=True),
        arms=arms,
        old_code=old_code,
        fresh=fresh,
    )


def edit_lines(store: Store, made: Plan) -> Iterator[str]:
    """Yield what was edited since the study was last run, and what becomes of the trials it had."""
    from ablate.report.numbers import plural
    from ablate.store.facts import find_study, states_of, stored_study, trials_of

    try:
        stored = find_study(store, made.study.title)
        changes = edits(stored_study(stored).spec(), made.study.spec())
    except StoreError:
        return  # it was never run, or by a version of ablate that this one can't read
    if not changes:
        return
    before, after = {each.fingerprint for each in trials_of(store, stored.id)}, made.trials().keys()
    done = list(states_of(store, list(after)).values()).count("done")
    what = [f"{plural(done, 'trial')} kept, {len(after) - done:,} to train"]
    if before - after:
        what.append(f"{len(before - after):,} not part of it now (`ablate report {made.study.title}:{stored.version}`)")
    yield f"{made.study.title} has changed since it was last run (version {stored.version}):"
    yield from (f"  {line}" for line in (*changes, ", ".join(what)))


# --- pieces ----------------------------------------------------------------------------------------------------------


def _refuse_no_study(study: object, *, where: str) -> None:
    if not isinstance(study, Study):
        hint = "`declare` and `read_study` return one"
        raise AblateError(f"{study!r:.40} is no study", where=where, hint=hint)


def _refuse_text(words: Sequence[str], keyword: str, *, where: str) -> None:
    """A text is a sequence of its letters, which nobody means."""
    if isinstance(words, str):
        message = f"`{keyword}` takes a list; {words!r:.40} is text"
        raise AblateError(message, where=where, hint=f"{keyword}=[{words!r:.40}]")


def _refuse_in_a_worker() -> None:
    """A program that is its own task's module is imported by each worker, which must not run the study again."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.startswith("ablate.train."):
        hint = "put it under `if __name__ == '__main__':`, or the task into a module of its own"
        raise AblateError("`run_study` is called where a worker imports the task", where="run_study", hint=hint)
    if threading.current_thread() is not threading.main_thread():
        hint = "call it in the main thread, or start `ablate run` as a program"
        raise AblateError("only the main thread is told when a run is to stop", where="run_study", hint=hint)


def _named(store: str | Path | None) -> str | None:
    return str(store) if store is not None else os.environ.get("ABLATE_STORE")


def _title(study: Study | str | None) -> str | None:
    return study.title if isinstance(study, Study) else study


def _found(store: Store, title: str | None) -> StoredStudy:
    from ablate.store.facts import find_study

    return find_study(store, title)


def _analysis(store: Store, title: str | None) -> Analysis:
    from ablate.analyse.analysis import analyse

    return analyse(store, _found(store, title))


def _say(text: str) -> None:
    from ablate.report.text import in_encoding, visible

    print(in_encoding(visible(text, keep="\n\t"), sys.stderr.encoding), file=sys.stderr)
