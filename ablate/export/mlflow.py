"""MLflow: an experiment per study and a run per trial, in a database file that `mlflow ui` shows.

A run carries the key of what it was made from. One that is there complete is left alone; one that was cut short, or
shows what is no longer so, is deleted and written anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.errors import AblateError, EnvironmentFault
from ablate.export.records import Record, check_installed
from ablate.failpoints import failpoint
from ablate.study.settings import show

if TYPE_CHECKING:
    from mlflow import MlflowClient

_KEY, _PLACE = "ablate.key", "ablate.run"
_BATCH = {"metrics": 1000, "params": 100}  # as many as a call may hold
_LONGEST = {"params": 6000, "tags": 5000}  # characters
_PAGE = 1000
_MAGIC = b"SQLite format 3\0"  # how every database of it begins
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING", "DO_NOT_TRACK": "1"}


def write_runs(records: Sequence[Record], place: Path) -> str:
    """Write the runs of one study into ``place``/mlflow.db, and return its URL. Raises OSError and AblateError.

    A database, because MLflow takes no new runs into its folders of runs any more; files of trials lie beside it.
    """
    check_installed("mlflow")
    os.environ.update(_QUIET)  # read when it is imported: nothing is sent anywhere
    url = f"sqlite:///{place.resolve() / 'mlflow.db'}"
    if set(url) & set("?#%"):
        raise AblateError("MLflow takes no path with `?`, `#` or `%`", where=str(place), hint="name another folder")
    failpoint("export-mlflow-begun")
    place.mkdir(parents=True, exist_ok=True)
    _check_database(place / "mlflow.db")
    from mlflow.exceptions import MlflowException

    try:
        _write_all(records, place.resolve(), url)
    except MlflowException as error:
        what = f"MLflow refuses it: {str(error).strip().splitlines()[0]}"
        raise EnvironmentFault(what, where=url, hint="name another folder") from None
    return url


def _check_database(path: Path) -> None:
    """Raise where something else has the database's name: MLflow would try to open it for minutes, and then crash."""
    if not path.exists():
        return
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) in (b"", _MAGIC):
            return
    raise EnvironmentFault("it is no SQLite database", where=str(path), hint="name another folder")


def _write_all(records: Sequence[Record], place: Path, url: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=url)
    title = records[0].study
    found = client.get_experiment_by_name(title)
    files = (place / "files").as_uri()
    experiment = found.experiment_id if found else client.create_experiment(title, artifact_location=files)
    known = {run.data.tags[_PLACE]: run for run in _runs(client, experiment) if _PLACE in run.data.tags}
    for record in records:
        former = known.get(record.name)
        if former is not None and former.data.tags.get(_KEY) == record.key:
            continue
        if former is not None:
            client.delete_run(former.info.run_id)
        _write(client, experiment, record)


def _runs(client: MlflowClient, experiment: str) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = client.search_runs([experiment], max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _write(client: MlflowClient, experiment: str, record: Record) -> None:
    from mlflow.entities import Metric, Param

    tags = {_safe(f"ablate.{name}"): value[: _LONGEST["tags"]] for name, value in record.facts.items() if value}
    told = {"arm": record.arm, "seed": str(record.seed), "role": record.role, "outcome": record.outcome}
    told |= {"reason": record.reason, "title": record.title, "candidate": str(record.candidate or "")}
    tags |= {name: value[: _LONGEST["tags"]] for name, value in told.items() if value}
    failpoint("export-mlflow-run")
    run = client.create_run(
        experiment, start_time=_ms(record.started), tags={**tags, _PLACE: record.name}, run_name=record.name
    ).info.run_id
    texts = {path: value if isinstance(value, str) else show(value) for path, value in record.settings.items()}
    params = [Param(_safe(path), text[: _LONGEST["params"]]) for path, text in texts.items()]
    for start in range(0, len(params), _BATCH["params"]):
        client.log_batch(run, params=params[start : start + _BATCH["params"]])
    metrics = [
        Metric(_safe(name), value, _ms(record.at(epoch)), epoch)
        for epoch, values in record.epochs.items()
        for name, value in values.items()
    ]
    metrics += [
        Metric(_safe(f"final/{name}"), value, _ms(record.ended), record.last_epoch)
        for name, value in record.finals.items()
    ]
    for start in range(0, len(metrics), _BATCH["metrics"]):
        client.log_batch(run, metrics=metrics[start : start + _BATCH["metrics"]])
    for path in record.own_files("artifacts"):
        client.log_artifact(run, str(path))
    client.set_terminated(run, "FINISHED" if record.state == "done" else "FAILED", end_time=_ms(record.ended))
    client.set_tag(run, _KEY, record.key)  # the last word: a run without it was cut short


def _safe(name: str) -> str:
    """Return a name as MLflow takes it."""
    return re.sub(r"[^\w./ -]", "_", name, flags=re.ASCII)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
