"""The web site is built from the documents as they are, whole, without a broken link, and needs no network."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest

from docs.site import ROOT, SHOWN, build_site, copy

pytestmark = pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="pip install -e '.[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build_site(folder)  # it fails on any link or anchor that leads nowhere, and on a page that is not in the menu
    return folder


def page_of(document: Path) -> Path:
    """Return the page of a document, by its path in the repository."""
    folder = document.parent if document.name == "README.md" else document.with_suffix("")
    return folder / "index.html"


@pytest.mark.parametrize("link", ["[a](missing.md)", "[a](guide.md#missing)", "[a](/docs/guide.md)"])
def test_a_link_that_leads_nowhere_is_told(link: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SHOWN:
        copy(ROOT / name, tmp_path / name)
    copy(ROOT / "docs" / "mkdocs.yml", tmp_path / "docs" / "mkdocs.yml")
    page = tmp_path / "docs" / "seeds.md"
    page.write_text(page.read_text() + link)
    monkeypatch.setattr("docs.site.ROOT", tmp_path)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        build_site(tmp_path / "site")
    assert "docs/seeds.md" in refused.value.stderr


def test_every_document_has_its_page(site: Path) -> None:
    documents = [
        path.relative_to(ROOT) for pattern in ("*.md", "docs/*.md", "reports/*.md") for path in ROOT.glob(pattern)
    ]
    assert len(documents) > 15
    assert [str(path) for path in documents if not (site / page_of(path)).exists()] == []


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css")]
    fetched = r'(?:src="|srcset="|<link[^>]+href="|url\(["\']?|@import ["\']?)((?:https?:)?//[^"\')]+)'
    assert {path.name: found for path in files if (found := re.findall(fetched, path.read_text()))} == {}


def test_no_markdown_is_left_over(site: Path) -> None:
    """What a forge shows as a list, a table or a footnote is one here: the two dialects differ in small things."""
    leftover = r"<p>[^<]*(?:\n|^)(?:- |\* |\d+\. |\|)|```|\[\^|\]\(|^\|[ :-]*---"
    for page in site.rglob("*.html"):
        assert re.findall(r"<code>[^<]*\\\|", page.read_text()) == [], (
            page
        )  # a bar in a table's code, as a forge wants it
        text = re.sub(r"<(pre|code|script)\b.*?</\1>", "", page.read_text(), flags=re.DOTALL)
        assert re.findall(leftover, text, re.MULTILINE) == [], page


def test_the_search_knows_every_page(site: Path) -> None:
    entries = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    found = {entry["location"].partition("#")[0] for entry in entries if "Schuirmann" in entry["text"]}
    assert "docs/statistics/" in found
    pages = {str(path.parent.relative_to(site)) for path in site.rglob("index.html")}
    assert {entry["location"].partition("#")[0].rstrip("/") or "." for entry in entries} == pages
