"""Hostile names in every place that a foreign string comes from, through every output there is (see tests.hostile)."""

from __future__ import annotations

import contextlib
import io
import json as loader
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import html5lib
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console
from rich.text import Text
from sqlalchemy import Connection, insert, update

from ablate.plan.cost import cost_of
from ablate.plan.trials import make_plan
from ablate.report.plan import print_plan
from ablate.report.text import one_line, visible
from ablate.run.progress import Progress
from ablate.store.claims import attempt_folder, end_runner, register_runner
from ablate.store.facts import find_study, record_plan, stored_metrics, trials_of
from ablate.store.store import open_store
from ablate.store.tables import attempt, study, trial
from ablate.study.schema import Study
from ablate.train.folder import printable
from tests.browser import CHROMIUM, Pages, dom_of, served
from tests.command import finish, start
from tests.hostile import corpus, drives_terminal, rows_of_csv, strict_json, strings_in
from tests.study.answers import called
from tests.truth import Filled, truth_study

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

# every command that prints what a store holds
OTHER = ["--other-store", "other/ablate.db"]
OUTPUTS: dict[str, list[str]] = {
    "report": ["report"],
    "markdown": ["report", "--markdown"],
    "latex": ["report", "--latex"],
    "csv": ["report", "--csv"],
    "json": ["report", "--json"],
    "html": ["report", "--html"],
    "status": ["status"],
    "show": ["show", "s7"],
    "watch": ["watch"],
    "logs": ["logs", "basenet", "s3"],
    "doctor": ["doctor", "--verify"],
    "compare": ["compare", "basenet", "basenet", *OTHER],
    "compare markdown": ["compare", "basenet", "basenet", *OTHER, "--markdown"],
    "compare latex": ["compare", "basenet", "basenet", *OTHER, "--latex"],
    "compare json": ["compare", "basenet", "basenet", *OTHER, "--json"],
    "retry": ["retry", "basenet", "--only", "s9"],
}


