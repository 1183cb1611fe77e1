"""What all tests share: a clean environment, and device locks of their own."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.command import Call
from tests.postgres import Server, server

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell: all we start would ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)

KEPT = ("ABLATE_UPDATE_GOLDEN",)

settings.register_profile("shared", deadline=None)  # that others use the machine as well is no fault of ours
settings.load_profile("shared")


@pytest.fixture(autouse=True, scope="session")
def _clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("ABLATE_") and not name.startswith("ABLATE_TEST_") and name not in KEPT:
                patch.delenv(name)
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # or each `ablate` that is started compiles all of it
        patch.setenv("COLUMNS", "100")
        patch.setenv("NO_COLOR", "1")
        patch.setenv("ABLATE_NO_MIRROR", "1")  # a process more beside each run; tests/mirror turns it on
        # the host's device locks lie in the temporary folder: a run beside the tests must not make them wait
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder, and the current one."""
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    return Call(capsys, monkeypatch)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:  # noqa: ARG001
    """In CI a missing engine (a browser, a driver) is a failure: a skip would hide that nothing was tested.

    Real data and a GPU are the exceptions: a public forge has neither.
    """
    report: pytest.TestReport = yield  # type: ignore[assignment, misc]
    is_excused = any(word in str(report.longrepr) for word in ("ABLATE_TEST_DATA", "no CUDA device"))
    if os.environ.get("CI") and report.skipped and not is_excused:
        report.outcome = "failed"
    return report  # type: ignore[return-value]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A real PostgreSQL server, started once; ask it for a ``new_database()``."""
    with server() as running:
        yield running
