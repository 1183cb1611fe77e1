"""A fault at every place where ablate writes: what is said is clear, and the next command sets all right.

The failpoints are read from the source, so a new one is tested as it is written. Each is met once here, by one mode
after the other (``ABLATE_TEST_CHAOS_SEED=1`` and ``2`` give each the other two); with ``ABLATE_TEST_SOAK=1`` each by
every mode, at its first and its second pass.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from ablate.analyse.analysis import analyse
from ablate.report import markdown
from ablate.store.facts import find_study
from ablate.store.integrity import attempt_folders, store_flaws
from ablate.store.store import open_store
from ablate.train.manifest import damaged_checkpoints
from tests.command import query, results
from tests.failpoints.forge import TRACE, Done
from tests.failpoints.scenes import Scene, Stage, passes, scene_of
from tests.failpoints.source import failpoints, sources
from tests.mirror.drawn import content

NAMES = failpoints(sources())
MODES = ("kill", "raise", "full")
ALL = [(name, mode, number) for name in NAMES for mode in MODES for number in (1, 2)]
SHIFT = int(os.environ.get("ABLATE_TEST_CHAOS_SEED", "0"))
SOME = [(name, MODES[(index + SHIFT) % len(MODES)], 1) for index, name in enumerate(NAMES)]
CELLS = ALL if os.environ.get("ABLATE_TEST_SOAK") else SOME

# by whatever means a command was ended, this is all that it may end with
CODES = {"kill": {-9, 0, 2, 4}, "raise": {0, 1, 2, 4, 70}, "full": {0, 1, 3, 4}}


class Expected:
    """What the scenes give where nothing disturbs them."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self._stage = stage
        self._folder = folder
        self._known: dict[str, tuple[Any, dict[str, int]]] = {}

    def of(self, scene: Scene) -> tuple[Any, dict[str, int]]:
        key = repr(scene)
        if key not in self._known:
            project = self._stage.copy(scene.project, Path(tempfile.mkdtemp(dir=self._folder)) / "project")
            trace = project / "tmp" / "trace"
            trace.parent.mkdir(exist_ok=True)
            trace.touch()
            self._stage.run(*scene.command, project=project, **scene.environment, **{TRACE: str(trace)})
            self._stage.settle(scene, project)
            self._known[key] = left_behind(project), passes(trace)
        return self._known[key]


@pytest.fixture(scope="module")
def expected(stage: Stage, shelf: Path) -> Expected:
    (shelf / "quiet").mkdir()
    return Expected(stage, shelf / "quiet")


def left_behind(project: Path) -> Any:
    """Return all that must not depend on what happened: numbers, scores, states, the table; check that it is sound.

    It is what `ablate report --markdown` prints and `ablate doctor --verify` checks, without a process for each.
    """
    store = open_store(project / "runs" / "ablate.db", read_only=True)
    assert store_flaws(store, thorough=True) == []
    for folder in attempt_folders(store):
        assert damaged_checkpoints(store.folder / folder / "checkpoint") == []
    report = markdown.render(analyse(store, find_study(store)))
    store.close()
    table = re.sub(r"[\d.,]+ (ms|s|min|h)\b", "TIME", report)
    states = query(project, "SELECT fingerprint, state, reason FROM trial ORDER BY 1")
    scores = query(
        project,
        """SELECT t.fingerprint, s.metric, s.kind, s.low, s.high, s.data FROM score s
           JOIN trial t ON t.id = s.trial AND s.claim = t.result_claim ORDER BY 1""",
    )
    return results(project), scores, states, table


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode", "number"), CELLS, ids=lambda value: str(value))
def test_a_fault_there_loses_nothing(
    stage: Stage, expected: Expected, place: Path, name: str, mode: str, number: int
) -> None:
    scene = scene_of(name)
    quiet, known = expected.of(scene)
    if number > known.get(name, 1):
        pytest.skip("it is passed once")
    project = stage.copy(scene.project, place / "project")
    hits = place / "hits"
    hits.mkdir()
    orphans = running(project)
    armed = ",".join(filter(None, (f"{name}:{mode}@{number}", scene.also)))
    done = stage.run(
        *scene.command,
        project=project,
        **scene.environment,
        ABLATE_FAILPOINT=armed,
        ABLATE_FAILPOINT_HIT=str(hits),
    )
    print(done.code, done.out, done.err, sep="\n")
    assert (hits / name).exists(), "it was never met"
    assert done.code in (CODES[mode] if not name.startswith("crash") else {-9, 70})
    what_was_said_is_clear(name, mode, done)
    if mode == "raise":
        assert running(project) <= orphans, "a fault of ablate gives its trials back"
    stage.settle(scene, project)
    assert left_behind(project) == quiet
    once = "SELECT trial FROM attempt WHERE outcome = 'ok' AND trial IN (SELECT id FROM trial WHERE state = 'done')"
    if scene.project in ("new", "orphaned"):
        assert query(project, f"{once} GROUP BY trial HAVING count(*) > 1") == []
    if scene.command[0] == "mirror":
        drawn = content(project / "runs" / "mirror.db")
        assert stage.run("mirror", "--rebuild", project=project).code == 0
        assert content(project / "runs" / "mirror.db") == drawn


def running(project: Path) -> set[Any]:
    """Return the running trials with their owners; none where there is no store yet."""
    if not (project / "runs" / "ablate.db").exists():
        return set()
    if not query(project, "SELECT 1 FROM sqlite_master WHERE name = 'trial'"):
        return set()
    return set(query(project, "SELECT id, owner FROM trial WHERE state = 'running'"))


def what_was_said_is_clear(name: str, mode: str, done: Done) -> None:
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) <= 1, done.err
    if done.code in (2, 3, 4, 70):
        assert errors, done.err
        assert "\nhint: " in done.err
    if done.code != 70 and not name.startswith("crash"):
        assert "a fault of ablate" not in done.err
    if name.startswith("crash") and done.code == 70:
        assert "please report it with these lines; no file could be written" in done.err
    elif mode == "raise" and done.code == 70:
        assert errors[0].startswith("error: a fault of ablate itself: RuntimeError: failpoint ")
        file = re.search(r"please report it with this file: (.*)", done.err)
        assert file is not None
        assert f"RuntimeError: failpoint {name}" in Path(file[1]).read_text()
    if not name.startswith("crash"):
        assert not any(line.startswith("Traceback") for line in done.err.splitlines())
