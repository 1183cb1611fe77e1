"""Energy by NVML's counter. The driver is played by a library of ours with the documented functions: no GPU is here.

What it shows is that the calls have the right names, order and types, and what becomes of the numbers; that a real
driver counts right is for NVIDIA to say.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ablate.analyse.analysis import analyse
from ablate.api import render
from ablate.run.energy import Meter, energy_facts, read_meter
from ablate.store.facts import find_study
from ablate.store.store import open_store
from tests.command import ablate, query
from tests.run.test_troubles import SMI
from tests.studies import write_study

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

# as in nvml.h: int results, handles as pointers, millijoule as unsigned long long; 2 joule more at each reading
DRIVER = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
static int ready = 0;
int nvmlInit_v2(void) { ready = 1; return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    static int gpu;
    if (!ready) return 1;
    if (strcmp(uuid, "GPU-1111")) return 6;
    *device = &gpu;
    return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *energy) {
    const char *file = getenv("FAKE_METER");
    unsigned long long now = 5000000000ULL;
    FILE *meter = file ? fopen(file, "r") : NULL;
    if (getenv("FAKE_NO_ENERGY")) return 3;
    if (meter) { if (fscanf(meter, "%llu", &now) != 1) return 999; fclose(meter); }
    now += 2000;
    if (file && (meter = fopen(file, "w"))) { fprintf(meter, "%llu", now); fclose(meter); }
    *energy = now;
    return device ? 0 : 2;
}
int nvmlDeviceGetMemoryInfo(void *device, nvmlMemory_t *memory) {
    memory->total = 80ULL << 30;
    memory->used = getenv("FAKE_SHARED") ? 8ULL << 30 : 500ULL << 20;
    memory->free = memory->total - memory->used;
    return device ? 0 : 2;
}
"""
STUDY = """
schema: ablate/v1
name: toy
task: toy:train
metrics: {acc: {goal: max}}
settings: {level: 1, epochs: 1, pause: 0.0}
steps:
  - {name: two, set: {level: 2}}
seeds: 2
resources: {gpus: 1}
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library, and an nvidia-smi beside it that knows the same GPU."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "nvml.c").write_text(DRIVER)
    command = ["cc", "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1"), str(folder / "nvml.c")]
    subprocess.run(command, check=True, timeout=120)
    (folder / "nvidia-smi").write_text(SMI.format(used="500"))
    (folder / "nvidia-smi").chmod(0o755)
    return folder


def run(project: Path, driver: Path, **environment: str) -> None:
    study = write_study(project, STUDY)
    places = {"PATH": f"{driver}:{os.environ['PATH']}", "LD_LIBRARY_PATH": str(driver), "TMPDIR": str(project)}
    done = ablate("run", str(study), cwd=project, FAKE_METER=str(project / "meter"), **places, **environment)
    assert done.returncode == 0, done.stderr


def energies(project: Path) -> list[object]:
    return [row[0] for row in query(project, "SELECT json_extract(environment_json, '$.energy_j') FROM attempt")]


@needs_cc
def test_a_trial_notes_what_its_gpu_used_and_the_table_has_it(project: Path, driver: Path) -> None:
    run(project, driver)
    assert energies(project) == ["2.0"] * 4  # from one reading to the next
    store = open_store(project / "runs" / "ablate.db", read_only=True)
    analysis = analyse(store, find_study(store))
    assert [arm.energy_j for arm in analysis.arms] == [4.0, 4.0]
    assert "| 1 | two | 0.00111 Wh |" in render(analysis, "markdown", columns=["energy"])
    assert '"energy_j": 4.0' in render(analysis, "json")


@needs_cc
@pytest.mark.parametrize("why", ["FAKE_NO_ENERGY", "FAKE_SHARED"])
def test_nothing_is_noted_where_it_is_not_known_or_the_gpu_is_shared(project: Path, driver: Path, why: str) -> None:
    run(project, driver, **{why: "1"})
    assert energies(project) == [None] * 4


def test_a_gpu_that_no_driver_knows_has_no_meter() -> None:
    assert read_meter("GPU-1111") is None


def test_a_counter_that_began_anew_says_nothing() -> None:
    before = Meter(5_000_000, shared=False)
    assert energy_facts(before, Meter(5_400_500, shared=False)) == {"energy_j": "400.5"}
    assert energy_facts(before, Meter(100, shared=False)) == {}
    assert energy_facts(before, None) == energy_facts(None, before) == {}
    assert energy_facts(before, Meter(6_000_000, shared=True)) == {}
