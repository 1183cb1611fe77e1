"""Files made to break the reader: it must refuse them soon and in little memory, or read them."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ablate.errors import StudyError
from ablate.plan.trials import open_plan
from ablate.study.document import MAX_BYTES, MAX_NODES

HEAD = "schema: ablate/v1\nname: demo\ntask: json:loads\nmetrics: {m: {goal: max}}\n"
DEEP = "nested deeper than 50 levels"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

HOSTILE = {
    "larger than 1 MiB": ("a: 1\n" * 300_000, "too large"),
    "180 000 brackets": ("a: " + "[" * 90_000 + "\n" + "[" * 90_000, DEEP),
    "20 000 braces": ("a: " + "{a: " * 20_000, DEEP),
    "deep blocks": ("".join(" " * depth + "a:\n" for depth in range(1000)), DEEP),
    "deep lists on a line": ("- " * 40_000, DEEP),
    "deep by aliases": (
        "a: &a " + "[" * 40 + "]" * 40 + "\n" + "".join(f"b{i}: &b{i} {'[' * 11}*a{']' * 11}\n" for i in range(99)),
        DEEP.removeprefix("nested "),
    ),
    "too many values": (HEAD + "settings: {a: [" + "1, \n" * (MAX_NODES + 1) + "]}\n", "50,000 values"),
    "alias bomb": (BOMB, "50,000 values"),
    "alias bomb in a profile": (HEAD + "profiles:\n  " + BOMB.replace("\n", "\n  "), "50,000 values"),
    "a line of a million characters": (HEAD + "settings: {a: " + "x" * 1_000_000 + "}\n", "100,000 characters"),
    "a key of 90 000 characters": (HEAD + "settings: {" + "x" * 90_000 + ": 1}\n", "a key has at most 200"),
    "a tag of 90 000 characters": ("a: " + "!" * 90_000, "is not allowed"),
    "20 000 unknown keys": (HEAD + "settings: {a: 1}\n" + "".join(f"k{i}: 1\n" for i in range(20_000)), "more"),
    "20 000 duplicate keys": (HEAD + "settings: {" + "a: 1,\n " * 20_000 + "}\n", "stands twice"),
    "a billion seeds": (HEAD + "settings: {a: 1}\nseeds: 1000000000\n", "between 1 and 10,000"),
    "a billion trials": (
        HEAD
        + "settings: {a: 0}\nsteps:\n"
        + "".join(f"- {{name: s{i}, set: {{a: {i + 1}}}}}\n" for i in range(500))
        + "seeds: [" + ", ".join(map(str, range(10_000))) + "]\n",
        "501 arms × 10,000 seeds are 5,010,000 trials",
    ),
    "too many steps": (
        HEAD + "settings: {a: 0}\nsteps:\n" + "".join(f"- {{name: s{i}, set: {{a: {i + 1}}}}}\n" for i in range(1001)),
        "at most 1,000 steps",
    ),
    "long words in many places": (
        HEAD + f"settings: {{a: 1}}\nsteps: [{{name: s, from: {'y' * 50_000}, set: {{a: {'z' * 40_000}}}}}]\n",
        "which is no step",
    ),
    "an unknown directive": ("%" + "x" * 9000 + "\n---\na: 1\n", ""),
    "only stars": ("*a " * 30_000, "no anchor above it"),
    "only quotes": ("'" * 90_000, ""),
    "only question marks": ("? " * 40_000, ""),
    "only colons": (": " * 40_000, DEEP),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_soon(name: str, tmp_path: Path) -> None:
    text, expected = HOSTILE[name]
    path = tmp_path / "study.yaml"
    path.write_text(text)
    started = time.process_time()
    with pytest.raises(StudyError) as error:
        open_plan(path)
    assert time.process_time() - started < 5
    message = str(error.value)
    assert expected in message
    assert len(error.value.faults) <= 51
    assert all(line.isprintable() and len(line) < 600 for line in message.splitlines())


def test_large_but_honest_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(HEAD + "settings:\n" + "".join(f"  k{i}: 1\n" for i in range(10_000)) + "# remark\n" * 50_000)
    assert len(open_plan(path).study.settings) == 10_000


@pytest.mark.parametrize("name", ["alias bomb", "180 000 brackets", "20 000 unknown keys"])
def test_no_signal_and_little_memory(name: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(HOSTILE[name][0])
    (tmp_path / ".git").mkdir()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))

    command = [sys.executable, "-c", "from ablate.cli import main; main()", "validate", "study.yaml"]
    done = subprocess.run(command, cwd=tmp_path, preexec_fn=limit, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: study.yaml")


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").touch()
    for path, expected in [
        (tmp_path, "can't be read: Is a directory"),
        (tmp_path / "studdy.yaml", f"no such study file\nhint: studies there: {tmp_path / 'other.yaml'}"),
        (tmp_path / "none" / "study.yaml", "no such study file\nhint: give the path of a study file"),
        (Path("/dev/null"), "the file is empty"),
        (Path("/dev/zero"), f"at most {MAX_BYTES:,} bytes"),
        (tmp_path / ("x" * 300), "File name too long"),
    ]:
        with pytest.raises(StudyError) as error:
            open_plan(path)
        assert expected in str(error.value)
