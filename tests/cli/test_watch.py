"""The live picture in a real terminal, and its plain lines in a pipe."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

from tests.command import ABLATE, finish, start
from tests.run.test_stops import running, wait_until
from tests.studies import TOY_STUDY, write_study

STUDY = TOY_STUDY.replace("epochs: 3, pause: 0.0", "epochs: 30, pause: 0.05")


class Terminal:
    """A command in a terminal of its own, of so many rows and columns."""

    def __init__(self, *arguments: str, cwd: Path, rows: int = 24, columns: int = 80, **environment: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        inherited = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [*ABLATE, *arguments],
            cwd=cwd,
            env={**inherited, "TERM": "xterm", **environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self._written = b""

    def read(self, seconds: float = 0.1) -> str:
        """Return all that was written so far."""
        with contextlib.suppress(OSError):  # the other end has closed
            while select.select([self._master], [], [], seconds)[0]:
                self._written += os.read(self._master, 65536)
        return self._written.decode("utf-8", "replace")

    def press_ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, *, seconds: float = 60) -> str:
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"still running after {seconds} s:\n{self.read()}")
            self.read()
        text = self.read(0)
        os.close(self._master)
        return text


def frames(text: str) -> list[list[str]]:
    """Return the pictures that were drawn, as lines without their styles."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r\n", "\n")
    parts = re.split(r"(?:\r?\x1b\[\?25[lh]|\r?\x1b\[2K|\x1b\[1A|\r)+", plain)
    return [part.rstrip("\n").split("\n") for part in parts if re.search(r" of \d+ trials done", part)]


def test_a_run_on_a_terminal_shows_a_picture_and_takes_it_away(project: Path) -> None:
    path = write_study(project, STUDY)
    terminal = Terminal("run", str(path), "-j", "2", cwd=project, rows=16, columns=70)
    text = terminal.end()
    assert terminal.process.returncode == 0, text
    pictures = frames(text)
    assert len(pictures) > 3
    for picture in pictures:
        assert len(picture) < 16
        assert max(map(len, picture)) <= 70
    whole = "\n".join(max(pictures, key=len))
    assert re.search(r"^arm +1 2$", whole, re.MULTILINE)
    assert re.search(r"^baseline +[◐●] ", whole, re.MULTILINE)
    assert "Ctrl-C stops; nothing is lost" in whole
    every = "\n".join(line for picture in pictures for line in picture)
    assert re.search(r"seed 1 +epoch +\d+/30 +acc [\d.]+ ", every)
    assert re.search(r"about [\d.]+ s left", every)
    after = text[text.rindex("Ctrl-C stops") :]
    assert after.count("\x1b[2K") >= len(pictures[-1]), "every line of the picture is wiped"
    assert after.endswith("\r\n")
    assert "\x1b[?25h" in after, "the cursor is back"


def test_watching_shows_the_same_picture_and_stops_without_stopping_the_run(project: Path) -> None:
    path = write_study(project, STUDY.replace("epochs: 30", "epochs: 100"))
    run = start("run", str(path), "-j", "2", cwd=project)
    wait_until(lambda: running(project) == 2)
    terminal = Terminal("watch", cwd=project)
    wait_until(lambda: re.search(r"seed 1 +epoch +\d+/100 +acc", terminal.read()))
    terminal.press_ctrl_c()
    text = terminal.end(seconds=20)
    assert terminal.process.returncode == 130, text
    whole = "\n".join(frames(text)[-1])
    assert "Ctrl-C ends the watching; the study runs on" in whole
    assert "2 running" in whole
    assert run.poll() is None
    run.terminate()
    finish(run)


def test_watching_in_a_pipe_prints_a_line_per_trial_until_all_is_done(project: Path) -> None:
    run = start("run", str(write_study(project, STUDY)), "-j", "2", cwd=project)
    wait_until(lambda: running(project) == 2)
    watch = start("watch", "toy", cwd=project)
    said = finish(watch)
    assert watch.returncode == 0, said
    finish(run)
    lines = said.splitlines()
    ended = [line for line in lines if re.fullmatch(r"\[\d/6\] \S+ seed \d: acc [\d.]+, [\d.]+ s", line)]
    assert 2 <= len(ended) <= 6
    assert lines[-1] == "toy: 6 of 6 trials done"
    assert "\x1b" not in said


def test_watching_ends_where_nobody_works_any_more(project: Path) -> None:
    path = write_study(project, STUDY.replace("epochs: 30", "epochs: 3000"))
    run = start("run", str(path), "-j", "2", cwd=project)
    wait_until(lambda: running(project) == 2)
    watch = start("watch", cwd=project)
    run.kill()
    finish(run)
    said = finish(watch, timeout=30)
    assert watch.returncode == 0
    assert f"nobody is at work on it; go on with: ablate run {path.name} -j 2\n" in said


def test_a_terminal_in_the_c_locale_gets_ascii(project: Path) -> None:
    path = write_study(project, STUDY)
    terminal = Terminal("run", str(path), "--only", "baseline", cwd=project, LANG="C", LC_ALL="C")
    text = terminal.end()
    assert terminal.process.returncode == 0, text
    assert text.isascii()
    assert re.search(r"baseline +[o+] ", text)
