"""A network by torch's compiler: once for each architecture in a process, and from its files in every later one.

The compiler keeps what it has made with the code of the forward pass, and checks what it depends on (layers, shapes,
arithmetic) before it takes it for another network: weights are not among that, so the next seed finds all done. What
depends on time or on the past is turned off, as a trial's bits must not depend on what its worker did before.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ablate.errors import AblateError, EnvironmentFault
from ablate.train.context import Context
from ablate.train.folder import refusals, room_left
from ablate.train.toolchain import HINT, WHOLE, cpp_compiler, missing

MANY = 1 << 20  # architectures in a process: beyond torch's eight it would go on uncompiled, with other bits


def prepare_compiler(device: torch.device) -> None:
    """Set torch's compiler up for this process. Raises EnvironmentFault where it lacks something."""
    if lack := missing(is_gpu=device.type == "cuda"):
        raise EnvironmentFault(lack, hint=HINT)
    from torch import hub
    from torch._dynamo import config as tracing
    from torch._functorch import config as parting
    from torch._inductor import config as writing
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    tracing.automatic_dynamic_shapes = False  # a second batch size would give code for any size, and so other bits
    tracing.recompile_limit = tracing.accumulated_recompile_limit = MANY
    tracing.fail_on_recompile_limit_hit = True
    parting.force_non_lazy_backward_lowering = True  # both passes at once, so that both are counted, timed, explained
    writing.deterministic = True  # no choice by timing where it matters to the bits
    writing.compile_threads = 1  # a pool of processes would stay, and a trial has one core
    writing.cpp.cxx = (None, f"sh {shlex.quote(str(WHOLE))} {cpp_compiler()}")
    writing.cpp_cache_precompile_headers = shutil.which("openssl") is not None  # which they are hashed by
    # a thread for progress bars that are not shown: a warm worker with one would end
    hub.tqdm.monitor_interval = 0  # type: ignore[attr-defined]
    with refusals(Path(default_cache_dir()), "what torch's compiler makes"):
        for folder in (cache_dir(), default_cache_dir()):
            _refuse_strangers(Path(folder))


def _refuse_strangers(folder: Path) -> None:
    """Raise EnvironmentFault where others than we may write: what lies there is run as code."""
    if not folder.exists():
        return  # torch will make it
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o002:
        raise EnvironmentFault(
            "others may write to the folder of torch's compiler, and what lies there is run",
            where=str(folder),
            hint="name a folder of your own with TORCHINDUCTOR_CACHE_DIR and TMPDIR",
        )


class Trained:
    """A network as its training calls it. Where it is to be compiled, batches of ``whole`` inputs are; the last one
    of an epoch, which is smaller, is not: it would take as long to compile again, for one batch in an epoch.
    """

    def __init__(self, net: nn.Module, *, whole: int, compile: bool) -> None:
        self._net = net
        self._whole = whole
        self._compiled = torch.compile(net, dynamic=False) if compile else None
        self._compiles = 0
        self._seconds = self._asked_seconds = 0.0

    def __call__(self, inputs: Tensor) -> Tensor:
        if self._compiled is None or len(inputs) != self._whole:
            return self._net(inputs)  # type: ignore[no-any-return]
        before, began = _compiles(), time.perf_counter()
        try:
            out: Tensor = self._compiled(inputs)
        except RuntimeError as error:
            from torch._dynamo.exc import TorchDynamoException

            if not isinstance(error, TorchDynamoException):
                raise
            self._net(inputs)  # a mistake of the network itself reads better without a compiler around it
            raise _fault(error) from error
        if _compiles() > before:
            self._compiles += _compiles() - before
            self._seconds += time.perf_counter() - began
        return out

    def compiling_s(self) -> float:
        """Return how long it has compiled since this was last asked: no part of what training takes."""
        took, self._asked_seconds = self._seconds - self._asked_seconds, self._seconds
        return took

    def note(self, context: Context) -> None:
        """Note how often this attempt compiled, and for how long; 0 where its worker, or an arm like it, had before."""
        if self._compiled is not None:
            context.fact("compiles", str(self._compiles))
            context.fact("compile_seconds", f"{self._seconds:.1f}")


def _compiles() -> int:
    """Return how many pieces of networks this process has compiled, or found in files."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _fault(error: BaseException) -> AblateError:
    """Return what torch's compiler died of, as the disk's fault where it is."""
    lines = [line for each in _causes(error) for line in str(each).splitlines()]
    if any("No space left on device" in line for line in lines):
        folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        return EnvironmentFault(
            f"the compiled network can't be written: No space left on device ({room_left(folder)})",
            where=str(folder),
            hint="free some space, or name another folder with TORCHINDUCTOR_CACHE_DIR and TMPDIR",
        )
    first = next((line for line in lines if "error: " in line), lines[0] if lines else type(error).__name__)
    return AblateError(f"the network can't be compiled: {first.strip()}", hint="take `compile` out of `execution`")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = getattr(seen, "inner_exception", None) or seen.__cause__
