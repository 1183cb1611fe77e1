"""What is printed for engines: looked at as a whole in golden files, read by a shell, checked by Kubernetes' schema."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from ablate.launch.launcher import words_of_agent
from tests.command import Call
from tests.postgres import Server
from tests.studies import write_study
from tests.test_docs import ROOT, run_blocks

GOLDEN = Path(__file__).parent.parent / "golden" / "launch"
URL = "postgresql+psycopg://researcher@db.example.org/ablate"
IMAGE = "registry.example.org/ablate:1"
VERSIONS = ("1.29", "1.32", kubernetes_validate.latest_version())  # podFailurePolicy is stable from 1.31 on
CLUSTER = ["--store", URL, "-n", "16", "--gpus", "1", "--cpus", "8"]
SLURM = ["agents", "start", "slurm", *CLUSTER, "--time", "4h", "--sbatch", "--account=x", "--sbatch=-p gpu", "--print"]
K8S = ["agents", "print", "k8s", *CLUSTER, "--image", IMAGE]


@pytest.fixture
def cluster_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_study(project)
    monkeypatch.delenv("ABLATE_STORE", raising=False)
    return project


def looked_at(text: str, name: str, project: Path) -> None:
    text = text.replace(str(project), "/home/you/project").replace(sys.executable, "/home/you/venv/bin/python")
    golden = GOLDEN / name
    if os.environ.get("ABLATE_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def read(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def test_the_script_for_slurm(cluster_project: Path, call: Call) -> None:
    done = call(*SLURM, "mine@quick", "--idle-timeout", "10m", "--max-trials", "3", cwd=cluster_project)
    assert done.returncode == 0, done.stderr
    looked_at(done.stdout, "slurm.sh", cluster_project)
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0
    assert not (cluster_project / "runs").exists(), "nothing is written by --print"


def test_words_with_spaces_and_quotes_stay_words(cluster_project: Path, call: Call) -> None:
    odd = "my $(touch pwned) 'study' \"x\""
    text = call(*SLURM, odd, cwd=cluster_project).stdout
    line = next(line for line in text.splitlines() if line.startswith("srun "))
    program = "srun() { printf '%s\\n' \"${@: -1}\"; }\n"
    done = subprocess.run(
        ["bash", "-c", program + line], capture_output=True, text=True, cwd=cluster_project, check=True
    )
    assert done.stdout == f"{odd}\n"
    assert not (cluster_project / "pwned").exists()
    made = read(call(*K8S, odd, cwd=cluster_project).stdout)
    assert made["spec"]["template"]["spec"]["containers"][0]["command"] == ["ablate", "agent", odd]


OPTIONS = {
    "k8s": CLUSTER,
    "k8s-volume": [*CLUSTER, "--volume", "scratch"],
    "without-gpus": ["--store", URL],
    "several-gpus": ["--store", URL, "-n", "100000", "--gpus", "8", "--cpus", "64", "--max-trials", "1"],
    "names-like-numbers": ["--store", URL, "--name", "1e3", "--secret", "0.5", "--volume", "123"],
    "names-like-words": ["--store", URL, "--name", "true", "--secret", "null", "--volume", "on"],
    "longest-names": ["--store", URL, "--name", "n" * 61, "--secret", "s" * 253, "--volume", "a.b-c"],
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", OPTIONS)
def test_the_manifest_is_one_of_kubernetes(cluster_project: Path, call: Call, name: str, version: str) -> None:
    given = OPTIONS[name]
    done = call("agents", "print", "k8s", *given, "--image", IMAGE, "mine.yaml", cwd=cluster_project)
    assert done.returncode == 0, done.stderr
    made = read(done.stdout)
    kubernetes_validate.validate(made, version, strict=True)
    pod = made["spec"]["template"]["spec"]
    asked = dict(zip(given[::2], given[1::2], strict=True))
    container, *none = pod["containers"]
    assert none == []
    assert made["metadata"]["name"] == asked.get("--name", "ablate")
    assert made["spec"]["completions"] == made["spec"]["parallelism"] == int(asked.get("-n", "1"))
    cpus = int(asked.get("--cpus", "1"))
    gpus = {"nvidia.com/gpu": int(asked["--gpus"])} if "--gpus" in asked else {}
    assert container["resources"] == {"requests": {"cpu": cpus}, "limits": {"cpu": cpus, **gpus}}
    password = next(each["valueFrom"]["secretKeyRef"] for each in container["env"] if each["name"] == "PGPASSWORD")
    assert password == {"name": asked.get("--secret", "ablate-store"), "key": "password"}
    claims = [each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"] if "persistentVolumeClaim" in each]
    assert claims == ([asked["--volume"]] if "--volume" in asked else [])
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    if name.startswith("k8s"):
        looked_at(done.stdout, f"{name}.yaml", cluster_project)


def test_the_schema_sees_what_is_wrong(cluster_project: Path, call: Call) -> None:
    made = read(call(*K8S, cwd=cluster_project).stdout)
    made["spec"]["paralelism"] = 3
    with pytest.raises(kubernetes_validate.ValidationError, match="paralelism"):
        kubernetes_validate.validate(made, VERSIONS[-1], strict=True)


REFUSED = {
    "sqlite": (["--store", "runs/ablate.db"], "agents on other machines can't share an SQLite file"),
    "no-store": ([], "agents on other machines can't share an SQLite file"),
    "password": (["--store", "postgresql+psycopg://me:canary@db/x"], "the URL of the store holds a password"),
    "query": (["--store", "postgresql+psycopg://me@db/x?password=canary"], "the URL of the store holds a password"),
    "short": (["--store", URL, "--time", "2m"], "--time is 2 min: at least 5 min"),
    "option": (["--store", URL, "--sbatch", "x\n#SBATCH --y"], "is no option of sbatch"),
    "empty-option": (["--store", URL, "--sbatch", ""], "is no option of sbatch"),
    "time": (["--store", URL, "--time", "soon"], "is no time: 90s, 30m, 4h or 2d"),
    "bare-time": (["--store", URL, "--time", "400"], "'400' has no unit: 400m or 400s?"),
    "idle": (["--store", URL, "--idle-timeout", "bogus"], "'bogus' is no time"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_is_refused_in_a_line(cluster_project: Path, call: Call, name: str) -> None:
    options, message = REFUSED[name]
    done = call("agents", "start", "slurm", "--print", *options, cwd=cluster_project)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert message in done.stderr
    assert "hint: " in done.stderr
    assert "canary" not in done.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--name", "My Job"), ("--name", "a.b"), ("--name", "n" * 61), ("--secret", "-x"), ("--volume", "")],
)
def test_what_is_no_name_of_kubernetes_is_refused(cluster_project: Path, call: Call, option: str, value: str) -> None:
    done = call(*K8S, option, value, cwd=cluster_project)  # 16 pods: `-15` is added to the name
    assert (done.returncode, f"error: {option}: {value!r} is no name of Kubernetes" in done.stderr) == (2, True)


@pytest.mark.parametrize("odd", ["a b", "it's", 'say "x"', "50%", "tab\there"])
def test_a_folder_of_any_name_is_one_word_for_slurm(cluster_project: Path, call: Call, odd: str) -> None:
    (cluster_project / odd / "runs").mkdir(parents=True)
    done = call("agents", "start", "slurm", "--print", "--store", URL, cwd=cluster_project / odd)
    line = next(line for line in done.stdout.splitlines() if line.startswith("#SBATCH --output"))
    assert shlex.split(line.removeprefix("#SBATCH ")) == [
        f"--output={cluster_project / odd}/runs/agents/slurm-%A-%a.log".replace("50%", "50%%")
    ]
    if shutil.which("sbatch"):  # which reads the script before it looks for its daemon
        tried = subprocess.run(["sbatch", "--test-only"], input=done.stdout, capture_output=True, text=True)
        assert "directive" not in tried.stderr
        assert "Unmatched" not in tried.stderr


@pytest.mark.parametrize("words", [["agents"], ["agents", "start"], ["agents", "print"]])
def test_a_bare_group_shows_its_help(cluster_project: Path, call: Call, words: list[str]) -> None:
    done = call(*words, cwd=cluster_project)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Commands:" in done.stdout


def test_a_damaged_note_is_said_in_a_line(cluster_project: Path, call: Call) -> None:
    (cluster_project / "runs" / "agents").mkdir(parents=True)
    (cluster_project / "runs" / "agents" / "slurm-1.json").write_text("{bad")
    done = call("agents", "cancel", "slurm-2", cwd=cluster_project)
    assert (done.returncode, "this note of started agents can't be read" in done.stderr) == (2, True)


def test_without_slurm_the_script_is_still_to_be_had(
    cluster_project: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert call(*SLURM, cwd=cluster_project).returncode == 0
    done = call("agents", "cancel", "slurm-7", cwd=cluster_project)
    assert (done.returncode, "no agents `slurm-7` were started from here" in done.stderr) == (2, True)


def test_the_words_of_an_agent() -> None:
    assert words_of_agent(["a", "b"], {"--x": None, "--max-trials": "3"}) == ("a", "b", "--max-trials", "3")


def test_the_walk_through_of_kubernetes(
    postgres: Server, cluster_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABLATE_STORE", postgres.new_database())
    run_blocks(ROOT / "docs" / "clusters.md", cluster_project, engine="k8s")
    made = read((cluster_project / "agents.yaml").read_text())
    kubernetes_validate.validate(made, VERSIONS[-1], strict=True)
    assert made["spec"]["completions"] == 2
