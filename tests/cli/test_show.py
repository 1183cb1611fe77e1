from __future__ import annotations

import os
import re
from pathlib import Path

from tests.command import Call, query

GOLDEN = Path(__file__).parents[1] / "golden" / "cli"


def masked(text: str, project: Path) -> str:
    """Replace what differs from one machine and day to the next."""
    text = text.replace(str(project), "PROJECT")
    text = re.sub(r"trials/[0-9a-f]{16}", "trials/FINGERPRINT", text)
    text = re.sub(r"on \S+, cpu\d+, [\d-]+ [\d:]+", "on HOST, SLOT, TIME", text)
    text = re.sub(r"\d+\.\d+ s|\d+ s\b", "TIME", text)
    head, _, environment = text.partition("\nenvironment of ")
    return head + "\nenvironment of " + re.sub(r"(?m)^(  [\w-]+): .*", r"\1: …", environment)


def test_show_reads_as_its_golden_file(troubled: Path, call: Call) -> None:
    done = call("show", "three", cwd=troubled)
    assert (done.returncode, done.stderr) == (0, "study last run: toy\n")
    text = masked(done.stdout, troubled)
    # the facts of the environment are what the runner found here: their names may grow in number
    text, _, environment = text.partition("\nenvironment of 2 attempts\n")
    path = GOLDEN / "show.txt"
    if os.environ.get("ABLATE_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), "see tests/report/test_goldens.py for how to renew it"
    assert {"python", "torch", "host", "command", "code_sha256"} <= set(re.findall(r"(?m)^  (\S+):", environment))


def test_show_names_folders_that_are_there(troubled: Path, call: Call) -> None:
    out = call("show", "two", "toy", cwd=troubled).stdout
    folders = [folder for (folder,) in query(troubled, "SELECT folder FROM attempt")]
    named = re.findall(r"(?m)^    (/\S+)$", out)
    assert len(named) == 2
    assert all(Path(path).is_dir() and path.endswith(tuple(folders)) for path in named)
    assert "seed 2: diverged" in out
    assert "acc nan" in out
    assert "parent baseline; what differs from it:\n  level: 1 → 2\n" in out


def test_show_the_baseline_and_an_arm_that_is_not_there(troubled: Path, call: Call) -> None:
    assert "the baseline: it is compared with nothing" in call("show", "baseline", cwd=troubled).stdout
    unknown = call("show", "tree", cwd=troubled)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.endswith("error: `toy` has no arm `tree`\nhint: did you mean `three`?\n")
