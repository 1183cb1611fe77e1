"""What a study file, or an option, may be answered with: a plan, or faults that a person can read and find."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ablate.cli import main
from ablate.errors import Fault, StudyError
from ablate.plan.trials import open_plan
from tests.study.inputs import SMALL, Input, study_input
from tests.truth import STUDY, fill, truth_study

FILE = "study.yaml"
# faults of a whole file: there is no line to name
WHOLE = re.compile(r"the file is empty|the file is too large|not valid YAML: |has no such profile")
TASK = "def train(settings, context): ...\n"


def flaw_in(faults: Sequence[Fault], lines: int) -> str:
    """Return what is wrong with an answer, in words; empty where a person can act on it."""
    if not faults:
        return "refused without a fault"
    for fault in faults:
        text = str(fault).splitlines()
        if not fault.message or len(text) != (2 if fault.hint else 1):
            return f"not one line: {fault!r}"
        if not all(line.isprintable() and len(line) < 600 for line in text):
            return f"not printable, or endless: {fault!r}"
        if re.search(r"(?<![`\w])None\b|pydantic|ruamel|\[type=", fault.message):
            return f"not in our words: {fault!r}"
        place = re.fullmatch(rf"({re.escape(FILE)}|basenet\.py)(?::(\d+))?|--profile \w+|", fault.where)
        if not place or (place[2] and not 1 <= int(place[2]) <= lines + 1):
            return f"no place of the file: {fault!r}"
    if not any(re.search(r":\d+$", fault.where) or WHOLE.search(fault.message) for fault in faults):
        return f"no fault has a line: {faults!r}"
    return ""


def answer_to_study(seed: int, number: int) -> tuple[str, str]:
    """Read one study."""
    given = _written(seed, number)
    try:
        open_plan(FILE, profile=given.profile)
        faults: Sequence[Fault] = ()
    except StudyError as error:
        faults = error.faults
        flaw = flaw_in(faults, len(re.split(rb"\r\n|[\r\n\x0b\x0c]|\xc2\x85|\xe2\x80[\xa8\xa9]", given.data)))
        if flaw:
            return "wrong", flaw
    return ("refused" if faults else "ok"), ""


def answer_to_commands(seed: int, number: int) -> tuple[str, str]:
    """Let `validate`, `plan` and `run` read a study; one that is sound is not run."""
    given = _written(seed, number)
    options = ["--profile", given.profile] if given.profile else []
    code, out, err = called(["plan", FILE, *options])
    flaw = flaw_of_output(code, out, err, (0, 2))
    commands = [["validate", FILE], *([["run", FILE, *options]] if code else [])]
    for command in commands:
        flaw = flaw or flaw_of_output(*called(command), (0, 2) if command[0] == "validate" else (2,))
    there = sorted(path.name for path in Path().iterdir())
    if not flaw and there != [".git", "basenet.py", FILE]:
        flaw = f"it made files: {there}"
    return ("wrong", flaw) if flaw else ("refused" if code else "ok", "")


def _written(seed: int, number: int) -> Input:
    given = study_input(seed, number)
    Path("basenet.py").write_text(TASK)
    Path(FILE).write_bytes(given.data)
    Path(".git").mkdir(exist_ok=True)
    return given


def called(command: Sequence[str]) -> tuple[int, str, str]:
    """Call `ablate …` in this process; return its exit code and what it wrote."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="surrogateescape") for _ in range(2))
    sys.argv = ["ablate", *command]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        out.flush()
        err.flush()
    texts = [stream.buffer.getvalue().decode("utf-8", "replace") for stream in (out, err)]  # type: ignore[attr-defined]
    return code, *texts


def flaw_of_output(code: int, out: str, err: str, expected: Sequence[int]) -> str:
    if code not in expected:
        return f"exit code {code}\n{out[-500:]}{err[-2000:]}"
    if "Traceback" in out + err:
        return f"a traceback\n{err[-2000:]}"
    if code and not re.search(r"^error ?(: | )", err + out, re.MULTILINE):  # doctor's stand in its list
        return f"no error is said: {err[:300]!r}"
    unprintable = next((c for c in out + err if not c.isprintable() and c != "\n"), None)
    return f"it writes {unprintable!r}" if unprintable else ""


def save_study(seed: int, number: int, folder: Path) -> Path:
    given = study_input(seed, number)
    path = folder / f"fuzz-study-{seed}-{number}-{given.profile or 'no-profile'}.yaml"
    path.write_bytes(given.data)
    return path


