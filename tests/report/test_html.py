"""The page: valid, of itself alone, readable on the first screen of a desk and of a phone, and for everybody."""

from __future__ import annotations

import html as entities
import io
import itertools
import json
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import html5lib
import pytest

from ablate.analyse.analysis import analyse
from ablate.analyse.details import StudyDetails, study_details
from ablate.analyse.findings import Analysis
from ablate.report import html
from ablate.report.answer import answer, standing
from ablate.report.designs import build_tables
from ablate.run.logs import tail
from tests.axe import axe_script
from tests.browser import CHROMIUM, dom_of, served
from tests.report.cases import CASES, Case
from tests.report.made_up import ladder
from tests.truth import DIVERGED, FAILED, STUDY, WAITING, Fate, Filled

FEW = [step for step in STUDY["steps"] if step["name"] in ("batchnorm", "depth-6", "residual")]
MORE = {
    "both": Case({"designs": ["leave-one-out", "one-at-a-time"]}),
    "path": Case({"designs": ["path"], "seeds": 3}),
    "fraction": Case({"steps": FEW, "designs": [{"fractional": [s["name"] for s in FEW], "resolution": "III"}]}),
    "curves": Case({"metrics": {"val_acc": {"goal": "max", "unit": "%", "margin": 1.0}}}, epochs=4),
    "long-word": Case({"steps": [{**FEW[0], "title": "a_title_of_one_word_" * 6}], "seeds": 3}),
}
PAGES = {**CASES, **MORE}


