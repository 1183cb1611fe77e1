"""What a reader sees, byte for byte.

After a change that is meant to show, write the files anew and read the diff as a stranger would:

    ABLATE_UPDATE_GOLDEN=1 python -m pytest tests/report/test_goldens.py
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from ablate import __version__
from ablate.analyse.analysis import analyse
from ablate.analyse.details import study_details
from ablate.analyse.frames import trials_frame
from ablate.report import csv, html, json, latex, markdown, terminal
from ablate.run.logs import tail
from tests.report.cases import CASES
from tests.truth import Filled

GOLDEN = Path(__file__).parents[1] / "golden" / "report"


def terminal_text(filled: Filled, *, width: int, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    terminal.print_report(analyse(filled.store, filled.stored), Console(file=file, width=width))
    file.flush()
    return raw.getvalue().decode(encoding)


def page(filled: Filled) -> str:
    found = analyse(filled.store, filled.stored)
    details = study_details(filled.store, filled.stored, found, log_of=tail)
    return html.render(found, details).replace(f"ablate {__version__}", "ablate VERSION")


RENDERINGS = {
    "80.txt": lambda filled: terminal_text(filled, width=80),
    "140.txt": lambda filled: terminal_text(filled, width=140),
    "ascii.txt": lambda filled: terminal_text(filled, width=140, encoding="ascii"),
    "tex": lambda filled: latex.render(analyse(filled.store, filled.stored)),
    "md": lambda filled: markdown.render(analyse(filled.store, filled.stored)),
    "csv": lambda filled: csv.render(trials_frame(filled.store, filled.stored)),
    "json": lambda filled: json.render(analyse(filled.store, filled.stored)),
    "html": page,
}
EVERYWHERE = ("80.txt", "140.txt", "md", "tex")
MORE = {
    "ladder": ("html",),
    "troubled": ("csv", "json", "ascii.txt", "html"),
    "factorial": ("html",),
    "tuned": ("csv", "json"),
    "hostile": ("csv", "ascii.txt", "html"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_report_reads_as_its_golden_file(name: str, tmp_path: Path) -> None:
    filled = CASES[name].fill(tmp_path)
    wrong = []
    for rendering in (*EVERYWHERE, *MORE.get(name, ())):
        path = GOLDEN / f"{name}.{rendering}"
        text = RENDERINGS[rendering](filled).encode()
        if os.environ.get("ABLATE_UPDATE_GOLDEN"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)
        if path.read_bytes() != text:
            wrong.append(path.name)
    assert not wrong, "these differ from tests/golden/report; see this file's first lines"


def test_the_same_store_gives_the_same_bytes(tmp_path: Path) -> None:
    filled = CASES["troubled"].fill(tmp_path)
    for rendering in RENDERINGS.values():
        assert rendering(filled) == rendering(filled)