# --- options -------------------------------------------------------------------------------------------------------

PIECES = [
    "", " ", ",", ",,", "=", "==", ".", "..", "a", "b.c", "settings", "seeds", "resources.gpus", "resources",
    "metrics.a.goal",
    "designs", "analysis.alpha", "execution", "profiles", "name", "1", "-1", "0", "5", "9" * 30, "1e400", ".nan",
    "null", "[]",
    "[1, 2", "{", "{a: 1}", "&a [*a]", "*a", "!!x y", "'", '"', "#", "|", "\t", "\n", "\r\n", "\x1b[31m", "\u202e",
    "\u2028",
    "é", "\ud800", "٣", "²", "x", "y", "baseline", "full", "quick", "no-such", "--only", "%s", "{0}", "$(touch x)",
    ";", "../..",
    "/", "~", "x" * 300, "[" * 60, "y: 1", "<<: 1", "x,y", "1,2,7", "1,1", "x=1", "a=2", "b.c=[3]", "b.d=", "seeds=[4]",
]  # fmt: skip
LOCATIONS = [
    "", " ", ".", "..", "/", "/dev/null", "/dev/zero", "/proc/self/mem", "no/such/folder/x.db", "study.yaml", ".git",
    "x" * 300,
    "sqlite://", "sqlite:///", "sqlite:///x.db", "sqlite:///../../x.db", "sqlite+nosuch:///x", "mysql://u:canary@h/d",
    "://",
    "postgresql://", "nosuch://x", "http://x/y", "x\x00y", "a\x1b[31mb", "\u202ex", "file:x?mode=rw",
    "sqlite:///:memory:",
    "sqlite:///x.db?mode=memory&cache=shared", "postgresql+psycopg://u:canary@[::1/d", "postgresql+psycopg2://x/y",
    "~/x.db",
    "sqlite:///x%00y", "postgresql+asyncpg://u:canary@h/d", "sqlite:///file:x?uri=true",
]  # fmt: skip


def options_input(seed: int, number: int) -> list[str]:
    """Return a command line with hostile options or names. `run` gets no study that it would train."""
    rng = random.Random(f"{seed}:{number}")
    command = [rng.choice(["plan", "plan", "plan", "run"]), FILE]
    for option in rng.sample(["--set", "--seeds", "--only", "--profile"], rng.choice([1, 1, 2])):
        command += [option, "".join(rng.choices(PIECES, k=rng.choice([1, 1, 2, 3])))]
    asks = ["report", "status", "logs", "show", "retry", "compare"]
    match rng.randrange(4):
        case 0:
            command = [rng.choice([*asks[:3], "plan", "retry", "doctor", "compare"])]
            command += {"plan": [FILE], "compare": ["a", "b"]}.get(command[0], [])
            command += ["--store", rng.choice(LOCATIONS)]
        case 1:
            names = [rng.choice([*PIECES, "basenet", "batchnorm", "basenet@x", "basenet:2"]) for _ in range(2)]
            command = [rng.choice(asks), "--", *names[: rng.choice([1, 1, 2])]]
    return command


def answer_to_options(seed: int, number: int) -> tuple[str, str]:
    command = options_input(seed, number)
    Path(FILE).write_text(SMALL.replace("json:loads", "no_such_module:train") if command[0] == "run" else SMALL)
    if not Path("runs").exists():
        fill(Path("runs"), truth_study(steps=STUDY["steps"][:1], seeds=1)).store.close()
    code, out, err = called(command)
    flaw = flaw_of_output(code, out, err, (0, 2) if command[1] == FILE and "--store" not in command else (0, 2, 3, 4))
    if not flaw and "canary" in out + err:
        flaw = f"it tells a password: {err}"
    there = sorted(path.name for path in Path().iterdir())
    if not flaw and there != ["runs", FILE]:
        flaw = f"it made files: {there}"
    return ("wrong", f"{command}: {flaw}") if flaw else ("refused" if code else "ok", "")


def save_options(seed: int, number: int, folder: Path) -> Path:
    path = folder / f"fuzz-options-{seed}-{number}.txt"
    path.write_bytes(os.fsencode("\n".join(map(ascii, options_input(seed, number)))))
    return path


Save = Callable[[int, int, Path], Path]
TARGETS: dict[str, tuple[Callable[[int, int], tuple[str, str]], Save]] = {
    "study": (answer_to_study, save_study),
    "commands": (answer_to_commands, save_study),
    "options": (answer_to_options, save_options),
}
