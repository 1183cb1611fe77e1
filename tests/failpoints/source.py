"""What the source of ablate says of its failpoints, and of writes that have none. Read, never run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ablate

PACKAGE = Path(ablate.__file__).parent

# calls that change a file, a folder or a database, by the name that is called last
WRITES = {
    "write_text", "write_bytes", "replace", "rename", "renames", "link", "symlink", "symlink_to", "hardlink_to",
    "pwrite", "writev", "ftruncate", "truncate", "mkdir", "makedirs", "unlink", "remove", "rmdir", "removedirs",
    "touch", "rmtree", "copy", "copy2", "copyfile", "copytree", "copyfileobj", "move", "chmod", "mkdtemp", "mkstemp",
    "TemporaryDirectory", "NamedTemporaryFile", "save", "savez", "savez_compressed", "to_csv", "to_parquet", "begin",
    "create_new_study", "create_new_trial", "delete_study", "set_study_user_attr", "set_trial_user_attr",
    "set_trial_intermediate_value", "set_trial_state_values", "set_metric_names",
}  # fmt: skip
# of these names only the functions of these modules write: strings and dataclasses have a `replace` too
ONLY_OF = {
    "replace": {"os"}, "copy": {"shutil"}, "move": {"shutil"}, "remove": {"os"}, "link": {"os"}, "truncate": {"os"},
    "save": {"torch", "np", "numpy"},
}  # fmt: skip
OPENED_TO_WRITE = {"O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND"}


@dataclass(frozen=True)
class Write:
    """A call that writes, and the function it stands in."""

    file: str
    line: int
    function: str
    call: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.call} in {self.function} without a failpoint"


@dataclass
class Function:
    """A function (or the top of a module) with the calls that stand in it and in functions inside it."""

    name: str
    parameters: list[str] = field(default_factory=list)
    inner: list[str] = field(default_factory=list)
    calls: list[ast.Call] = field(default_factory=list)


def functions_of(tree: ast.Module) -> list[Function]:
    """Return every function of a module; a lambda, and a function in a function, belongs to the one around it."""
    found = [Function("<module>")]

    def visit(node: ast.AST, owner: Function) -> None:
        for child in ast.iter_child_nodes(node):
            inside = owner
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            if is_function and owner is not found[0]:
                owner.inner.append(child.name)
            elif is_function:
                arguments = child.args
                names = [each.arg for each in (*arguments.args, *arguments.kwonlyargs)]
                inside = Function(child.name, names)
                found.append(inside)
            if isinstance(child, ast.Call):
                inside.calls.append(child)
            visit(child, inside)

    visit(tree, found[0])
    return found


def sources() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(PACKAGE.parent)): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))
    }


# --- failpoints


def failpoints(trees: dict[str, ast.Module]) -> list[str]:
    """Return the names of all failpoints. ``f"{what}-written"`` stands for one per ``what=`` that a caller passes."""
    functions = [each for tree in trees.values() for each in functions_of(tree)]
    names: list[str] = []
    for function in functions:
        for call in function.calls:
            if called(call) == "failpoint":
                names += expanded(call.args[0], function, functions)
    return sorted(dict.fromkeys(names))


def expanded(name: ast.expr, function: Function, functions: list[Function]) -> list[str]:
    if isinstance(name, ast.Constant):
        return [name.value]
    if isinstance(name, ast.IfExp):
        return [each for part in (name.body, name.orelse) for each in expanded(part, function, functions)]
    assert isinstance(name, ast.JoinedStr), ast.unparse(name)
    variable, suffix = name.values
    assert isinstance(variable, ast.FormattedValue), ast.unparse(name)
    assert isinstance(suffix, ast.Constant), ast.unparse(name)
    word = ast.unparse(variable.value)
    if function.name == "_transaction":
        words = transactions(functions)
    else:
        words = passed(word, function, functions)
    assert words, f"nobody calls {function.name} with a {word}"
    return [f"{each}{suffix.value}" for each in words]


def passed(word: str, function: Function, functions: list[Function]) -> list[str]:
    """Return the constants that reach a parameter of a function, directly or through parameters of its callers."""
    assert word in function.parameters, f"{function.name}: {word} is no parameter"
    found: list[str] = []
    for caller in functions:
        for call in caller.calls:
            if called(call) != function.name:
                continue
            values = [keyword.value for keyword in call.keywords if keyword.arg == word]
            assert len(values) == 1, f"{caller.name} calls {function.name} without {word}="
            if isinstance(values[0], ast.Constant):
                found.append(values[0].value)
            else:
                found += passed(ast.unparse(values[0]), caller, functions)
    return found


def transactions(functions: list[Function]) -> list[str]:
    """Return the names that ``Store`` gives to its write transactions: of the function that each is about."""
    found = []
    for function in functions:
        for call in function.calls:
            if called(call) == "write" and isinstance(call.func, ast.Attribute):
                if not ast.unparse(call.func.value).lower().endswith(("store", "writable")):
                    continue
                work = call.args[0]
                own = isinstance(work, ast.Name) and work.id not in function.inner
                found.append((work.id if own else function.name).strip("_"))
    return found


# --- writes


def unguarded(file: str, tree: ast.Module) -> Iterator[Write]:
    """Yield the calls that write in a function that holds no failpoint."""
    for function in functions_of(tree):
        if not any(called(call) == "failpoint" for call in function.calls):
            for call in function.calls:
                if writes(call):
                    yield Write(file, call.lineno, function.name, ast.unparse(call.func))


def writes(call: ast.Call) -> bool:
    name, owner = called(call), owner_of(call)
    if name == "open":
        return opens_to_write(call, owner)
    if name == "write":
        return owner == "os"  # the methods of a file write where it was opened, which is seen by itself
    if name == "connect":
        return owner in ("sqlite3", "self.engine")
    return name in WRITES and owner in ONLY_OF.get(name, {owner})


def opens_to_write(call: ast.Call, owner: str) -> bool:
    if owner == "os":
        return any(
            isinstance(node, ast.Attribute) and node.attr in OPENED_TO_WRITE
            for argument in call.args
            for node in ast.walk(argument)
        )
    words = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    modes = [word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)]
    return any(set(mode) <= set("rwaxbt+U") and set(mode) & set("wax+") for mode in modes)


def called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)


def owner_of(call: ast.Call) -> str:
    return ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
