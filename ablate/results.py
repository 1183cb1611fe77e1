"""What a study has found so far, for notebooks: frames, tables and figures of one reading of the store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ablate.analyse.analysis import analyse
from ablate.analyse.curves import Curve, study_curves
from ablate.analyse.findings import Analysis
from ablate.analyse.frames import Frame, effects_frame, measurements_frame, trials_frame
from ablate.errors import AblateError
from ablate.store.facts import StoredStudy
from ablate.store.store import Store
from ablate.study.words import did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Results:
    """The results of a study. Each part is read when it is first asked for, and kept; load again for what is new.

    In a notebook it shows the tables of the report. ``print(results)`` has them as text.
    """

    def __init__(self, store: Store, stored: StoredStudy) -> None:
        self._store = store
        self._stored = stored

    @cached_property
    def analysis(self) -> Analysis:
        """All findings, as plain values."""
        return analyse(self._store, self._stored)

    @cached_property
    def trials(self) -> Frame:
        """One row per arm and seed: what became of the trial, final metrics, settings, what it ran on."""
        return trials_frame(self._store, self._stored)

    @cached_property
    def measurements(self) -> Frame:
        """One row per number recorded on the way: arm, role, seed, metric, epoch, value."""
        return measurements_frame(self._store, self._stored)

    @cached_property
    def effects(self) -> Frame:
        """One row per comparison and metric: mean difference, interval, p-value, verdict."""
        return effects_frame(self.analysis)

    @cached_property
    def _curves(self) -> Sequence[Curve]:
        return study_curves(self._store, self._stored, self.analysis)

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of the figures that there are, as ``ablate report --figures`` names its files."""
        from ablate.report.figures import figures_of

        return tuple(figures_of(self.analysis, self._curves))

    def figure(self, name: str) -> Figure:
        """Draw one of ``figures``: a matplotlib figure. Raises AblateError for a name that is not among them."""
        from ablate.report.figures import draw_figure

        if name not in self.figures:
            hint = did_you_mean(name, self.figures) or f"there are: {', '.join(self.figures)}"
            raise AblateError(f"{self._stored.title} has no figure {name!r:.60}", where="figure", hint=hint)
        return draw_figure(self.analysis, self._curves, name)

    def __repr__(self) -> str:
        counts = self.analysis.counts
        return f"<results of {self._stored.title}: {counts.done} of {counts.planned} trials done>"

    def __str__(self) -> str:
        from ablate.report.terminal import to_text

        return to_text(self.analysis).rstrip()

    def _repr_html_(self) -> str:
        from ablate.report.designs import build_tables
        from ablate.report.html import table_html

        return "\n".join(table_html(table, name=f"t{index}") for index, table in enumerate(build_tables(self.analysis)))
