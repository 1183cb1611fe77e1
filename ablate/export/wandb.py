"""Weights & Biases: an offline run per trial, in a folder; `wandb sync` sends them, should you want it to.

A run's id is the key of what it was made from, so that one that was sent is not sent twice as another. A run that is
complete has a mark in its folder and is left alone; one that was cut short is written anew.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablate.errors import EnvironmentFault
from ablate.export.records import Record, check_installed
from ablate.failpoints import failpoint

_MARK = "ablate-complete"
_MAX_TAG = 64
_QUIET = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true", "DO_NOT_TRACK": "1"}


def write_runs(records: Sequence[Record], place: Path) -> Path:
    """Write the runs of one study as offline runs, and return their folder. Raises OSError and AblateError."""
    check_installed("wandb")
    os.environ.update(_QUIET)  # read when it is imported: nothing is sent anywhere
    failpoint("export-wandb-begun")
    place.mkdir(parents=True, exist_ok=True)
    import wandb

    runs = place / "wandb"
    for record in records:
        there = sorted(runs.glob(f"offline-run-*-{record.key}"))
        if any((folder / _MARK).exists() for folder in there):
            continue
        failpoint("export-wandb-run")
        for folder in there:
            shutil.rmtree(folder)
        try:
            _write(record, place)
        except wandb.Error as error:
            raise EnvironmentFault(f"wandb refuses it: {str(error).strip()}", where=str(place)) from None
        for folder in runs.glob(f"offline-run-*-{record.key}"):
            (folder / _MARK).touch()
    return runs


def _write(record: Record, place: Path) -> None:
    import wandb

    run = wandb.init(
        mode="offline",
        dir=place,
        project=record.study,
        id=record.key,
        name=record.name,
        group=record.arm,
        job_type=record.role,
        notes=record.title,
        tags=[text[:_MAX_TAG] for text in (record.arm, record.outcome) if text],
        config=_config(record),
        settings=wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, disable_job_creation=True,
            x_disable_stats=True, x_disable_meta=True, x_save_requirements=False,
        ),
    )  # fmt: skip
    for epoch, values in record.epochs.items():
        run.log({"epoch": epoch, **values}, step=epoch)
    # logged, as wandb writes a NaN of the summary as null
    run.log({f"final/{name}": value for name, value in record.finals.items()}, step=record.last_epoch)
    run.finish(exit_code=0 if record.state == "done" else 1)


def _config(record: Record) -> dict[str, Any]:
    """Return settings by their path; what a trial is and ran on beside them, under a name that no setting has."""
    own = {
        "arm": record.arm, "seed": record.seed, "role": record.role, "candidate": record.candidate,
        "outcome": record.outcome, "reason": record.reason, "started": record.started, "ended": record.ended,
        **record.facts,
    }  # fmt: skip
    return {**record.settings, **{f"ablate/{name}": value for name, value in own.items()}}
