"""``Context``: all that a task sees of ablate."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from ablate.train import checkpoint, scores
from ablate.train.folder import EPOCHS, AttemptFolder, encode_number, make_folder, newest, write_whole
from ablate.train.seeding import stream_seed

# trains one seed of several in one model: from settings, context and what builds the network, to its metrics
Together = Callable[[Mapping[str, Any], "Context", Callable[[Any], torch.nn.Module]], dict[str, float]]


class Diverged(Exception):
    """Raise it where training has left the numbers: a result of the trial, not a failure of it."""


class Interrupted(Exception):
    """The runner asked the worker to stop. The last checkpoint is where the trial goes on."""


class Context:
    """What a task may use besides its settings.

    A task can be called in a notebook with ``Context(seed=1)``: it then runs on the CPU in a temporary folder.

    seed      the replicate's seed; prefer ``generator`` to using it directly
    device    the device to train on
    dtype     the arithmetic of the forward pass, from the study's ``execution``
    memory_format  how images and convolutions lie in memory, from there as well
    compile   whether to compile the network by torch.compile, likewise
    graphs    whether to replay iterations as CUDA graphs, likewise
    folder    the attempt's folder; see ``artifact`` and ``earlier``
    metrics   the metrics that the study declares, the primary one first; none in a notebook
    together  what trains this seed in one model with others, for ``train_classifier``; None where it trains by itself
    """

    def __init__(
        self,
        *,
        seed: int,
        folder: str | Path | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        compile: bool = False,
        graphs: bool = False,
        earlier: Sequence[str] = (),
        fingerprint: str = "",
        metrics: Sequence[str] = (),
        shorter: Mapping[str, str] = MappingProxyType({}),
        keeps_end: bool = False,
        stop_requested: Callable[[], bool] = lambda: False,
        together: Together | None = None,
    ) -> None:
        self.seed = seed
        self.device = torch.device(device)
        self.dtype = dtype
        self.memory_format = memory_format
        self.compile = compile
        self.graphs = graphs
        self.folder = Path(folder) if folder else Path(tempfile.mkdtemp(prefix="ablate-"))
        if not self.folder.is_dir():
            make_folder(self.folder)
        self.metrics = tuple(metrics)
        self.together = together
        self.resumed_from = ""
        self.facts: dict[str, str] = {}
        self._files = AttemptFolder(self.folder)
        self._earlier = earlier
        self._fingerprint = fingerprint
        self._shorter = shorter
        self._keeps_end = keeps_end
        self._began = time.monotonic()
        self._stop_requested = stop_requested
        self._records: list[dict[str, Any]] = []

    def record(self, *, epoch: int, epochs: int | None = None, **values: float) -> None:
        """Record numbers of one epoch (counted from 1). ``epochs``, if given, tells the live view how many there are.

        The same epoch may be recorded again: the later value holds. NaN and infinities are kept as they are.
        """
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"record({name}={value!r}): a metric is a plain number; use .item() on a tensor")
        if not -EPOCHS < int(epoch) < EPOCHS:
            raise ValueError(f"record(epoch={epoch}): an epoch is a count below {EPOCHS}")
        line: dict[str, Any] = {"epoch": int(epoch), "time": time.time()}
        if epochs is not None:
            line["epochs"] = int(epochs)
        line["values"] = {name: encode_number(value) for name, value in values.items()}
        self._records.append(line)
        self._files.append_record(line)

    @property
    def records(self) -> list[dict[str, Any]]:
        """What was recorded so far, with that of earlier attempts that this one went on from: a dict for each call."""
        return [{"epoch": line["epoch"], **line["values"]} for line in self._records]

    def generator(self, role: str, epoch: int = 0) -> torch.Generator:
        """Return a fresh CPU generator for one role (``init``, ``order``, ``augment``, ``noise``, or your own word)."""
        return torch.Generator().manual_seed(stream_seed(self.seed, role, epoch))

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Keep ``state`` (tensors, numbers, strings, lists and dicts of them) durably; the records go with it."""
        checkpoint.save(self._files.checkpoints, state, self._records, fingerprint=self._fingerprint)

    def resume(self) -> dict[str, Any] | None:
        """Return the state of the last sound checkpoint of this trial's earlier attempts, or None to start afresh.

        What was recorded up to that checkpoint is recorded again here, so that each folder is complete in itself.
        """
        for folder in self._earlier:
            saved = checkpoint.load(AttemptFolder(folder).checkpoints, fingerprint=self._fingerprint)
            if saved is None:
                continue
            self.resumed_from = Path(folder).name
            self._record_again(saved["records"])
            state: dict[str, Any] = saved["state"]
            return state
        return None

    @property
    def is_one_of_several(self) -> bool:
        """True where other trials of the study differ from this one in the number of epochs alone."""
        return bool(self._shorter) or self._keeps_end

    def resume_shorter(self, signature: str) -> dict[str, Any] | None:
        """Return the state at the end of a shorter trial, or None. For ablate's own loop, as a first attempt begins.

        ``signature`` is a hash of all that the training depends on but for its number of epochs: where that trial had
        another, its end is no beginning of ours. What it recorded is recorded here too, so that curves are whole.
        """
        for fingerprint, folder in self._shorter.items():
            saved = checkpoint.load(AttemptFolder(folder).end, fingerprint=fingerprint)
            if saved is None:
                continue
            state: dict[str, Any] = saved["state"]
            if state.get("signature") != signature:
                print(f"ablate: not gone on from {folder}: it was trained in another way", file=sys.stderr)
                continue
            self._record_again([{key: line[key] for key in ("epoch", "time", "values")} for line in saved["records"]])
            reused = {"epochs": str(state["epoch"]), "seconds": f"{state['took']:.3f}", "from": fingerprint}
            return {**state, "reused": reused}
        return None

    def keep_end(self, state: dict[str, Any], signature: str) -> None:
        """Keep the state after the last epoch, if a longer trial may go on from it."""
        if self._keeps_end:
            took = time.monotonic() - self._began + float(state["reused"].get("seconds", 0))
            whole = {**state, "signature": signature, "took": took}
            checkpoint.save(self._files.end, whole, self._records, fingerprint=self._fingerprint)

    def earlier(self, name: str) -> Path | None:
        """Return the newest file called ``name`` in the last earlier attempt's folder that has one, or None.

        For libraries that write checkpoints of their own below ``folder``. ``*`` in the name stands for any characters.
        What that attempt recorded is recorded again here; epochs that are trained again overwrite it.
        """
        for folder in map(Path, self._earlier):
            if found := newest(folder, name):
                self.go_on_from(folder)
                return found
        return None

    def go_on_from(self, folder: Path) -> None:
        """Note from which attempt's folder this one goes on, and record again what was recorded there."""
        records, offset = AttemptFolder(folder).records()
        while records:
            self._record_again(records)
            records, offset = AttemptFolder(folder).records(offset)
        self.resumed_from = folder.name

    def _record_again(self, records: Sequence[dict[str, Any]]) -> None:
        for line in records:
            self._records.append(line)
            self._files.append_record(line)

    def scores(self, ids: Sequence[int], values: Sequence[float]) -> None:
        """Keep one score per example, for analysis example by example: what each adds to the study's primary metric.

        In the metric's unit, so that their mean is the value that the task returns for it: 100 or 0 for right and
        wrong where that is an accuracy in %. Equal ids mean equal examples, in every arm and seed. Two different
        values are kept as they are, more are rounded to float32. The last call holds. Raises ValueError for an id
        that is there twice and a score that is not finite.
        """
        scores.write(self._files.scores_file, scores.checked(ids, values))

    def artifact(self, name: str, data: bytes) -> Path:
        """Keep a file in the attempt's ``artifacts`` folder and return its path. ``name`` is a plain file name."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", name):
            raise ValueError(f"artifact name {name!r}: use letters, digits, '.', '_' and '-'")
        make_folder(self._files.artifacts)
        path = self._files.artifacts / name
        write_whole(path, data, what="artifact")
        return path

    def fact(self, name: str, value: str) -> None:
        """Note something about this attempt that is not declared and not measured, such as the hash of its data."""
        self.facts[str(name)] = str(value)

    @property
    def stop_requested(self) -> bool:
        """True once the runner wants this attempt to end; return soon, or call ``raise_if_stopped``."""
        return self._stop_requested()

    def raise_if_stopped(self) -> None:
        """Raise Interrupted if the runner wants this attempt to end. Cheap: call it between batches."""
        if self._stop_requested():
            raise Interrupted
