"""The benchmarks run, at sizes that say nothing about speed: what they measure has not left them behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.postgres import binaries_or_skip

SMALL = {
    "scale": ("--arms", "4", "--seeds", "3"),
    "claims": ("--seconds", "0.3", "--trials", "300", "--runners", "1", "2", "--queues", "100"),
    "overhead": ("--rounds", "1", "--parts", "late", "records", "--late", "2000", "--peers", sys.executable),
    "data": ("--images", "6000", "--rounds", "1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_it_runs(name: str) -> None:
    if name == "claims":
        binaries_or_skip()
    words = [sys.executable, "-m", f"benchmarks.{name}", *SMALL[name]]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=280, cwd=Path(__file__).parents[1], check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (0, 1), done.stderr  # 1: at such a size a goal may be missed
    assert "|:--" in done.stdout
