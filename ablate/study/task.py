"""Where a study's task is written, found and looked at without running any of it."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from ablate.errors import Fault
from ablate.study.command import Unfillable, words_of
from ablate.study.words import did_you_mean, nearest

PYTHON = ("python", "python3")  # in a command: the interpreter that ablate itself runs on


def beside(module: str, folder: Path) -> Path | None:
    """Return the file of a module that lies beside the study, or None: then it is an installed one."""
    base = folder.joinpath(*module.split("."))
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


def task_faults(task: str, folder: Path, *, where: str) -> Iterator[Fault]:
    """Check that the task is there: a module beside the study is parsed, another only located by its first name."""
    module, _, function = task.partition(":")
    file = beside(module, folder)
    if file is None:
        if not _is_installed(module.partition(".")[0]):
            message = f"the task's module `{module}` is neither beside the study nor installed"
            yield Fault(message, where, _missing_hint(module, function, folder))
        return
    try:
        with warnings.catch_warnings(action="ignore"):  # they will be said when the task is imported
            tree = ast.parse(file.read_bytes(), filename=str(file))
    except (RecursionError, MemoryError):
        return  # nested too deeply to be looked at; importing it will tell
    except (SyntaxError, ValueError) as error:
        line, why = getattr(error, "lineno", None), getattr(error, "msg", str(error))
        yield Fault(f"the task is not valid Python: {why}", f"{file}:{line}" if line else str(file))
        return
    except OSError as error:
        yield Fault(f"the task can't be read: {error.strerror}", str(file))
        return
    names = set(_names(tree))
    if not names & {function, "*", "__getattr__"}:
        functions = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        yield Fault(f"{file} has no function `{function}`", where, did_you_mean(function, functions))


def program_faults(command: str, folder: Path, *, where: str) -> Iterator[Fault]:
    """Check that a command's program is there, and the script that Python is to run. What is filled in is not known."""
    try:
        program, *words = words_of(command)
    except Unfillable:
        return  # said of the command itself
    if program in PYTHON:
        script = next((word for word in words if not word.startswith("-")), None)
        if script and script.endswith(".py") and "{" not in script and not (folder / script).is_file():
            close = nearest(script, sorted(str(file.relative_to(folder)) for file in folder.glob("*.py")))
            hint = f"did you mean `{close}`?" if close else "the command runs in the folder of the study"
            yield Fault(f"the command's script is missing: {folder / script}", where, hint)
        return
    if "{" not in program and program_file(program, folder) is None:
        message, hint = no_program(program, folder)
        yield Fault(message, where, hint)


def no_program(program: str, folder: Path) -> tuple[str, str]:
    """Return what to say of a program that can't be started, and what can be done."""
    if "/" in program and (folder / program).is_file():
        return f"the program `{program}` is not executable", f"`chmod +x {program}`, or write what runs it before it"
    hint = "install it, or write its path from the study's folder"
    name, equals, _ = program.partition("=")
    if equals and name.isidentifier():
        hint = f"variables stand in `environment`, beside the command: {{{name}: …}}"
    return f"the program `{program}` is not found", hint


def program_file(program: str, folder: Path) -> Path | None:
    """Return the file of a program: on the PATH by its name, beside the study by a path."""
    found = shutil.which(program if "/" not in program else str(folder / program))
    return Path(found) if found else None


def _missing_hint(module: str, function: str, folder: Path) -> str:
    if (folder / module).is_file():
        return f"write a module and not a file: `{module.removesuffix('.py')}:{function}`"
    close = nearest(module, sorted(file.stem for file in folder.glob("*.py")))
    wanted = folder.joinpath(*module.split(".")).with_suffix(".py")
    return f"did you mean `{close}:{function}`?" if close else f"write it as {wanted}"


def _is_installed(top: str) -> bool:
    if top in sys.modules:
        return True
    try:
        return importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        return False


def _names(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a module binds at its top level, as far as they can be read."""
    stack: list[ast.AST] = [tree]  # no recursion: an expression may be nested deeper than Python recurses
    while stack:
        for node in ast.iter_child_nodes(stack.pop()):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield node.name
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            else:
                stack.append(node)
