"""Fuzzing in forked batches: a process that has imported ablate forks a child for each batch of inputs.

The child works under a limit of memory and of CPU time, and says before each input which one it is, so that an input
which kills it is known. Each input's CPU time and peak memory are measured. ``python -m tests.fuzz study`` prints a
line of figures and, for each input that was not answered as it should be, what happened, the file that holds it, and
the command that repeats it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BATCH = 100
CPU_S = {"study": 1.0, "commands": 4.0, "options": 1.0}  # of one input; the commands read a study three times
MEMORY_MIB = 300  # peak of the whole process, ablate and Python included
MEMORY_LIMIT = 768 << 20  # of address space beyond what is mapped: the backstop
CPU_LIMIT_S = 20  # of one input: the backstop

# what an input comes to: ("ok" or "refused", "") or ("wrong", why)
Answer = tuple[str, str]


@dataclass(frozen=True)
class Target:
    """What is fuzzed. ``answer`` is called in a folder of its own; ``save`` writes an input for a person to look at."""

    cpu_s: float
    answer: Callable[[int, int], Answer]
    save: Callable[[int, int, Path], Path]


@dataclass
class Found:
    """What became of the inputs so far."""

    answers: Counter[str] = field(default_factory=Counter)
    wrong: dict[int, str] = field(default_factory=dict)
    cpu_s: dict[int, float] = field(default_factory=dict)
    memory_mib: dict[int, float] = field(default_factory=dict)


def run(target: Target, seed: int, numbers: Sequence[int]) -> Found:
    """Answer the inputs in batches; one that took too long is tried once more: others share the machine."""
    found = Found()
    for start in range(0, len(numbers), BATCH):
        batch = list(numbers[start : start + BATCH])
        while batch:
            batch = _batch(target, seed, batch, found)
    for number in [number for number, seconds in found.cpu_s.items() if seconds > target.cpu_s]:
        again = Found()
        _batch(target, seed, [number], again)
        found.cpu_s[number] = min(found.cpu_s[number], again.cpu_s.get(number, CPU_LIMIT_S))
        if found.cpu_s[number] > target.cpu_s:
            found.wrong[number] = f"took {found.cpu_s[number]:.1f} s of CPU time"
    for number, mib in found.memory_mib.items():
        if mib > MEMORY_MIB:
            found.wrong[number] = f"took {mib:.0f} MiB of memory"
    return found


def _batch(target: Target, seed: int, numbers: list[int], found: Found) -> list[int]:
    """Answer a batch in a child; return what is left of it where an input killed the child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        _child(target, seed, numbers, writer)
    os.close(writer)
    with os.fdopen(reader) as lines:
        said = [json.loads(line) for line in lines]
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    begun: int | None = None
    for line in said:
        if "begin" in line:
            begun = line["begin"]
            continue
        number = line["number"]
        found.answers[line["answer"]] += 1
        found.cpu_s[number], found.memory_mib[number] = line["cpu_s"], line["mib"]
        if line["answer"] == "wrong":
            found.wrong[number] = line["why"]
        begun = None
    if status == 0 and begun is None:
        return []
    culprit = numbers[0] if begun is None else begun
    found.wrong[culprit] = f"the process died: {f'signal {-status}' if status < 0 else f'exit code {status}'}"
    return numbers[numbers.index(culprit) + 1 :]


def _child(target: Target, seed: int, numbers: Sequence[int], writer: int) -> None:
    limit = _mapped() + MEMORY_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    status = 1
    try:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            os.chdir(folder)
            for number in numbers:
                _say(writer, {"begin": number})
                _say(writer, {"number": number, **_measured(target, seed, number)})
            os.chdir("/")
        status = 0
    finally:
        os._exit(status)


def _measured(target: Target, seed: int, number: int) -> dict[str, object]:
    spent = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (spent + CPU_LIMIT_S, resource.RLIM_INFINITY))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    started = time.process_time()
    try:
        answer, why = target.answer(seed, number)
    except BaseException:
        answer, why = "wrong", traceback.format_exc()[-4000:]
    seconds = time.process_time() - started
    return {"answer": answer, "why": why, "cpu_s": seconds, "mib": _status("VmHWM") / 1024}


def _say(writer: int, message: dict[str, object]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(writer, data) :]


def _mapped() -> int:
    return _status("VmSize") * 1024


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, f"/proc/self/status has no {key}"
    return int(found[1])


def main() -> None:
    """Fuzz one target and exit with 1 where an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=("study", "commands", "options"))
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--number", type=int, help="only the input of this number")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()), help="where failing inputs are saved")
    given = parser.parse_args()
    from tests.study import answers

    target = Target(CPU_S[given.target], *answers.TARGETS[given.target])
    started = time.monotonic()
    numbers = range(given.count) if given.number is None else [given.number]
    found = run(target, given.seed, numbers)
    for number, why in list(found.wrong.items())[:20]:
        path = target.save(given.seed, number, given.keep)
        print(f"input {number} of seed {given.seed}: {why:.2000}\n  it is {path}")
        print(f"  again: python -m tests.fuzz {given.target} --seed {given.seed} --number {number}")
    slowest = max(found.cpu_s, key=found.cpu_s.__getitem__)
    largest = max(found.memory_mib, key=found.memory_mib.__getitem__)
    told = ", ".join(f"{count:,} {answer}" for answer, count in sorted(found.answers.items()))
    print(
        f"{given.target}, seed {given.seed}: {len(numbers):,} inputs ({told}), {len(found.wrong)} answered wrongly; "
        f"at most {found.cpu_s[slowest]:.2f} s of CPU (input {slowest}) and {found.memory_mib[largest]:.0f} MiB "
        f"(input {largest}); {time.monotonic() - started:.0f} s in all"
    )
    sys.exit(bool(found.wrong))


if __name__ == "__main__":
    main()
