"""Imports point left only, in the order of ``ORDER``: from the errors and the failpoints to the command line."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

import ablate
from ablate.store.tables import attempt
from tests.truth import fill, truth_study

PACKAGE = Path(ablate.__file__).parent
ORDER = [
    "errors",
    "failpoints",
    "stats",
    "study",
    "plan",
    "store",
    "train",
    "run",
    "launch",
    "analyse",
    "report",
    "mirror",
    "export",
    "results",
    "api",
    "completion",
    "cli",
]

# rooms that a room left of it may not know either, by DESIGN's column "keeps out"
KEPT_OUT = {
    "stats": {"errors", "study", "plan"},
    "store": {"train", "run"},
    "train": {"store", "plan"},
    "analyse": {"run", "launch", "train"},
    "report": {"store", "run", "launch", "train"},
    "mirror": {"run", "launch", "train", "analyse", "report"},
    "export": {"run", "launch", "train", "report", "mirror"},
}
LIBRARIES_KEPT_OUT = {
    "stats": {"torch", "pandas", "sqlalchemy", "rich"},
    "study": {"torch", "sqlalchemy", "pandas", "numpy"},
    "plan": {"torch", "sqlalchemy", "pandas", "numpy", "os", "time", "datetime"},
    "store": {"torch", "pandas"},
    "run": {"torch", "pandas", "optuna"},
    "launch": {"torch", "pandas", "optuna", "sqlalchemy"},
    "analyse": {"torch", "optuna"},
    "report": {"torch", "sqlalchemy", "optuna"},
    "mirror": {"torch", "pandas"},
    "export": {"torch", "pandas", "optuna", "sqlalchemy"},
    "results": {"torch", "pandas", "optuna", "sqlalchemy"},
    "api": {"torch", "pandas", "optuna", "sqlalchemy"},
    "completion": {"torch", "pandas", "optuna", "sqlalchemy"},
    "cli": {"torch", "pandas", "optuna", "sqlalchemy"},
}
# train/ reads these without torch, so that the runner can
TORCH_FREE = [
    "ablate.train",
    "ablate.train.folder",
    "ablate.train.manifest",
    "ablate.train.scores",
    "ablate.train.seeding",
    "ablate.train.toolchain",
]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole name"
            yield str(node.module), node.lineno
            if node.module == "ablate":
                yield from ((f"ablate.{alias.name}", node.lineno) for alias in node.names)


FILES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if room_of(path) not in ("__init__", "__main__") and path.parent.name != "templates"  # what users are given
]


def test_every_file_is_in_a_known_room() -> None:
    assert {room_of(path) for path in FILES} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_left(path: Path) -> None:
    room = room_of(path)
    for name, line in imports_of(path):
        top, *rest = name.split(".")
        if top == "ablate" and rest and rest[0] in ORDER:
            assert ORDER.index(rest[0]) <= ORDER.index(room), f"{path}:{line}: {room} imports {name}, to its right"
            assert rest[0] not in KEPT_OUT.get(room, set()), f"{path}:{line}: {room} keeps out {rest[0]}"
        assert top not in LIBRARIES_KEPT_OUT.get(room, set()), f"{path}:{line}: {room} keeps out {top}"


# what would run a foreign text, or hand it to a shell
EXECUTES = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "marshal.loads",
}
EXECUTES |= {"shelve.open", "yaml.load", "pandas.read_pickle", "np.load", "numpy.load"}
ALLOWED = {("server.py", "__import__")}  # of names that stand in the file itself


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_runs_a_foreign_text(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        assert name not in EXECUTES or (path.name, name) in ALLOWED, f"{path}:{node.lineno}: {name}"
        given = {each.arg: ast.unparse(each.value) for each in node.keywords}
        assert given.get("shell") is None, f"{path}:{node.lineno}: a shell"
        assert name != "torch.load" or given.get("weights_only") == "True", f"{path}:{node.lineno}: {name}"
        in_sql = name.rpartition(".")[2] in ("text", "exec_driver_sql") and path.parent.name in ("store", "mirror")
        parts = [part for argument in node.args for part in ast.walk(argument) if isinstance(part, ast.FormattedValue)]
        written = {ast.unparse(part.value) for part in parts}
        assert not in_sql or written <= {"pragma", "_SHOWN"}, f"{path}:{node.lineno}: SQL that is put together"


def modules_after(code: str, cwd: Path) -> set[str]:
    code = f"{code}\nimport sys, json\nprint('@@' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=cwd)
    return set(json.loads(done.stdout.rpartition("@@")[2]))


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_runner_reads_attempt_folders_without_torch(module: str, tmp_path: Path) -> None:
    assert "torch" not in modules_after(f"import {module}", tmp_path)


def test_the_runner_itself_has_no_torch(tmp_path: Path) -> None:
    loaded = modules_after("import ablate.run.runner, ablate.run.scores, ablate.run.progress", tmp_path)
    assert not loaded & {"torch", "pandas", "optuna"}


def test_a_run_starts_its_mirror_without_optuna(tmp_path: Path) -> None:
    assert "optuna" not in modules_after("import ablate.mirror.follower", tmp_path)


def call(arguments: list[str]) -> str:
    return f"""
