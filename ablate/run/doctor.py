"""``ablate doctor``: whether this machine, this installation and this store are fit for a study.

Changes nothing; only a store of an earlier ablate is upgraded, as by whatever opens it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ablate
from ablate.errors import AblateError
from ablate.run.locks import LOCKS_HINT, flaw_of_lock_folder, is_free, lock_folder
from ablate.run.slots import listed_gpus, usable_cores
from ablate.store.integrity import attempt_folders, store_flaws
from ablate.store.mounts import MOUNTS, file_system, is_network
from ablate.store.store import WAL_FIXED, Store, is_sqlite, journal_mode
from ablate.train import toolchain
from ablate.train.cifar import SOURCES, data_folder, is_there
from ablate.train.folder import AttemptFolder
from ablate.train.manifest import damaged_checkpoints

Level = Literal["ok", "warning", "error"]

DISTRIBUTION = "ablation-study"
COMMAND = "ablate"
LITTLE_SPACE, NO_SPACE = 2**30, 2**26  # bytes: a study with checkpoints; a few rows


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    level: Level
    text: str
    hint: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<7}  {self.text}"
        return f"{line}\n{'hint:':<7}  {self.hint}" if self.hint else line


def examine(
    location: str, open_store: Callable[[], Store | None], data_dir: Path | None, *, thorough: bool = False
) -> Iterator[Check]:
    """Yield what was found. ``open_store`` gives the store, or None where there is none yet.

    ``thorough`` reads the whole store, and every checkpoint beside it.
    """
    yield from _installation()
    yield _sqlite()
    store: Store | None = None
    try:
        store = open_store()
    except AblateError as error:
        fault = error.faults[0]
        yield Check("error", f"store {fault.where or location}: {fault.message}", fault.hint)
    else:
        yield _store_found(store, location)
    server = store is not None and not is_sqlite(store.engine.url)
    folder = store.folder if store is not None else Path(location).parent
    if store is not None or "://" not in location:
        yield from _folder(_existing(folder), is_database=not server)
    if store is not None:
        yield from _contents(store, thorough=thorough)
    yield from _locks()
    yield from _devices()
    yield from _data(data_dir)


# --- the installation ----------------------------------------------------------------------------------------------


def _installation() -> Iterator[Check]:
    yield Check("ok", f"ablate {ablate.__version__} in {Path(ablate.__file__).parent}")
    python = f"Python {platform.python_version()} ({sys.executable})"
    yield Check("ok", python) if sys.version_info >= (3, 11) else Check("error", python, "ablate needs 3.11 or newer")
    for package, needed in (("torch", True), ("torchvision", True), ("optuna", False)):
        version = _version(package)
        if version:
            yield Check("ok", f"{package} {version}")
        elif needed:
            yield Check("error", f"{package} is not installed", f"pip install {package}")
        else:
            yield Check("ok", f"{package} is not installed; only the dashboard needs it")
    yield from _namesakes()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _namesakes() -> Iterator[Check]:
    """Others on PyPI install a package or a command of our name too: `ablate`, `ablate-cli`."""
    owners = {name for name in importlib.metadata.packages_distributions().get("ablate", ()) if name != DISTRIBUTION}
    for name in sorted(owners):
        hint = (
            f"pip uninstall {name}, then pip install --force-reinstall {DISTRIBUTION}: their files overwrite each other"
        )
        yield Check("error", f"the distribution `{name}` installs a package `ablate` too", hint)
    commands = {
        entry.dist.name
        for entry in importlib.metadata.entry_points(group="console_scripts", name=COMMAND)
        if entry.dist is not None and entry.dist.name != DISTRIBUTION
    }
    for name in sorted(commands - owners):
        hint = f"`python -m ablate` is always this one; or pip uninstall {name}"
        yield Check("error", f"the distribution `{name}` installs a command `{COMMAND}` too", hint)
    found = shutil.which(COMMAND)
    ours = Path(sys.executable).parent / COMMAND
    if found and ours.exists() and not os.path.samefile(found, ours):
        hint = f"`{ours}`, or activate that environment"
        yield Check("warning", f"`{COMMAND}` on the PATH is another one: {found}", hint)


def _sqlite() -> Check:
    version = sqlite3.sqlite_version
    if journal_mode() == "WAL":
        return Check("ok", f"SQLite {version}: write-ahead log")
    fixed = ".".join(map(str, WAL_FIXED))
    return Check("ok", f"SQLite {version}: rollback journal, as the write-ahead log can lose a commit before {fixed}")


# --- the store -----------------------------------------------------------------------------------------------------


def _store_found(store: Store | None, location: str) -> Check:
    if store is None:
        return Check("ok", f"no store yet; `ablate run` makes {location}")
    kind = "SQLite" if is_sqlite(store.engine.url) else store.engine.url.get_backend_name()
    return Check("ok", f"store {store.name} ({kind})")


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _folder(folder: Path, *, is_database: bool) -> Iterator[Check]:
    kind = file_system(folder)
    if is_network(kind):
        hint = "keep the store on a local disk, or in PostgreSQL (--store postgresql+psycopg://…)"
        what = "SQLite is not written there" if is_database else "attempt folders may appear late there"
        yield Check("warning", f"{folder} is on a network file system ({kind}): {what}", hint if is_database else "")
    else:
        yield Check("ok", f"{folder} is on {kind or f'a file system that {MOUNTS} does not name'}")
    yield _space(folder)
    yield _permissions(folder)


def _space(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:,.1f} GiB free in {folder}"
    if free < NO_SPACE:
        return Check("error", text, "free some space: checkpoints and the store are written there")
    if free < LITTLE_SPACE:
        return Check("warning", text, "checkpoints may fill it")
    return Check("ok", text)


def _permissions(folder: Path) -> Check:
    if not os.access(folder, os.W_OK | os.X_OK):
        return Check("error", f"{folder} is not writable", "choose another store with --store")
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        return Check(
            "warning", f"everybody may write to {folder}", f"chmod o-w {folder}: checkpoints are loaded from it"
        )
    return Check("ok", f"{folder} is writable")


def _contents(store: Store, *, thorough: bool) -> Iterator[Check]:
    try:
        flaws = store_flaws(store, thorough=thorough)
        folders = attempt_folders(store) if thorough and not flaws else []
    except AblateError as error:
        fault = error.faults[0]
        yield Check("error", f"store {fault.where or store.name}: {fault.message}", fault.hint)
        return
    for flaw in flaws:
        yield Check("error", f"store: {flaw}", "keep a copy of the file and report it; ablate leaves it as it is")
    if not flaws:
        yield Check("ok", "the store is sound: every trial, attempt and result is where it should be")
    if thorough and not flaws:  # where rows are damaged, the folders they name are not to be trusted
        yield from _checkpoints(store.folder, folders)


def _checkpoints(folder: Path, attempts: list[str]) -> Iterator[Check]:
    folders = ((each.checkpoints, each.end) for each in (AttemptFolder(folder / name) for name in attempts))
    found = [there for both in folders if (there := [path for path in both if path.is_dir()])]
    damage = [line for there in found for path in there for line in damaged_checkpoints(path)]
    for line in damage:
        yield Check("error", line, "a resumed attempt passes over it: it goes on from an older one, or from the start")
    if not damage:
        yield Check("ok", f"checkpoints of {len(found):,} attempts are what was written")


# --- the machine ---------------------------------------------------------------------------------------------------


def _locks() -> Iterator[Check]:
    folder = lock_folder()
    if not os.path.lexists(folder):
        level: Level = "ok" if os.access(folder.parent, os.W_OK) else "error"
        yield Check(level, f"device locks: none yet; {folder.parent} is {'' if level == 'ok' else 'not '}writable")
        return
    flaw = flaw_of_lock_folder(folder)
    if flaw:
        yield Check("error", f"device locks can't be kept in {folder}: {flaw}", LOCKS_HINT)
    else:
        locks = [path for path in sorted(folder.glob("*.lock")) if not path.name.startswith("hungry-")]
        taken = [path.stem for path in locks if not is_free(path)]
        yield Check("ok", f"device locks in {folder}: " + (f"taken are {', '.join(taken)}" if taken else "all free"))


def _devices() -> Iterator[Check]:
    gpus = listed_gpus()
    for gpu in gpus:
        yield Check("ok", f"GPU {gpu.index}: {gpu.name} ({gpu.uuid})")
    if not gpus:
        yield Check("ok", "no GPU found by nvidia-smi: studies run with resources.gpus = 0")
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        yield Check("ok", f"CUDA_VISIBLE_DEVICES is `{visible}`: runs use no other GPU")
    yield _compiler(is_gpu=bool(gpus))
    cores = usable_cores()
    yield Check("ok", f"{len(cores)} CPU core{'' if len(cores) == 1 else 's'} usable of {os.cpu_count()}")
    if time.time() < _built():
        yield Check(
            "warning", f"the clock says {time.strftime('%Y-%m-%d')}, before this ablate was installed", "set it"
        )


def _compiler(*, is_gpu: bool) -> Check:
    lack = toolchain.missing(is_gpu=is_gpu)
    if lack:
        return Check("warning", f"{lack}: no study can run with `execution: {{compile: true}}`", toolchain.HINT)
    return Check("ok", "torch.compile finds a compiler")


def _built() -> float:
    return Path(ablate.__file__).stat().st_mtime


def _data(data_dir: Path | None) -> Iterator[Check]:
    folder = data_dir or data_folder()
    there = [source.name for source in SOURCES.values() if folder.is_dir() and is_there(source, folder)]
    missing = [source.name for source in SOURCES.values() if source.name not in there]
    if there:
        yield Check("ok", f"data sets in {folder}: {', '.join(there)}")
    if missing:
        hint = "the first trial downloads what it needs; or name the folder with ABLATE_DATA or --data-dir"
        yield Check("warning", f"not in {folder}: {', '.join(missing)}", hint)
