"""The consoles that everything is printed to."""

from __future__ import annotations

from rich.console import Console


class QuietConsole(Console):
    """A console that leaves a closed pipe (`| head`) to its caller; rich would end the process with exit code 1."""

    def on_broken_pipe(self) -> None:
        self.quiet = True  # or leaving a live view would write again
        raise BrokenPipeError


def make_console(*, stderr: bool = False) -> Console:
    return QuietConsole(stderr=stderr, highlight=False)
