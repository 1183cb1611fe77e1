"""Training iterations as CUDA graphs: what a GPU is told to do in an iteration is noted once, and then told at once.

A small network takes less time to compute than its hundreds of kernels take to be called one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ablate.errors import AblateError

WARM_UP = 3  # iterations before the one that is captured: libraries choose, and allocate, at first (torch's notes)

Iteration = Callable[[Tensor, Tensor], None]  # trains on inputs and labels [B, …]; all that it leaves is in place


class Capture(Protocol):
    """Work that is noted once and done as often as it is replayed, always with the same tensors."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work as it is, before it is captured."""

    def capture(self, work: Callable[[], None]) -> None:
        """Note what the work does, without doing it."""

    def replay(self) -> None:
        """Do what was noted."""


class CudaCapture:
    """A CUDA graph of work on the current device."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._side = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def warm_up(self, work: Callable[[], None]) -> None:
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            work()
        torch.cuda.current_stream().wait_stream(self._side)

    def capture(self, work: Callable[[], None]) -> None:
        with torch.cuda.graph(self._graph):
            work()

    def replay(self) -> None:
        self._graph.replay()


CAPTURES: dict[str, Callable[[], Capture]] = {"cuda": CudaCapture}  # by the type of the device


def check_graphs(device: torch.device) -> None:
    """Raise AblateError where a device has no graphs."""
    if device.type not in CAPTURES:
        hint = "take `graphs` out, or write `resources: {gpus: 1}`"
        raise AblateError(f"`execution.graphs` are CUDA graphs, and the device is `{device.type}`", hint=hint)


class Replayed:
    """An iteration that is captured once and replayed from then on, for batches as large as the first.

    Those before the capture are done one by one, and are iterations of the training as any other. So is a batch of
    another size, the last one of an epoch: which way a batch goes depends on its size and its number alone, and each
    does the same. What the iteration reads and writes besides must stay where it is in memory: weights, the state and
    the rate of the optimizer, sums.
    """

    def __init__(self, iterate: Iteration, device: torch.device) -> None:
        self._iterate = iterate
        self._capture = CAPTURES[device.type]()
        self._held: tuple[Tensor, Tensor] | None = None
        self._done = 0

    def __call__(self, inputs: Tensor, labels: Tensor) -> None:
        if self._held is None:
            self._held = torch.empty_like(inputs), torch.empty_like(labels)
        held_inputs, held_labels = self._held
        if inputs.shape != held_inputs.shape:
            self._iterate(inputs, labels)
            return
        held_inputs.copy_(inputs)
        held_labels.copy_(labels)
        if self._done < WARM_UP:
            self._capture.warm_up(self._on_held)
        else:
            if self._done == WARM_UP:
                self._capture_once()
            self._capture.replay()
        self._done += 1

    def _on_held(self) -> None:
        assert self._held is not None
        self._iterate(*self._held)

    def _capture_once(self) -> None:
        try:
            self._capture.capture(self._on_held)
        except RuntimeError as error:
            first = str(error).partition("\n")[0]
            raise AblateError(
                f"the training iteration can't be a CUDA graph: {first}",
                hint="a network that looks at its own numbers can't be captured; take `graphs` out of `execution`",
            ) from error
