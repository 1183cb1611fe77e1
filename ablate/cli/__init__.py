"""The command line. Thin: it composes rooms, and imports one inside the command that needs it.

Data goes to stdout, everything else to stderr.
"""

from ablate.cli.app import cli, main

__all__ = ["cli", "main"]
