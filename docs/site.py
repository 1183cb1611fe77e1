"""The documents as a web site: ``python -m docs.site FOLDER``.

The generator is given a copy of the documents, each where it stands in the repository: so the relative links that lead
somewhere on a forge lead there on the site as well, and nothing is rewritten.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SHOWN = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "docs", "studies", "reports", "benchmarks/results"]


def build_site(target: Path) -> None:
    """Write the site into a folder, which is emptied first; CalledProcessError with what is wrong in its ``stderr``."""
    with tempfile.TemporaryDirectory(prefix="ablate-site-") as name:
        folder = Path(name)
        for shown in SHOWN:
            copy(ROOT / shown, folder / "documents" / shown)  # the folder that mkdocs.yml names
        config = shutil.copy(ROOT / "docs" / "mkdocs.yml", folder)
        # not --quiet: what it does not say, it does not count among the faults of a strict build
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", config]
        # what the theme says of its successor, at each build: see docs/decisions.md
        environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        command += ["--site-dir", str(target.resolve())]
        subprocess.run(command, check=True, env=environment, stderr=subprocess.PIPE, text=True)


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "runs", "mkdocs.yml"))
    else:
        shutil.copy(source, target)


if __name__ == "__main__":
    try:
        build_site(Path(sys.argv[1]))
    except subprocess.CalledProcessError as error:
        sys.exit(error.stderr)
