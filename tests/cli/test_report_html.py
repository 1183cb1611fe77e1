"""``ablate report --html`` of a study that really ran: bytes, failures with their logs, and what each arm ran on."""

from __future__ import annotations

import re
from pathlib import Path

import html5lib

from tests.command import Call, ablate, query
from tests.numbers import NUMBERS


def text_of(page: str) -> str:
    return " ".join("".join(html5lib.parse(page, namespaceHTMLElements=False).find("body").itertext()).split())


def test_a_page_comes_to_stdout_and_is_the_same_bytes_each_time(troubled: Path, tmp_path: Path) -> None:
    """From any folder, in any time zone and in any locale's encoding."""
    first = ablate("report", "--html", cwd=troubled)
    store = str(troubled / "runs" / "ablate.db")
    again = ablate(
        "report", "toy", "--html", "--store", store, cwd=tmp_path, TZ="Asia/Tokyo", PYTHONIOENCODING="latin-1"
    )
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("<!DOCTYPE html>")
    assert first.stdout.endswith("</html>\n")
    assert again.stdout == first.stdout


def test_a_failure_has_its_reason_and_the_end_of_its_log(troubled: Path, call: Call) -> None:
    text = text_of(call("report", "--html", cwd=troubled).stdout)
    failure = text.partition("Failures")[2].partition("Arms")[0]
    assert "three, seed 2: error" in failure
    assert "no \\x1b[31m good, said × and Ω" in failure
    assert "début of 2" in failure
    assert "Traceback" in failure or "ValueError" in failure


def test_an_arm_has_its_settings_its_seeds_and_what_it_ran_on(troubled: Path, call: Call) -> None:
    page = call("report", "--html", cwd=troubled).stdout
    text = text_of(page)
    (value,) = query(
        troubled,
        f"""{NUMBERS} SELECT m.value FROM number m JOIN trial t ON t.id = m.trial AND t.result_claim = m.claim
        JOIN replicate r ON r.trial = t.id JOIN arm a ON a.id = r.arm
        WHERE a.name = 'two' AND r.seed = 1 AND m.metric = 'acc' AND m.epoch IS NULL""",
    )
    assert "Differs from baseline by: level: 1 → 2" in text
    assert f"{value[0]:.6g}" in text.partition("two")[2]
    assert "diverged" in text
    assert re.search(r"run by ?ablate run toy.yaml", text)
    assert re.search(r"this page by ?ablate report toy --html", text)
    assert re.search(r"code_sha256 ?[0-9a-f]{64}", text)


def test_without_logs_it_says_where_they_may_be(troubled: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "ablate.db").write_bytes((troubled / "runs" / "ablate.db").read_bytes())
    text = text_of(call("report", "--html", cwd=tmp_path).stdout)
    assert "Its log is not shown here" in text
