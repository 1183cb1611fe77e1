"""The program: the list of commands, and what each end of one says and returns."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import shlex
import signal
import sys
import time
import traceback
from typing import Any

import click

from ablate import __version__
from ablate.cli import agents, reports, running, studies, tools, watching
from ablate.cli.common import existing_store, say
from ablate.cli.options import LOCATION, Group
from ablate.errors import (
    EXIT_BUG,
    EXIT_ENVIRONMENT,
    EXIT_INTERRUPTED,
    EXIT_REQUEST,
    AblateError,
    Fault,
    StoreError,
)
from ablate.failpoints import failpoint
from ablate.report.text import make_streams_safe
from ablate.study.words import without_secrets


class _ReaderGone(Exception):
    """The reader of our pipe has gone (`| head`)."""


class _Commands(Group):
    """Lists the commands in the order of a study's life, not of the alphabet."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _ReaderGone from None  # click would make it exit code 1, which says that trials failed
        except (AblateError, click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception as error:
            damage = _damage_of_store(ctx.meta.get(LOCATION)) if LOCATION in ctx.meta else None
            if damage is None:
                raise
            raise damage from error

    def list_commands(self, _: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ablate")
def cli() -> None:
    """Ablation studies in PyTorch: one YAML file to a table you can publish.

    \b
    ablate init mine            write a study to begin with: mine.yaml, mine.py
    ablate plan mine.yaml       what would run, and what it costs
    ablate run mine.yaml        run it; the same command resumes it
    ablate report --markdown    the table of the study last run
    """


# in the order of a study's life
for _command in (
    studies.init,
    studies.plan,
    studies.validate,
    running.run,
    running.import_results,
    agents.agent,
    agents.agents,
    watching.status,
    watching.watch,
    watching.logs,
    watching.show,
    reports.report,
    reports.export,
    reports.compare,
    running.retry,
    tools.mirror,
    tools.dashboard,
    tools.doctor,
    studies.schema,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line and exit with one of the codes of ``ablate.errors``."""
    gc.set_threshold(50_000)  # to import is to make much and drop nothing: a tenth of a command's CPU went into looking
    atexit.register(gc.freeze)  # else the interpreter takes all that apart before it ends: a quarter of a command's CPU
    make_streams_safe()
    try:
        try:
            status = cli.main(prog_name="ablate", standalone_mode=False)
        except SystemExit as end:
            status = end.code
        sys.stdout.flush()
    except AblateError as error:
        say(str(error))
        sys.exit(error.exit_code)
    except click.UsageError as error:
        say(str(Fault(_lower(error.format_message()), hint=_usage_hint(error))))
        sys.exit(EXIT_REQUEST)
    except click.ClickException as error:
        say(str(Fault(_lower(error.format_message()))))
        sys.exit(EXIT_REQUEST)
    except (KeyboardInterrupt, click.Abort):
        say("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except (BrokenPipeError, _ReaderGone):
        _drop_output()  # not an error
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            say(str(_refusal(error)))
            _drop_output()
            sys.exit(EXIT_ENVIRONMENT)
        say(without_secrets(f"error: a fault of ablate itself: {type(error).__name__}: {error}"))
        _say_crash()
        sys.exit(EXIT_BUG)
    sys.exit(status if isinstance(status, int) else 0)


def _damage_of_store(location: str | None) -> StoreError | None:
    """Return what is wrong with the store that a command failed on; None where it is sound, and the fault is ours."""
    from ablate.store.integrity import store_flaws

    try:
        store = existing_store(location)
        flaws = store_flaws(store, thorough=True) if store is not None else []
    except StoreError as error:
        return error
    if store is None or not flaws:
        return None
    hint = "`ablate doctor --verify` lists all that is wrong; ablate leaves the file as it is"
    return StoreError(f"the store is damaged: {flaws[0]}", where=store.name, hint=hint)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


def _usage_hint(error: click.UsageError) -> str:
    return f"`{error.ctx.command_path} --help` shows how it is used" if error.ctx else "`ablate --help`"


# what a disk says of itself: full, over the quota, at the limit of a file's size, read-only, not ours, broken
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def _drop_output() -> None:
    """Let nothing be flushed again at exit: nobody takes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refusal(error: OSError) -> Fault:
    """Return what a user can act on, where the disk or whoever reads our output refused to take what was written."""
    where = str(error.filename or "output")
    return Fault(f"it can't be written: {error.strerror}", where=where, hint="free some space, or make it writable")


def _say_crash() -> None:
    """Keep the traceback in a file that can be sent to others, and say where; on a full disk, say all of it."""
    text = f"ablate {__version__}, {sys.version}\n{shlex.join(sys.argv)}\n\n{traceback.format_exc()}"
    text = without_secrets(text)
    import tempfile

    try:
        failpoint("crash-begun")
        descriptor, path = tempfile.mkstemp(".txt", f"ablate-crash-{time.strftime('%Y%m%d-%H%M%S')}-")
        with open(descriptor, "w") as file:
            file.write(text)
    except Exception as error:  # whatever it is, the traceback must not be lost to it
        say(f"hint: please report it with these lines; no file could be written ({error})\n{text}")
    else:
        say(f"hint: please report it with this file: {path}")
