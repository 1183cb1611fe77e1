"""Claims under load: eight processes and those who look on, on both stores. Nobody is given what another has.

What the store says of itself is not believed: each process writes down what it was given in a file of its own.
``ABLATE_TEST_SOAK=1`` goes on for two minutes, or 100,000 claims. The counts are printed (``pytest -s``).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from ablate.mirror.follower import start_follower
from ablate.mirror.optuna import mirror_file
from ablate.store.facts import record_plan
from ablate.store.integrity import store_flaws
from ablate.store.store import open_store
from tests.mirror.drawn import trials_in
from tests.studies import toy_plan

SOAK = bool(os.environ.get("ABLATE_TEST_SOAK"))
SECONDS, CLAIMS, PROCESSES = (120, 100_000, 8) if SOAK else (6, 2_000, 8)

# claims, records and finishes as a runner does; puts all back in the queue when it is empty
WORKER = """
import sys, time
from pathlib import Path
from ablate.store import claims
from ablate.store.claims import Ending
from ablate.store.store import open_store

location, folder, name, seconds, most = sys.argv[1:]
folder = Path(folder)
store = open_store(location, folder=folder)
claims.register_runner(
    store, runner_id=name, study_id=1, facts={"host": "h", "boot_id": "b", "lock_file": "", "command": "test"}
)
print("ready", flush=True)
deadline = float(sys.stdin.readline()) + float(seconds)
with open(folder / f"{name}.claims", "w") as log:
    for number in range(int(most)):
        if time.time() >= deadline and number >= 15:  # on a machine that is busy with other things it takes longer
            break
        began = time.perf_counter()
        claim = claims.claim_trial(store, runner_id=name, study_id=1, arms=None, slot="cpu:0")
        took = time.perf_counter() - began
        if claim is None:
            claims.reopen(store, 1, states=["done"])
            continue
        print(claim.trial, claim.number, took, file=log, flush=True)
        assert claims.add_measurements(store, [(claim, [{"epoch": 1, "values": {"acc": 0.5}}])]) == []
        if number % 10 == 0:
            claims.renew(store, name)
        claims.finish(store, claim, Ending("ok", "done", seconds=0.0), {"acc": 1.0})
claims.end_runner(store, name)
"""

# what `ablate status`, `ablate watch` and `ablate report` read, all the time
READER = """
import sys, time
from pathlib import Path
from ablate.analyse.analysis import analyse
from ablate.analyse.standing import standing
from ablate.report import markdown
from ablate.store.facts import find_study
from ablate.store.integrity import store_flaws
from ablate.store.store import open_store

store = open_store(sys.argv[1], folder=Path(sys.argv[2]), read_only=True)
looks = 0
while not Path(sys.argv[2], "over").exists():
    stored = find_study(store, "toy")
    counts = standing(store, stored, is_alive=lambda _: True).counts
    assert counts.planned == 60, counts
    markdown.render(analyse(store, stored))
    flaws = store_flaws(store)
    assert flaws == [], flaws
    looks += 1
    time.sleep(0.2)
print(looks)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_eight_processes_are_never_given_the_same(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    with closing(open_store(location, folder=folder, create=True)) as store:
        record_plan(store, toy_plan(tmp_path, overrides=["seeds=20"]))
        follower = start_follower(store)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", WORKER, location, str(folder)]
        limits = [str(SECONDS), str(CLAIMS // PROCESSES)]
        workers = [subprocess.Popen([*command, f"r{i}", *limits], **pipes) for i in range(PROCESSES)]  # type: ignore[call-overload]
        reader = subprocess.Popen([sys.executable, "-c", READER, location, str(folder)], **pipes)  # type: ignore[call-overload]
        for worker in workers:
            assert worker.stdout.readline() == "ready\n", worker.stderr.read()
        began = time.time()
        for worker in workers:
            worker.stdin.write(f"{began}\n")
            worker.stdin.flush()
        for worker in workers:
            _, said = worker.communicate(timeout=SECONDS + 300)
            assert (worker.returncode, said) == (0, "")
        seconds = time.time() - began
        (folder / "over").touch()
        looks, said = reader.communicate(timeout=300)
        assert (reader.returncode, said) == (0, "")
        assert follower.stop(patience_s=300) == ""

        lines = [line.split() for i in range(PROCESSES) for line in (folder / f"r{i}.claims").read_text().splitlines()]
        given = Counter((int(trial), int(number)) for trial, number, _ in lines)
        assert [each for each, times in given.items() if times > 1] == []
        last = {trial: max(number for other, number in given if other == trial) for trial, _ in given}
        assert len(given) == sum(last.values()), "claims of a trial are 1, 2, …"
        rows = store.read(lambda c: list(c.execute(text("SELECT id, claim FROM trial WHERE claim > 0"))))
        assert {row.id: row.claim for row in rows} == last
        assert store_flaws(store, thorough=True) == []
        values = [trial.value for trial in trials_in(mirror_file(store), "toy v1") if trial.value is not None]
        assert set(values) <= {1.0}
        took = sorted(float(line[2]) for line in lines)
        kind = store.engine.dialect.name
    middle, most, worst = (1000 * took[int(share * (len(took) - 1))] for share in (0.5, 0.99, 1.0))
    print(
        f"\n{kind}: {len(given):,} claims in {seconds:.1f} s by {PROCESSES} processes: {len(given) / seconds:.0f} a s,"
        f" median {middle:.1f} ms, p99 {most:.0f} ms, worst {worst:.0f} ms; {int(looks):,} looks; none given twice"
    )
    assert len(given) > 60, "each trial more than once"
