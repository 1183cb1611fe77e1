"""The consoles that everything is printed to."""

from __future__ import annotations

from typing import IO

from rich.console import Console


class QuietConsole(Console):
    """A console that leaves a closed pipe (`| head`) to its caller; rich would end the process with exit code 1."""

    def on_broken_pipe(self) -> None:
        self.quiet = True  # or leaving a live view would write again
        raise BrokenPipeError


def make_console(*, stderr: bool = False, file: IO[str] | None = None) -> Console:
    """Return a console on stdout, stderr or a file. In a notebook it prints text as elsewhere, and draws no widgets."""
    return QuietConsole(file=file, stderr=stderr, highlight=False, force_jupyter=False)
