"""Storage is tested with the command too, on the study in which everything happened."""

from tests.cli.conftest import call, troubled

__all__ = ["call", "troubled"]
