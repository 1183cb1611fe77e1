"""What stands on an attempt beside its numbers, and what happens when the code has changed since."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import subprocess
from pathlib import Path

import pytest

from ablate.run.provenance import code_sha256, git_facts, task_sources
from ablate.study.schema import Task
from tests.command import ablate, query
from tests.numbers import NUMBERS
from tests.studies import TOY, write_study

MAIN = Task.model_validate("main:train")


def environment(project: Path) -> dict[str, str]:
    (text,) = query(project, "SELECT environment_json FROM attempt ORDER BY id LIMIT 1")[0]
    facts: dict[str, str] = json.loads(text)
    return facts


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_an_attempt_says_what_it_ran_on(project: Path) -> None:
    (project / ".git").rmdir()
    git(project, "init", "-q")
    path = write_study(
        project,
        task=TOY.replace("state = context.resume()", "context.fact('data', 'abc')\n    state = context.resume()"),
    )
    git(project, "add", ".")
    git(project, "commit", "-qm", "study")
    path.write_text(path.read_text() + "question: does it?\n")
    assert ablate("run", "toy.yaml", "--only", "baseline", cwd=project).returncode == 0
    facts = environment(project)
    assert facts["command"] == "ablate run toy.yaml --only baseline"
    assert facts["data"] == "abc"
    assert facts["threads"] == "1"
    assert facts["slot"].startswith("cpu")
    assert facts["torch"].split(".")[0].isdigit()
    assert {"python", "platform", "host", "cpu", "ablate", "numpy"} <= facts.keys()
    assert len(facts["git_commit"]) == 40
    assert "+question: does it?" in (project / "runs" / facts["git_diff"]).read_text()


def test_outside_a_repository_there_is_no_commit(tmp_path: Path) -> None:
    assert git_facts(tmp_path, tmp_path / "diffs") == {}
    assert not (tmp_path / "diffs").exists()


def test_the_code_is_the_task_and_what_it_imports_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import layers\nimport json\n")
    (tmp_path / "layers.py").write_text("import model  # round in a circle\n")
    (tmp_path / "unrelated.py").write_text("raise SystemExit('never run')\n")
    (tmp_path / "main.py").write_text("from model import net\nraise SystemExit('never run')\n")
    assert [file.name for file in task_sources(MAIN, tmp_path)] == ["layers.py", "main.py", "model.py"]
    before = code_sha256(MAIN, tmp_path)
    (tmp_path / "unrelated.py").write_text("")
    assert code_sha256(MAIN, tmp_path) == before
    (tmp_path / "layers.py").write_text("import model\n")
    assert code_sha256(MAIN, tmp_path) != before


def test_an_installed_task_is_found_without_importing_it(tmp_path: Path) -> None:
    (source,) = task_sources(Task.model_validate("json.decoder:JSONDecoder"), tmp_path)
    assert source.name == "decoder.py"


@pytest.fixture
def changed(project: Path) -> Path:
    """A finished study whose task was edited afterwards."""
    write_study(project)
    assert ablate("run", "toy.yaml", cwd=project).returncode == 0
    (project / "toy.py").write_text(TOY.replace('settings["level"] + total', '10 + settings["level"] + total'))
    return project


def test_changed_code_is_asked_about_and_nothing_is_done(changed: Path) -> None:
    done = ablate("run", "toy.yaml", "--seeds", "3", cwd=changed)
    assert done.returncode == 2
    assert "toy.yaml:4: the code of `toy:train` has changed since 6 finished trials of this study" in done.stderr
    assert "--keep keeps them (the report marks mixed rows); --fresh trains them again" in done.stderr
    assert query(changed, "SELECT count(*) FROM trial") == [(6,)]


def test_keep_trains_only_what_is_missing_and_the_report_marks_it(changed: Path) -> None:
    done = ablate("run", "toy.yaml", "--seeds", "3", "--keep", cwd=changed)
    assert done.returncode == 0, done.stderr
    assert "(3 attempts)" in done.stderr
    assert "another version of the task's code than most trials" in " ".join(done.stdout.split())


def test_fresh_trains_all_of_it_again(changed: Path) -> None:
    sql = NUMBERS + "SELECT avg(value), count(*) FROM number WHERE epoch IS NULL AND claim = {}"
    before = query(changed, sql.format(1))
    done = ablate("run", "toy.yaml", "--fresh", cwd=changed)
    assert done.returncode == 0, done.stderr
    assert "(6 attempts)" in done.stderr
    assert query(changed, sql.format(1)) == before  # what they were before is kept beside it
    assert query(changed, sql.format(2)) == [(pytest.approx(before[0][0] + 10), 6)]
    assert query(changed, "SELECT DISTINCT resumed_from FROM attempt") == [
        (None,)
    ]  # never from the old code's checkpoint
    for option in ([], ["--fresh"]):  # where nothing is old, there is nothing to train afresh
        again = ablate("run", "toy.yaml", *option, cwd=changed)
        assert again.returncode == 0
        assert "(trained nothing new)" in again.stderr


def test_the_report_carries_provenance_and_marks_drift(project: Path) -> None:
    write_study(project)
    assert ablate("run", "toy.yaml", cwd=project).returncode == 0
    (text,) = query(project, "SELECT environment_json FROM attempt WHERE id = 4")[0]
    usual = json.loads(text)["torch"]
    with sqlite3.connect(project / "runs" / "ablate.db") as connection:
        changed = json.dumps({**json.loads(text), "torch": "1.0.0"})
        connection.execute("UPDATE attempt SET environment_json = ? WHERE id = 4", (changed,))
    connection.close()
    table = ablate("report", cwd=project).stdout
    assert f"seed 2 ran with torch 1.0.0, most trials with {usual}." in " ".join(table.split())
    rows = list(csv.DictReader(io.StringIO(ablate("report", "--csv", cwd=project).stdout)))
    assert sorted({row["torch"] for row in rows}) == ["1.0.0", usual]
    assert {row["command"] for row in rows} == {"ablate run toy.yaml"}
