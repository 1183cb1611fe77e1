"""Where a command leaves its metrics: printed lines, a JSON or CSV file, or TensorBoard's event files."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.errors import AblateError
from ablate.study.schema import MetricsFrom

LARGEST = 64 << 20  # bytes of a file with metrics
LARGEST_LINE = 1 << 20
_EPOCH = "epoch"


@dataclass(frozen=True)
class Reading:
    """Values of declared metrics, as found together; ``epoch`` is None where the source tells none."""

    epoch: int | None
    values: Mapping[str, float]


class Source:
    """Finds the values of declared metrics. ``seen`` collects the numbers that the source has, by its own ``names``."""

    def __init__(self, metrics: Sequence[str], names: Mapping[str, str]) -> None:
        self.seen: dict[str, None] = {}
        self.names = {metric: names.get(metric, metric) for metric in metrics}

    def printed(self, line: str) -> Iterator[Reading]:  # noqa: ARG002
        """Yield what a printed line tells."""
        return iter(())

    def polled(self, *, ended: bool) -> Iterator[Reading]:  # noqa: ARG002
        """Yield what files tell that was not told before. ``ended``: the command writes no more."""
        return iter(())

    def _reading(self, values: Mapping[str, Any], find: Callable[[str], Any], epoch: Any) -> Iterator[Reading]:
        self.seen.update(dict.fromkeys(_paths(values)))
        found = {metric: find(name) for metric, name in self.names.items()}
        numbers = {metric: _number(metric, value) for metric, value in found.items() if value is not None}
        if numbers:
            yield Reading(_whole(epoch), numbers)


class PrintedJson(Source):
    """Lines that are a JSON object, such as ``{"epoch": 3, "val_acc": 71.2}``; all others are passed over."""

    def printed(self, line: str) -> Iterator[Reading]:
        if line.lstrip().startswith("{"):
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                return
            yield from self._reading(found, lambda name: _at(found, name), found.get(_EPOCH))


class PrintedText(Source):
    """Lines that a pattern with named groups finds something in."""

    def __init__(self, metrics: Sequence[str], names: Mapping[str, str], patterns: Sequence[str]) -> None:
        super().__init__(metrics, names)
        self._patterns = [re.compile(pattern) for pattern in patterns]
        self._epoch: str | None = None

    def printed(self, line: str) -> Iterator[Reading]:
        for pattern in self._patterns:
            for match in pattern.finditer(line):
                groups = {name: text for name, text in match.groupdict().items() if text is not None}
                # the epoch may stand in a line above the numbers
                self._epoch = groups.pop(_EPOCH, self._epoch)
                yield from self._reading(groups, groups.get, self._epoch)


class JsonFile(Source):
    """One JSON object, read when the command has ended."""

    def __init__(self, metrics: Sequence[str], names: Mapping[str, str], path: Path) -> None:
        super().__init__(metrics, names)
        self._path = path

    def polled(self, *, ended: bool) -> Iterator[Reading]:
        text = _text(self._path) if ended else None
        if text is None:
            return
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise AblateError(f"the metrics are no JSON: {error}", where=str(self._path)) from None
        if not isinstance(found, dict):
            raise AblateError("the metrics are no JSON object", where=str(self._path))
        yield from self._reading(found, lambda name: _at(found, name), found.get(_EPOCH))


class JsonLines(PrintedJson):
    """A file of JSON lines, read as it grows."""

    def __init__(self, metrics: Sequence[str], names: Mapping[str, str], path: Path) -> None:
        super().__init__(metrics, names)
        self._path, self._done = path, 0

    def polled(self, *, ended: bool) -> Iterator[Reading]:
        lines = (_text(self._path) or "").splitlines(keepends=True)
        whole = [line for line in lines if ended or line.endswith("\n")]
        for line in whole[self._done :]:
            yield from self.printed(line)
        self._done = len(whole)


class CsvFile(Source):
    """A CSV file with a header, whose rows are epochs; read as it grows."""

    def __init__(self, metrics: Sequence[str], names: Mapping[str, str], path: Path) -> None:
        super().__init__(metrics, names)
        self._path, self._done = path, 0

    def polled(self, *, ended: bool) -> Iterator[Reading]:
        text = _text(self._path) or ""
        if not ended:
            text = text[: text.rfind("\n") + 1]
        rows = list(csv.DictReader(io.StringIO(text), skipinitialspace=True))
        for number, row in enumerate(rows[self._done :], start=self._done + 1):
            values = {name.strip(): value for name, value in row.items() if name and value}
            yield from self._reading(values, values.get, values.get(_EPOCH, number))
        self._done = len(rows)


class EventFiles(Source):
    """Scalars of TensorBoard's event files; the step of each is its epoch."""

    def __init__(self, metrics: Sequence[str], names: Mapping[str, str], folder: Path) -> None:
        super().__init__(metrics, names)
        try:
            from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
        except ModuleNotFoundError:
            hint = "pip install tensorboard"
            raise AblateError("tensorboard is not installed, which reads its event files", hint=hint) from None
        self._folder = folder
        self._events = EventMultiplexer(size_guidance={"scalars": 0, "tensors": 0})  # all of them
        self._done: dict[tuple[str, str], int] = {}

    def polled(self, *, ended: bool) -> Iterator[Reading]:  # noqa: ARG002
        if not self._folder.is_dir():
            return
        self._events.AddRunsFromDirectory(str(self._folder))
        self._events.Reload()
        for run in self._events.Runs():
            for tag, points in self._scalars(run):
                done = self._done.get((run, tag), 0)
                self._done[run, tag] = len(points)
                for step, value in points[done:]:
                    yield from self._reading({tag: value}, {tag: value}.get, step)

    def _scalars(self, run: str) -> Iterator[tuple[str, list[tuple[int, float]]]]:
        from tensorboard.util.tensor_util import make_ndarray

        tags = self._events.GetAccumulator(run).Tags()
        for tag in tags["scalars"]:
            yield tag, [(event.step, event.value) for event in self._events.Scalars(run, tag)]
        for tag in tags["tensors"]:  # how newer writers keep scalars
            events = [(event.step, make_ndarray(event.tensor_proto)) for event in self._events.Tensors(run, tag)]
            yield (
                tag,
                [(step, float(value)) for step, value in events if value.shape == () and value.dtype.kind in "fi"],
            )


