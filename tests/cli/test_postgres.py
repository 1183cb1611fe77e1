"""A store on a PostgreSQL server, by the real command: the numbers of SQLite, and no secret of its URL anywhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from ablate.store.integrity import store_flaws
from ablate.store.store import open_store
from tests.command import Call, ablate, finish, start
from tests.mirror.drawn import content
from tests.postgres import Server
from tests.studies import TOY, TOY_STUDY, write_study

MIRRORED = {"ABLATE_NO_MIRROR": "0"}

# seed 2 of `two` diverges, seed 2 of `three` fails until somebody mends it
TASK = TOY.replace(
    "    done, total",
    """    import os, pathlib
    print("task", dict(os.environ), flush=True)
    if settings["level"] == 2 and context.seed == 2:
        return {"acc": float("nan")}
    if settings["level"] == 3 and context.seed == 2 and not pathlib.Path("mended").exists():
        raise ValueError("boom \\0 \\udce9")
    done, total""",
)

# what depends on the machine's mood, and not on the store
MOODS = ("seconds", "started", "ended", "created", "written", "environment", "store", "file", "folder")


def scrubbed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: scrubbed(each) for key, each in value.items() if not any(mood in key for mood in MOODS)}
    return [scrubbed(each) for each in value] if isinstance(value, list) else value


def timeless(text: str) -> str:
    return re.sub(r"[\d.]+ (s|min)\b", "so long", text)


def pictures(mirror: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return levels, state and value of each trial of the toy study; their order depends on who was first."""
    trials = mirror["toy v1"]["trials"]
    return sorted((json.dumps(levels, sort_keys=True), (state, value)) for _, state, value, levels, *_ in trials)


@pytest.fixture
def projects(postgres: Server, tmp_path: Path) -> list[tuple[Path, str]]:
    """Two projects with one study, and where each has its store."""
    made = []
    for kind in ("sqlite", "postgresql"):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / ".git").mkdir()
        write_study(folder, task=TASK)
        made.append((folder, str(folder / "runs" / "ablate.db") if kind == "sqlite" else postgres.new_database()))
    return made


@pytest.mark.slow
def test_a_study_on_a_server_is_that_in_a_file(projects: list[tuple[Path, str]], call: Call) -> None:
    seen: dict[str, list[Any]] = {}
    for folder, location in projects:
        there = ("--store", location)
        said = seen[folder.name] = []
        assert call("plan", "toy.yaml", *there, cwd=folder).returncode == 0
        done = ablate("run", "toy.yaml", *there, cwd=folder, **MIRRORED)
        assert done.returncode == 1, done.stderr
        assert "mirror" not in done.stderr, done.stderr
        for arguments in (
            ("status",), ("report", "--markdown"), ("report", "--json"), ("plan", "toy.yaml"),
            ("logs", "toy", "three", "-n", "1"), ("show", "two"),
        ):  # fmt: skip
            looked = call(*arguments, *there, cwd=folder)
            assert looked.returncode == 0, (arguments, looked)
            said.append((arguments, looked.stdout))
        assert "4 of 6 trials done, 1 diverged, 1 failed" in said[0][1]
        assert "boom \\x00 \\udce9" in said[0][1]
        (folder / "mended").touch()
        assert "1 failed trial back in the queue" in call("retry", *there, cwd=folder).stderr
        runs = [start("run", "toy.yaml", "-j", "1", *there, cwd=folder, **MIRRORED) for _ in range(2)]
        for process in runs:
            assert (finish(process), process.returncode)[1] == 0
        for arguments in (("report", "--markdown"), ("report", "--json"), ("status",)):
            said.append((arguments, call(*arguments, *there, cwd=folder).stdout))
        verified = call("doctor", "--verify", *there, cwd=folder).stdout
        assert "the store is sound" in verified
        assert "checkpoints of 5 attempts are what was written" in verified
        assert call("mirror", *there, cwd=folder).returncode == 0
        said.append((("mirror",), content(folder / "runs" / "mirror.db")))
    for (arguments, file), (_, server) in zip(*seen.values(), strict=True):
        if "--json" in arguments:
            assert scrubbed(json.loads(file)) == scrubbed(json.loads(server))
        elif "--markdown" in arguments:
            assert timeless(file) == timeless(server)
        elif "mirror" in arguments:
            assert pictures(file) == pictures(server)
    assert len(json.loads(seen["postgresql"][2][1])["arms"]) == 3, "there is something to compare"