def findings(filled: Filled) -> tuple[Analysis, StudyDetails]:
    found = analyse(filled.store, filled.stored)
    return found, study_details(filled.store, filled.stored, found, log_of=tail)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The page of every case."""
    return {name: html.render(*findings(case.fill(tmp_path_factory.mktemp(name)))) for name, case in PAGES.items()}


def parsed(page: str) -> Element:
    """Return the elements of a page. Fails where it is not valid HTML."""
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    return parser.parse(io.StringIO(page))


def text_of(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


# --- the file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_it_is_valid_and_loads_nothing(pages: dict[str, str], name: str) -> None:
    every = list(parsed(pages[name]).iter())
    tags = {re.sub(r"\{.*\}", "", str(each.tag)) for each in every}
    assert not tags & {"script", "img", "iframe", "object", "embed", "image", "foreignObject", "base", "form", "font"}
    attributes = [(key.rpartition("}")[2], value) for each in every for key, value in each.items()]
    assert not [key for key, _ in attributes if key.startswith("on") or key in ("src", "srcset", "style", "xlink:href")]
    ids = [value for key, value in attributes if key == "id"]
    assert len(ids) == len(set(ids))
    targets = [value for key, value in attributes if key == "href"]
    assert {value for value in targets if not value.startswith("#")} == {"data:,"}
    named = [part for key, value in attributes if key == "aria-labelledby" for part in value.split()]
    assert {value[1:] for value in targets if value.startswith("#")} | set(named) <= set(ids)
    (style,) = (each for each in every if each.tag == "style")
    assert not re.search(r"url\(|@import|image-set|expression", style.text or "")


@pytest.mark.parametrize("name", PAGES)
def test_it_has_every_table_with_every_note(pages: dict[str, str], name: str, tmp_path: Path) -> None:
    filled = PAGES[name].fill(tmp_path)
    text = text_of(parsed(pages[name]))
    for table in build_tables(analyse(filled.store, filled.stored)):
        for row in table.rows:
            for column in table.columns:
                cell = re.sub(r"[\x1b\u202e\n].*", "", str(row.cells.get(column.key, ""))).removeprefix("└ ")
                assert cell in text, (column.key, row.cells)
        for note in [note.text for note in table.notes] + [table.estimand]:
            assert re.sub(r"\x1b.*", "", note) in text


def test_a_table_by_itself_is_a_fragment(tmp_path: Path) -> None:
    filled = CASES["troubled"].fill(tmp_path)
    (table,) = build_tables(analyse(filled.store, filled.stored))
    fragment = html.table_html(table, name="mine")
    found = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parseFragment(fragment)
    (head,) = found.iter("thead")
    assert [text_of(each) for each in head.iter("th")] == [column.title for column in table.columns]
    assert 'href="#mine-a"' in fragment
    assert 'id="mine-a"' in fragment


# --- the answer ----------------------------------------------------------------------------------------------------

LOSS = {"val_loss": {"goal": "min", "title": "loss"}}


def falling(*lowered: str) -> dict[tuple[str, int], Fate]:
    """All seeds of these arms at ten points, give or take the seed."""
    values = {1: 9.0, 2: 10.5, 3: 10.0, 4: 11.0, 5: 9.5}
    return {
        (arm, seed): Fate(metrics={"val_acc": value, "macro_f1": 1.0 + seed})
        for arm in lowered
        for seed, value in values.items()
    }


ANSWERS = {
    "ladder": (
        CASES["ladder"],
        "Of 5 steps, each compared with its parent, all 5 improve val_acc; together those kept come to "
        "+15.0 percentage points [+14.4, +15.6].",
        "",
    ),
    "unfinished": (
        CASES["troubled"],
        "Of 5 steps, each compared with its parent, 2 improve val_acc and 3 are not tested yet; together those kept "
        "come to +14.9 percentage points [+14.1, +15.7].",
        "Not finished: 30 trials, 27 finished, 1 diverged, 1 failed and 1 waiting.",
    ),
    "one seed": (
        CASES["one-seed"],
        "Too early to tell, with 1 seed per comparison: of 5 steps, each compared with its parent, 5 raised val_acc, "
        "which may be chance.",
        "",
    ),
    "one seed, and more to come": (
        Case({"seeds": 1}, {("residual", 1): WAITING}),
        "Too early to tell, with 1 seed per comparison: of 5 steps, each compared with its parent, 3 raised val_acc, "
        "which may be chance; 2 can't be compared yet.",
        "Not finished: 6 trials, 5 finished and 1 waiting.",
    ),
    "leave-one-out": (
        CASES["leave-one-out"],
        "Of 4 steps, each judged by taking it alone from the final model, 3 improve val_acc and 1 is unresolved.",
        "",
    ),
    "one at a time": (CASES["one-at-a-time"], "Of 5 steps, each alone, all 5 improve val_acc.", ""),
    "factorial": (
        CASES["factorial"],
        "Of 3 steps, each in the mean over all settings of the others, all 3 improve val_acc. "
        "Of 3 pairs of steps, 3 do not interact beyond ±1.",
        "",
    ),
    "path": (
        MORE["path"],
        "Of 4 steps, in the order of the path and on fresh seeds, 3 improve val_acc and 1 is unresolved.",
        "",
    ),
    "lower is better": (
        Case({"steps": FEW, "metrics": LOSS}),
        "Of 3 steps, each compared with its parent, all 3 improve loss; together they come to -0.73 [-0.75, -0.70].",
        "",
    ),
    "worse, by a margin": (
        Case({"steps": FEW, "metrics": {"val_acc": {"goal": "max", "margin": 3}}}, falling("depth-6", "residual")),
        "Of 3 steps, each compared with its parent, 1 improves val_acc, 1 worsens it and 1 leaves every number as it "
        "was; together they come to -20.0 [-21.5, -18.5].",
        "",
    ),
    "nothing shown": (
        Case({"steps": FEW[:2]}, falling("baseline", "batchnorm", "depth-6")),
        "Of 2 steps, each compared with its parent, none is shown to change val_acc: all 2 leave every number as it "
        "was; together they come to 0.0 percentage points.",
        "",
    ),
    "one step": (Case({"steps": FEW[:1]}), "The only step improves val_acc.", ""),
    "nothing, and no more to come": (
        Case({"steps": FEW[:1], "seeds": 2}, {("batchnorm", 1): DIVERGED, ("batchnorm", 2): FAILED}),
        "Nothing can be compared: 3 of 4 trials have a result.",
        "Incomplete: 4 trials, 2 finished, 1 diverged and 1 failed.",
    ),
    "nothing yet": (
        Case({"steps": FEW[:1]}, dict.fromkeys(itertools.product(("baseline", "batchnorm"), range(1, 6)), WAITING)),
        "Nothing can be compared yet: 0 of 10 trials have a result.",
        "Not finished: 10 trials, 0 finished and 10 waiting.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_the_answer_says_what_was_found_and_no_more(name: str, tmp_path: Path) -> None:
    case, sentence, how_far = ANSWERS[name]
    filled = case.fill(tmp_path)
    found = analyse(filled.store, filled.stored)
    assert answer(found) == sentence
    assert standing(found) == how_far


# --- what it shows -------------------------------------------------------------------------------------------------


def test_a_dot_for_each_seed_and_marks_by_verdict(pages: dict[str, str]) -> None:
    page = parsed(pages["ladder"])
    figures = [each for each in page.iter("figure") if each.get("aria-labelledby") == "t1-f"]
    assert len([each for each in figures[0].iter() if each.get("class") == "seed"]) == 5 * 5
    marks = [each.get("href") for each in figures[0].iter() if str(each.tag).endswith("use")]
    assert marks.count("#s-better") == 5 + 1  # and one in the legend


def test_curves_have_a_line_per_seed_and_a_band(pages: dict[str, str]) -> None:
    page = parsed(pages["curves"])
    kinds = [each.get("class") for each in page.iter() if str(each.tag).endswith("path")]
    arms = 1 + len(STUDY["steps"])
    assert (kinds.count("thin"), kinds.count("band"), kinds.count("mean")) == (5 * arms, arms, arms)
    assert "pointwise 95% t intervals of the mean" in pages["curves"]
    assert "5 seeds an arm" in pages["curves"]


def test_a_margin_is_shaded_where_there_is_one(pages: dict[str, str]) -> None:
    assert 'class="margin"' in pages["curves"]
    assert 'class="margin"' not in pages["ladder"]


def test_what_a_case_lacks_leaves_no_empty_section(pages: dict[str, str]) -> None:
    assert 'id="curves"' not in pages["ladder"]
    assert 'id="failures"' not in pages["ladder"]
    assert 'id="failures"' in pages["troubled"]
    assert "What two steps do to each other" in pages["factorial"]
    assert "What two steps do to each other" not in pages["ladder"]


def test_a_large_study_keeps_to_two_megabytes_and_says_what_it_leaves_out() -> None:
    analysis = ladder(arms=1_000, seeds=100)
    began = time.process_time()
    page = html.render(analysis, StudyDetails("ablate run"))
    assert time.process_time() - began < 10  # 0.8 s on a quiet machine
    assert len(page.encode()) < 2_000_000
    assert "More than 200 arms" in page
    assert 'class="seed"' not in page
    assert page.count('<li><span class="label">') == 999
    parsed(page)


def test_many_trials_leave_out_what_each_seed_measured() -> None:
    few, many = ladder(arms=20, seeds=100), ladder(arms=21, seeds=100)
    assert 'class="seed"' in html.render(few, StudyDetails("ablate run"))
    page = html.render(many, StudyDetails("ablate run"))
    assert 'class="seed"' not in page
    assert "More than 2,000 trials" in page


def test_intervals_of_any_width_and_values_of_any_size_are_drawn() -> None:
    analysis = ladder(arms=4, seeds=3)
    primary = analysis.primary.name
    for factor in (0.0, 1e-300, 1e-9, 1e12, 1e290):
        (design,) = analysis.designs
        rows = tuple(
            replace(row, effects={primary: _scaled(row.effects[primary], factor)}) for row in design.comparisons
        )
        scaled = replace(analysis, designs=(replace(design, comparisons=rows, total=None),))
        page = html.render(scaled, StudyDetails("ablate run"))
        assert not re.search(r'="[^"]*(nan|inf)', page)
        parsed(page)


def _scaled(effect: Any, factor: float) -> Any:
    interval = effect.interval
    return replace(
        effect,
        mean=effect.mean * factor,
        interval=replace(interval, low=interval.low * factor, high=interval.high * factor),
        differences={seed: value * factor for seed, value in effect.differences.items()},
    )


# --- in a browser --------------------------------------------------------------------------------------------------

SIZES = ((1280, 800), (390, 844))
CASES_WATCHED = ("ladder", "troubled", "factorial", "tuned", "hostile", "curves", "long-word")
REPORT = Path(__file__).parents[2] / "reports" / "basenet-laptop.html"  # of a real study, as it was rendered
WATCHED = (*CASES_WATCHED, REPORT.stem)

JUDGE = """
<!DOCTYPE html><title>judge</title><body style="margin:0">%s<pre id="found">nothing</pre><script>
const place = (element) => element.getBoundingClientRect().toJSON();
async function judge(frame) {
  const page = frame.contentDocument, view = frame.contentWindow;
  const rows = page.querySelectorAll("section tbody tr");
  const first = rows[0].querySelector("th"), number = rows[0].querySelectorAll("td")[1];
  const found = {
    name: frame.id, width: view.innerWidth, height: view.innerHeight,
    dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
    paper: view.getComputedStyle(page.body).backgroundColor,
    question: place(page.querySelector("h1")), answer: place(page.querySelector(".answer")),
    row: place(first), value: place(number),
  };
  found.over = [...page.querySelectorAll(".rows .label")].filter((each) => each.scrollWidth > each.clientWidth).length;
  page.querySelectorAll("details").forEach((each) => each.open = true);
  found.sideways = page.documentElement.scrollWidth - view.innerWidth;
  const told = await view.axe.run(page, {resultTypes: ["violations"]});
  found.violations = told.violations.map((v) => v.id + ": " + v.nodes.slice(0, 3).map((n) => n.html).join(" | "));
  found.passed = told.passes.length;
  return found;
}
window.onload = async () => {
  const found = [];
  for (const frame of document.querySelectorAll("iframe")) found.push(await judge(frame));
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script>
"""


@dataclass(frozen=True)
class Judged:
    found: list[dict[str, Any]]
    asked: list[str]


@pytest.fixture(scope="module", params=["light", "dark"])
def judged(request: pytest.FixtureRequest, pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """What Chromium and axe-core find of the pages, in frames of both sizes."""
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    script = axe_script()
    with served() as site:
        site.content["/axe.js"] = script
        for name, text in {**{name: pages[name] for name in CASES_WATCHED}, REPORT.stem: REPORT.read_text()}.items():
            # with the page's own policy no script would run in it, and so no judge
            page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
            site.content[f"/{name}"] = page.replace("</head>", '<script src="/axe.js"></script></head>')
        frames = "".join(
            f'<iframe id="{name}" src="/{name}" width="{width}" height="{height}" style="border:0"></iframe>'
            for name in WATCHED
            for width, height in SIZES
        )
        site.content["/judge"] = JUDGE % frames
        scheme = "--blink-settings=preferredColorScheme=" + ("0" if request.param == "dark" else "1")
        dom = dom_of(site.url("/judge"), tmp_path_factory.mktemp("profile"), scheme, budget_ms=120_000)
        text = entities.unescape(re.findall(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[0])
        found = Judged(json.loads(text), list(site.asked))
    assert {each["dark"] for each in found.found} == {request.param == "dark"}
    return found


def test_question_answer_and_first_row_are_on_the_first_screen(judged: Judged) -> None:
    assert [(each["name"], each["width"], each["height"]) for each in judged.found] == [
        (name, *size) for name in WATCHED for size in SIZES
    ]
    for each in judged.found:
        for part in ("question", "answer", "row", "value"):
            box = each[part]
            assert box["width"] > 0
            assert box["height"] > 0
            assert box["left"] >= 0, (each, part)
            assert box["top"] >= 0, (each, part)
            assert box["right"] <= each["width"], (each, part)
            assert box["bottom"] <= each["height"], (each, part)


def test_nothing_but_a_table_scrolls_sideways(judged: Judged) -> None:
    assert {(each["name"], each["width"]): each["sideways"] for each in judged.found if each["sideways"] > 0} == {}


def test_no_label_runs_into_its_figure(judged: Judged) -> None:
    assert {(each["name"], each["width"]): each["over"] for each in judged.found if each["over"]} == {}


def test_it_is_dark_where_that_is_asked_for(judged: Judged) -> None:
    (paper,) = {each["paper"] for each in judged.found}
    brightness = sum(map(int, re.findall(r"\d+", paper)))
    assert brightness < 100 if judged.found[0]["dark"] else brightness == 3 * 255


def test_axe_finds_no_violation(judged: Judged) -> None:
    assert {
        f"{each['name']} at {each['width']}": each["violations"] for each in judged.found if each["violations"]
    } == {}
    assert all(each["passed"] > 15 for each in judged.found)


def test_a_browser_asks_for_the_page_alone(judged: Judged) -> None:
    assert set(judged.asked) <= {"/judge", "/axe.js", "/favicon.ico", *(f"/{name}" for name in WATCHED)}
