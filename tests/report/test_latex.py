"""LaTeX, compiled by a real TeX: every golden file in one document, and every hostile name in another."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ablate.analyse.analysis import analyse
from ablate.report import latex, text
from tests.hostile import corpus
from tests.report.cases import CASES, Case
from tests.report.test_goldens import GOLDEN
from tests.report.test_hostile_names import filled_with
from tests.truth import STUDY

PDFLATEX, KPSEWHICH = shutil.which("pdflatex"), shutil.which("kpsewhich")
SIUNITX = KPSEWHICH and subprocess.run([KPSEWHICH, "siunitx.sty"], capture_output=True, timeout=60).returncode == 0
needs_tex = pytest.mark.skipif(
    not (PDFLATEX and SIUNITX), reason="no TeX with siunitx (apt install texlive-latex-recommended texlive-science)"
)

OVERFULL_PT = 12.0  # a word that no line can break, at the end of a line; a column too wide is five times that


def compiled(folder: Path, *reports: str, extra: str = "") -> str:
    """Compile reports as a paper would have them, 5.5 inches wide, and return what TeX said. An error fails."""
    assert PDFLATEX is not None
    packages = "\n".join(dict.fromkeys(re.findall(r"^% (\\usepackage\{.*?\})", "\n".join(reports), re.MULTILINE)))
    assert packages
    head = "\\documentclass{article}\n" + packages + "\\usepackage[textwidth=5.5in,textheight=9in]{geometry}\n"
    body = "\\begin{document}\\listoftables\n"
    for number, report in enumerate(reports):
        (folder / f"report{number}.tex").write_text(report)
        body += f"\\input{{report{number}}}\\clearpage\n"
    (folder / "paper.tex").write_text(f"{head}{body}{extra}\\end{{document}}\n")
    command = [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    for _ in range(2):  # the list of tables is read back the second time
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=240)
        log = (folder / "paper.log").read_text(errors="replace")
        assert done.returncode == 0, log[-3000:]
    assert (folder / "paper.pdf").read_bytes().startswith(b"%PDF")
    return log


def overfull(log: str) -> list[float]:
    return [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt too wide\)", log)]


def report(case: Case, folder: Path, columns: tuple[str, ...] = ()) -> str:
    filled = case.fill(folder)
    return latex.render(analyse(filled.store, filled.stored), columns)


@needs_tex
def test_every_golden_file_compiles_and_fits_its_column(tmp_path: Path) -> None:
    reports = [path.read_text() for path in sorted(GOLDEN.glob("*.tex"))]
    assert len(reports) == len(CASES)
    log = compiled(tmp_path, *reports)
    assert "Missing character" not in log
    assert [points for points in overfull(log) if points > OVERFULL_PT] == []
    assert "multiply defined" not in compiled(tmp_path, reports[0])


@needs_tex
def test_every_design_compiles(tmp_path: Path) -> None:
    steps = [{**step, "from": None, "branch": None, "requires": None} for step in STUDY["steps"]]
    steps = [{key: value for key, value in step.items() if value is not None} for step in steps[2:]]
    designs: dict[str, object] = {
        "factorial": ["factorial"], "both": ["leave-one-out", "one-at-a-time"], "path": ["path"], "ladder": ["ladder"],
    }  # fmt: skip
    many = [{"name": f"s{i}", "title": f"setting {i}", "set": {"k": i}} for i in range(1, 61)]
    cases = {name: Case({"designs": design, "steps": steps}) for name, design in designs.items()}
    cases["sixty"] = Case({"settings": {"k": 0}, "steps": many, "seeds": 2})
    made = {name: report(case, tmp_path / name) for name, case in cases.items()}
    made["matrix"] = report(cases["ladder"], tmp_path / "matrix", ("steps", "n", "val_acc", "effect", "verdict"))
    log = compiled(tmp_path, *made.values())
    assert [points for points in overfull(log) if points > OVERFULL_PT] == []
    assert "Overfull \\vbox" not in log
    assert len(re.findall(r"\\begin\{table\}", made["sixty"])) == 3  # 61 rows, 30 to a page
    assert len(re.findall(r"\\label", made["sixty"])) == 1
    labels = re.findall(r"\\label\{(.*?)\}", made["factorial"])
    assert labels == ["tab:basenet-factorial", "tab:basenet-factorial-2", "tab:basenet-factorial-3"]


@needs_tex
def test_every_hostile_name_compiles_and_runs_nothing(tmp_path: Path) -> None:
    texts = corpus("http://127.0.0.1/canary")
    filled = filled_with(texts, tmp_path / "runs")
    compiled(tmp_path, latex.render(analyse(filled.store, filled.stored)))
    assert not (tmp_path / "x").exists()  # \write18{touch x}


@needs_tex
def test_every_sign_that_is_spelt_out_is_known_to_tex(tmp_path: Path) -> None:
    signs = [*text._TEX, *"àéîõüåčçāăżőïĵńğ", "深", "😀", "א", "ǆ", "x\u0302\u0301"]
    lines = "\n\n".join(f"{text.latex(f'{sign} {sign}{sign}')} x" for sign in signs)
    log = compiled(tmp_path, latex._HEAD + "\n" + latex._FOREIGN + "\n" + lines)
    assert "Missing character" not in log


@pytest.mark.parametrize(
    ("foreign", "expected"),
    [
        (r"50 % of a_b & {c} #1 ~^\x $y$", r"50 \% of a\_b \& \{c\} \#1 \textasciitilde{}\textasciicircum{}"
         r"\textbackslash{}x \$y\$"),
        ("[5] [x]", "{[}5] [x]"),
        ("a--b ''c'' 1-2", "a-{}-b '{}'c'{}' 1-2"),
        ("Δ ± é ï", r"\ensuremath{\Delta} \ensuremath{\pm} \'{e} \" {\i}".replace('" {', '"{')),
        ("e\u0301", r"\'{e}"),
        ("深\u202e", r"\ablatechar{深}{6DF1}\textbackslash{}u202e"),
    ],
)  # fmt: skip
def test_text_is_escaped(foreign: str, expected: str) -> None:
    assert text.latex(foreign) == expected


def test_numbers_stand_in_columns_of_siunitx_with_their_signs_and_all_that_they_mean(tmp_path: Path) -> None:
    made = report(CASES["troubled"], tmp_path)
    (spec,) = re.findall(r"\\begin\{tabularx\}\{\\linewidth\}\{(.*)\}", made)
    assert spec.startswith(r"@{}S[table-format=1.0] >{\raggedright\arraybackslash}X r S[table-format=2.1]@{\,}r ")
    assert "S[table-format=<1.3, print-zero-integer=false]" in spec
    row = next(line for line in made.splitlines() if line.startswith("1 & BatchNorm"))
    assert row == (
        r"1 & BatchNorm after each conv, before ReLU\textsuperscript{a} & 4/5 & 38.1 & $\pm\,0.5$ & +7.9 & "
        r"$[+7.1, +8.7]$ & <.001 & better \\"
    )
    assert r"\textsuperscript{a} seed 2 failed (out of memory" in made
    assert "30 trials planned = 27 finished + 1 diverged + 2 missing (1 failed, 1 waiting)." in made
    assert r"& 41.9 & $\pm\,0.7$\rlap{\textsuperscript{\ensuremath{\dagger}}} &" in made
    assert "% left out: macro_f1 (%), params, FLOPs, CPU time (--columns names them)" in made


def test_the_best_mean_is_bold_and_nothing_else(tmp_path: Path) -> None:
    made = report(CASES["leave-one-out"], tmp_path)
    bold = re.findall(r"^(\d+) .*\\bfseries (\S+) ", made, re.MULTILINE)
    assert bold == [("0", "45.0"), ("4", "44.5")]
    assert "Bold: the best mean of val" in made
