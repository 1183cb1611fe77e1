"""`ablate init`: every starter study is sound and runs at once, and nothing of the user's is written over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from ablate.study.document import read_document
from ablate.study.starter import TEMPLATES
from tests.command import Call, ablate, query


@pytest.mark.parametrize(
    ("template", "arm", "trials"),
    [
        ("classifier", "batchnorm", 2),
        ("function", "only-dropout", 2),
        pytest.param("command", "batch-norm", 2, marks=pytest.mark.slow),
        pytest.param("tuned", "batchnorm", 10, marks=pytest.mark.slow),
    ],
)
def test_a_starter_runs_at_once(project: Path, template: str, arm: str, trials: int) -> None:
    done = ablate("init", "studies/my-own", "--template", template, cwd=project)
    assert (done.returncode, done.stdout) == (0, "ablate plan studies/my-own.yaml\nablate run studies/my-own.yaml\n")
    written = "written: studies/my-own.yaml, studies/my_own.py, and studies/.ablate-schema.json"
    assert done.stderr == f"{written}, from which editors complete the study's keys\n"
    assert ablate("plan", "studies/my-own.yaml", cwd=project).stderr == ""
    run = ablate("run", "studies/my-own.yaml", "--only", arm, "--seeds", "1", cwd=project, timeout=240)
    assert run.returncode == 0, run.stderr
    assert query(project, "SELECT state, count(*) FROM trial GROUP BY 1") == [("done", trials)]
    assert "my-own: " in run.stdout


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_starter_is_what_its_first_line_says(project: Path, call: Call, template: str) -> None:
    assert call("init", "--template", template, cwd=project).returncode == 0
    text = (project / f"{template}.yaml").read_text()
    first, about = text.splitlines()[:2]
    assert about.startswith("# ")
    assert "starter" not in text + (project / f"{template}.py").read_text()
    schema = json.loads((project / first.removeprefix("# yaml-language-server: $schema=")).read_text())
    assert list(Draft202012Validator(schema).iter_errors(read_document(project / f"{template}.yaml").value)) == []
    assert f"{template}    "[:11] in call("init", "--help", cwd=project).stdout


@pytest.mark.parametrize("there", ["mine.yaml", "mine.py"])
def test_nothing_is_written_over(project: Path, call: Call, there: str) -> None:
    (project / there).write_text("of the user")
    done = call("init", "mine", cwd=project)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {there}: it is there already, and is left as it is\nhint: choose another name\n"
    assert (project / there).read_text() == "of the user"
    assert {path.name for path in project.iterdir()} == {".git", there}


def test_a_link_into_nowhere_is_in_the_way_as_well(project: Path, call: Call) -> None:
    (project / "mine.py").symlink_to(project / "elsewhere")
    assert call("init", "mine", cwd=project).returncode == 2
    assert not (project / "elsewhere").exists()


def test_an_older_schema_is_brought_up_to_date(project: Path, call: Call) -> None:
    (project / ".ablate-schema.json").write_text("{}")
    assert call("init", "one", cwd=project).returncode == 0
    assert json.loads((project / ".ablate-schema.json").read_text())["title"] == "ablate study"
    assert call("init", "two.yaml", cwd=project).returncode == 0
    assert (project / "two.py").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["My Study"], "error: `My Study` can't be the name of a study with its code\nhint: lower-case letters"),
        (["1st"], "error: `1st` can't be the name of a study with its code\n"),
        (["torch"], "error: torch.py would hide the installed module `torch`\nhint: choose another name\n"),
        (["a", "--template", "tune"], "error: there is no template `tune`\nhint: did you mean `tuned`?\n"),
    ],
)
def test_what_would_not_work_is_refused(project: Path, call: Call, words: list[str], said: str) -> None:
    done = call("init", *words, cwd=project)
    assert done.returncode == 2
    assert done.stderr.startswith(said)
    assert [path.name for path in project.iterdir()] == [".git"]


@pytest.mark.parametrize("place", ["file/mine", "gone/mine"])
def test_a_folder_that_can_not_be_is_said_in_a_line(project: Path, call: Call, place: str) -> None:
    (project / "file").write_text("kept")
    (project / "gone").symlink_to(project / "nowhere" / "at-all")
    done = call("init", place, cwd=project)
    assert done.returncode == 4
    said = f"error: {Path(place).parent}: the starter can't be written: File exists\nhint: name a folder that can be\n"
    assert done.stderr == said
    assert (project / "file").read_text() == "kept"
