"""What a GPU has used, by the counter of its driver (NVML): no meter at the wall, and nothing of the host."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from ablate.run.memory import LITTLE

_LIBRARY = "libnvidia-ml.so.1"  # comes with the driver; its Python packages are this and no more


@dataclass(frozen=True)
class Meter:
    """One reading: millijoule since the driver was loaded, and whether others hold memory of the GPU."""

    millijoule: int
    shared: bool


class _Memory(ctypes.Structure):
    """``nvmlMemory_t``, in bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def read_meter(uuid: str) -> Meter | None:
    """Return a reading of a GPU on which none of our workers is; None where it counts no energy or no memory.

    GPUs before Volta do not count, nor do parts of one (MIG).
    """
    nvml = _nvml()
    if nvml is None:
        return None
    device, energy, memory = ctypes.c_void_p(), ctypes.c_ulonglong(), _Memory()
    try:
        failed = (
            nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(device))
            or nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(energy))
            or nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory))
        )
    except AttributeError:  # a driver that does not know one of these
        return None
    if failed or not memory.total:
        return None
    return Meter(energy.value, memory.used > memory.total * LITTLE)


def total(readings: Sequence[Meter | None]) -> Meter | None:
    """Return the sum of the readings of several GPUs; None where there are none, or one does not count."""
    found = [each for each in readings if each is not None]
    if not found or len(found) < len(readings):
        return None
    return Meter(sum(each.millijoule for each in found), any(each.shared for each in found))


def read_meters(gpus: Sequence[str]) -> Meter | None:
    """Return what a slot's GPUs have used so far, where all of them count."""
    return total([read_meter(gpu) for gpu in gpus])


def energy_facts(before: Meter | None, after: Meter | None, *, share: int = 1) -> dict[str, str]:
    """Return ``energy_j``, what one attempt used, if it had the GPU to itself; the counter may have begun anew.

    Of ``share`` attempts that were trained in one model, each has an equal part.
    """
    if before is None or after is None or before.shared or after.shared or after.millijoule < before.millijoule:
        return {}
    return {"energy_j": f"{(after.millijoule - before.millijoule) / 1000 / share:.1f}"}


@cache
def _nvml() -> ctypes.CDLL | None:
    """Return the driver's library, ready for use until this process ends; None where there is none."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(_LIBRARY)
        if library.nvmlInit_v2() == 0:
            return library
    return None