import sys
from ablate.cli import main
sys.argv = ["ablate", *{arguments!r}]
try:
    main()
except SystemExit as end:
    assert end.code in (0, None), end.code
"""


def test_help_loads_neither_torch_nor_pandas_nor_optuna(tmp_path: Path) -> None:
    loaded = modules_after(call(["--help"]), tmp_path)
    assert not loaded & {"torch", "pandas", "optuna", "sqlalchemy", "pydantic", "rich.console", "numpy"}


def test_the_package_itself_loads_nothing(tmp_path: Path) -> None:
    """Its names are there all the same: each loads what it needs when it is first used."""
    before = modules_after("import json, typing", tmp_path)
    assert modules_after("import ablate; assert 'declare' in dir(ablate)", tmp_path) - before == {"ablate"}
    loaded = modules_after("import ablate; ablate.declare", tmp_path)
    assert not loaded & {"torch", "pandas", "optuna", "sqlalchemy", "rich.console"}


# no command that looks at results draws, tunes or trains, and what a store has of a study is no YAML
NEEDLESS = {"torch", "pandas", "optuna", "matplotlib", "jinja2", "ruamel.yaml"}


def test_plan_loads_only_what_it_shows(tmp_path: Path) -> None:
    study = PACKAGE.parent / "studies" / "basenet.yaml"
    loaded = modules_after(call(["plan", str(study), "--profile", "quick"]), tmp_path)
    assert loaded & NEEDLESS == {"ruamel.yaml"}
    assert "sqlalchemy" not in loaded, "there is no store"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the results of the truth study, and what one of its attempts printed."""
    project = tmp_path_factory.mktemp("project")
    (project / ".git").mkdir()
    (project / "runs").mkdir()
    store = fill(project / "runs", truth_study()).store
    last = store.read(lambda connection: connection.execute(select(attempt.c.folder)).scalars().all())[-1]
    store.path_of(last).mkdir(parents=True)
    (store.path_of(last) / "stdout.log").write_text("epoch 1\n")
    store.close()
    return project


@pytest.mark.parametrize(
    ("words", "computes"),
    [
        (["status"], False),
        (["watch"], False),
        (["logs"], False),
        (["show", "batchnorm"], True),
        (["report"], True),
        (["report", "--markdown"], True),
    ],
    ids=str,
)
def test_commands_load_only_what_they_show(filled: Path, words: list[str], computes: bool) -> None:
    loaded = modules_after(call(words), filled)
    assert "sqlalchemy.dialects.sqlite" in loaded, "it has read the store"
    needless = NEEDLESS | {"sqlalchemy.dialects.postgresql"} | (set() if computes else {"numpy", "scipy"})
    assert loaded & needless == set()
