from __future__ import annotations

import signal
from pathlib import Path

import pytest

from ablate.run import logs
from tests.command import Call, finish, query, start
from tests.run.test_stops import running, wait_until
from tests.studies import TOY, TOY_STUDY, write_study

TALKING = TOY.replace("        time.sleep", "        print(f'epoch {epoch} begins', flush=True)\n        time.sleep")


def test_a_failed_trial_is_what_one_wants_to_read(troubled: Path, call: Call) -> None:
    done = call("logs", cwd=troubled)
    assert done.returncode == 0
    folder = query(troubled, "SELECT folder FROM attempt WHERE outcome = 'error'")[0][0]
    assert done.stderr == f"toy: three seed 2, attempt 1 (error): {troubled / 'runs' / folder / 'stdout.log'}\n"
    lines = done.stdout.splitlines()
    assert lines[:2] == ["début of 2", "half"]  # of a line that was rewritten, what stood there at last
    assert lines[-1] == "ValueError: no \\x1b[31m good, said × and Ω"
    assert "\x1b" not in done.stdout
    for words in (["three"], ["toy"], ["toy.yaml"], ["toy", "three"], ["three", "--seed", "2", "--attempt", "1"]):
        assert call("logs", *words, cwd=troubled).stdout == done.stdout, words
    assert call("logs", "-n", "1", cwd=troubled).stdout == lines[-1] + "\n"
    assert call("logs", "-n", "0", cwd=troubled).stdout == ""
    assert call("logs", "-f", cwd=troubled).stdout == done.stdout


def test_without_a_failure_the_last_attempt_is_shown(troubled: Path, call: Call) -> None:
    assert "two seed 2, attempt 1 (diverged)" in call("logs", "two", cwd=troubled).stderr
    assert call("logs", "two", "--seed", "1", cwd=troubled).stdout == "début of 1\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["thre"], "error: `thre` is neither an arm of `toy` nor a study\nhint: did you mean `three`?\n"),
        (["toy", "thre"], "error: `toy` has no arm `thre`\nhint: did you mean `three`?\n"),
        (["two", "--seed", "7"], "error: two has no seed 7\nhint: known: 1, 2\n"),
        (["two", "--attempt", "3"], "error: two seed 2 has no attempt 3\nhint: known: 1\n"),
        (["toy", "two", "3"], "error: expected a study and an arm, got 3 words\nhint: `ablate logs --help` shows"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(troubled: Path, call: Call, words: list[str], said: str) -> None:
    done = call("logs", *words, cwd=troubled)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(said)


def test_following_ends_with_the_attempt(project: Path) -> None:
    path = write_study(project, TOY_STUDY.replace("epochs: 3, pause: 0.0", "epochs: 60, pause: 0.05"), task=TALKING)
    run = start("run", str(path), "--only", "baseline", "--seeds", "1", cwd=project)
    wait_until(lambda: running(project) == 1)
    follow = start("logs", "-f", "-n", "1", cwd=project)
    out, said = follow.communicate(timeout=60)
    assert follow.returncode == 0, said
    assert "attempt 1 (running)" in said
    assert out.splitlines()[-1] == "epoch 60 begins"
    assert len(out.splitlines()) > 1
    finish(run)
    assert run.returncode == 0


def test_following_ends_when_the_runner_is_killed_or_at_ctrl_c(project: Path) -> None:
    path = write_study(project, TOY_STUDY.replace("epochs: 3, pause: 0.0", "epochs: 6000, pause: 0.05"), task=TALKING)
    run = start("run", str(path), "-j", "1", cwd=project)
    wait_until(lambda: running(project) == 1)
    first, second = start("logs", "-f", cwd=project), start("logs", "-f", cwd=project)
    assert first.stdout is not None
    assert first.stdout.readline() == "epoch 1 begins\n"
    first.send_signal(signal.SIGINT)
    assert "interrupted" in finish(first)
    assert first.returncode == 130
    run.kill()
    finish(run)
    finish(second)
    assert second.returncode == 0


def bytes_read() -> int:
    """What this process has read so far, by the kernel's count."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_the_last_lines_of_a_large_file_are_found_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {i} é\n" for i in range(100_000)) + "open end")
    before = bytes_read()
    assert list(logs.lines(path, last=3)) == ["line 99998 é", "line 99999 é", "open end"]
    assert bytes_read() - before < path.stat().st_size / 4
    assert len(list(logs.lines(path, last=20_000))) == 20_000
    assert len(list(logs.lines(path, last=200_000))) == 100_001
    assert len(list(logs.lines(path))) == 100_001


@pytest.mark.parametrize("text", ["", "\n", "a", "a\n", "a\nb", "a\n\nb\n", "\n\n"])
@pytest.mark.parametrize("last", [0, 1, 2, 3])
def test_the_last_lines_are_those_of_tail(tmp_path: Path, text: str, last: int) -> None:
    path = tmp_path / "log"
    path.write_text(text)
    assert list(logs.lines(path, last=last)) == (text.splitlines()[-last:] if last else [])


def test_a_character_that_is_written_in_two_pieces_is_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    pieces = iter([b"caf\xc3", b"\xa9\nnext", b" line"])
    path.write_bytes(next(pieces))
    left = 2

    def write_more(_: float) -> None:
        nonlocal left
        left -= 1
        with path.open("ab") as file:
            file.write(next(pieces))

    assert list(logs.follow(path, last=None, ended=lambda: left == 0, wait=write_more)) == ["café", "next line"]