CANARIES = ("canary-password", "canary-query", "canary%2Dpassword")


def processes_of(folder: Path) -> Iterator[tuple[int, bytes]]:
    """Yield what `ps` shows of the processes that work in a folder."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                line = (process / "cmdline").read_bytes()
                if line and os.readlink(process / "cwd") == str(folder):  # one that has ended has no line
                    yield int(process.name), line
            except OSError:
                continue


def written(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield str(path), path.read_bytes()


def rows(server: Server, database: str) -> Iterator[tuple[str, bytes]]:
    with psycopg.connect(f"postgresql://ablate@127.0.0.1:{server.port}/{database}") as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            for (row,) in connection.execute(f'SELECT t::text FROM "{table}" t').fetchall():
                yield f"table {table}", row.encode()


@pytest.mark.slow
def test_a_secret_of_the_url_is_nowhere(
    postgres: Server, project: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in what is printed and written, nor in rows, nor in the words of processes that ablate starts."""
    temporary = project / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    postgres.guard("canary", "canary-password")
    plain = make_url(postgres.new_database())
    url = plain.set(username="canary", password="canary-password", query={"application_name": "canary-query"})
    secret = url.render_as_string(hide_password=False)
    database = str(plain.database)
    study = TOY_STUDY.replace("epochs: 3, pause: 0.0", "epochs: 12, pause: 0.1")
    write_study(project, study, task=TASK)
    printed: list[tuple[str, bytes]] = []

    process = start("run", "toy.yaml", "-j", "2", "--store", secret, cwd=project, ABLATE_STORE=secret, **MIRRORED)
    words: dict[int, bytes] = {}
    while process.poll() is None:
        words.update(processes_of(project))
        if list(project.glob("runs/trials/*/*/metrics.jsonl")):
            process.terminate()
    said = process.communicate()
    printed.append(("a run that is stopped", (said[0] + said[1]).encode()))
    assert process.returncode == 143, said
    # what the user wrote, the user's own shell has shown to `ps`; a child has these words too until it calls exec
    own = words[process.pid]
    words = {pid: line for pid, line in words.items() if line != own}
    assert len(words) >= 3, "the workers' server, a worker and the mirror"
    printed += [(f"ps: process {pid}", line) for pid, line in words.items()]

    wrong = url.set(database="canary").render_as_string(hide_password=False)
    refused = url.set(password="canary%2Dpassword").render_as_string(hide_password=False)
    broken = secret.replace(f":{postgres.port}/", ":port/")
    for where in (secret, wrong, refused, broken):
        for arguments in (
            ("run", "toy.yaml", "--no-mirror"), ("status",), ("report",), ("logs",), ("show", "two"),
            ("doctor", "--verify"), ("retry",), ("plan", "toy.yaml"), ("mirror",),
        ):  # fmt: skip
            if where != secret and arguments[0] not in ("run", "status", "doctor"):
                continue
            done = (ablate if arguments[0] == "run" else call)(*arguments, "--store", where, cwd=project)
            printed.append((f"{arguments} {done.returncode}", (done.stdout + done.stderr).encode()))
            assert done.returncode in ((0, 1, 4) if where == secret else (2, 3, 4)), done.stderr
    crash = "import ablate.cli as c; from ablate.cli.options import Selection; Selection.plan = lambda _: 1/0; c.main()"
    done = subprocess.run(
        [sys.executable, "-c", crash, "run", "toy.yaml", "--store", secret], cwd=project, capture_output=True, text=True
    )
    assert done.returncode == 70, done.stderr
    printed.append(("a crash", (done.stdout + done.stderr).encode()))
    assert list(temporary.glob("ablate-crash-*"))

    everything = [*printed, *written(project), *rows(postgres, database)]
    assert any(name == "table attempt" for name, _ in everything)
    assert any(name.endswith("mirror.db") for name, _ in everything)
    leaks = {name: canary for name, text in everything for canary in CANARIES if canary.encode() in text}
    assert leaks == {}
    with closing(open_store(plain.render_as_string(), folder=project / "runs")) as store:
        assert store_flaws(store, thorough=True) == []