def hostile_study(texts: list[str], **settings: object) -> Study:
    """A step for each text: its title, and the value that it sets; and some in each place that a study has else."""
    steps = [{"name": f"s{i}", "title": text, "set": {"k": text or "empty"}} for i, text in enumerate(texts)]
    some = texts[:: max(1, len(texts) // 40)]
    return truth_study(
        question=" ".join(some),
        steps=steps,
        seeds=2,
        settings={**settings, "k": "baseline", "deep": dict(zip(("a", "b", "c"), some, strict=False)), "list": some},
        metrics={
            "val_acc": {"goal": "max", "unit": some[3], "title": some[4]},
            "macro_f1": {"goal": "max", "unit": some[5]},
        },
        reference={"source": " ".join(some), "values": {"val_acc": {"baseline": 1, "s1": 2}}},
        assumed={"k": " ".join(some), "s2": some[7]},
    )


def filled_with(texts: list[str], folder: Path, **settings: object) -> Filled:
    """Write a run of it into a store, all at once: second seeds fail with the text as reason, the rest is called so."""
    store = open_store(folder / "ablate.db", create=True)
    plan = make_plan(hostile_study(texts, **settings))
    study_id = record_plan(store, plan)
    facts = {"host": texts[35], "boot_id": "b", "lock_file": "l", "command": " ".join(texts[:60])}
    register_runner(store, runner_id="r", study_id=study_id, facts=facts)
    rows = trials_of(store, study_id)

    def work(connection: Connection) -> None:
        for row in rows:
            text = texts[int(row.arm[1:])] if row.arm != "baseline" else "baseline"
            failed = row.seed == 2
            its = {"host": text, "command": text, "git_commit": text, f"fact {text}": text}
            ended = {"outcome": "error" if failed else "ok", "error": text if failed else None, "seconds": 40.0}
            place = {"trial": row.trial, "claim": 1}
            measured = {} if failed else {"val_acc": -0.5 * row.trial, "macro_f1": 1.0, text: -1.5}
            ended |= {"metrics_json": stored_metrics(measured)}
            named = {"folder": attempt_folder(row.fingerprint, 1), "slot": text, "environment_json": loader.dumps(its)}
            connection.execute(insert(attempt).values(**place, **named, **ended, runner="r", started=1.0, ended=2.0))
            result = {"state": "failed", "reason": text} if failed else {"state": "done", "result_claim": 1}
            connection.execute(update(trial).where(trial.c.id == row.trial).values(claim=1, **result))
        connection.execute(update(study).values(file="/" + texts[40]))

    store.write(work)
    end_runner(store, "r")
    for row in rows:
        if row.arm == "s3":
            log = store.path_of(attempt_folder(row.fingerprint, 1)) / "stdout.log"
            log.parent.mkdir(parents=True)
            log.write_bytes("\n".join(texts).encode())
    return Filled(store, find_study(store, plan.study.title), plan)


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    with served() as found:
        yield found


@pytest.fixture(scope="module")
def texts(pages: Pages) -> list[str]:
    return corpus(pages.canary)


@pytest.fixture(scope="module")
def filled(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """All of the corpus in one store, and in another one with which it is compared."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / ".git").mkdir()
    filled_with(texts, folder / "other", more=1)
    return filled_with(texts, folder / "runs")


@pytest.fixture(scope="module")
def said(filled: Filled) -> dict[str, str]:
    """What each command writes, on stdout and on stderr."""
    found = {}
    with contextlib.chdir(filled.store.folder.parent), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [])  # `called` changes it
        for name, command in OUTPUTS.items():
            code, out, err = called(command)
            assert code in ((0, 4) if name == "doctor" else (0,)), f"{command}: {code}\n{err}"
            assert drives_terminal(err) == "", command
            found[name] = out
    return found


@pytest.mark.parametrize("name", OUTPUTS)
def test_nothing_drives_the_terminal(said: dict[str, str], name: str) -> None:
    # lines of a CSV end in CR LF (RFC 4180)
    assert drives_terminal(said[name].replace("\r", "") if name == "csv" else said[name]) == ""


@pytest.mark.parametrize("name", ["report", "logs", "csv", "markdown"])
def test_what_is_harmless_is_not_lost(said: dict[str, str], name: str) -> None:
    assert "cmd|' /C calc'!A0" in said[name].replace("\\", "")
    assert "深さ" in said[name]


def test_a_plan_and_a_live_picture_do_not_drive_the_terminal(filled: Filled, texts: list[str]) -> None:
    printed = io.StringIO()
    print_plan(filled.plan, cost_of(filled.plan, states={}, seconds={}, estimates={}), Console(file=printed, width=90))
    assert drives_terminal(printed.getvalue()) == ""
    lines, live = io.StringIO(), Console(file=io.StringIO(), width=140, height=60, force_terminal=True)
    rows = trials_of(filled.store, filled.stored.id)
    rows = [row._replace(arm=f"{row.arm}{text}") for row, text in zip(rows, texts, strict=False)]
    for console in (Console(file=lines, width=90), live):
        progress = Progress(filled.plan.study, rows, console)
        for row, text in zip(rows, texts, strict=False):
            progress.started(row.trial, text, machine=text)
            progress.logged(row.trial, printable(text))
            progress.say(text, [text])
        picture = progress._picture(time.monotonic())
        for line in picture.renderables:
            assert isinstance(line, Text)
            assert drives_terminal(line.plain) == ""
        for row, text in zip(rows, texts, strict=False):
            progress.ended(row.trial, "failed", "error", metrics={}, seconds=1, why=text)
    assert drives_terminal(lines.getvalue()) == ""


def test_a_spreadsheet_sees_text_and_numbers(said: dict[str, str], texts: list[str]) -> None:
    header, *rows = rows_of_csv(said["csv"])
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    titles = {row["arm"]: row["title"] for row in cells}
    for i, text in enumerate(texts):
        shown = visible(text, keep="\t\r\n") or f"s{i}"
        assert titles[f"s{i}"].removeprefix("'") == shown.removeprefix("'")
    assert {"-0.5", "-1.5"} <= {row["val_acc"] for row in cells}


@pytest.mark.parametrize("name", ["json", "compare json"])
def test_json_is_strict_and_holds_every_string_as_it_was(said: dict[str, str], texts: list[str], name: str) -> None:
    assert said[name].isascii()
    assert set(texts) - {""} <= strings_in(strict_json(said[name]))


def rendered(markdown: str) -> tuple[str, list[Token]]:
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return parser.render(markdown), parser.parse(markdown)


def tables_of(tokens: list[Token]) -> list[list[list[str]]]:
    """Return the tables as rows of cells, each cell as the text that a reader sees."""
    tables: list[list[list[str]]] = []
    inside = False
    for token in tokens:
        match token.type:
            case "table_open":
                tables.append([])
                inside = True
            case "table_close":
                inside = False
            case "tr_open":
                tables[-1].append([])
            case "inline" if inside:
                tables[-1][-1].append("".join(each.content for each in token.children or []))
    return tables


@pytest.mark.parametrize("name", ["markdown", "compare markdown"])
def test_markdown_is_text_in_tables_of_one_shape(said: dict[str, str], texts: list[str], name: str) -> None:
    _, tokens = rendered(said[name])
    every = [each for token in tokens for each in (token, *(token.children or []))]
    assert not {each.type for each in every} & {
        "html_block",
        "html_inline",
        "image",
        "link_open",
        "code_inline",
        "fence",
    }
    assert not {each.type for each in every} & {"code_block", "hr", "blockquote_open", "s_open", "em_open"}
    (table,) = tables_of(tokens)
    assert len({len(row) for row in table}) == 1
    labels = "\n".join(row[1] for row in table[1:])
    for text in texts if name == "markdown" else ["s7"]:
        assert one_line(text) in labels


@needs_browser
@pytest.mark.slow
def test_a_browser_runs_nothing_of_it(said: dict[str, str], texts: list[str], pages: Pages, tmp_path: Path) -> None:
    """Markdown as HTML with raw HTML allowed; the same strings as they are do reach the canary, or it would be none."""
    html = "".join(rendered(said[name])[0] for name in ("markdown", "compare markdown"))
    tail = "<script>document.title = 'read'</script>"
    pages.content["/safe"] = f"<title>safe</title>{html}{tail}"
    pages.content["/raw"] = "".join(f"<p>{rendered(text)[0]}" for text in texts if "canary" in text)
    pages.asked.clear()
    assert "<title>read</title>" in dom_of(pages.url("/safe"), tmp_path / "safe")
    assert set(pages.asked) <= {"/safe", "/favicon.ico"}
    dom_of(pages.url("/raw"), tmp_path / "raw")
    assert pages.asked.count("/canary") > 5


@pytest.fixture(scope="module")
def pages_in_parts(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The corpus in two studies: of so few arms, a page has the details of each, and logs."""
    found = []
    for part in (texts[:125], texts[125:]):
        folder = tmp_path_factory.mktemp("part")
        (folder / ".git").mkdir()
        filled_with(part, folder / "runs")
        with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [])
            code, out, err = called(["report", "--html"])
        assert code == 0, err
        found.append(out)
    return found


# all that a page of ours is made of
TAGS = (
    "html head meta title link style body header main section h1 h2 h3 p a b i sup span code pre ul ol li dl dt dd "
    "table caption thead tbody tr th td div figure figcaption details summary "
    "svg defs desc path line rect circle text use"
)


def test_a_page_is_text_in_elements_of_ours(said: dict[str, str], pages_in_parts: list[str], texts: list[str]) -> None:
    for page in (said["html"], *pages_in_parts):
        assert drives_terminal(page) == ""
        every = list(html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page).iter())
        assert {re.sub(r"\{.*\}", "", str(each.tag)) for each in every} <= set(TAGS.split())
        attributes = {str(key).rpartition("}")[2] for each in every for key in each.attrib}
        assert not {key for key in attributes if key.startswith("on") or key in ("src", "srcset", "action", "data")}
        assert {each.get("href", "#")[:1] for each in every} == {"#", "d"}  # marks, and the empty icon
        assert page.count("<script") == page.count("<style>") - 1
    labels = [" ".join("".join(each.itertext()).split()) for each in _headers_of_rows(said["html"])]
    for text in texts:
        shown = one_line(text).removeprefix("└ ")
        assert any(label.startswith(shown) for label in labels), text


def _headers_of_rows(page: str) -> list[Any]:
    found = html5lib.parse(page, namespaceHTMLElements=False)
    return [each for each in found.iter("th") if each.get("scope") == "row"]


@needs_browser
@pytest.mark.slow
def test_a_browser_runs_nothing_of_a_page(
    said: dict[str, str], pages_in_parts: list[str], pages: Pages, tmp_path: Path
) -> None:
    """Without the page's own policy, which would stop it."""
    tail = "<script>document.title = 'read'</script></body>"
    for number, page in enumerate((said["html"], *pages_in_parts)):
        assert page.count("Content-Security-Policy") == 1
        open_to_all = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
        pages.content[f"/page{number}"] = open_to_all.replace("</body>", tail)
        pages.asked.clear()
        assert "<title>read</title>" in dom_of(pages.url(f"/page{number}"), tmp_path / f"profile{number}")
        assert set(pages.asked) <= {f"/page{number}", "/favicon.ico"}


@needs_browser
@pytest.mark.slow
def test_the_dashboard_runs_nothing_of_it(texts: list[str], pages: Pages, tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    (tmp_path / ".git").mkdir()
    filled_with([text for text in texts if "<" in text or "canary" in text], tmp_path / "runs")
    process = start("dashboard", "--port", "0", cwd=tmp_path)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert found, line
        pages.asked.clear()
        for page in ("studies/1", "studies/1/trials"):
            assert "basenet v1" in dom_of(f"{found[0]}dashboard/{page}", tmp_path / "profile", budget_ms=10_000)
        assert pages.asked == []
    finally:
        process.kill()
        finish(process)
