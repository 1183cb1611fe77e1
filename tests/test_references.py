"""The generated documents are those of this code, and nothing is missing in them.

ABLATE_UPDATE_GOLDEN=1 pytest -n 0 tests/test_references.py && git diff docs
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

import ablate
from ablate.plan.trials import plans_of
from docs.references import EVERY_KEY, ROOT, VARIABLES, Key, references, study_keys

# between ablate's own processes, or for its tests
INTERNAL = {
    "ABLATE_AGENT", "ABLATE_CORES", "ABLATE_PARENT", "ABLATE_MIRRORED_STORE", "ABLATE_FAILPOINT",
    "ABLATE_FAILPOINT_HIT",
}  # fmt: skip


@pytest.mark.parametrize("path", references(), ids=lambda path: path.name)
def test_a_reference_is_what_is_generated(path: Path) -> None:
    text = references()[path]
    if os.environ.get("ABLATE_UPDATE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text, "`python -m docs.references` writes it anew"


def every_key() -> list[Key]:
    return [key for top in study_keys() for key in (top, *top.all_inner())]


def test_every_key_says_what_it_means() -> None:
    assert len(every_key()) > 60
    assert [key.path for key in every_key() if not key.meaning] == []


def test_the_examples_are_of_a_sound_study(tmp_path: Path) -> None:
    study = shutil.copy(EVERY_KEY, tmp_path)
    (tmp_path / "net.py").write_text("def train(settings, context): ...")
    (tmp_path / "train.py").touch()
    plans, faults = plans_of(study)
    assert faults == []
    assert [made.study.title for made in plans][:2] == ["every-key", "every-key@json"]


def test_every_variable_that_the_code_reads_is_named() -> None:
    package = Path(ablate.__file__).parent
    found = {name for path in package.rglob("*.py") for name in re.findall(r"\bABLATE_[A-Z_]+\b", path.read_text())}
    named = {name for names in VARIABLES for name in names.split(", ")}
    assert found - named == INTERNAL


def test_the_index_of_the_commands_leads_to_them() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    links = re.findall(r"\]\(#ablate-([a-z0-9-]+)\)", page)
    headings = re.findall(r"^## ablate ([a-z0-9 -]+)$", page, re.MULTILINE)
    assert links == [heading.replace(" ", "-") for heading in headings] != []
