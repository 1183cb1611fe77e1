"""``python -m ablate``: the command line, by the interpreter that has ablate installed."""

from ablate.cli import main

main()
