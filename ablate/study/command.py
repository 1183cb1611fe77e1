"""A command line as a task: split into words first and filled then, so that no setting can add a word or a program.

``{train.lr}`` stands for a setting, ``{seed}`` for the seed, ``{folder}`` for the folder that the attempt may write to,
``{settings.json}`` and ``{settings.yaml}`` for a file with all settings, ``{resume}`` for the folder of an earlier
attempt; ``{{`` and ``}}`` are braces.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ablate.study.document import Flaw, Place
from ablate.study.schema import Study, Task
from ablate.study.settings import brief, get, leaves, patched
from ablate.study.words import did_you_mean, listed

SEED, FOLDER, RESUME = "seed", "folder", "resume"
FILES = ("settings.json", "settings.yaml")
WORDS = (SEED, FOLDER, RESUME, *FILES)

LISTED = 6

Find = Callable[[str], Any]  # placeholder → value; None for a `resume` that has nothing to go on from

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_ONE = re.compile(r"\{([^{}]+)\}")
_SHELL_WORDS = {"|", "||", "&", "&&", ";", "<", ">", ">>", "2>", "2>&1"}
_SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "fish", "python", "python3", "perl", "ruby", "eval"}
_PLAIN_TEXT = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")  # what Hydra reads as text without quotes, unless it is a word
_HYDRA_WORDS = {"true", "false", "null", "nan", "inf"}


class Unfillable(Exception):
    """A value that can't stand where a command has it. ``name`` is its placeholder, ``hint`` what can be done."""

    def __init__(self, message: str, hint: str = "", *, name: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.name = name


def words_of(command: str) -> list[str]:
    """Split a command as a shell would, and expand nothing. Raises Unfillable for quotes that do not close."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise Unfillable(f"the command can't be split into words: {str(error).lower()}") from None
    if not words:
        raise Unfillable("the command is empty")
    return words


def placeholders(text: str) -> list[str]:
    """Return the names that stand in braces. Raises Unfillable for a brace without its other half."""
    names = []
    for part in _PART.finditer(text):
        if part[0] in ("{", "}"):
            raise Unfillable(f"a `{part[0]}` without its other half", "write {{ and }} for braces themselves")
        if part[1] is not None:
            names.append(part[1])
    return names


def filled_words(task: Task, find: Find) -> list[str]:
    """Return the words of a task's command with all placeholders filled. Raises Unfillable."""
    filled: list[str] = []
    for word in words_of(task.command or ""):
        alone = _ONE.fullmatch(word)
        _fill(filled, word, alone[1] if alone else None, task, find)
    return filled


def filled_environment(task: Task, find: Find) -> dict[str, str]:
    """Return a task's environment with all placeholders filled; a variable that is null is left out."""
    found = {}
    for name, text in task.environment.items():
        alone = _ONE.fullmatch(text)
        value = find(alone[1]) if alone else substituted(text, lambda each: _in_variable(each, find(each)))
        if value is not None:
            found[name] = value if not alone else _in_variable(alone[1], value)
    return found


def _fill(filled: list[str], word: str, alone: str | None, task: Task, find: Find) -> None:
    """Append what a word becomes: one word, or with flags for argparse none, one or several."""
    if RESUME in placeholders(word) and find(RESUME) is None:
        _drop_option(filled, word)
        return
    argparse = task.flags == "argparse"
    option, equals, name = word.partition("=")
    named = _ONE.fullmatch(name)
    if alone and argparse:
        value = find(alone)
        if value is True and filled and filled[-1].startswith("-"):
            return
        if value is False or value is None:
            _drop_option(filled, word)
            return
        if isinstance(value, list):
            filled += [_in_word(alone, each, None, alone=True) for each in value]
            return
    if argparse and equals and named and option.startswith("-"):
        value = find(named[1])
        if isinstance(value, bool) or value is None:
            filled += [option] * (value is True)
            return
    filled.append(substituted(word, lambda name: _in_word(name, find(name), task.flags, alone=alone is not None)))


def _drop_option(filled: list[str], word: str) -> None:
    """Leave out a word, and with it the option that it would be the value of."""
    if not word.startswith("-") and filled and filled[-1].startswith("-") and "=" not in filled[-1]:
        filled.pop()


def substituted(text: str, fill: Callable[[str], str]) -> str:
    """Return a text with each placeholder filled. Raises Unfillable."""
    placeholders(text)
    return _PART.sub(lambda part: fill(part[1]) if part[1] is not None else part[0][0], text)


def _in_word(name: str, value: Any, flags: str | None, *, alone: bool) -> str:
    if flags == "hydra" and name not in WORDS:
        return _hydra(value)
    if value is None or isinstance(value, (bool, list, dict)):
        hint = "say how it is written with `flags: argparse` or `flags: hydra`, or hand over {settings.json}"
        where = f"{brief(value)} of `{name}`"
        if flags == "argparse":
            hint = "give it a word of its own, after its option"
        raise Unfillable(f"{where} can't be written in this place of a command", hint, name=name)
    if isinstance(value, str) and "\0" in value:
        raise Unfillable(f"`{name}` holds a zero byte, which no command can be given", name=name)
    if alone and isinstance(value, str) and value.startswith("-"):
        hint = f"join it to its option: `--option={{{name}}}`"
        raise Unfillable(f"{brief(value)} of `{name}` would be read as an option", hint, name=name)
    return value if isinstance(value, str) else repr(value)


def _in_variable(name: str, value: Any) -> str:
    if isinstance(value, (list, dict)) or (isinstance(value, str) and "\0" in value):
        raise Unfillable(
            f"{brief(value)} of `{name}` can't be the value of a variable", "hand over {settings.json}", name=name
        )
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _hydra(value: Any) -> str:
    """Return a value in Hydra's grammar of overrides: text that could be something else stands in quotes."""
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN_TEXT.fullmatch(value) and value.lower() not in _HYDRA_WORDS:
        return value
    # within quotes only the quote, a backslash before it and an interpolation mean something
    quoted = re.sub(r"(\\*)'", r"\1\1\\'", value)
    quoted = re.sub(r"(\\+)$", r"\1\1", quoted)
    return "'" + re.sub(r"(\\*)\$\{", r"\1\1\\${", quoted) + "'"


# --- faults --------------------------------------------------------------------------------------------------------


def command_flaws(study: Study, metrics: Sequence[str] | None) -> Iterator[Flaw]:
    """Yield the flaws of a study whose task is a command: what it does not mention, and what can't be written.

    ``metrics`` are those that are declared, broken ones included; None where that can't be told.
    """
    task, place = study.task, ("task", "command")
    try:
        words = words_of(task.command or "")
        names: list[tuple[str, Place]] = [(name, place) for word in words for name in placeholders(word)]
        for variable, text in task.environment.items():
            names += [(name, ("task", "environment", variable)) for name in placeholders(text)]
    except Unfillable as error:
        yield Flaw(place, str(error), error.hint)
        return
    known = dict(leaves(study.settings))
    unknown = [flaw for name, here in names if (flaw := _unknown(name, here, study, known))]
    yield from unknown
    mentioned = {name for name, _ in names}
    if SEED not in mentioned:
        yield Flaw(place, "the command never mentions {seed}: every seed would be the same run", "add `--seed {seed}`")
    yield from _shell_flaws(words, place)
    for path in sorted(known.keys() & set(WORDS)):
        yield Flaw(
            ("settings", path), f"a setting of a command can't be called `{path}`", f"{{{path}}} is ablate's own"
        )
    if not mentioned & set(FILES):
        yield from _unmentioned(study, mentioned)
    if not unknown:
        yield from _value_flaws(study, place)
    yield from _source_flaws(study, metrics)


def _unknown(name: str, place: Place, study: Study, known: Iterable[str]) -> Flaw | None:
    if name in WORDS or name in known:
        return None
    try:
        get(study.settings, name)
    except KeyError:
        return Flaw(place, f"there is no setting `{name}` to fill in", did_you_mean(name, [*known, *WORDS]))
    inside = ", ".join(f"{{{path}}}" for path in known if path.startswith(f"{name}."))
    return Flaw(place, f"`{name}` is a group of settings", f"name each: {inside}")


def _unmentioned(study: Study, mentioned: set[str]) -> Iterator[Flaw]:
    """Yield one flaw for all settings that the command would never hear of."""
    paths = [path for path, _ in leaves(study.settings) if path not in mentioned]
    if not paths:
        return
    idle = [step.name for step in study.steps if step.set.keys() & set(paths)]
    more = f" and {len(paths) - LISTED} more" if len(paths) > LISTED else ""
    message = f"the command never mentions {listed(paths[:LISTED])}{more}"
    if idle:
        message += f", and so {listed(idle[:LISTED])} would not reach it"
    hint = f"add {{{paths[0]}}} to it, or hand over a file with all settings: {{settings.json}}, {{settings.yaml}}"
    yield Flaw(("settings", *paths[0].split(".")), message, hint)


def _shell_flaws(words: list[str], place: Place) -> Iterator[Flaw]:
    for word in words:
        if word in _SHELL_WORDS:
            yield Flaw(place, f"`{word}` means nothing here: a command is run without a shell", "write a script")
    if placeholders(words[0]):
        yield Flaw(place, "no setting may choose the program", "write the program's name, and the rest as arguments")
    if PurePath(words[0]).name in _SHELLS and "-c" in words[:-1]:
        code = words[words.index("-c") + 1]
        if placeholders(code):
            hint = "hand the value over as an argument or in `environment`, and read it there"
            yield Flaw(place, f"a placeholder inside of `{words[0]} -c` could be run as code", hint)


def _value_flaws(study: Study, place: Place) -> Iterator[Flaw]:
    """Fill the command with the baseline and with each step: what no step sets is said of the settings once."""
    said: set[str] = set()
    patches: list[tuple[Place, Mapping[str, Any]]] = [(place, {})]
    patches += [(("steps", index), step.set) for index, step in enumerate(study.steps)]
    for here, patch in patches:
        try:
            settings = patched(study.settings, patch)
            find = finder(settings, seed=0, folder="folder", resume=None)
            filled_words(study.task, find)
            filled_environment(study.task, find)
        except (KeyError, TypeError):
            continue  # a step that sets what is not there, or below a value, has a flaw of its own
        except Unfillable as error:
            if error.name not in said:
                yield Flaw(here, str(error), error.hint)
            said.add(error.name)


def finder(settings: Mapping[str, Any], *, seed: int, folder: str, resume: str | None) -> Find:
    """Return what finds the value of a placeholder. Files with settings lie in the folder."""
    own = {SEED: seed, FOLDER: folder, RESUME: resume, **{name: f"{folder}/{name}" for name in FILES}}
    return lambda name: own[name] if name in own else get(settings, name)


def _source_flaws(study: Study, metrics: Sequence[str] | None) -> Iterator[Flaw]:
    source, place = study.task.metrics_from, ("task", "metrics_from")
    for name in source.names:
        if metrics is not None and name not in metrics:
            yield Flaw((*place, "names", name), f"`{name}` is no metric of the study", did_you_mean(name, metrics))
    paths = {"json": source.json_, "csv": source.csv, "tensorboard": source.tensorboard}
    for kind, path in paths.items():
        try:
            named = placeholders(path or "")
        except Unfillable as error:
            yield Flaw((*place, kind), str(error), error.hint)
            continue
        wrong = [name for name in named if name not in (FOLDER, SEED)]
        if wrong:
            yield Flaw((*place, kind), f"there is no `{wrong[0]}` to fill in here", "{folder} and {seed} may be named")
        elif path and FOLDER not in named:
            hint = f"hand {{folder}} to the command, and read `{{folder}}/{PurePath(path).name}`"
            yield Flaw((*place, kind), f"each trial would read {brief(path)}, whichever trial wrote it", hint)
    if source.pattern:
        yield from _pattern_flaws(study, (*place, "pattern"), metrics or ())


def _pattern_flaws(study: Study, place: Place, metrics: Sequence[str]) -> Iterator[Flaw]:
    groups: set[str] = set()
    for pattern in study.task.metrics_from.pattern:
        try:
            groups |= re.compile(pattern).groupindex.keys()
        except re.error as error:
            yield Flaw(place, f"{brief(pattern)} is no regular expression: {error}", "Python's `re` reads it")
            return
    for metric in metrics:
        name = study.task.metrics_from.names.get(metric, metric)
        if name not in groups:
            yield Flaw(place, f"no pattern has a group for `{name}`", f"for example (?P<{name}>[-+.0-9e]+)")
