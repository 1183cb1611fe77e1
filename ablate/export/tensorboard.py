"""TensorBoard: a folder per trial, with its curves, its settings for the HPARAMS page and what it ran on as a text.

The same results are the same bytes under the same names, so that exporting twice is the same as exporting once.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ablate.export.records import Record, check_installed
from ablate.failpoints import failpoint
from ablate.study.settings import canonical, show

_FILE = "events.out.tfevents.0.ablate"  # TensorBoard reads what has `tfevents` in its name
_OWN = "own"  # event files that the task itself wrote, beside those made here


def write_runs(records: Sequence[Record], place: Path) -> Path:
    """Write the runs of one study into a folder of its title, and return that. Raises OSError and AblateError."""
    check_installed("tensorboard")
    folder = place / records[0].study
    _put(folder / _FILE, _events([(records[0].started, 0, _experiment(records))]))
    for record in records:
        _put(folder / record.name / _FILE, _events(_run(record)))
        for path in record.own_files("tensorboard", "*tfevents*"):
            _put(folder / record.name / _OWN / path.name, path.read_bytes())
    return folder


def _put(path: Path, data: bytes) -> None:
    """Write a file whole; one that is the same is left alone, so that a TensorBoard at work does not read it again."""
    if path.is_file() and path.read_bytes() == data:
        return
    failpoint("export-begun", meets_disk=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name.replace('tfevents', 'half')}")
    half.write_bytes(data)
    os.replace(half, path)


def _events(summaries: Sequence[tuple[float, int, Any]]) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    file = io.BytesIO()
    writer = RecordWriter(file)
    writer.write(Event(wall_time=summaries[0][0], file_version="brain.Event:2").SerializeToString())
    for wall_time, step, summary in summaries:
        writer.write(Event(wall_time=wall_time, step=step, summary=_settled(summary)).SerializeToString())
    return file.getvalue()


def _settled(summary: Any) -> Any:
    """Return a summary whose settings, a map within, stand in one order: else each process would write other bytes."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    for value in summary.value:
        data = value.metadata.plugin_data
        if data.plugin_name == "hparams":
            data.content = HParamsPluginData.FromString(data.content).SerializeToString(deterministic=True)
    return summary


def _experiment(records: Sequence[Record]) -> Any:
    from tensorboard.plugins.hparams import summary_v2 as hparams

    levels: dict[str, dict[str, Any]] = {}
    for record in records:
        for name, value in _hparams(record).items():
            levels.setdefault(name, {})[canonical(value)] = value
    finals = dict.fromkeys(name for record in records for name in record.finals)
    return hparams.hparams_config_pb(
        hparams=[hparams.HParam(name, _domain(list(found.values()))) for name, found in levels.items()],
        metrics=[hparams.Metric(f"final/{name}", display_name=name) for name in finals],
        time_created_secs=records[0].started,
    )


def _domain(values: list[Any]) -> Any:
    """Return the levels that there are, for the page's filters; of mixed kinds there are no such."""
    from tensorboard.plugins.hparams import summary_v2 as hparams

    kinds = {type(value) for value in values}
    return hparams.Discrete(values, dtype=kinds.pop()) if len(kinds) == 1 else None


def _hparams(record: Record) -> dict[str, Any]:
    """Return arm, seed and the settings that vary, as the plugin knows them: truth values, numbers, text."""
    settings = {path: record.settings[path] for path in record.varied}
    named = {f"setting {path}" if path in ("arm", "seed") else path: value for path, value in settings.items()}
    plain = {
        path: value if isinstance(value, (bool, int, float, str)) else show(value) for path, value in named.items()
    }
    return {"arm": record.arm, "seed": record.seed, **plain}


def _run(record: Record) -> list[tuple[float, int, Any]]:
    from tensorboard.plugins.hparams import summary_v2 as hparams
    from tensorboard.plugins.text.summary_v2 import text_pb

    start = hparams.hparams_pb(_hparams(record), trial_id=record.key, start_time_secs=record.started)
    return [
        (record.started, 0, start),
        (record.started, 0, text_pb("ablate", _table(record))),
        *_scalars(record),
        (record.ended, record.last_epoch, _session_end(record)),
    ]


def _scalars(record: Record) -> Iterator[tuple[float, int, Any]]:
    from tensorboard.compat.proto.summary_pb2 import Summary

    for epoch, values in record.epochs.items():
        for name, value in values.items():
            yield record.at(epoch), epoch, Summary(value=[Summary.Value(tag=name, simple_value=value)])
    for name, value in record.finals.items():
        final = Summary(value=[Summary.Value(tag=f"final/{name}", simple_value=value)])
        yield record.ended, record.last_epoch, final


def _session_end(record: Record) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = api_pb2.STATUS_SUCCESS if record.state == "done" else api_pb2.STATUS_FAILURE
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=record.ended)
    told = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=told, tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])


def _table(record: Record) -> str:
    """Return all that is known of a trial as a Markdown table, its texts as code: they are shown as they are."""
    told = {
        "study": record.study, "arm": record.arm, "title": record.title, "role": record.role, "seed": record.seed,
        "outcome": record.outcome, "reason": record.reason, **record.settings, **record.facts,
    }  # fmt: skip
    rows = [
        f"| {_code(name)} | {_code(value if isinstance(value, str) else show(value))} |" for name, value in told.items()
    ]
    return "\n".join(["| | |", "|:--|:--|", *rows])


def _code(text: str) -> str:
    plain = "".join(c if c.isprintable() else " " for c in text).replace("|", "¦").replace("`", "'").strip()
    return f"`{plain}`" if plain else ""
