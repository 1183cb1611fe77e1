"""LaTeX for papers: a booktabs table per design, numbers aligned by siunitx, all that its signs mean below it.

Tables have the columns that a paper has room for (ranks 0 and 1), unless others are named. ± stands in a column of its
own: siunitx's uncertainty leaves a hole beside it, and 22.9(6) would be read as the error of the mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from string import ascii_lowercase

from ablate.analyse.findings import Analysis
from ablate.report import text
from ablate.report.designs import build_tables
from ablate.report.notes import Note
from ablate.report.table import Column, Difference, Row, Table, Text, Value

_NUMBER = re.compile(r"([+-]?)(\d+)(?:\.(\d+))?")
_PAGE = 30  # rows that fit on a page with their notes, even if labels wrap; a table with more goes on in another one
_WIDE = 70  # characters beside the label, from which on a column of 5.5 inches needs a smaller size
_SHORT_TITLE = 12  # characters of a column's title that stay on one line
_HEAD = """\
% \\usepackage{booktabs,tabularx,amssymb}
% \\usepackage{siunitx}  % version 3 (2021) or later; LaTeX of 2020 or later, by pdfLaTeX, LuaLaTeX or XeLaTeX"""
# what no font of pdfLaTeX has stands as it is for the other two, which take a font that has it
_FOREIGN = r"""\ifdefined\ablatechar\else
  \DeclareRobustCommand{\ablatechar}[2]{\ifdefined\Umathchar #1\else\texttt{U+#2}\fi\allowbreak}
\fi"""


def render(analysis: Analysis, columns: Sequence[str] = ()) -> str:
    """Return the report as LaTeX to be read by ``\\input``, a float for each table."""
    taken: dict[str, int] = {}
    floats: list[str] = []
    for table in build_tables(analysis, columns):
        name = re.sub(r"[^A-Za-z0-9]+", "-", f"{analysis.title}-{table.design}")
        taken[name] = taken.get(name, 0) + 1
        label = name if taken[name] == 1 else f"{name}-{taken[name]}"
        floats.extend(_floats(table, label, every=bool(columns)))
    body = "\n\n".join(floats)
    return "\n".join([_HEAD, *([_FOREIGN] if r"\ablatechar" in body else []), "", body, ""])


def _floats(table: Table, label: str, *, every: bool) -> Iterator[str]:
    """Yield the table, in parts that fit on a page; the notes stand under the last."""
    shown = [column for column in table.columns if every or column.rank <= 1]
    left_out = [column.title for column in table.columns if column not in shown]
    letters = (letter for width in count(1) for letter in _words(width))
    marked = [(next(letters), note) for note in table.notes if note.rows]
    printed = [_Printed.of(column, table.rows) for column in shown]
    starts = range(0, max(1, len(table.rows)), _PAGE)
    for start in starts:
        rows = range(start, min(start + _PAGE, len(table.rows)))
        name = f"\\label{{tab:{label}}}" if not start else ""
        head = table.heading if not start else f"{table.heading} (continued)"
        said = " ".join([f"{head}.", *([] if start else [table.estimand])])
        yield "\n".join(
            [
                *([f"% left out: {text.comment(', '.join(left_out))} (--columns names them)"] if left_out else []),
                r"\begin{table}[tbp]",
                r"\centering" + (r"\scriptsize" if sum(each.width for each in printed) > _WIDE else r"\footnotesize"),
                f"\\caption{{{text.latex(said)}}}{name}\\par\\smallskip",
                r"\setlength{\tabcolsep}{4pt}\sisetup{text-series-to-math, retain-explicit-plus}",
                f"\\begin{{tabularx}}{{\\linewidth}}{{@{{}}{' '.join(each.spec for each in printed)}@{{}}}}",
                r"\toprule",
                " & ".join(each.head for each in printed) + r" \\",
                r"\midrule",
                *_lines(table, printed, rows, marked),
                r"\bottomrule",
                r"\end{tabularx}",
                *(_below(table, marked) if rows.stop == len(table.rows) else []),
                r"\end{table}",
            ]
        )


def _words(width: int) -> Iterator[str]:
    """Yield a, b, …, z; then aa, bb, …"""
    yield from (letter * width for letter in ascii_lowercase)


def _lines(table: Table, printed: Sequence[_Printed], rows: range, marked: Sequence[tuple[str, Note]]) -> Iterator[str]:
    for index in rows:
        row = table.rows[index]
        if row.total and index != rows.start:
            yield r"\midrule"
        letters = ",".join(letter for letter, note in marked if row.number and int(row.number) in note.rows)
        mark = f"\\textsuperscript{{{letters}}}" if letters else ""
        cells = (each.cells[index] + (mark if each.column.key == "label" else "") for each in printed)
        yield " & ".join(cells) + r" \\"


def _below(table: Table, marked: Sequence[tuple[str, Note]]) -> Iterator[str]:
    """Yield what stands under the table: notes about rows by their letters, then the general ones."""
    general = [note for note in table.notes if not note.rows]
    running = [table.progress and f"{table.progress}.", *(note.text for note in general if not note.item), table.bold]
    paragraphs = [
        *(f"\\textsuperscript{{{letter}}} {text.latex(note.text)}" for letter, note in marked),
        text.latex(" ".join(part for part in running if part)),
        *(text.latex(note.text) for note in general if note.item),
    ]
    if any(paragraphs):
        yield r"\par\smallskip"
        yield r"\begin{minipage}{\linewidth}\footnotesize\raggedright\sloppy"
        yield "\\par\n".join(part for part in paragraphs if part)
        yield r"\end{minipage}"


# --- columns -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Printed:
    """A column as LaTeX: its specification, which may be of two columns, its title, its cells, and about how many
    characters wide it is; that of labels takes what room is left.
    """

    column: Column
    spec: str
    head: str
    cells: tuple[str, ...]
    width: int = 0

    @staticmethod
    def of(column: Column, rows: Sequence[Row]) -> _Printed:
        found = [row.cells.get(column.key, "") for row in rows]
        title = _title(column.title)
        if column.key == "label":
            cells = tuple(text.latex(str(cell)) for cell in found)
            return _Printed(column, r">{\raggedright\arraybackslash}X", text.latex(column.title), cells)
        first = [cell.mean if isinstance(cell, (Value, Difference)) else str(cell) for cell in found]
        spec = _number_spec(first, zero=column.key != "p") if not column.key.startswith("step:") else "c"
        is_text = not spec.startswith("S")
        if is_text:
            spec = spec or ("r" if column.right else "l")
        second = [_second(cell) for cell in found]
        bold = [isinstance(cell, Value) and cell.best for cell in found]
        cells = tuple(_first(one, is_text=is_text, bold=b) for one, b in zip(first, bold, strict=True))
        width = 2 + max(len(str(cell)) for cell in (*found, column.title[:_SHORT_TITLE]))
        if not any(second):
            return _Printed(column, spec, title if is_text else f"{{{title}}}", cells, width)
        pairs = tuple(f"{one} & {two}" for one, two in zip(cells, second, strict=True))
        gap, side = (r"\;", "l") if any(isinstance(cell, Difference) for cell in found) else (r"\,", "r")
        return _Printed(column, f"{spec}@{{{gap}}}{side}", f"\\multicolumn{{2}}{{c}}{{{title}}}", pairs, width)


def _first(cell: str, *, is_text: bool, bold: bool) -> str:
    if is_text:
        shown = f"${cell}$" if _NUMBER.fullmatch(cell) else text.latex(cell)
        return f"\\textbf{{{cell}}}" if bold else shown
    if _NUMBER.fullmatch(cell.removeprefix("<").replace(".", "0.", 1) if cell.startswith(("<", ".")) else cell):
        return f"\\bfseries {cell}" if bold else cell
    return f"{{{text.latex(cell)}}}" if cell else ""


def _second(cell: Text) -> str:
    """Return what stands beside a number: ± and its mark, or the interval."""
    if isinstance(cell, Difference) and cell.low:
        return f"$[{cell.low}, {cell.high}]$"
    if isinstance(cell, Value) and (cell.sd or cell.mark):
        spread = f"$\\pm\\,{cell.sd}$" if cell.sd else ""
        return spread + (f"\\rlap{{\\textsuperscript{{{text.latex(cell.mark)}}}}}" if cell.mark else "")
    return ""


def _number_spec(cells: Sequence[str], *, zero: bool) -> str:
    """Return siunitx's specification of a column of numbers; empty where most cells are something else."""
    less = any(cell.startswith("<") for cell in cells)
    plain = [f"0{cell}" if cell.startswith(".") else cell for cell in (each.removeprefix("<") for each in cells)]
    numbers = [found for cell in plain if (found := _NUMBER.fullmatch(cell))]
    if 2 * len(numbers) <= sum(map(bool, cells)):
        return ""
    whole = max(len(found[2]) for found in numbers)
    places = max(len(found[3] or "") for found in numbers)
    sign = "+" if any(found[1] for found in numbers) else ""
    form = f"table-format={'<' if less else ''}{sign}{whole}.{places}"
    return f"S[{form if zero else f'{form}, print-zero-integer=false'}]"


def _title(title: str) -> str:
    """Return a title on one line if it is short, else on two of about equal length; an interval has its own."""
    words, bracket, interval = title.partition(" [")
    lines = [words]
    if len(words) > _SHORT_TITLE and " " in words:
        places = [match.start() for match in re.finditer(" ", words)]
        place = min(places, key=lambda each: abs(each - len(words) / 2))
        lines = [words[:place], words[place + 1 :]]
    lines += [f"[{interval}"] if bracket else []
    stacked = r" \\ ".join(map(text.latex, lines))
    return stacked if len(lines) == 1 else f"\\begin{{tabular}}[b]{{@{{}}c@{{}}}}{stacked}\\end{{tabular}}"