def source_of(found: MetricsFrom, metrics: Sequence[str], path: Callable[[str], Path]) -> Source:
    """Return the source that a task declares. ``path`` fills the placeholders of a path."""
    if found.pattern:
        return PrintedText(metrics, found.names, found.pattern)
    if found.csv:
        return CsvFile(metrics, found.names, path(found.csv))
    if found.tensorboard:
        return EventFiles(metrics, found.names, path(found.tensorboard))
    if found.json_:
        file = path(found.json_)
        return (JsonLines if file.suffix == ".jsonl" else JsonFile)(metrics, found.names, file)
    return PrintedJson(metrics, found.names)


def _paths(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of what is found; of a mapping below, the dotted paths that lead into it."""
    groups = [("", found)]
    for above, group in groups:
        for name, value in group.items():
            if isinstance(value, dict) and value:
                groups.append((f"{above}{name}.", value))
            else:
                yield f"{above}{name}"


def _at(found: Mapping[str, Any], name: str) -> Any:
    """Return the value of a key, or of a dotted path of keys."""
    if name in found:
        return found[name]
    first, dot, rest = name.partition(".")
    below = found.get(first)
    return _at(below, rest) if dot and isinstance(below, dict) else None


def _number(metric: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise AblateError(f"`{metric}` is {value!r:.60}, which is no number") from None


def _whole(epoch: Any) -> int | None:
    """Return an epoch that is a whole number, however it is written."""
    try:
        number = float(epoch)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None


def _text(path: Path) -> str | None:
    """Return a file's text, None where there is none yet. Raises AblateError for what can't be one."""
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > LARGEST:
            raise AblateError(f"the metrics take more than {LARGEST >> 20} MiB", where=str(path))
        return path.read_text(errors="replace")
    except OSError as error:
        raise AblateError(f"the metrics can't be read: {error.strerror}", where=str(path)) from None
