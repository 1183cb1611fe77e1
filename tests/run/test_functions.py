"""Functions around other libraries' trainers, as docs/functions.md prints them: run, killed, and gone on with."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
from pathlib import Path

import pytest

from tests.command import ablate, finish, query, results, start
from tests.numbers import NUMBERS
from tests.run.test_stops import running, wait_until, workers_of
from tests.test_docs import run_blocks

PAGE = Path(__file__).parent.parent.parent / "docs" / "functions.md"
FOLDERS = {"lightning": "lightning/last.ckpt", "transformers": "transformers/checkpoint-*/trainer_state.json"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def _libraries() -> None:
    missing = [name for name in (*FOLDERS, "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (pip install 'ablation-study[examples]')")


def test_the_page_on_functions_runs(project: Path) -> None:
    run_blocks(PAGE, project)
    rows = query(
        project,
        NUMBERS
        + """SELECT t.task, count(DISTINCT t.id), count(m.epoch), min(m.epoch), max(m.epoch), min(m.value) FROM trial t
           JOIN number m ON m.trial = t.id AND m.metric = 'val_acc' AND m.claim = t.result_claim
           WHERE t.state = 'done' GROUP BY t.task""",
    )
    assert [row[:5] for row in sorted(rows)] == [
        ("lightning_digits:train", 4, 16, 1, 4),
        ("sklearn_digits:train", 9, 45, 1, 5),
        ("transformers_digits:train", 4, 16, 1, 4),
    ]
    assert min(row[5] for row in rows) > 0


@pytest.mark.parametrize(("library", "how"), [("lightning", "stop"), ("transformers", "kill the worker")])
def test_a_library_goes_on_from_its_own_checkpoint(project: Path, library: str, how: str) -> None:
    whole, broken = project / "whole", project / "broken"
    for folder in (whole, broken):
        (folder / ".git").mkdir(parents=True)
        for name in (f"{library}_digits.py", f"{library}.yaml"):
            text = re.search(rf"^```\w+ {name}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
            assert text
            longer = text[1].replace("epochs: 4", "epochs: 12").replace("seeds: 2", "seeds: [1]")
            (folder / name).write_text(longer)
    run = ["run", f"{library}.yaml", "--only", "baseline"]
    process = start(*run, cwd=broken)
    saved = lambda: list(broken.glob(f"runs/trials/*/1/{FOLDERS[library]}"))  # noqa: E731
    wait_until(lambda: bool(saved()), seconds=200)
    if how == "stop":
        process.send_signal(signal.SIGTERM)
        assert "nothing is lost" in finish(process)
    else:
        assert running(broken)
        for worker in workers_of(broken):
            os.kill(worker, signal.SIGKILL)
        finish(process, timeout=300)
    for folder in (broken, whole):
        done = ablate(*run, cwd=folder, timeout=300)
        assert done.returncode == 0, done.stderr
    assert query(broken, "SELECT resumed_from FROM attempt WHERE outcome = 'ok'") == [(1,)]
    assert len(results(whole)) == 12 + 1
    assert results(broken) == results(whole)
