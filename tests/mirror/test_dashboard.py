"""`ablate dashboard` for real: what it serves, to whom, and that a browser shows it."""

from __future__ import annotations

import http.client
import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ablate.plan.trials import make_plan
from ablate.store.facts import record_plan
from tests.browser import CHROMIUM, dom_of
from tests.command import ablate, finish, start
from tests.mirror.test_follower import wait_until
from tests.truth import STUDY, Filled, fill, truth_study

needs_dashboard = pytest.mark.skipif(
    importlib.util.find_spec("optuna_dashboard") is None, reason="optuna-dashboard is not installed"
)


@dataclass(frozen=True)
class Serving:
    """A dashboard at work."""

    filled: Filled
    process: subprocess.Popen[str]
    port: int

    def get(self, path: str, *, host: str | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{self.port}"})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def studies(self) -> list[str]:
        return [each["study_name"] for each in json.loads(self.get("/api/studies")[1])["study_summaries"]]


@pytest.fixture
def serving(project: Path) -> Iterator[Serving]:
    filled = fill(project / "runs", truth_study(steps=STUDY["steps"][:1], seeds=2))
    process = start("dashboard", "--port", "0", cwd=project)
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.fullmatch(r"dashboard: http://127\.0\.0\.1:(\d+)/ \(Ctrl-C ends it\)\n", line)
    assert found, line + finish(process)
    try:
        yield Serving(filled, process, int(found[1]))
    finally:
        process.kill()
        finish(process)


@needs_dashboard
def test_the_dashboard_shows_the_studies_and_what_is_new(serving: Serving) -> None:
    status, page = serving.get("/dashboard/")
    assert (status, "Optuna Dashboard" in page) == (200, True)
    assert serving.studies() == ["basenet v1"]
    detail: dict[str, Any] = json.loads(serving.get("/api/studies/1")[1])
    assert [trial["state"] for trial in detail["trials"]] == ["Complete"] * 4
    assert detail["note"]["body"].splitlines() == [
        "```",
        "Which of the changes to BaseNet earn their place on CIFAR-100?",
        "",
        "baseline   baseline                                model.norm: none",
        "batchnorm  BatchNorm after each conv, before ReLU  model.norm: before_relu",
        "",
        "ablate report basenet    the effects, with intervals",
        "```",
    ]
    assert serving.get("/api/studies", host="evil.example:80")[0] == 403

    record_plan(serving.filled.store, make_plan(truth_study(steps=STUDY["steps"][:1], seeds=3)))
    wait_until(lambda: serving.studies() == ["basenet v1", "basenet v2"])

    taken = ablate("dashboard", "--port", str(serving.port), cwd=serving.filled.store.folder.parent)
    assert taken.returncode == 4
    assert taken.stderr == f"error: port {serving.port} is in use\nhint: choose another with --port\n"

    serving.process.send_signal(signal.SIGINT)
    assert finish(serving.process) == ""
    assert serving.process.returncode == 130


@needs_dashboard
def test_the_dashboard_is_for_this_machine_only(serving: Serving) -> None:
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", serving.port), timeout=5):
        pass  # every address of the machine but the one that was asked for


@needs_dashboard
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_the_study(serving: Serving, tmp_path: Path) -> None:
    dom = dom_of(f"http://127.0.0.1:{serving.port}/dashboard/studies/1/trials", tmp_path / "profile")
    shown = re.sub(r"<[^>]+>", " ", dom)
    assert "basenet v1" in shown
    assert "Trial 3" in shown
    assert "Best Trial" in shown
    assert "38.3" in shown or "30.8" in shown
    noted = dom_of(f"http://127.0.0.1:{serving.port}/dashboard/studies/1/note", tmp_path / "profile")
    assert re.search(r"<code[^>]*>Which of the changes to BaseNet earn their place", noted)


def test_without_the_library_the_dashboard_says_what_to_install(project: Path) -> None:
    code = "import sys; sys.modules['optuna_dashboard'] = None; from ablate.cli import main; main()"
    command = [sys.executable, "-c", code, "dashboard"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=project, timeout=60, check=False)
    assert done.returncode == 4
    assert done.stderr == (
        "error: the dashboard needs optuna-dashboard, which is not installed\n"
        "hint: pip install 'ablation-study[dashboard]'\n"
    )


def test_without_a_store_there_is_nothing_to_show(project: Path) -> None:
    for command in ("mirror", "dashboard") if importlib.util.find_spec("optuna_dashboard") else ("mirror",):
        begun = time.monotonic()
        done = ablate(command, cwd=project)
        assert done.returncode == 3, done.stderr
        assert "there is no store yet" in done.stderr
        assert not list(project.glob("runs/*")), f"{command} after {time.monotonic() - begun:.1f} s"
